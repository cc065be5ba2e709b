"""The layers of an engine, and the precision in which each product of the ONNX graph runs.

Two sources: the engine inspector's JSON, which needs the engine and so a GPU, and TensorRT-RTX's builder, which logs
the same of each layer in words and needs none.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitdeploy.backends.base import Census

INSPECTOR = "TensorRT engine inspector"
BUILDER = "TensorRT-RTX builder's layer list"
# What a layer's type or kernel is called where it multiplies matrices or convolves.
PRODUCTS = re.compile(r"gemm|conv|correlation|matrixmultiply|mha|runtime_fusion|fc_|fullyconnected", re.IGNORECASE)
IDLE = {"constant", "noop", "signal", "wait", "reformat", "shuffle", "identity"}
TYPES = (
    ("fp8", r"float8|fp8|e4m3"),
    ("fp4", r"float4|fp4|e2m1"),
    ("bf16", r"bfloat16|bf16"),
    ("fp16", r"half|fp16|float16"),
    ("fp32", r"float|fp32"),
    ("int8", r"\bu?int8"),
    ("int4", r"int4"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
)
NARROW = ("int8", "fp8", "int4", "fp4")
WIDE = ("fp16", "bf16", "fp32")
UNKNOWN = "unknown"
LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: (?P<nodes>.*)"
)


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: a kernel, or a few that run together.

    Attributes:
        name: TensorRT's.
        kind: its LayerType: 'gemm', 'CaskConvolution', 'kgen' (generated code), 'runtime_fusion', ...
        inputs, constants, outputs: precisions: 'fp16', 'int8', ...
        tactic: the kernel's name; empty where it is chosen on the device.
        nodes: names of the ONNX nodes that it stands for, in whole or in part.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tactic: str = ""
    nodes: tuple[str, ...] = ()

    @property
    def multiplies(self) -> bool:
        return self.kind.lower() not in IDLE and bool(PRODUCTS.search(f"{self.kind} {self.name} {self.tactic}"))

    @property
    def precision(self) -> str:
        """Of its multiplications: few bits where both operands have them, else the first operand's float type.

        What comes later in the list is added or scaled by, and need not be of that type.
        """
        for kind in NARROW:
            if kind in self.inputs and (kind in self.constants or self.inputs.count(kind) > 1):
                return kind
        operands = (*self.inputs, *self.constants) or self.outputs
        return next((kind for kind in operands if kind in WIDE), operands[0] if operands else UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layer:
        """Inverse of `to_dict`."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**plain)


def from_log(lines: Iterable[str]) -> list[Layer]:
    """What TensorRT-RTX's builder says at its most talkative, a line a layer; other lines are passed over."""
    found = []
    for line in lines:
        match = LINE.search(line)
        if match is None:
            continue
        inputs, constants, outputs = (
            tuple(precision_of(kind) for kind in re.findall(r"Datatype: (\w+)", match[part]))
            for part in ("inputs", "constants", "outputs")
        )
        nodes = _nodes(match["nodes"], "")
        found.append(Layer(match["name"], match["kind"], inputs, constants, outputs, match["tactic"].strip(), nodes))
    return found


def from_inspector(text: str) -> list[Layer]:
    """What EngineInspector.get_engine_information gives as JSON.

    An engine that was not built with detailed verbosity tells names alone: its layers then have no types.
    """
    found = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):
            found.append(Layer(entry, "", nodes=_nodes("", entry)))
            continue
        name = str(entry.get("Name", ""))
        constants = [str(entry[key].get("Type", "")) for key in ("Weights",) if isinstance(entry.get(key), dict)]
        found.append(
            Layer(
                name,
                str(entry.get("LayerType", "")),
                _types(entry.get("Inputs")),
                (*_types(entry.get("Constants")), *(precision_of(kind) for kind in constants if kind)),
                _types(entry.get("Outputs")),
                str(entry.get("TacticName", "")),
                _nodes(str(entry.get("Metadata", "")), name),
            )
        )
    return found


def precision_of(text: str) -> str:
    """'Half', 'FP16' and 'Row major linear FP16 format' are 'fp16'."""
    lower = text.lower()
    return next((kind for kind, pattern in TYPES if re.search(pattern, lower)), UNKNOWN)


def count(layers: Sequence[Layer], products: Mapping[str, str], source: str) -> Census:
    """The census of an engine.

    Args:
        products: op type by name, of the ONNX nodes that multiply. `compute` then counts these, each in the precision
            of the layer that multiplies it; where none is known, the layers that multiply.
    """
    ops: dict[str, Counter[str]] = defaultdict(Counter)
    for layer in layers:
        ops[layer.kind or UNKNOWN][layer.precision] += 1
    if products:
        compute = Counter(precision for precision in precisions(layers, products).values() if precision != UNKNOWN)
    else:
        compute = Counter(layer.precision for layer in layers if layer.multiplies)
    casts = sum(_is_cast(layer) for layer in layers)
    return Census(source, {kind: dict(found) for kind, found in sorted(ops.items())}, dict(compute), casts)


def precisions(layers: Sequence[Layer], products: Mapping[str, str]) -> dict[str, str]:
    """The precision of each product by name; 'unknown' for one that no layer stands for: it was folded away."""
    by_node: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        for node in layer.nodes:
            by_node[node].append(layer)
    return {name: _precision_of_product(by_node.get(name, [])) for name in products}


def _precision_of_product(layers: Sequence[Layer]) -> str:
    """Of several layers that stand for a product, some only quantise or reformat what it reads.

    Where none is a product by its name, generated code has it among other things: a product with a single row goes into
    the norm before it, whose statistics are fp32 inputs. There the type is that of the weights.
    """
    found = [layer.precision for layer in layers if layer.multiplies]
    if not found:
        found = [next((k for k in layer.constants if k in WIDE), layer.precision) for layer in layers]
    return next((kind for kind in (*NARROW, *WIDE) if kind in found), found[0] if found else UNKNOWN)


def _types(tensors: Any) -> tuple[str, ...]:
    """Precisions of an entry's tensors; those that depend on a shape that was not given are 'unknown'."""
    if not isinstance(tensors, list):
        return ()
    keys = ("Format/Datatype", "Datatype", "Format")
    texts = [next((str(t[key]) for key in keys if key in t), "") if isinstance(t, dict) else str(t) for t in tensors]
    return tuple(precision_of(text) for text in texts)


def _nodes(metadata: str, name: str) -> tuple[str, ...]:
    """ONNX nodes by the layer's metadata, or else by its name, which joins theirs with plus signs."""
    found = re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata)
    return tuple(found) if found else tuple(part.strip() for part in name.split(" + ") if part.strip())


def _is_cast(layer: Layer) -> bool:
    """Whether a layer changes a floating-point type and does nothing else."""
    kinds = {*layer.inputs, *layer.outputs}
    alone = layer.kind.lower() in ("reformat", "cast") or bool(re.match(r"__myl_Cast_", layer.name))
    return alone and len(kinds) == 2 and kinds <= set(WIDE)

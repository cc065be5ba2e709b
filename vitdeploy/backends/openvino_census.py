"""Ops by executed precision, read from the graph that an OpenVINO device runs.

What a node tells of itself is not enough. Its 'runtimePrecision' says int8 of a product of float activations with int8
weights, which multiplies floats, and of fused attention with a single int8 input among float ones. So the precision of
a node that does MACs follows from the types of the tensors that it multiplies. Fused attention and MLPs are nodes of
type Subgraph, as are mere elementwise chains: which original ops were fused tells them apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vitdeploy.backends.base import Census

SOURCE = "OpenVINO runtime model"

# Types of executed nodes, as the CPU and the GPU name them, in lower case without underscores.
COMPUTE = {
    *("convolution", "binaryconvolution", "deformableconvolution", "deconvolution", "fullyconnected", "matmul", "gemm"),
    *("mha", "scaleddotproductattention", "scaleddotproductattentionwithkvcache", "pagedattention", "qkvprojection"),
    *("llmmlp", "gathermatmul", "batchgathermatmul"),
}
ATTENTION = {"mha", "scaleddotproductattention", "scaleddotproductattentionwithkvcache", "pagedattention"}
FUSED = "subgraph"
CONVERSIONS = {"convert", "reorder"}
IDLE = {"const", "input", "output", "result"}
# Types of ops in the model as it was read.
MACS = {
    *("MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("DeformableConvolution", "Einsum", "ScaledDotProductAttention"),
}
FLOATS = ("f64", "f32", "bf16", "f16")  # the widest range first
BYTES, HALF_BYTES = {"i8", "u8"}, {"i4", "u4"}
UNKNOWN = "unknown"
Trial = Callable[[int, int], bool]  # whether a product with weights (outputs, inner) has its input quantised
PRECISIONS = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "boolean": "bool"}
PRECISIONS |= {"i32": "int32", "i64": "int64", "dynamic": UNKNOWN, "undefined": UNKNOWN}


@dataclass(frozen=True)
class Executed:
    """A node that runs in every inference.

    Attributes:
        kind: OpenVINO's layer type.
        runtime: the precision that it tells of itself.
        origins: names of the original ops that it stands for, by commas, with one before and one after.
        inputs: types of its input tensors; varying: of those that are not constant.
        second: shape of its second input, for a linear layer that of the weights (outputs, inner); empty if unknown.
        outputs: types of its output tensors.
    """

    kind: str
    runtime: str
    origins: str
    inputs: list[str]
    second: tuple[int, ...]
    varying: list[str]
    outputs: list[str]

    @property
    def key(self) -> str:
        return self.kind.lower().replace("_", "")

    def holds(self, names: set[str]) -> bool:
        """Whether one of these original ops is in it. (A name may hold commas itself.)"""
        return any(f",{name}," in self.origins for name in names)


def count(executed: Any, read: Any, dynamic: Trial | None) -> Census:
    """Count the nodes of a runtime model.

    Args:
        executed: `CompiledModel.get_runtime_model()`.
        read: the model as it was read, before compilation.
        dynamic: where the device may quantise float activations on its own, tells whether it does for weights of a
            width, which the runtime model does not; products that it cannot tell of count as 'unknown'.
    """
    nodes = list(_running(executed))
    macs = _mac_names(read, "".join(node.origins for node in nodes))
    converts = {op.get_friendly_name() for op in read.get_ops() if op.get_type_name() == "Convert"}
    ops: dict[str, Counter[str]] = defaultdict(Counter)
    compute: Counter[str] = Counter()
    for node in nodes:
        fused = node.key == FUSED and node.holds(macs)
        if fused or node.key in COMPUTE:
            precision = _multiplied(node, dynamic)
            compute[precision] += 1
        else:
            precision = _name(node.runtime)
        ops[f"{node.kind}(MatMul)" if fused else node.kind][precision] += 1
    casts = sum(_is_cast(node, converts) for node in nodes)
    return Census(SOURCE, {op: dict(found) for op, found in sorted(ops.items())}, dict(compute), casts)


def _running(model: Any) -> Iterator[Executed]:
    """The nodes that run in every inference: none that holds a constant, or that worked on constants alone, once."""
    constant: set[str] = set()
    for op in model.get_ordered_ops():
        info = op.get_rt_info()
        keys = ("layerType", "runtimePrecision", "originalLayersNames")
        kind, runtime, origins = (info[key].astype(str) if key in info else "" for key in keys)
        sources = [port.get_source_output() for port in op.inputs()]
        fixed = [source.get_node().get_name() in constant for source in sources]
        if kind.lower() == "const" or (fixed and all(fixed)):
            constant.add(op.get_name())
        elif kind.lower() not in IDLE:
            inputs = [_type(source) for source in sources]
            varying = [each for each, fix in zip(inputs, fixed, strict=True) if not fix]
            outputs = [_type(port) for port in op.outputs()]
            yield Executed(kind, runtime, f",{origins},", inputs, _shape(sources[1:2]), varying, outputs)


def _mac_names(read: Any, seen: str) -> set[str]:
    """Names that the original MACs go by in the executed graph: a product may take the name of what reads it."""
    names = set()
    for op in read.get_ops():
        if op.get_type_name() in MACS:
            names.add(op.get_friendly_name())
            if f",{op.get_friendly_name()}," not in seen:
                readers = op.output(0).get_target_inputs()
                names |= {reader.get_node().get_friendly_name() for reader in readers}
    return names


def _multiplied(node: Executed, dynamic: Trial | None) -> str:
    """The precision of a node's multiplications; of several in one node, the one with the widest range."""
    if node.key == FUSED:
        return _widest(node.varying) or _name(node.runtime)
    if node.key in ATTENTION:
        return _widest(node.inputs[:3]) or _name(node.runtime)
    # A GPU tells nothing of the weights as an input, and their type as the precision where they are compressed.
    first, second = (*node.inputs, node.runtime, node.runtime)[:2]
    if first in FLOATS:  # weights follow the activations, whatever they are stored as
        if dynamic is None or second not in BYTES | HALF_BYTES:
            return _name(first)
        if second in HALF_BYTES or len(node.second) != 2:
            return UNKNOWN
        return "int8" if dynamic(*node.second) else _name(first)
    return _widest([first, second]) or _name(node.runtime)


def _widest(kinds: list[str]) -> str:
    ranked = [kind for kind in (*FLOATS, *sorted(BYTES)) if kind in kinds]
    return _name(ranked[0]) if ranked else ""


def _is_cast(node: Executed, converts: set[str]) -> bool:
    """Whether a node does nothing but change a floating-point type into another."""
    kinds = {*node.varying, *node.outputs}
    if len(node.varying) != 1 or len(kinds) != 2 or not kinds <= set(FLOATS):
        return False
    name = node.origins.strip(",")
    lone = node.key == FUSED and (name in converts or (name.startswith("Convert_") and "," not in name))
    return node.key in CONVERSIONS or lone


def _shape(ports: list[Any]) -> tuple[int, ...]:
    """The shape of the one port, if there is one and it is static."""
    fixed = [port.get_partial_shape() for port in ports if port.get_partial_shape().is_static]
    return tuple(n.get_length() for n in fixed[0]) if fixed else ()


def _type(port: Any) -> str:
    return str(port.get_element_type().get_type_name())


def _name(kind: str) -> str:
    return PRECISIONS.get(kind, kind or UNKNOWN)

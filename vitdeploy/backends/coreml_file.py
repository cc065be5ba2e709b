"""A Core ML package (.mlpackage): how one is made, in a child process, and what is in it.

A package is a folder: `Manifest.json`, the program as a protobuf (`Data/com.apple.CoreML/model.mlmodel`, of which the
schema is coremltools' `Model.proto` and `MIL.proto`), and its weights beside that (`weights/weight.bin`).
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from vitdeploy.backends.base import Census, TensorSpec
from vitdeploy.backends.library import words
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.spec import IMAGE

if TYPE_CHECKING:
    from torch import fx

PACKAGE = "model.mlpackage"
DATA = "com.apple.CoreML"
MODEL = "model.mlmodel"
WEIGHTS = "weights/weight.bin"
INDEX = "Manifest.json"
# In place of a random identifier of each export.
ITEMS = {MODEL: "CoreML Model Specification", "weights": "CoreML Model Weights"}

WEIGHTED = ("conv", "linear")
PRODUCTS = (*WEIGHTED, "conv_transpose", "matmul", "einsum", "scaled_dot_product_attention")
SHAPED = ("view", "_unsafe_view", "reshape")  # ATen's ops that give a new shape
UNPACKS = "constexpr_"  # ops that make a constant of stored bits
PACKED = {"constexpr_affine_dequantize": "quantized_data", "constexpr_blockwise_shift_scale": "data"}
SHORT = {"float32": "fp32", "float16": "fp16"}
# By the version of the specification: the first systems that run it.
SYSTEMS = {
    6: "iOS 15, macOS 12",
    7: "iOS 16, macOS 13",
    8: "iOS 17, macOS 14",
    9: "iOS 18, macOS 15",
    10: "iOS 26, macOS 26",
}
FEATURES = {65568: "float32", 65600: "float64", 65552: "float16", 131104: "int32", 131080: "int8"}

# Of weight.bin: each blob has a header of so many bytes, which begins with this number.
HEADER = struct.Struct("<IIQQQ")
SENTINEL = 0xDEADBEEF
BLOB_TYPES = {1: "float16", 2: "float32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 14: "int32", 15: "uint32"}
BLOB_TYPES |= {8: "int4", 11: "uint4"}


def convert(saved: Path, package: Path, takes: TensorSpec, gives: Sequence[str], precision: str, facts: Facts) -> None:
    """Make a package of a saved program.

    Args:
        saved: of torch.export.
        package: the folder to make.
        takes: its input.
        gives: names of its outputs.
        facts: what it tells of itself.

    Raises:
        UnsupportedModel: coremltools cannot convert it; the message says which op it lacks.
    """
    import coremltools as ct
    import torch

    compute = ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32
    program = torch.export.load(saved)
    tidy(program.graph_module.graph)
    program.graph_module.recompile()
    mend_gelu()
    lean = ct.PassPipeline.DEFAULT
    lean.remove_passes(
        {"common::reduce_transposes"}
    )  # it breaks some programs, with a matmul of shapes that do not fit
    errors: list[Exception] = []
    made = None
    for passes in (ct.PassPipeline.DEFAULT, lean):
        try:
            made = ct.convert(
                program,
                inputs=[ct.TensorType(takes.name, shape=takes.example, dtype=np.dtype(takes.dtype).type)],
                outputs=[ct.TensorType(name, dtype=np.float32) for name in gives],
                convert_to="mlprogram",
                compute_precision=compute,
                minimum_deployment_target=ct.target.iOS16,
                pass_pipeline=passes,
                skip_model_load=True,
            )
            break
        except Exception as error:
            errors.append(error)
    if made is None:
        raise UnsupportedModel(f"coremltools cannot convert this model: {words(errors[0])}.") from errors[0]
    if precision == "int8-weights":
        made = quantise(made)
    with TemporaryDirectory() as name:
        made.save(f"{name}/{PACKAGE}")
        write(Path(name) / PACKAGE, package, facts)


def tidy(graph: fx.Graph) -> None:
    """Take out what coremltools does not know, or what would have more than the 5 dimensions that Core ML has.

    A shape that is only on the way to another one is left out; of windows, which are cut and put together in 6
    dimensions, coremltools then makes steps of fewer.
    """
    from vitdeploy.export.program import op_name

    for node in [node for node in graph.nodes if op_name(node) == "alias"]:
        node.replace_all_uses_with(node.args[0])
    for node in graph.nodes:
        if op_name(node) in SHAPED:
            source = node.args[0]
            while op_name(source) in (*SHAPED, "clone", "unsqueeze"):
                source = source.args[0]
            node.args = (source, *node.args[1:])
    graph.eliminate_dead_code()  # also unused results of norms, which are named anew as a program is loaded


def mend_gelu() -> None:
    """Have coremltools convert GELU by tanh as such: of an exported program it takes every GELU for the exact one."""
    from coremltools.converters.mil import Builder, register_torch_op

    def gelu(context: Any, node: Any) -> None:
        given = (node.kwinputs or {}).get("approximate", ("none",))[0]
        mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[given]
        context.add(Builder.gelu(x=context[node.inputs[0]], mode=mode, name=node.name))

    register_torch_op(gelu, override=True)


def quantise(made: Any) -> Any:
    """Store the weights of convolutions and linear layers in int8, a scale for each of their outputs."""
    from coremltools.optimize import coreml as optimize

    kind = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
    )
    config = optimize.OptimizationConfig(op_type_configs=dict.fromkeys(WEIGHTED, kind))
    return optimize.linear_quantize_weights(made, config)


@dataclass(frozen=True)
class Facts:
    """What a package tells of itself.

    Attributes:
        about: what Xcode shows first.
        image: about the input.
        metadata: by key; see export.metadata.
    """

    about: str
    image: str
    metadata: Mapping[str, str]


def write(made: Path, package: Path, facts: Facts) -> None:
    """Write what coremltools made as a package in which nothing depends on the time or on chance."""
    spec, source = parse(made / "Data" / DATA / MODEL), made / "Data" / DATA
    own = spec.description.metadata
    kept = {key: text for key, text in own.userDefined.items() if not key.endswith("conversion_date")}
    own.userDefined.clear()
    for key, text in sorted({**kept, **facts.metadata}.items()):
        own.userDefined[key] = text
    own.shortDescription = facts.about
    for feature in spec.description.input:
        feature.shortDescription = facts.image if feature.name == IMAGE else ""
    folder = package / "Data" / DATA
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    items = ITEMS if (source / WEIGHTS).is_file() else {MODEL: ITEMS[MODEL]}  # large constants are there, if any
    if len(items) > 1:
        (folder / WEIGHTS).parent.mkdir()
        shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
    names = {item: str(uuid5(NAMESPACE_URL, f"{DATA}/{item}")) for item in items}
    entries = {
        names[item]: {"author": DATA, "description": said, "name": item, "path": f"{DATA}/{item}"}
        for item, said in items.items()
    }
    index = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": names[MODEL]}
    (package / INDEX).write_text(json.dumps(index, indent=4, sort_keys=True) + "\n", "utf-8", newline="\n")


def root(path: Path) -> Path:
    """The model file of a package, as its index names it; any other path as it is."""
    if not path.is_dir():
        return path
    try:
        index = json.loads((path / INDEX).read_bytes())
        named = Path(index["itemInfoEntries"][index["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return path
    inside = not named.is_absolute() and ".." not in named.parts
    return path / "Data" / named if inside else path


def parse(model: Path) -> Any:
    """The protobuf of a model file. Raises UsageError on what is none."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except Exception as error:
        raise UsageError(f"{model} is not a Core ML model that can be read: {words(error)}.") from None
    return spec


@dataclass(frozen=True)
class Op:
    """One op of a program.

    Attributes:
        kind: MIL's name of it.
        reads: names of the values that each of its parameters is, one or (of 'values') several.
        makes: names of what it makes.
        types, shapes: of these.
    """

    kind: str
    reads: Mapping[str, Sequence[str]]
    makes: Sequence[str]
    types: Sequence[str]
    shapes: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Found:
    """What is in a package.

    Attributes:
        inputs, outputs: of the model.
        ops: in order, without the constants.
        constants: by name: arrays; texts as str, 4 bits as int8.
        stored: by name, the type that a constant is stored in.
        shapes: of every value, by name.
        version: of the specification.
        metadata: what the file tells of itself.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    ops: Sequence[Op]
    constants: Mapping[str, Any]
    stored: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    version: int
    metadata: Mapping[str, str]

    @cached_property
    def census(self) -> Census:
        """Every op by the type that it makes; those that only unpack weights are left out."""
        ops: dict[str, Counter[str]] = defaultdict(Counter)
        compute: Counter[str] = Counter()
        casts = 0
        for op in self.ops:
            if op.kind.startswith(UNPACKS):
                continue
            kind = SHORT.get(op.types[0], op.types[0])
            ops[op.kind][kind] += 1
            casts += op.kind == "cast"
            compute[kind] += op.kind in PRODUCTS
        return Census(
            "Core ML's program", {op: dict(kinds) for op, kinds in sorted(ops.items())}, dict(+compute), casts
        )


def read(model: Path) -> Found:
    """What is in a model file and the weights beside it.

    Raises:
        UsageError: it is no Core ML file, no ML program, or its weights are not all there.
    """
    spec = parse(model)
    if not spec.HasField("mlProgram"):
        raise UsageError(f"{model} is not a Core ML model with an ML program.")
    try:
        return _read(model, spec)
    except (KeyError, IndexError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise UsageError(f"{model} is a damaged Core ML model: {words(error)}.") from None


def _read(model: Path, spec: Any) -> Found:
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    inputs, outputs = ([feature(one) for one in side] for side in (spec.description.input, spec.description.output))
    shapes: dict[str, tuple[int, ...]] = {one.name: shape_of(one.type)[1] for one in function.inputs}
    if not inputs or not outputs or not block.operations:
        raise ValueError("it has no inputs, outputs or ops")
    blob = model.parent / WEIGHTS
    weights = np.memmap(blob, np.uint8, "r") if blob.is_file() and blob.stat().st_size else np.empty(0, np.uint8)
    ops: list[Op] = []
    constants: dict[str, Any] = {}
    stored: dict[str, str] = {}

    def keep(name: str, value: Any) -> str:
        constants[name], stored[name] = value_of(value, weights)
        shapes[name] = shape_of(value.type)[1]
        return name

    for one in block.operations:
        makes = [out.name for out in one.outputs]
        if one.type == "const":
            keep(makes[0], one.attributes["val"])
            continue
        if one.blocks:
            raise ValueError(f"it has blocks within an op ({one.type})")
        reads = {}
        for key, argument in one.inputs.items():
            reads[key] = [
                keep(f"{makes[0]}/{key}/{i}", given.value) if given.HasField("value") else given.name
                for i, given in enumerate(argument.arguments)
            ]
        if one.type.startswith(UNPACKS):  # which up to iOS 17 has them as attributes
            for key, value in one.attributes.items():
                if key != "name":
                    reads[key] = [keep(f"{makes[0]}/{key}", value)]
        kinds = [shape_of(out.type) for out in one.outputs]
        shapes |= {name: shape for name, (_, shape) in zip(makes, kinds, strict=True)}
        ops.append(Op(one.type, reads, makes, [kind for kind, _ in kinds], [shape for _, shape in kinds]))
    missing = {name for op in ops for names in op.reads.values() for name in names} - set(shapes)
    missing |= {spec.name for spec in outputs} - set(shapes)
    if missing:
        raise ValueError(f"nothing makes {sorted(missing)[0]}")
    metadata = dict(spec.description.metadata.userDefined)
    return Found(inputs, outputs, ops, constants, stored, shapes, spec.specificationVersion, metadata)


def feature(one: Any) -> TensorSpec:
    """Of the model's description."""
    array = one.type.multiArrayType
    if not one.type.HasField("multiArrayType"):
        raise ValueError(f"'{one.name}' is no array")
    return TensorSpec(one.name, FEATURES[array.dataType], tuple(int(n) for n in array.shape))


def shape_of(kind: Any) -> tuple[str, tuple[int, ...]]:
    """(numpy's name of the type, shape) of a MIL type; raises ValueError on a size that is not fixed."""
    from coremltools.proto import MIL_pb2

    if kind.WhichOneof("type") == "listType" or kind.WhichOneof("type") == "tupleType":
        raise ValueError("it has values that are no tensors")
    tensor = kind.tensorType
    if any(not one.HasField("constant") for one in tensor.dimensions):
        raise ValueError("it has sizes that are not fixed")
    shape = tuple(int(one.constant.size) for one in tensor.dimensions)
    return MIL_pb2.DataType.Name(tensor.dataType).lower(), shape


def value_of(value: Any, weights: np.ndarray) -> tuple[Any, str]:
    """A constant, and the type that it is stored in."""
    kind, shape = shape_of(value.type)
    if value.HasField("blobFileValue"):
        if value.blobFileValue.fileName != f"@model_path/{WEIGHTS}":
            raise ValueError(f"it has weights in {value.blobFileValue.fileName!r}")
        return blob_of(weights, value.blobFileValue.offset, kind, shape), kind
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    if field is None:
        if math.prod(shape):
            raise ValueError("a constant has no value")
        return np.empty(shape, kind), kind
    if field == "strings":
        return tensor.strings.values[0], kind
    if field == "bytes":
        return np.frombuffer(tensor.bytes.values, kind).reshape(shape), kind
    found = np.array(getattr(tensor, field).values, "bool" if kind == "bool" else kind)
    return (found.reshape(shape) if found.size == math.prod(shape) else np.broadcast_to(found, shape)), kind


def blob_of(weights: np.ndarray, offset: int, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of weight.bin whose header is at `offset`; of 4 bits as int8, the lower half of a byte first."""
    sentinel, number, size, start, _ = HEADER.unpack(weights[offset : offset + HEADER.size].tobytes())
    if sentinel != SENTINEL or start + size > len(weights):
        raise ValueError(f"{WEIGHTS} is damaged or cut short")
    if BLOB_TYPES.get(number) != kind:
        raise ValueError(f"{WEIGHTS} has {BLOB_TYPES.get(number, number)} where the program has {kind}")
    raw = weights[start : start + size]
    if kind in ("int4", "uint4"):
        halves = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[: math.prod(shape)].astype(np.int8)
        return (halves if kind == "uint4" else (halves ^ 8) - 8).reshape(shape)
    return raw.view(kind).reshape(shape)


def products(found: Found) -> list[dict[str, Any]]:
    """Every product: its op, precision, what its weights are stored in, and its multiply-accumulates."""
    packed = {op.makes[0]: op.reads[PACKED[op.kind]][0] for op in found.ops if op.kind in PACKED}
    rows = []
    for op in found.ops:
        if op.kind in PRODUCTS:
            weight = op.reads["weight"][0] if op.kind in WEIGHTED else ""
            kind, stored = op.types[0], found.stored.get(packed.get(weight, weight), op.types[0])
            row = {"label": op.makes[0], "op_type": op.kind, "precision": SHORT.get(kind, kind)}
            rows.append({**row, "stored": SHORT.get(stored, stored), "macs": macs(op, found.shapes)})
    return rows


def macs(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a product; of attention those of both."""
    made = op.shapes[0]
    of = {key: shapes[names[0]] for key, names in op.reads.items()}
    if op.kind in WEIGHTED:
        return math.prod(made) * math.prod(of["weight"][1:])
    if op.kind == "conv_transpose":
        return math.prod(of["x"]) * math.prod(of["weight"][1:])
    if op.kind == "scaled_dot_product_attention":
        return math.prod(of["query"][:-1]) * of["key"][-2] * (of["query"][-1] + of["value"][-1])
    if op.kind == "matmul":  # either operand may be read transposed
        return math.prod(made) * (math.prod(of["x"][-2:]) // made[-2])
    return math.prod(made) * of["values"][-1]  # einsum, of which MIL has 'nchw,nwhu->nchu' alone


def describe(model: Path) -> dict[str, Any]:
    """What is in a file, as JSON values."""
    found, weights = read(model), model.parent / WEIGHTS
    ops = products(found)
    return {
        "format": "Core ML ML program",
        "bytes": sum(file.stat().st_size for file in (model, weights) if file.is_file()),
        "runs_on": SYSTEMS.get(found.version, f"what reads specification {found.version}") + " and newer",
        "inputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in found.inputs],
        "outputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in found.outputs],
        "ops": {op: sum(kinds.values()) for op, kinds in found.census.ops.items()},
        "compute": dict(found.census.compute),
        "macs": sum(one["macs"] for one in ops),
    }


def report(model: Path) -> dict[str, Any]:
    """See Backend.compile_report."""
    ops = [one for one in products(read(model)) if one["op_type"] in WEIGHTED]
    if any(one["stored"] == "int8" for one in ops):
        return {"int8-weights": {"bits": 8, "ops": [{**one, "precision": one["stored"]} for one in ops]}}
    return {}

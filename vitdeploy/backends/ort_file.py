"""An .ort file, ONNX Runtime's own format: how one is made, in a child process, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import Census
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    import onnx

SOURCE = "the graph in the .ort file, whose kernels are fixed"
HEAD = "# Operators and types that model.ort needs: for build.sh --include_ops_by_config of ONNX Runtime.\n"
PROVIDERS = ["CPUExecutionProvider"]
# Its layout is of x86 alone.
DISABLED = ["NchwcTransformer"]
ENTRIES = {
    "session.save_model_format": "ORT",
    # Products of uint8 with int8 run on every CPU; of int8 with int8 they are fast on ARM alone.
    "session.qdqisint8allowed": "0",
}
EXTENDED = "ORT_ENABLE_EXTENDED"
STORED = ("fp16", "int8-weights")  # precisions of storage: weights are unpacked in each run
UNPACKS = ("Cast", "DequantizeLinear")  # of weights


def convert(source: Path, model: Path, config: Path, level: str, precision: str) -> None:
    """Write an ONNX file as an optimised .ort file, and what a reduced build of ONNX Runtime needs for it.

    Args:
        level: the name of one of ONNX Runtime's GraphOptimizationLevel.
    """
    import onnxruntime as ort
    from onnxruntime.tools.ort_format_model import create_config_from_models

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    stored = precision in STORED
    # "All" has another pass that unpacks weights into the file.
    level = EXTENDED if stored and level == "ORT_ENABLE_ALL" else level
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    settings.optimized_model_filepath = str(model)
    for key, value in ENTRIES.items():
        settings.add_session_config_entry(key, value)
    if stored:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    disabled = [*DISABLED, *(("ConstantFolding",) if stored else ())]
    ort.InferenceSession(str(source), settings, providers=PROVIDERS, disabled_optimizers=disabled)
    create_config_from_models([model], config, enable_type_reduction=True)
    lines = config.read_text("utf-8").splitlines(keepends=True)
    config.write_text(HEAD + "".join(line for line in lines if not line.startswith("#")), "utf-8")


def check(model: Path) -> None:
    """Open a file as its users do. Raises UsageError where ONNX Runtime refuses it."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        ort.InferenceSession(str(model), settings, providers=PROVIDERS)
    except Exception as error:
        said = " ".join(str(error).split()).rpartition(" : ")[2].rstrip(".")[:200]
        raise UsageError(f"{model} is not an .ort file that ONNX Runtime can open: {said}.") from None


def census(model: Path) -> Census:
    """Ops by the types that their kernels are given. Those that only unpack weights are left out."""
    from dataclasses import replace

    from vitdeploy.backends.ort_census import count

    proto = read(model)
    fixed = {tensor.name for tensor in proto.graph.initializer}
    kept = [node for node in proto.graph.node if not (node.op_type in UNPACKS and set(node.input) <= fixed)]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return replace(count(proto), source=SOURCE)


def describe(model: Path) -> dict[str, Any]:
    """What `vitdeploy inspect` tells, as JSON values. Raises UsageError on what is no .ort file."""
    import onnx_ir as ir

    from vitdeploy.graph.ops import summarize

    check(model)
    told = summarize(ir.from_proto(read(model)))
    # Of a dynamic batch ONNX Runtime keeps few shapes.
    keep = ("opset", "inputs", "outputs", "nodes", "ops", *(() if told["macs_unknown"] else ("macs",)))
    found = census(model)
    return {
        "format": "ONNX Runtime flatbuffer",
        **{key: told[key] for key in keep},
        "compute": dict(found.compute),
        "casts": found.casts,
    }


def read(model: Path) -> onnx.ModelProto:
    """The graph of a file that ONNX Runtime opens: nodes, whole-number attributes, types and shapes; no weights."""
    import onnx
    from onnxruntime.tools import ort_format_model  # makes the next import work

    assert ort_format_model
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    found = InferenceSession.GetRootAsInferenceSession(bytearray(model.read_bytes()), 0).Model()
    graph = found.Graph()
    proto = onnx.ModelProto(ir_version=found.IrVersion())
    for one in _each(found, "MetadataProps"):
        proto.metadata_props.add(key=one.Key().decode(), value=one.Value().decode())
    proto.graph.name = "ort"
    proto.graph.node.extend(_node(one) for one in _each(graph, "Nodes"))
    used = {node.domain for node in proto.graph.node}
    for one in _each(found, "OpsetImport"):
        if one.Domain().decode() in used:
            proto.opset_import.add(domain=one.Domain().decode(), version=one.Version())
    values = {one.Name().decode(): _value(one) for one in _each(graph, "NodeArgs")}
    weights = [(one.Name().decode(), one.DataType(), one.DimsAsNumpy()) for one in _each(graph, "Initializers")]
    for name, kind, dims in weights:
        proto.graph.initializer.add(name=name, data_type=kind, dims=dims if hasattr(dims, "tolist") else [])
    made = {name for name, _, _ in weights}
    inputs = [one.decode() for one in _each(graph, "Inputs")]
    outputs = [one.decode() for one in _each(graph, "Outputs")]
    proto.graph.input.extend(values[name] for name in inputs)
    proto.graph.output.extend(values[name] for name in outputs)
    proto.graph.value_info.extend(v for name, v in values.items() if name not in {*inputs, *outputs, *made, ""})
    return proto


def _each(table: Any, field: str) -> Iterator[Any]:
    """The entries of a vector of a flatbuffer."""
    return (getattr(table, field)(i) for i in range(getattr(table, f"{field}Length")()))


def _node(one: Any) -> onnx.NodeProto:
    import onnx

    node = onnx.NodeProto(name=one.Name().decode(), op_type=one.OpType().decode(), domain=one.Domain().decode())
    node.input.extend(name.decode() for name in _each(one, "Inputs"))
    node.output.extend(name.decode() for name in _each(one, "Outputs"))
    for attribute in _each(one, "Attributes"):
        if attribute.Type() == onnx.AttributeProto.INT:
            node.attribute.append(onnx.helper.make_attribute(attribute.Name().decode(), attribute.I()))
        elif attribute.Type() == onnx.AttributeProto.INTS:
            numbers = attribute.IntsAsNumpy()
            whole = numbers.tolist() if hasattr(numbers, "tolist") else []
            node.attribute.append(
                onnx.helper.make_attribute(attribute.Name().decode(), whole, attr_type=onnx.AttributeProto.INTS)
            )
    return node


def _value(one: Any) -> onnx.ValueInfoProto:
    import onnx
    from ort_flatbuffers_py.fbs.TensorTypeAndShape import TensorTypeAndShape
    from ort_flatbuffers_py.fbs.TypeInfoValue import TypeInfoValue

    value = onnx.ValueInfoProto(name=one.Name().decode())
    kind = one.Type()
    if kind is None or kind.ValueType() != TypeInfoValue.tensor_type:
        return value
    tensor = TensorTypeAndShape()
    tensor.Init(kind.Value().Bytes, kind.Value().Pos)
    value.type.tensor_type.elem_type = tensor.ElemType()
    if tensor.Shape() is None:
        return value
    shape = value.type.tensor_type.shape
    shape.SetInParent()
    for dim in _each(tensor.Shape(), "Dim"):
        size = dim.Value()
        entry = shape.dim.add()
        if size is not None and size.DimType() == 1:
            entry.dim_value = size.DimValue()
        elif size is not None and size.DimType() == 2:
            entry.dim_param = size.DimParam().decode()
    return value

"""fp16 for storage alone: weights stay in fp16, each with a Cast to fp32, and all else becomes fp32.

For runtimes that would unpack fp16 weights into the file that they write. It runs after the graph was converted."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.edit import add_node, fresh_name, sweep

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def store_half(model: ir.Model) -> int:
    """Returns how many weights are stored in fp16. Types of the graph's inputs and outputs stay."""
    graph = model.graph
    borders = {*graph.inputs, *graph.outputs}
    stored = [value for value in graph.initializers.values() if value.dtype == HALF and value.uses()]
    for node in graph.all_nodes():
        _widen(node)
        for value in node.outputs:
            if value.dtype == HALF and value not in borders:
                value.type = ir.TensorType(SINGLE)
    first = graph[0]
    for value in (*stored, *(value for value in graph.inputs if value.dtype == HALF)):
        uses = list(value.uses())
        cast = add_node(first, "Cast", [value], f"{value.name}/fp32", value, to=SINGLE.value)
        cast.type = ir.TensorType(SINGLE)
        for node, index in uses:
            node.replace_input_with(index, cast)
    for index, value in enumerate(graph.outputs):
        if value.dtype == HALF:
            graph.outputs[index] = _narrowed(graph, value)
    sweep(model)
    return len(stored)


def _widen(node: ir.Node) -> None:
    """What the node itself says to be fp16 becomes fp32."""
    for name in ("to", "dtype", "output_dtype"):
        if name in node.attributes and node.attributes[name].as_int() == HALF.value:
            node.attributes[name] = ir.AttrInt64(name, SINGLE.value)
    value = node.attributes.get("value")
    if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == HALF:
        wide = ir.Tensor(value.as_tensor().numpy().astype("float32"))
        node.attributes["value"] = ir.AttrTensor("value", wide)


def _narrowed(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A graph output of the same name and type, cast from `value`, which becomes fp32."""
    out = ir.Value(name=value.name, shape=value.shape, type=value.type)
    value.name = fresh_name(graph, f"{value.name}/fp32")
    value.type = ir.TensorType(SINGLE)
    graph.append(
        ir.node("Cast", [value], {"to": HALF.value}, outputs=[out], name=fresh_name(graph, f"Cast:{out.name}"))
    )
    return out

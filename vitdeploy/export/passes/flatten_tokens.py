"""Write Linear layers on tokens as one Gemm over (batch * tokens, channels).

ONNX's Gemm, which adds its bias in the same kernel, takes matrices only; a MatMul and an Add over (B, N, C) are two
nodes, and runtimes that fuse them put a Reshape on either side. LayerNormalization, activations and residual sums care
as little for the split into batch and tokens, so the whole stretch between two attentions is flat, and the Reshapes
that cut heads out of channels start from the flat form: there are no more of them than before."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from vitdeploy.export.passes.narrow_tokens import BINARY, UNARY
from vitdeploy.graph.edit import add_node, array, constant, dims, integer, reshape_target, sweep
from vitdeploy.graph.linear import is_channel_vector, linear_at


def flatten_tokens(model: ir.Model) -> int:
    """Flatten token-wise stretches that hold a biased Linear. Returns how many Linears became a Gemm."""
    graph = model.graph
    flat: dict[ir.Value, ir.Value] = {}
    count = 0
    for node in list(graph):
        out = node.outputs[0] if len(node.outputs) == 1 else None
        if out is None or node.domain != "" or not is_token_map(out):
            continue
        if linear_node(node, flat):
            count += flatten_linear(node, flat)
        elif out in flat:
            continue
        elif (data := tokenwise(node)) is not None and any(v in flat for v in data):
            flatten_tokenwise(node, data, node, flat)
    reconnect(graph, flat)
    sweep(model)
    return count


def is_token_map(value: ir.Value) -> bool:
    shape = dims(value)
    if shape is None or len(shape) < 3 or not isinstance(shape[-1], int):
        return False
    return sum(isinstance(d, str) for d in shape) <= 1


def linear_node(node: ir.Node, flat: dict[ir.Value, ir.Value]) -> bool:
    """Whether the node ends a MatMul by a constant matrix that has a bias, or whose input is flat already."""
    linear = linear_at(node.outputs[0])
    if linear is None or linear.node.op_type != "MatMul" or not is_token_map(linear.x):
        return False
    if linear.b is not None:
        return node.op_type == "Add"
    if linear.x not in flat:
        return False
    users = [user for user, _ in node.outputs[0].uses()]
    biased = len(users) == 1 and users[0].op_type == "Add" and linear_at(users[0].outputs[0]) is not None
    return not (biased and (found := linear_at(users[0].outputs[0])) is not None and found.node is node)


def flatten_linear(node: ir.Node, flat: dict[ir.Value, ir.Value]) -> int:
    linear = linear_at(node.outputs[0])
    assert linear is not None
    x = flatten(linear.x, linear.node, flat)
    out = linear.out
    shape = flat_shape(out)
    if linear.b is None:
        flat[out] = add_node(node, "MatMul", [x, linear.w], f"{out.name}/flat", out, shape)
        return 0
    bias = per_channel(linear.b, node)
    flat[out] = add_node(node, "Gemm", [x, linear.w, bias], f"{out.name}/flat", out, shape)
    return 1


def flatten_tokenwise(node: ir.Node, data: list[ir.Value], before: ir.Node, flat: dict[ir.Value, ir.Value]) -> None:
    out = node.outputs[0]
    inputs = [flatten(v, node, flat) if v in data else per_channel(v, node) for v in node.inputs if v is not None]
    attributes = dict(node.attributes)
    if node.op_type == "LayerNormalization":
        attributes["axis"] = ir.AttrInt64("axis", -1)
    flat[out] = add_node(before, node.op_type, inputs, f"{out.name}/flat", out, flat_shape(out), **attributes)


def flatten(value: ir.Value, before: ir.Node, flat: dict[ir.Value, ir.Value]) -> ir.Value:
    """The value as (tokens, channels): computed flat where its op allows, else reshaped."""
    if value in flat:
        return flat[value]
    producer = value.producer()
    if producer is not None and producer.domain == "" and (data := tokenwise(producer)) is not None:
        flatten_tokenwise(producer, data, producer, flat)
        return flat[value]
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    # right where the value comes to be: the next to read the flat form may stand before this one
    after = graph[0] if producer is None else next_node(graph, producer) or before
    shape = flat_shape(value)
    target = reshape_target(graph, ["tokens", shape[-1]], f"{value.name}/flat")
    flat[value] = add_node(after, "Reshape", [value, target], f"{value.name}/flat", value, shape)
    return flat[value]


def flat_shape(value: ir.Value) -> list[int | str]:
    """(tokens, channels); with a dynamic batch the first is a product's name, such as '196*batch'."""
    shape = dims(value) or ()
    tokens = prod(d for d in shape[:-1] if isinstance(d, int))
    symbols = [d for d in shape[:-1] if isinstance(d, str)]
    return ["*".join([str(tokens), *symbols]) if symbols else tokens, shape[-1]]


def next_node(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    index = graph.index(node) + 1
    return graph[index] if index < len(graph) else None


def per_channel(value: ir.Value | None, node: ir.Node) -> ir.Value | None:
    """A constant that applies per channel, as a vector."""
    if value is None or len(dims(value) or ()) <= 1:
        return value
    data = constant(value)
    assert data is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return array(graph, f"{value.name}/vector", data.reshape(-1))


def tokenwise(node: ir.Node) -> list[ir.Value] | None:
    """The data inputs of an op that treats every token alike, else None."""
    out = node.outputs[0]
    shape = dims(out)
    channels = shape[-1] if shape else None
    if node.op_type == "LayerNormalization":
        whole = shape is not None and integer(node, "axis", -1) % len(shape) == len(shape) - 1
        return [node.inputs[0]] if whole and node.inputs[0] is not None else None
    if node.op_type in UNARY and node.inputs[0] is not None and node.op_type != "Cast":
        return [node.inputs[0]]
    if node.op_type not in BINARY or not isinstance(channels, int):
        return None
    data = []
    for value in node.inputs:
        fixed = constant(value)
        if value is None or (fixed is None and dims(value) != shape):
            return None
        if fixed is None:
            data.append(value)
        elif fixed.size != 1 and not is_channel_vector(value, channels):
            return None
    return data


def reconnect(graph: ir.Graph, flat: dict[ir.Value, ir.Value]) -> None:
    """Give every other reader of a flattened value its old shape back; a Reshape reads the flat form itself."""
    recomputed = {v for v, twin in flat.items() if (made := twin.producer()) is not None and v not in made.inputs}
    for value, twin in flat.items():
        if value not in recomputed:
            continue  # a Reshape of the value, which itself stays
        restored: ir.Value | None = None
        for user, index in list(value.uses()):
            if user.outputs[0] in recomputed or (user.op_type == "MatMul" and linear_pair(user) in recomputed):
                continue  # this reader goes away
            if user.op_type == "Reshape" and index == 0 and writable(user.outputs[0]):
                shape = dims(user.outputs[0]) or ()
                user.replace_input_with(0, twin)
                user.replace_input_with(1, reshape_target(graph, shape, f"{user.outputs[0].name}"))
                user.attributes.pop("allowzero", None)
                continue
            restored = restored or unflatten(graph, value, twin)
            user.replace_input_with(index, restored)
        if value.is_graph_output():
            restored = restored or unflatten(graph, value, twin)
            graph.outputs[list(graph.outputs).index(value)] = restored
            restored.name, value.name = value.name, f"{value.name}/replaced"


def linear_pair(product: ir.Node) -> ir.Value | None:
    """The value after the bias of a MatMul that a Gemm replaces."""
    users = [user for user, _ in product.outputs[0].uses()]
    return users[0].outputs[0] if len(users) == 1 else None


def writable(value: ir.Value) -> bool:
    shape = dims(value)
    return shape is not None and sum(isinstance(d, str) for d in shape) <= 1


def unflatten(graph: ir.Graph, value: ir.Value, twin: ir.Value) -> ir.Value:
    shape = dims(value) or ()
    target = reshape_target(graph, shape, f"{value.name}")
    producer = twin.producer()
    assert producer is not None
    after = next_node(graph, producer)
    assert after is not None
    return add_node(after, "Reshape", [twin, target], f"{value.name}/restored", value, shape)

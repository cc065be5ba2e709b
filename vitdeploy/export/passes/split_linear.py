"""One Linear whose result is only cut into pieces (q, k, v; gate and value) becomes one Linear a piece.

The Split copies its input, a third of an attention's memory traffic; separate products write straight to their place,
and each piece can then lose a bias or unneeded rows on its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, constant, dims, integer, only_user, reshape_target, sweep, take_over
from vitdeploy.graph.linear import Linear, linear_at, rebuild


def split_linear(model: ir.Model) -> int:
    """Distribute Splits of a linear map's channels over the weights. Returns how many Splits went."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "Split" and node.domain == "":
            count += split_one(node)
    sweep(model)
    return count


def piece_sizes(node: ir.Node, total: int) -> list[int] | None:
    """The lengths that a Split cuts its axis into."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = constant(node.inputs[1])
        return None if sizes is None else [int(n) for n in sizes]
    pieces = len(node.outputs)
    chunk = -(-total // pieces)
    return [min(chunk, total - i * chunk) for i in range(pieces)]


def split_one(node: ir.Node) -> int:
    source = node.inputs[0]
    shape = dims(source)
    if source is None or shape is None or only_user(source) is not node:
        return 0
    axis = integer(node, "axis", 0) % len(shape)
    length = shape[axis]
    if axis != len(shape) - 1 or not isinstance(length, int):
        return 0
    sizes = piece_sizes(node, length)
    if sizes is None:
        return 0
    linear, heads = linear_at(source), None
    reshape = source.producer()
    if linear is None and reshape is not None and reshape.op_type == "Reshape":
        inner = reshape.inputs[0]
        writable = sum(isinstance(d, str) for d in shape) <= 1
        if inner is not None and writable and only_user(inner) is reshape and splits_channels(dims(inner), shape):
            linear, heads = linear_at(inner), int(shape[-2])
    if linear is None or linear.node.op_type == "Conv":
        return 0
    offset = 0
    for out, size in zip(node.outputs, sizes, strict=True):
        columns = (np.arange(heads or 1)[:, None] * length + np.arange(offset, offset + size)).reshape(-1)
        offset += size
        if out.uses() or out.is_graph_output():
            emit_piece(linear, node, out, columns, heads, size)
    return 1


def splits_channels(inner: tuple[int | str, ...] | None, outer: tuple[int | str, ...]) -> bool:
    """Whether `outer` is `inner` with its last dimension cut in two."""
    if inner is None or len(outer) != len(inner) + 1 or outer[:-2] != inner[:-1]:
        return False
    heads, width, channels = outer[-2], outer[-1], inner[-1]
    return isinstance(heads, int) and isinstance(width, int) and isinstance(channels, int) and heads * width == channels


def emit_piece(linear: Linear, node: ir.Node, out: ir.Value, columns: np.ndarray, heads: int | None, size: int) -> None:
    """Put the Linear of these columns in place of one output; `heads`, where the channels were cut, cuts it again."""
    index = node.outputs.index(out)
    pieces = "qkv" if len(node.outputs) == 3 else ("kv" if len(node.outputs) == 2 and heads else None)
    label = f"{linear.label}.{pieces[index] if pieces else index}"
    name = out.name or label
    value = rebuild(
        linear,
        node,
        lambda: np.take(linear.weights(), columns, axis=linear.axis),
        None if linear.b is None else lambda: linear.bias()[columns],
        len(columns),
        label,
        f"{name}/flat" if heads else name,
    )
    if heads:
        shape = [*(dims(value) or ())[:-1], heads, size]
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        target = reshape_target(graph, shape, name)
        value = add_node(node, "Reshape", [value, target], f"{name}/heads", value, shape)
    take_over(out, value)

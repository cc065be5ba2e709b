"""Biases that attention's own algebra makes idle.

A bias b on the keys adds q.b to a query's every score alike, and Softmax ignores what is added to all: drop it.
A bias b on the values comes out whole, because a Softmax row sums to 1: softmax(S) (V + b) = softmax(S) V + b, and the
projection that follows turns it into part of its own bias.

Both hold only where every key, or value, has the same bias: not where channels attend to channels (XCiT, DaViT). What
the layout between a Linear and its attention does to the channels is tried out on an array of channel numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, lcm, prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims, integer, ints, is_constant, only_user, sweep, take_over
from vitdeploy.graph.linear import Linear, layout_chain, linear_at, rebuild, replay


def drop_attention_bias(model: ir.Model) -> int:
    """Remove key biases and move value biases. Returns how many biases went."""
    count = 0
    for node in list(model.graph):
        if node.op_type == "Softmax" and node.domain == "":
            rank = len(dims(node.outputs[0]) or ())
            if integer(node, "axis", -1) in (-1, rank - 1):
                count += drop_key_bias(node) + move_value_bias(node)
    sweep(model)
    return count


def scores_product(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of q and k under a Softmax, through added constants (a relative-position bias) and scalar factors."""
    value = softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None and node.domain == "":
        if node.op_type == "MatMul":
            return node if only_user(value) is not None else None
        if node.op_type not in ("Add", "Mul", "Div") or only_user(value) is None:
            return None
        data = [v for v in node.inputs if not is_constant(v)]
        if len(data) != 1:
            return None
        if node.op_type in ("Mul", "Div"):
            factor = constant(next(v for v in node.inputs if v is not data[0]))
            if factor is None or factor.size != 1 or (node.op_type == "Div" and node.inputs[0] is not data[0]):
                return None
        value = data[0]
    return None


def biased_linear(value: ir.Value | None) -> tuple[list[ir.Node], Linear] | None:
    """The biased Linear behind a layout chain, if nothing else reads the chain."""
    if value is None or only_user(value) is None:
        return None
    chain, start = layout_chain(value)
    linear = linear_at(start)
    if linear is None or linear.b is None or only_user(start) is None or linear.node.op_type == "Conv":
        return None
    return chain, linear


def drop_key_bias(softmax: ir.Node) -> int:
    product = scores_product(softmax)
    found = biased_linear(product.inputs[1]) if product is not None else None
    if product is None or found is None:
        return 0
    chain, linear = found
    if not same_for_all(channels_after(linear, chain), -1):
        return 0
    replace_input(product, 1, chain, linear, "/unbiased")
    rename_up_to(product.outputs[0], softmax, "/unbiased")
    return 1


def replace_input(user: ir.Node, index: int, chain: list[ir.Node], linear: Linear, suffix: str) -> None:
    """Feed `user` with the same Linear and layout, without the bias."""
    label = f"{linear.out.name}{suffix}"
    bare = rebuild(linear, user, linear.weights, None, linear.channels, linear.label, label)
    user.replace_input_with(index, replay(chain, bare, user, suffix))


def rename_up_to(value: ir.Value, stop: ir.Node, suffix: str) -> None:
    """Scores without their idle part are other numbers: rename them down to the Softmax."""
    while True:
        value.name = f"{value.name}{suffix}"
        node = only_user(value)
        if node is None or node is stop:
            return
        value = node.outputs[0]


def move_value_bias(softmax: ir.Node) -> int:
    product = only_user(softmax.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
        return 0
    found = biased_linear(product.inputs[1])
    if found is None:
        return 0
    merge: list[ir.Node] = []
    changed, value = [], product.outputs[0]
    while (user := only_user(value)) is not None and user.op_type in ("Reshape", "Transpose") and user.domain == "":
        merge.append(user)
        changed.append(value)
        value = user.outputs[0]
    changed.append(value)
    user = only_user(value)
    if user is None or user.op_type not in ("MatMul", "Gemm") or user.inputs[0] is not value:
        return 0
    after = only_user(user.outputs[0])
    projection = linear_at(after.outputs[0]) if after is not None and after.op_type == "Add" else None
    projection = projection or linear_at(user.outputs[0])
    chain, linear = found
    if projection is None or projection.node is not user:
        return 0
    inputs = projection.w.shape[1 - projection.axis] if projection.w.shape is not None else None
    if inputs != linear.channels or not reaches_projection(linear, chain, product, merge):
        return 0
    moved, out = linear.bias, projection.out
    last = out.producer()
    assert last is not None

    def bias() -> object:
        w = projection.weights()
        return projection.bias() + (moved() @ w if projection.axis == 1 else w @ moved())

    replace_input(product, 1, chain, linear, "/unbiased")
    for tensor in changed:
        tensor.name = f"{tensor.name}/unbiased"
    name = out.name or "projection"
    new = rebuild(projection, last, projection.weights, bias, projection.channels, projection.label, name)  # type: ignore[arg-type]
    take_over(out, new)
    return 1


def same_for_all(channel: np.ndarray | None, axis: int) -> bool:
    """Whether what stands along the axis comes from one channel, everywhere."""
    return channel is not None and bool((channel == channel.take([0], axis)).all())


def reaches_projection(linear: Linear, chain: list[ir.Node], product: ir.Node, merge: list[ir.Node]) -> bool:
    """Whether all values have one bias, and it arrives behind `merge` as the linear map's channels in their order."""
    out = dims(product.outputs[0])
    channel = channels_after(linear, chain, batch=dividing(product.outputs[0], merge))
    if channel is None or out is None or channel.ndim < 2 or not same_for_all(channel, -2):
        return False
    sizes = (1,) * (len(out) - channel.ndim) + channel.shape
    shape = [d if isinstance(d, int) else n for d, n in zip(out, sizes, strict=True)]
    arrived = rearranged(np.broadcast_to(channel[..., :1, :], shape), merge)
    if arrived is None or arrived.shape[-1] != linear.channels:
        return False
    return bool((arrived == np.arange(linear.channels)).all())


def channels_after(linear: Linear, chain: list[ir.Node], batch: int = 1) -> np.ndarray | None:
    """Which output channel of `linear` stands where behind a layout chain (nearest first); None where nobody can say.

    A dynamic batch is tried at a multiple of `batch`.
    """
    nodes, start = chain[::-1], dims(linear.out)
    if start is None or len(start) < 2:
        return None
    batch *= dividing(linear.out, nodes)
    channel = np.arange(linear.channels, dtype=np.int32)
    return rearranged(np.broadcast_to(channel, [d if isinstance(d, int) else batch for d in start]), nodes)


def dividing(start: ir.Value, nodes: Sequence[ir.Node]) -> int:
    """A size, more than 1, for the dynamic dimension of `start` that every Reshape behind it can divide as it wants."""
    known = [prod(d for d in dims(v) or () if isinstance(d, int)) for v in (start, *(n.outputs[0] for n in nodes))]
    return 2 * lcm(*(max(n, 1) // gcd(n, known[0]) for n in known if n))


def rearranged(array: np.ndarray, nodes: Sequence[ir.Node]) -> np.ndarray | None:
    """The array after these Reshapes and Transposes, or None where their outcome is not known."""
    for node in nodes:
        shape = dims(node.outputs[0])
        if node.op_type == "Transpose":
            array = array.transpose(ints(node, "perm"))
        elif shape is None or sum(isinstance(d, str) for d in shape) > 1:
            return None
        else:
            try:
                array = array.reshape([d if isinstance(d, int) else -1 for d in shape])
            except ValueError:
                return None
    return array

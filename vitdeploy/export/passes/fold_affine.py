"""A gain and an offset per channel before a convolution without padding belong in it.

What a GroupNorm leaves behind, for one: (x g + o) W + b = x (g W) + (o W + b)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims, integer, length, only_user, sweep, take_over
from vitdeploy.graph.linear import Linear, is_padded, linear_at, rebuild, scaled


def fold_affine(model: ir.Model) -> int:
    """Fold Mul and Add by channel constants into the Conv that alone reads them. Returns how many nodes went."""
    count = 0
    for node in reversed(list(model.graph)):
        if node.op_type == "Conv" and node.domain == "":
            count += fold_before(node)
    sweep(model)
    return count


def fold_before(conv: ir.Node) -> int:
    linear = linear_at(conv.outputs[0])
    if linear is None or is_padded(conv) or integer(conv, "group", 1) != 1:
        return 0
    gain, offset, source, count = np.ones(1), np.zeros(1), linear.x, 0
    while (step := channel_step(source, conv)) is not None:
        op, factor, below = step
        if op == "Mul":  # what came after it is already folded: gain * (factor * x) + offset
            gain = gain * factor
        else:
            offset = offset + gain * factor
        source, conv, count = below, source.producer() or conv, count + 1
    if count == 0:
        return 0
    absorb(linear, gain, offset, source)
    return count


def channel_step(value: ir.Value, user: ir.Node) -> tuple[str, np.ndarray, ir.Value] | None:
    """If `value` is x * c or x + c with c constant per channel of (B, C, H, W): the op, c, and x."""
    node, shape = value.producer(), dims(value)
    if node is None or node.op_type not in ("Mul", "Add") or only_user(value) is not user:
        return None
    if shape is None or len(shape) != 4:
        return None
    for data, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        factor = constant(other)
        if data is None or factor is None or dims(data) != shape:
            continue
        if factor.size == 1 or (factor.ndim in (3, 4) and factor.size == shape[1] == factor.shape[-3]):
            return node.op_type, factor.astype(np.float64).reshape(-1), data
    return None


def absorb(linear: Linear, gain: np.ndarray, offset: np.ndarray, source: ir.Value) -> None:
    inputs = length(linear.w, 1)
    offset = np.broadcast_to(offset, (inputs,))

    def bias() -> np.ndarray:
        w = linear.weights()
        return linear.bias() + np.einsum("oihw,i->o", w, offset)

    folded, name = scaled(linear.weights, 1, gain), linear.out.name or "conv"
    new = rebuild(linear, linear.node, folded, bias, linear.channels, linear.label, name, x=source)
    take_over(linear.out, new)

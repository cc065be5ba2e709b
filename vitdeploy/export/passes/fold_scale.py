"""A constant factor after a linear map belongs in its weights: attention's 1/sqrt(d), LayerScale's gains."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims, only_user, sweep, take_over
from vitdeploy.graph.linear import Linear, layout_chain, linear_at, rebuild, replay, scaled


def fold_scale(model: ir.Model) -> int:
    """Fold Mul and Div by a scalar, or Mul by a vector of output channels. Returns how many went."""
    count = 0
    for node in list(model.graph):
        if node.op_type in ("Mul", "Div") and node.domain == "":
            count += fold_one(node)
    sweep(model)
    return count


def fold_one(node: ir.Node) -> int:
    first, second = node.inputs
    data, factor = first, constant(second)
    if factor is None and node.op_type == "Mul":
        data, factor = second, constant(first)
    if data is None or factor is None or only_user(data) is not node or factor.dtype.kind != "f":
        return 0
    chain, start = layout_chain(data)
    linear = linear_at(start)
    if linear is None or (chain and only_user(start) is not chain[-1]):
        return 0
    rank = len(dims(data) or (1,))
    if factor.ndim > rank or (factor.size != 1 and (chain or not per_channel(factor, linear, rank))):
        return 0
    gain = factor.astype(np.float64).reshape(-1)
    gain = 1 / gain if node.op_type == "Div" else gain
    out = rebuild(
        linear,
        node,
        scaled(linear.weights, linear.axis, gain),
        None if linear.b is None else lambda: linear.bias() * gain,
        linear.channels,
        linear.label,
        f"{start.name}/scaled",
    )
    take_over(node.outputs[0], replay(chain, out, node, "/scaled") if chain else out)
    return 1


def per_channel(factor: np.ndarray, linear: Linear, rank: int) -> bool:
    """Whether the factor has one number for each output channel, and stands along their axis of a result of `rank`."""
    behind = rank - 2 if linear.node.op_type == "Conv" else 0  # axes after the channels
    return factor.ndim > behind and factor.size == linear.channels == factor.shape[factor.ndim - 1 - behind]

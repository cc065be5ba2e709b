"""BatchNorm in inference is a gain and an offset per channel: fold it into the Conv, MatMul or Gemm beside it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims, integer, is_constant, only_user, sweep, take_over
from vitdeploy.graph.linear import Linear, layout_chain, linear_at, rebuild, replay, scaled


def fold_batchnorm(model: ir.Model) -> int:
    """Fold every BatchNormalization that stands beside a constant linear map. Returns how many went."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain != "" or len([o for o in node.outputs if o.uses()]) > 1:
            continue
        if integer(node, "training_mode", 0) or not all(is_constant(value) for value in node.inputs[1:5]):
            continue
        count += into_producer(node) or into_consumer(node)
    sweep(model)
    return count


def gain_and_offset(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, var = (np.asarray(constant(value), dtype=np.float64) for value in node.inputs[1:5])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    gain = gamma / np.sqrt(var + epsilon)
    return gain, beta - mean * gain


def into_producer(node: ir.Node) -> int:
    """BN(layout(x W + b)) = layout(x (W g) + (b g + o)), where the layout leaves the channel axis alone."""
    source = node.inputs[0]
    if source is None or only_user(source) is not node:
        return 0
    chain, start = layout_chain(source)
    linear = linear_at(start)
    if linear is None or (chain and only_user(start) is not chain[-1]):
        return 0
    if not keeps_channels(linear, chain, node):
        return 0
    gain, offset = gain_and_offset(node)
    name = node.outputs[0].name or "batch_norm"
    out = rebuild(
        linear,
        node,
        scaled(linear.weights, linear.axis, gain),
        lambda: linear.bias() * gain + offset,
        linear.channels,
        linear.label,
        name if not chain else f"{start.name}/normalised",
    )
    take_over(node.outputs[0], replay(chain, out, node, "/normalised") if chain else out)
    return 1


def keeps_channels(linear: Linear, chain: list[ir.Node], node: ir.Node) -> bool:
    """Whether BatchNorm's axis 1 is still the linear map's output channels."""
    if not chain:
        rank = len(dims(linear.out) or ())
        return linear.node.op_type == "Conv" or rank == 2
    if linear.node.op_type == "Conv" or any(n.op_type != "Reshape" for n in chain):
        return False
    shapes = [dims(linear.out), *(dims(n.outputs[0]) for n in chain)]
    return all(s is not None and s[-1] == linear.channels for s in shapes) and len(dims(chain[0].outputs[0]) or ()) == 2


def into_consumer(node: ir.Node) -> int:
    """(x g + o) W + b = x (g W) + (o W + b), for a Gemm or MatMul of a 2-D x."""
    out, source = node.outputs[0], node.inputs[0]
    user = only_user(out)
    if user is None or source is None or user.op_type not in ("Gemm", "MatMul") or len(dims(out) or ()) != 2:
        return 0
    if user.inputs[0] is not out:
        return 0
    result = user.outputs[0]
    after = only_user(result)
    linear = linear_at(result)
    if after is not None and after.op_type == "Add" and (wider := linear_at(after.outputs[0])) is not None:
        linear = wider
    if linear is None:
        return 0
    gain, offset = gain_and_offset(node)
    inputs_axis = 1 - linear.axis
    product = offset @ linear.weights() if linear.axis == 1 else linear.weights() @ offset
    last = linear.out.producer()
    assert last is not None
    new = rebuild(
        linear,
        last,
        scaled(linear.weights, inputs_axis, gain),
        lambda: linear.bias() + product,
        linear.channels,
        linear.label,
        linear.out.name or "linear",
        x=source,
    )
    take_over(linear.out, new)
    return 1

"""BatchNorm in inference is a gain and an offset per channel: fold it into the Conv, MatMul or Gemm beside it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, constant, dims, integer, is_constant, only_user, sweep, take_over, weight
from vitdeploy.graph.linear import Linear, is_padded, layout_chain, linear_at, rebuild, replay, scaled


def fold_batchnorm(model: ir.Model) -> int:
    """Fold every BatchNormalization that stands beside a constant linear map. Returns how many went."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "BatchNormalization" or node.domain != "" or len([o for o in node.outputs if o.uses()]) > 1:
            continue
        if integer(node, "training_mode", 0) or not all(is_constant(value) for value in node.inputs[1:5]):
            continue
        count += into_producer(node) or into_consumer(node) or into_convolution(node)
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


def into_convolution(node: ir.Node) -> int:
    """conv(x g + o) = conv'(x) + b' for the Conv that alone reads it; zeros of a padding have no offset, so that with
    them it is conv'(x + o / g)."""
    out, x = node.outputs[0], node.inputs[0]
    conv = only_user(out)
    linear = linear_at(conv.outputs[0]) if conv is not None and conv.op_type == "Conv" else None
    gain, offset = gain_and_offset(node)
    if conv is None or linear is None or linear.x is not out or x is None:
        return 0
    padded = is_padded(conv) and bool(offset.any())
    if padded and not gain.all():
        return 0
    name = out.name or "batch_norm"
    if padded:
        graph, dtype = node.graph, linear.w.dtype
        assert isinstance(graph, ir.Graph)
        assert dtype is not None
        shape = (1, len(gain), *(1,) * (len(dims(linear.w) or ()) - 2))
        shift = weight(graph, f"{name}/offset", dtype, shape, lambda: (offset / gain).reshape(shape))
        x = add_node(node, "Add", [x, shift], f"{name}/shifted", out, dims(out))
    each = np.split(gain, integer(conv, "group", 1)), np.split(offset, integer(conv, "group", 1))

    def over_inputs(values: list[np.ndarray]) -> np.ndarray:
        """(outputs, inputs a group, 1, ...): what each weight is multiplied by."""
        w = linear.weights()
        rows = np.repeat(np.stack(values), len(w) // len(values), axis=0)
        return rows.reshape(rows.shape + (1,) * (w.ndim - 2))

    def weights() -> np.ndarray:
        return linear.weights() * over_inputs(each[0])

    def bias() -> np.ndarray:
        w = linear.weights()
        return linear.bias() + (0 if padded else (w * over_inputs(each[1])).sum(axis=tuple(range(1, w.ndim))))

    keep = padded and linear.b is None
    label, result = linear.label, linear.out.name or "conv"
    take_over(linear.out, rebuild(linear, conv, weights, None if keep else bias, linear.channels, label, result, x=x))
    return 1

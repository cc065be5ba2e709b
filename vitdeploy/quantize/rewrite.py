"""Write x' = (x - shift) / scale into the weights that make a channel, and its inverse into those that read it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import array, constant, integer
from vitdeploy.quantize.channels import End


def rewrite_writer(end: End, scale: np.ndarray, shift: np.ndarray) -> None:
    """The node then writes (y - shift) / scale; both float64 (output channels,)."""
    node = end.node
    w, bias = _numbers(node, 1), _bias(node, len(scale))
    axis = 0 if node.op_type in ("Conv", "LayerNormalization") else 1 - integer(node, "transB", 0)
    _replace(node, 1, w / _along(scale, axis, w.ndim))
    if bias is not None or shift.any():
        _replace_bias(node, ((0.0 if bias is None else bias) - shift) / scale)


def rewrite_constant(end: End, scale: np.ndarray) -> None:
    """What an Add adds to the channels becomes smaller with them; `scale` has the channels' layout."""
    _replace(end.node, end.slot, _numbers(end.node, end.slot) / scale)


def rewrite_reader(end: End, scale: np.ndarray, shift: np.ndarray) -> None:
    """The node then makes of (x - shift) / scale what it made of x; both float64 (input channels,)."""
    node, w = end.node, _numbers(end.node, 1)
    if node.op_type == "Conv":
        groups = integer(node, "group", 1)
        outputs, rest = len(w) // groups, (1,) * (w.ndim - 2)
        factor, offset = (np.repeat(v.reshape(groups, -1), outputs, axis=0) for v in (scale, shift))
        moved = (w * offset.reshape(*offset.shape, *rest)).reshape(len(w), -1).sum(axis=1)
        new = w * factor.reshape(*factor.shape, *rest)
    else:
        turned = integer(node, "transB", 0)
        moved = w @ shift if turned else shift @ w
        new = w * _along(scale, 1 if turned else 0, 2)
    _replace(node, 1, new)
    if shift.any():
        bias = _bias(node, len(moved))
        _replace_bias(node, moved if bias is None else bias + moved)


def _numbers(node: ir.Node, slot: int) -> np.ndarray:
    found = constant(node.inputs[slot])
    assert found is not None
    return found.astype(np.float64)


def _along(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def _bias(node: ir.Node, channels: int) -> np.ndarray | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    return np.broadcast_to(_numbers(node, 2).reshape(-1), (channels,))


def _replace_bias(node: ir.Node, bias: np.ndarray) -> None:
    if node.op_type == "MatMul":  # of matrices, see channels.py: a Gemm has a place for it
        node.op_type = "Gemm"
    if len(node.inputs) < 3 or node.inputs[2] is None:
        w, graph = node.inputs[1], node.graph
        assert w is not None
        assert isinstance(graph, ir.Graph)
        label = (w.name or "").removesuffix(".T").removesuffix(".weight")
        node.resize_inputs(3)
        node.replace_input_with(2, array(graph, f"{label}.bias", bias.astype(np.float32)))
        return
    _replace(node, 2, bias)


def _replace(node: ir.Node, slot: int, numbers: np.ndarray) -> None:
    """Other numbers for a constant input; whoever else reads it keeps the old ones."""
    old, graph = node.inputs[slot], node.graph
    assert old is not None
    assert isinstance(graph, ir.Graph)
    new = numbers.astype(np.float32)
    if old.is_initializer() and len(list(old.uses())) == 1 and not old.is_graph_output():
        old.const_value = ir.Tensor(new, name=old.name)
        old.shape = ir.Shape(new.shape)
    else:
        node.replace_input_with(slot, array(graph, old.name or "weight", new))

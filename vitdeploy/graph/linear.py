"""Linear maps in a graph: MatMul, Gemm or Conv with constant weights, and the Reshapes and Transposes around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, constant, dims, integer, ints, is_constant, length, only_user, weight

Recipe = Callable[[], np.ndarray]


@dataclass
class Linear:
    """y = x W + b, found in the graph.

    Attributes:
        node: the MatMul, Gemm or Conv.
        x, w, b: its input, constant weight, and constant bias or None.
        out: the value after the bias.
        axis: of `w` that counts output channels.
    """

    node: ir.Node
    x: ir.Value
    w: ir.Value
    b: ir.Value | None
    out: ir.Value
    axis: int

    @property
    def channels(self) -> int:
        return length(self.w, self.axis)

    @property
    def label(self) -> str:
        """What to name things derived from it."""
        name = self.w.name or "linear"
        return name.removesuffix(".T").removesuffix(".weight")

    def weights(self) -> np.ndarray:
        """The weight as float64."""
        found = constant(self.w)
        assert found is not None
        return found.astype(np.float64)

    def bias(self) -> np.ndarray:
        """The bias as float64, zeros where there is none."""
        found = constant(self.b)
        return np.zeros(self.channels) if found is None else found.astype(np.float64).reshape(-1)


def linear_at(value: ir.Value | None) -> Linear | None:
    """The Linear whose result is `value`, or None. Nothing else may read what lies between its nodes."""
    node = None if value is None else value.producer()
    if node is None or value is None:
        return None
    if node.op_type == "Add" and node.domain == "":
        for data, bias in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            inner = data.producer() if data is not None else None
            if inner is None or inner.op_type != "MatMul" or not is_constant(bias) or is_constant(data):
                continue
            found = linear_at(data)
            wider = len(dims(bias) or ()) > len(dims(data) or ())  # the sum has more dimensions than the product
            alone = data is not None and only_user(data) is node
            if found and alone and not wider and is_channel_vector(bias, found.channels):
                return Linear(found.node, found.x, found.w, bias, value, found.axis)
        return None
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    x, w = node.inputs[0], node.inputs[1]
    b = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or w is None or not is_constant(w) or is_constant(x) or (b is not None and not is_constant(b)):
        return None
    if node.op_type == "Conv":
        return Linear(node, x, w, b, value, 0)
    if w.shape is None or len(w.shape) != 2:
        return None
    if node.op_type == "MatMul":
        return Linear(node, x, w, b, value, 1)
    axis = 0 if integer(node, "transB", 0) else 1
    plain = all(node.attributes[k].as_float() == 1.0 for k in ("alpha", "beta") if k in node.attributes)
    if not plain or integer(node, "transA", 0) or (b is not None and not is_channel_vector(b, length(w, axis))):
        return None
    return Linear(node, x, w, b, value, axis)


def is_channel_vector(value: ir.Value | None, channels: int) -> bool:
    """Whether the shape is (1, ..., 1, channels)."""
    shape = dims(value)
    return bool(shape) and shape[-1] == channels and all(d == 1 for d in shape[:-1])  # type: ignore[index]


def rebuild(
    linear: Linear,
    before: ir.Node,
    w: Recipe,
    b: Recipe | None,
    channels: int,
    label: str,
    name: str,
    x: ir.Value | None = None,
) -> ir.Value:
    """The same map of `x` with other numbers, inserted before `before`; returns its output.

    Args:
        w, b: recipes for the new weight (same layout as `linear.w`) and bias (vector), or no bias.
        channels: how many outputs the new weight has.
        label: names the new weight and bias.
        name: of the output value.
        x: another input of the same kind; by default the same.
    """
    graph, dtype = before.graph, linear.w.dtype
    assert isinstance(graph, ir.Graph)
    assert dtype is not None
    assert linear.w.shape is not None
    x = linear.x if x is None else x
    shape = [length(linear.w, axis) for axis in range(len(linear.w.shape))]
    shape[linear.axis] = channels
    new_w = weight(graph, f"{label}.weight", dtype, shape, w)
    new_b = None if b is None else weight(graph, f"{label}.bias", dtype, (channels,), b)
    out_shape = list(dims(linear.out) or ())
    in_shape = dims(x)
    if linear.node.op_type == "Conv":
        out_shape[1:2] = [channels]
    else:
        out_shape = [*(in_shape[:-1] if in_shape else out_shape[:-1]), channels]
    attributes = dict(linear.node.attributes)
    if linear.node.op_type != "MatMul":
        inputs = [x, new_w] if new_b is None else [x, new_w, new_b]
        return add_node(before, linear.node.op_type, inputs, name, linear.out, out_shape, **attributes)
    if new_b is None:
        return add_node(before, "MatMul", [x, new_w], name, linear.out, out_shape)
    product = add_node(before, "MatMul", [x, new_w], f"{name}/product", linear.out, out_shape)
    return add_node(before, "Add", [product, new_b], name, linear.out, out_shape)


def scaled(w: Recipe, axis: int, factor: np.ndarray) -> Recipe:
    """The recipe of `w` with output channel c multiplied by factor[c] (or by a scalar)."""

    def compute() -> np.ndarray:
        array = w()
        shape = [1] * array.ndim
        if factor.size > 1:
            shape[axis] = factor.size
        return array * factor.reshape(shape)

    return compute


def is_padded(conv: ir.Node) -> bool:
    """Whether a Conv sees zeros beyond its input's border."""
    auto = conv.attributes["auto_pad"].as_string() if "auto_pad" in conv.attributes else "NOTSET"
    return auto not in ("NOTSET", "VALID") or any(ints(conv, "pads") or [0])


def layout_chain(value: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """Walk up through Reshape and Transpose nodes that only this path reads.

    Returns:
        The nodes, nearest first, and the value that they start from.
    """
    nodes: list[ir.Node] = []
    while True:
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in ("Reshape", "Transpose"):
            return nodes, value
        source = node.inputs[0]
        if source is None or only_user(source) is not node:
            return nodes, value
        nodes.append(node)
        value = source


def replay(nodes: list[ir.Node], source: ir.Value, before: ir.Node, suffix: str) -> ir.Value:
    """Repeat a layout chain (nearest first, as `layout_chain` gives it) on another source of the same shape."""
    for node in reversed(nodes):
        out = node.outputs[0]
        source = add_node(
            before,
            node.op_type,
            [source, *node.inputs[1:]],
            f"{out.name}{suffix}",
            source,
            dims(out),
            **dict(node.attributes),
        )
    return source

"""What can run in int8 or fp8: products of an activation with constant weights, and of two activations."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.edit import add_node, array, dims, integer, is_constant, only_user, reshape_target, take_over
from vitdeploy.graph.linear import Linear, linear_at
from vitdeploy.quantize.schemes import Scheme

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Target:
    """A node that can run in 8 bits.

    Attributes:
        node: Gemm, MatMul or Conv.
        name: of its output, as the graph had it before anything was quantised.
        label: of its weight where it has one: what a user knows it by.
        axis: of the weight that counts output channels; None for the product of two activations.
        unfit: why the scheme wants it in float; empty where it may be quantised.
    """

    node: ir.Node
    name: str
    label: str
    axis: int | None
    unfit: str = ""

    @property
    def channels(self) -> int:
        """The axis of its activations' channels, counted as numpy does."""
        return 1 if self.node.op_type == "Conv" else -1

    @property
    def activations(self) -> list[ir.Value]:
        """The inputs that are quantised at run time."""
        found = self.node.inputs[:1] if self.axis is not None else self.node.inputs[:2]
        return [value for value in found if value is not None]

    def described(self, precision: str, work: Mapping[str, int], reason: str) -> dict[str, Any]:
        """A report's row: `work` holds the MACs of each node, `reason` is why it is not as asked, or empty."""
        count = work.get(self.node.name or self.name, 0)
        kind = self.node.op_type
        return {"label": self.label, "op_type": kind, "precision": precision, "macs": count, "reason": reason}


def find_targets(model: ir.Model, scheme: Scheme) -> list[Target]:
    """Everything that the scheme could have in 8 bits, in the graph's order; the main graph's fp32 nodes only."""
    found = []
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Gemm", "MatMul", "Conv"):
            continue
        x, w = node.inputs[0], node.inputs[1]
        if x is None or w is None or x.dtype not in (None, FLOAT) or is_constant(x):
            continue
        name = node.outputs[0].name or ""
        if not is_constant(w):
            if node.op_type == "MatMul":
                sizes = [n for value in (x, w) for n in (dims(value) or ())[-2:] if isinstance(n, int)]
                found.append(Target(node, name, name, None, scheme.reasons.get(misfit(node, sizes, scheme), "")))
            continue
        axis = weight_axis(node)
        if axis is None:
            continue
        label = (w.name or name).removesuffix(".T").removesuffix(".weight")
        found.append(Target(node, name, label, axis, _unfit(node, w, scheme)))
    return found


def matching(targets: Sequence[Target], patterns: Sequence[str]) -> list[str]:
    """Names of the targets that one of the patterns names. Raises UsageError on a pattern that names none."""
    found = []
    for pattern in patterns:
        hits = [t.name for t in targets if any(fnmatch.fnmatchcase(name, pattern) for name in (t.label, t.name))]
        if not hits:
            examples = ", ".join(t.label for t in targets[:3])
            raise UsageError(f"No layer matches '{pattern}': they are named as {examples}.")
        found += hits
    return found


def weight_axis(node: ir.Node) -> int | None:
    """The axis of a constant weight that counts output channels; None where scales a channel cannot express the node.

    Conv (O, I, kh, kw): 0. MatMul (K, N): 1. Gemm (K, N): 1, with transB: 0.
    """
    w = node.inputs[1]
    if node.op_type == "Conv":
        return 0
    if w is None or w.shape is None or len(w.shape) != 2:
        return None
    if node.op_type == "MatMul":
        return 1
    plain = all(node.attributes[k].as_float() == 1.0 for k in ("alpha", "beta") if k in node.attributes)
    return None if not plain or integer(node, "transA", 0) else 1 - integer(node, "transB", 0)


def to_gemm(model: ir.Model) -> int:
    """Turn MatMul by constant weights, and the Add of its bias, into Gemm on rows. Returns how many."""
    count = 0
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.graph is None:
            continue
        product = linear_at(node.outputs[0])
        if product is None or product.w.dtype != FLOAT or dims(product.x) is None:
            continue
        user = only_user(node.outputs[0])
        whole = linear_at(user.outputs[0]) if user is not None and user.op_type == "Add" else None
        count += _as_gemm(whole if whole is not None and whole.node is node else product)
    return count


def _as_gemm(linear: Linear) -> bool:
    shape, out_shape = dims(linear.x), dims(linear.out)
    assert shape is not None
    before = linear.out.producer()
    graph = linear.node.graph
    assert before is not None
    assert isinstance(graph, ir.Graph)
    rows = len(shape) == 2
    if not rows and (out_shape is None or sum(not isinstance(d, int) for d in out_shape) > 1):
        return False  # a Reshape can infer one dimension only
    name = linear.out.name or "gemm"
    x, width = linear.x, linear.channels
    if not rows:
        rows_shape = [f"{name}/rows", shape[-1]]  # a name of their own: others may have more rows, or fewer
        flat = reshape_target(graph, rows_shape, f"{name}/rows")
        x = add_node(before, "Reshape", [x, flat], f"{name}/rows", x, rows_shape)
    inputs = [x, linear.w]
    if linear.b is not None:
        bias = linear.b if dims(linear.b) == (width,) else array(graph, f"{linear.b.name}/row", _row(linear))
        inputs.append(bias)
    row_shape = [*(dims(x) or ())[:-1], width]
    out = add_node(before, "Gemm", inputs, f"{name}/gemm", linear.out, row_shape)
    if not rows:
        assert out_shape is not None
        out = add_node(before, "Reshape", [out, reshape_target(graph, out_shape, name)], name, linear.out, out_shape)
    take_over(linear.out, out)
    for node in (before, linear.node):
        if node.graph is not None and not any(o.uses() for o in node.outputs):
            graph.remove(node, safe=True)
    return True


def _row(linear: Linear) -> np.ndarray:
    return linear.bias().astype(np.float32)


def _unfit(node: ir.Node, w: ir.Value, scheme: Scheme) -> str:
    """Why the scheme wants a product in float; empty where it may be quantised."""
    assert w.shape is not None
    rule = misfit(node, [n for n in w.shape if isinstance(n, int)], scheme)
    if rule:
        return scheme.reasons[rule]
    readers = [user for user, _ in node.outputs[0].uses()]
    readers += [user for reader in readers if reader.op_type == "Reshape" for user, _ in reader.outputs[0].uses()]
    if any(reader.op_type in scheme.not_before for reader in readers):
        return scheme.reasons["not_before"]
    return ""


def misfit(node: ir.Node, shape: Sequence[int], scheme: Scheme) -> str:
    """The scheme's field that keeps a product with a weight of this shape in float; empty where none does."""
    if node.op_type != "Conv":
        return "smallest" if min(shape, default=scheme.smallest) < scheme.smallest else ""
    channels = min(shape[0] // integer(node, "group", 1), shape[1])
    if channels < scheme.smallest_conv:
        return "smallest_conv"
    return "largest_kernel" if 0 < scheme.largest_kernel < math.prod(shape[2:]) else ""

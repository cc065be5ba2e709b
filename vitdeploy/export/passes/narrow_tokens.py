"""Compute only the tokens that are read.

A ViT that classifies by its class token reads one row of the last block's output. Every op after the last attention
works on tokens one by one, and so do the queries: in the last block only keys and values need all tokens. The rows that
nobody reads are cut where they start, exactly. On a 12-block ViT that is about 7 % of the multiplications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, array, constant, dims, integer, ints, is_constant, reshape_target, sweep

UNARY = {"Gelu", "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Erf", "Identity", "Cast", "Neg", "Sqrt"}
BINARY = {"Add", "Sub", "Mul", "Div"}

Axis = int
Demand = tuple[Axis, int]  # of a value, the first n entries along an axis


@dataclass
class Cut:
    """What is to be narrowed, found by walking from the graph's end.

    Attributes:
        wants: per value, what each of its reads asks for.
        nodes: nodes that can produce just that, with their output's demand.
    """

    wants: dict[ir.Value, list[Demand]] = field(default_factory=dict)
    nodes: dict[ir.Node, Demand] = field(default_factory=dict)


def narrow_tokens(model: ir.Model) -> int:
    """Shrink what feeds a selection of leading tokens. Returns how many nodes work on fewer rows."""
    cut = plan(model.graph)
    if not any(node.op_type in ("MatMul", "Gemm") for node in cut.nodes):
        return 0
    new: dict[tuple[ir.Value, Demand], ir.Value] = {}
    for node in list(model.graph):
        if node in cut.nodes:
            rebuild_narrow(node, cut, new)
            continue
        source = node.inputs[0] if node.inputs else None
        maker = source.producer() if source is not None else None
        if source is not None and maker in cut.nodes and selection(node) is not None:
            node.replace_input_with(0, new[source, cut.nodes[maker]])
    sweep(model)
    return len(cut.nodes)


def plan(graph: ir.Graph) -> Cut:
    cut = Cut()
    for node in reversed(list(graph)):
        demand = selection(node)
        if demand is not None and node.inputs[0] is not None:
            cut.wants.setdefault(node.inputs[0], []).append(demand)
            continue
        if len(node.outputs) != 1:
            continue
        out = node.outputs[0]
        wants = cut.wants.get(out, [])
        if not wants or len(wants) != len(out.uses()) or out.is_graph_output() or len({axis for axis, _ in wants}) > 1:
            continue
        demand = (wants[0][0], max(count for _, count in wants))
        needs = needs_of(node, demand)
        if needs is None:
            continue
        cut.nodes[node] = demand
        for index, need in needs.items():
            value = node.inputs[index]
            if value is not None:
                cut.wants.setdefault(value, []).append(need)
    return cut


def selection(node: ir.Node) -> Demand | None:
    """What a Gather or Slice by constants reads, if it is a leading part of an axis of known length."""
    source = node.inputs[0] if node.inputs else None
    shape = dims(source)
    if node.domain != "" or shape is None or len(shape) < 3 or is_constant(source):
        return None
    axis, last = None, None
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        if index is not None and index.size and index.min() >= 0:
            axis, last = integer(node, "axis", 0) % len(shape), int(index.max()) + 1
    elif node.op_type == "Slice" and len(node.inputs) >= 4:
        starts, ends, axes = (constant(value) for value in node.inputs[1:4])
        if (
            starts is not None
            and ends is not None
            and axes is not None
            and axes.size == 1
            and 0 <= starts.item() < ends.item()
        ):
            axis, last = int(axes.item()) % len(shape), int(ends.item())
    if axis is None or last is None or axis == 0 or axis == len(shape) - 1:
        return None
    length = shape[axis]
    return (axis, last) if isinstance(length, int) and last < length else None


def needs_of(node: ir.Node, demand: Demand) -> Mapping[int, Demand] | None:
    """Which inputs may be narrowed, and along which axis, so that the output is; None when the op mixes the rows."""
    axis, count = demand
    out, data = dims(node.outputs[0]), dims(node.inputs[0] if node.inputs else None)
    if node.domain != "" or out is None or data is None:
        return None
    kind = node.op_type
    if kind in UNARY:
        return {0: demand}
    if kind in BINARY:
        shapes = [dims(value) for value in node.inputs]
        if any(shape is None for shape in shapes):
            return None
        offsets = [axis - (len(out) - len(shape or ())) for shape in shapes]
        return {
            i: (at, count)
            for i, (at, shape) in enumerate(zip(offsets, shapes, strict=True))
            if at >= 0 and shape is not None and shape[at] != 1
        }
    if kind == "LayerNormalization":
        return {0: demand} if axis < integer(node, "axis", -1) % len(out) else None
    if kind == "Softmax":
        return {0: demand} if axis != integer(node, "axis", -1) % len(out) else None
    if kind == "MatMul":
        return {0: (len(data) - 2, count)} if axis == len(out) - 2 and len(data) == len(out) else None
    if kind == "Transpose":
        perm = ints(node, "perm")
        return None if perm is None else {0: (perm[axis], count)}
    if kind == "Reshape":
        source = same_axis(data, out, axis)
        writable = sum(isinstance(d, str) for d in out) <= 1
        return {0: (source, count)} if writable and source is not None else None
    return None


def same_axis(before: tuple[int | str, ...], after: tuple[int | str, ...], axis: int) -> int | None:
    """Where axis `axis` of a reshaped tensor was before, if the reshape left it whole."""

    def size(part: tuple[int | str, ...]) -> tuple[int, list[str]]:
        return prod(d for d in part if isinstance(d, int)), sorted(d for d in part if isinstance(d, str))

    for at, length in enumerate(before):
        if (
            length == after[axis]
            and size(before[:at]) == size(after[:axis])
            and size(before[at + 1 :]) == size(after[axis + 1 :])
        ):
            return at
    return None


def narrowed(
    value: ir.Value, demand: Demand, before: ir.Node, cut: Cut, new: dict[tuple[ir.Value, Demand], ir.Value]
) -> ir.Value:
    """The leading part of `value`: computed narrow where its producer can, else sliced."""
    if (value, demand) in new:
        return new[value, demand]
    axis, count = demand
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    fixed = constant(value)
    if fixed is not None:
        part = np.take(fixed, np.arange(count), axis=axis)
        new[value, demand] = array(graph, f"{value.name}.first{count}", part)
        return new[value, demand]
    maker = value.producer()
    source = new[value, cut.nodes[maker]] if maker in cut.nodes else value  # wider, where another reader wants more
    shape = list(dims(value) or ())
    shape[axis] = count
    bounds = [
        array(graph, f"{value.name}/{what}", np.array([n]))
        for what, n in (("start", 0), ("end", count), ("axis", axis))
    ]
    new[value, demand] = add_node(before, "Slice", [source, *bounds], f"{value.name}/first{count}", value, shape)
    return new[value, demand]


def rebuild_narrow(node: ir.Node, cut: Cut, new: dict[tuple[ir.Value, Demand], ir.Value]) -> None:
    axis, count = cut.nodes[node]
    needs = needs_of(node, (axis, count)) or {}
    out = node.outputs[0]
    shape = list(dims(out) or ())
    shape[axis] = count
    inputs = list(node.inputs)
    for index, need in needs.items():
        value = inputs[index]
        if value is not None:
            inputs[index] = narrowed(value, need, node, cut, new)
    if node.op_type == "Reshape":
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        inputs[1] = reshape_target(graph, shape, f"{out.name}/first{count}")
    new[out, cut.nodes[node]] = add_node(
        node, node.op_type, inputs, f"{out.name}/first{count}", out, shape, **dict(node.attributes)
    )

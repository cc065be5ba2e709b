"""Which weights a channel comes from and goes to: where one can be scaled, and moved, without changing the function.

Every channel of every activation is followed through what treats channels alike (layouts, residual sums, ReLU,
pooling, attention's sum over tokens) from the linear maps and LayerNorms that write it to the linear maps that read it.
A channel that reaches anything else (GELU, Softmax, an output of the graph) is not free. So a site may be as small as a
LayerNorm with its readers, or as large as the residual stream of a LeViT stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims, integer, ints, is_constant, length
from vitdeploy.quantize.targets import weight_axis

SAME = ("Identity", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
MOVABLE = ("Identity", "GlobalAveragePool")  # those of them that commute with adding a constant
FIXED = -1  # no free channel


@dataclass(frozen=True)
class End:
    """A node that writes or reads channels of a site, or a constant that is added to them.

    Attributes:
        node: Gemm, MatMul, Conv, LayerNormalization, or Add.
        slot: of the node's inputs that a constant is; -1 where the node is no such Add.
        channels: for each output channel of a writer, input channel of a reader, or element of a constant, which of the
            site's channels it is; FIXED where it is none.
    """

    node: ir.Node
    slot: int
    channels: np.ndarray


@dataclass(frozen=True)
class Site:
    """Channels that the same ends write and read.

    Attributes:
        size: how many channels.
        writers, constants, readers: see End.
        values: everything that holds these channels, between the writers and the readers.
        movable: whether a constant may be added to each channel, which the readers' biases then take back.
    """

    size: int
    writers: Sequence[End]
    constants: Sequence[End]
    readers: Sequence[End]
    values: Sequence[ir.Value]
    movable: bool


@dataclass
class _Trace:
    """Channels by number; those that must go together are united."""

    parent: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    still: set[int] = field(default_factory=set)  # free to be scaled, not to be moved
    held: dict[ir.Value, np.ndarray] = field(default_factory=dict)  # numbers, broadcastable to the value
    writers: list[End] = field(default_factory=list)
    constants: list[End] = field(default_factory=list)
    readers: list[End] = field(default_factory=list)

    def fresh(self, value: ir.Value, axis: int, count: int) -> np.ndarray:
        numbers = np.arange(len(self.parent), len(self.parent) + count)
        self.parent += numbers.tolist()
        rank = len(dims(value) or ())
        if rank:
            shape = [1] * rank
            shape[axis] = count
            self.held[value] = numbers.reshape(shape)
        else:
            self.fixed.update(numbers.tolist())
        return numbers

    def root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def fix(self, value: ir.Value | None) -> None:
        if value in self.held:
            self.fixed.update(self.held[value].ravel().tolist())

    def keep_still(self, numbers: np.ndarray) -> None:
        self.still.update(numbers.ravel().tolist())

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(*(x.ravel().tolist() for x in np.broadcast_arrays(first, second)), strict=True):
            low, high = sorted((self.root(a), self.root(b)))
            self.parent[high] = low


def find_sites(model: ir.Model) -> list[Site]:
    """Every set of channels that is free to be scaled, in the graph's order."""
    trace = _Trace()
    for node in model.graph:
        _follow(trace, node)
    for value in model.graph.outputs:
        trace.fix(value)
    return _sites(trace)


def _follow(trace: _Trace, node: ir.Node) -> None:
    """Take one node's outputs in."""
    plain = node.domain in ("", "ai.onnx") and len(node.outputs) == 1
    if plain and _writes(trace, node):
        return
    step = STEPS.get(node.op_type) if plain else None
    known = [value for value in node.inputs if value in trace.held]
    found = step(trace, node) if step is not None and known else None
    if found is not None and found.ndim == len(dims(node.outputs[0]) or ()):
        trace.held[node.outputs[0]] = found
        return
    for value in known:
        trace.fix(value)
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        for value in list(trace.held):  # a subgraph may read anything
            trace.fix(value)


def _writes(trace: _Trace, node: ir.Node) -> bool:
    """Linear maps and LayerNorms end the channels that they read, and begin others."""
    if node.op_type == "LayerNormalization":
        gain = constant(node.inputs[1])
        shape = dims(node.outputs[0])
        last = shape is not None and integer(node, "axis", -1) % len(shape) == len(shape) - 1
        constants = all(value is None or is_constant(value) for value in node.inputs[1:])
        if gain is None or not last or not constants:
            return False
        trace.fix(node.inputs[0])
        trace.writers.append(End(node, -1, trace.fresh(node.outputs[0], -1, gain.size)))
        return True
    if node.op_type not in ("Gemm", "MatMul", "Conv") or not all(is_constant(value) for value in node.inputs[1:]):
        return False
    axis, w = weight_axis(node), node.inputs[1]
    if axis is None or w is None or w.shape is None:
        return False
    conv = node.op_type == "Conv"
    width = integer(node, "group", 1) * length(w, 1) if conv else length(w, 1 - axis)
    _reads(trace, node, 1 if conv else -1, width)
    numbers = trace.fresh(node.outputs[0], 1 if conv else -1, length(w, axis))
    trace.writers.append(End(node, -1, numbers))
    if node.op_type == "MatMul" and len(dims(node.outputs[0]) or ()) != 2:
        trace.keep_still(numbers)  # it has no place for a bias
    return True


def _reads(trace: _Trace, node: ir.Node, axis: int, width: int) -> None:
    x = node.inputs[0]
    numbers = trace.held.get(x) if x is not None else None
    if numbers is None:
        return
    if numbers.size != width or numbers.shape[axis] != width:
        trace.fix(x)
        return
    trace.readers.append(End(node, -1, numbers.reshape(-1)))
    auto = node.attributes.get("auto_pad")
    padded = any(ints(node, "pads") or [0]) or (auto is not None and auto.as_string() not in ("NOTSET", "VALID"))
    if (node.op_type == "Conv" and padded) or (node.op_type == "MatMul" and len(dims(x) or ()) != 2):
        trace.keep_still(numbers)  # a border of zeros does not move along; and see _writes


def _same(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    numbers = trace.held[node.inputs[0]]  # type: ignore[index]
    if node.op_type not in MOVABLE:
        trace.keep_still(numbers)
    return numbers


def _add(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    first, second = (trace.held.get(value) if value is not None else None for value in node.inputs)
    if first is not None and second is not None:
        if dims(node.inputs[0]) != dims(node.inputs[1]) or first.shape != second.shape:
            return None
        trace.unite(first, second)
        trace.keep_still(first)
        return first
    slot = 1 if first is not None else 0
    numbers, offset = first if first is not None else second, constant(node.inputs[slot])
    if numbers is None or offset is None or offset.ndim > numbers.ndim:
        return None
    trace.constants.append(End(node, slot, numbers))
    return numbers


def _scale(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    slot = 0 if node.inputs[0] in trace.held else 1
    factor = constant(node.inputs[1 - slot])
    if factor is None or factor.size != 1 or (node.op_type == "Div" and slot == 1):
        return None
    numbers = trace.held[node.inputs[slot]]  # type: ignore[index]
    trace.keep_still(numbers)
    return numbers


def _transpose(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    numbers = trace.held[node.inputs[0]]  # type: ignore[index]
    return numbers.transpose(ints(node, "perm") or range(numbers.ndim)[::-1])


def _reshape(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    source = node.inputs[0]
    if source not in trace.held:
        return None
    return reshaped(trace.held[source], dims(source) or (), dims(node.outputs[0]) or ())


def reshaped(numbers: np.ndarray, before: Sequence[int | str], after: Sequence[int | str]) -> np.ndarray | None:
    """Channel numbers, broadcastable to `before`, of the tensor in the shape `after`; None where it is not known."""
    shapes = [[_length(n) for n in shape] for shape in (before, after)]
    if any(n is None for shape in shapes for n in shape):
        return None
    first, second = (tuple(n for n in shape if n is not None) for shape in shapes)
    if np.prod(first) != np.prod(second):
        return None
    found = np.broadcast_to(numbers, first).reshape(second)
    for axis in range(found.ndim):
        start = found.take([0], axis)
        if (found == start).all():  # the same channels all along
            found = start
    return found


def _length(size: int | str) -> int | None:
    """A dimension as a number: symbols, such as the batch in '64*batch', count for two, so that their place is seen."""
    if isinstance(size, int):
        return size
    factors = size.split("*")
    if not all(factor.isdigit() or factor.isidentifier() for factor in factors):
        return None
    return int(np.prod([int(factor) if factor.isdigit() else 2 for factor in factors]))


def _part(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    """Slice and ReduceMean of axes that are not the channels'."""
    source, out = node.inputs[0], node.outputs[0]
    if source not in trace.held:
        return None
    numbers, before, after = trace.held[source], dims(source) or (), dims(out) or ()
    if len(before) == len(after):
        whole = all(n == 1 or after[i] == before[i] for i, n in enumerate(numbers.shape))
        return numbers if whole else None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type != "ReduceMean" or axes is None:
        return None
    gone = {int(axis) % len(before) for axis in axes.reshape(-1)}
    if any(numbers.shape[i] > 1 for i in gone):
        return None
    return numbers.reshape([n for i, n in enumerate(numbers.shape) if i not in gone])


def _gather(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    index = constant(node.inputs[1])
    if node.inputs[0] not in trace.held or index is None or index.ndim > 1:
        return None
    numbers = trace.held[node.inputs[0]]
    axis = integer(node, "axis", 0) % numbers.ndim
    if numbers.shape[axis] > 1:
        return None
    return numbers if index.ndim else numbers.reshape([n for i, n in enumerate(numbers.shape) if i != axis])


def _concat(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    values = [value for value in node.inputs if value is not None]
    axis = integer(node, "axis", 0) % len(dims(values[0]) or (0,))
    parts = []
    for value in values:
        shape = dims(value) or ()
        count = shape[axis] if shape else ""
        if not isinstance(count, int):
            return None
        if value not in trace.held:  # not free, but the others may be
            trace.fixed.update(trace.fresh(value, axis, count).tolist())
        parts.append(trace.held[value])
        if parts[-1].shape[axis] != count or parts[-1].size != count:
            return None
    return np.concatenate(parts, axis=axis)


def _attend(trace: _Trace, node: ir.Node) -> np.ndarray | None:
    """Sums over tokens: P v. Where P's rows sum to one, what is added to every token comes out again."""
    p, v = node.inputs
    numbers = trace.held.get(v) if v is not None else None
    if numbers is None or p in trace.held or numbers.ndim < 2 or numbers.shape[-2] > 1:
        return None
    maker = p.producer() if p is not None else None
    rank = len(dims(p) or ())
    if maker is None or maker.op_type != "Softmax" or integer(maker, "axis", -1) % max(rank, 1) != rank - 1:
        trace.keep_still(numbers)
    return numbers if rank == numbers.ndim else None


STEPS: dict[str, Callable[[_Trace, ir.Node], np.ndarray | None]] = {
    **dict.fromkeys(SAME, _same),
    "Add": _add,
    "Mul": _scale,
    "Div": _scale,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Slice": _part,
    "ReduceMean": _part,
    "Gather": _gather,
    "Concat": _concat,
    "MatMul": _attend,
}


def _sites(trace: _Trace) -> list[Site]:
    """Free channels with the same ends, together."""
    fixed = {trace.root(number) for number in trace.fixed}
    still = {trace.root(number) for number in trace.still}
    kinds = (trace.writers, trace.constants, trace.readers)
    ends: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for kind, found in enumerate(kinds):
        for i, end in enumerate(found):
            for root in sorted({trace.root(n) for n in end.channels.ravel().tolist()} - fixed):
                ends[root].append((kind, i))
    together: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root in sorted(ends):
        together[tuple(ends[root])].append(root)
    holders: dict[int, list[ir.Value]] = defaultdict(list)
    for value, numbers in trace.held.items():
        for root in {trace.root(n) for n in numbers.ravel().tolist()}:
            holders[root].append(value)
    sites = []
    for signature, roots in together.items():
        place = {root: i for i, root in enumerate(roots)}
        writers, constants, readers = (
            [_within(trace, found[i], place) for k, i in signature if k == kind] for kind, found in enumerate(kinds)
        )
        if not writers or not readers:
            continue
        values = list(dict.fromkeys(value for root in roots for value in holders[root]))
        movable = len(writers) == 1 and not any(root in still for root in roots)
        sites.append(Site(len(roots), writers, constants, readers, values, movable))
    return sites


def _within(trace: _Trace, end: End, place: dict[int, int]) -> End:
    found = [place.get(trace.root(n), FIXED) for n in end.channels.ravel().tolist()]
    return End(end.node, end.slot, np.array(found).reshape(end.channels.shape))

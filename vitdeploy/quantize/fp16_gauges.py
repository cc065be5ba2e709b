"""What goes wrong inside a node in fp16 though all that it reads and writes would fit: norms, softmax, long sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, integer, ints, is_constant, only_user
from vitdeploy.quantize.fp16_types import is_float32

Finding = tuple[str, dict[str, float]]  # the reason in words, and its figures
See = Callable[[np.ndarray], None]

LARGEST = 65504.0
SAFE = LARGEST / 4  # samples are few: other images may reach further
SMALLEST = 2.0**-14  # 6.1e-5; below, fp16 loses bits, and some devices give zero
LONG = 2048  # ones that a sum in fp16 can count
MOVED = 0.05  # a probability
BLOCK = 1 << 20  # elements looked at at once

REDUCTIONS = {"ReduceMean", "ReduceSum"}
# Between a sum of squares and the division by its root.
PATH = {"Add", "Mul", "Div", "Max", "Clip", "Sqrt", "Reciprocal", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Pow"}
# Between the product of queries and keys and its softmax.
SCORES = {"Add", "Mul", "Div", "Sub", "Where", "Reshape", "Transpose", "Slice", "Split", "Unsqueeze", "Squeeze"}
PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv"}


def short(x: float) -> str:
    """Two digits: 1.3e5, not 1.3e+05."""
    return f"{x:.2g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def near(x: float) -> str:
    """How far the largest fp16 number is from x, which is more than SAFE."""
    return "fp16 ends at 65504" if x > LARGEST else "fp16 ends at 65504, less than 4 times that"


class Gauge:
    """Looks at tensors while the samples run, then says whether its nodes must stay in fp32.

    Attributes:
        nodes: that it speaks for.
        watches: each tensor that it looks at, and what takes its values.
    """

    nodes: list[ir.Node]
    watches: list[tuple[ir.Value, See]]

    def finding(self) -> Finding | None:
        raise NotImplementedError


def gauges_of(node: ir.Node) -> Iterator[Gauge]:
    """The gauges that a node of the default ONNX domain wants."""
    x = node.inputs[0] if node.inputs else None
    if node.domain not in ("", "ai.onnx") or not is_float32(x) or is_constant(x):
        return
    if node.op_type == "BatchNormalization":
        yield RunningVariance(node)
    elif node.op_type in ROWS:
        yield Statistics(node)
    elif node.op_type == "Sqrt" and (chain := variance_chain(node)):
        yield SquareRoot(node, chain)
    elif node.op_type == "Softmax":
        yield SoftmaxScores(node)
    elif node.op_type == "Attention" and len(node.inputs) > 1:
        yield AttentionScores(node)
    elif node.op_type in {*REDUCTIONS, "GlobalAveragePool"}:
        yield LongSum(node)


# --- normalisation ------------------------------------------------------------------------------------------------

Rows = Callable[[ir.Node, np.ndarray], np.ndarray]


def _over_axes(node: ir.Node, x: np.ndarray) -> np.ndarray:
    """One row for each element of what the node reduces to: by `axes`, an attribute or the second input."""
    found = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = ints(node, "axes") if found is None else [int(a) for a in found.reshape(-1)]
    if not axes and integer(node, "noop_with_empty_axes", 0):
        return x.reshape(-1, 1)
    axes = sorted(a % x.ndim for a in axes or range(x.ndim))
    kept = [a for a in range(x.ndim) if a not in axes]
    return x.transpose(*kept, *axes).reshape(prod(x.shape[a] for a in kept), -1)


def _from_axis(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(prod(x.shape[: integer(node, "axis", -1) % x.ndim]), -1)


def _along_axis(node: ir.Node, x: np.ndarray) -> np.ndarray:
    axis = integer(node, "axis", -1)
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def _per_channel(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0] * x.shape[1], -1)


def _per_group(node: ir.Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0] * integer(node, "num_groups", 1), -1)


# Which elements share a statistic; whether their mean is taken off first; the default epsilon; mean of squares, or sum.
ROWS: dict[str, tuple[Rows, bool, float, bool]] = {
    "LayerNormalization": (_from_axis, True, 1e-5, True),
    "RMSNormalization": (_from_axis, False, 1e-5, True),
    "InstanceNormalization": (_per_channel, True, 1e-5, True),
    "GroupNormalization": (_per_group, True, 1e-5, True),
    "LpNormalization": (_along_axis, False, 0.0, False),
    "ReduceL2": (_over_axes, False, 0.0, False),
    "ReduceSumSquare": (_over_axes, False, 0.0, False),
}


class Statistics(Gauge):
    """A norm whose squares, their sum, or variance + epsilon leave fp16's range.

    ONNX lets LayerNormalization compute its statistics in float32 (stash_type 1), but runtimes that take it apart keep
    the tensor's type, and InstanceNormalization promises nothing: the cautious reading counts.
    """

    def __init__(self, node: ir.Node) -> None:
        self._node = node
        self._rows, self._centred, epsilon, self._mean = ROWS[node.op_type]
        attribute = node.attributes.get("epsilon")
        self._epsilon = epsilon if attribute is None else attribute.as_float()
        self.nodes = [node, *_until_division(node)] if node.op_type.startswith("Reduce") else [node]
        assert node.inputs[0] is not None
        self.watches = [(node.inputs[0], self.see)]
        self.peak, self.most, self.least, self.sum, self.length = 0.0, 0.0, np.inf, 0.0, 0

    def see(self, x: np.ndarray) -> None:
        rows = self._rows(self._node, x)
        self.length = rows.shape[1]
        for part in _row_blocks(rows):
            size = np.abs(part)
            squares = np.square(part, dtype=np.float64)
            sums = squares.sum(axis=1)
            centred = np.square(part - part.mean(axis=1, keepdims=True, dtype=np.float64)) if self._centred else squares
            statistic = centred.mean(axis=1) if self._mean else centred.sum(axis=1)
            self.peak = max(self.peak, float(size.max()))
            self.sum = max(self.sum, float(sums.max()), float(size.sum(axis=1, dtype=np.float64).max()))
            self.most = max(self.most, float(statistic.max()))
            self.least = min(self.least, float(statistic.min()) + self._epsilon)

    def finding(self) -> Finding | None:
        square = self.peak**2
        if square > SAFE:
            reason = f"norm: |x| reaches {short(self.peak)}, its square {short(square)}; {near(square)}"
            return reason, {"peak": self.peak, "square": square}
        if self.most > SAFE:
            return f"norm: squares add up to {short(self.most)}; {near(self.most)}", {"sum": self.most}
        if self.length > LONG and self.sum > SAFE:
            reason = f"norm: {self.length} elements add up to {short(self.sum)}; {near(self.sum)}"
            return reason, {"length": self.length, "sum": self.sum}
        what = "variance + epsilon" if self._centred else "mean square + epsilon" if self._mean else "sum of squares"
        return _too_small(self.least, what)


class RunningVariance(Gauge):
    """A BatchNormalization with a channel whose variance + epsilon leaves fp16's normal range."""

    def __init__(self, node: ir.Node) -> None:
        self.nodes, self.watches = [node], []
        epsilon = node.attributes.get("epsilon")
        variance = constant(node.inputs[4])
        self._least = np.inf
        if variance is not None:
            self._least = float(variance.min()) + (1e-5 if epsilon is None else epsilon.as_float())

    def finding(self) -> Finding | None:
        return _too_small(self._least)


class SquareRoot(Gauge):
    """A norm written out, ReduceMean of squares to Sqrt to Div, with a variance too small for fp16."""

    def __init__(self, node: ir.Node, chain: list[ir.Node]) -> None:
        self.nodes = chain
        assert node.inputs[0] is not None
        self.watches = [(node.inputs[0], self.see)]
        self.least = np.inf

    def see(self, x: np.ndarray) -> None:
        self.least = min(self.least, float(x.min()))

    def finding(self) -> Finding | None:
        return _too_small(self.least)


def variance_chain(root: ir.Node) -> list[ir.Node]:
    """From the squares over their ReduceMean or ReduceSum to the Sqrt `root` and the division by it; empty if none."""
    chain = [root]
    while True:
        sources = {v for v in chain[-1].inputs if v is not None and not is_constant(v)}
        node = sources.pop().producer() if len(sources) == 1 else None
        if node is None or node.op_type not in PATH | REDUCTIONS:
            break
        chain.append(node)
        if _squares(node):
            break
    if not any(node.op_type in REDUCTIONS for node in chain):
        return []
    return chain[::-1] + _until_division(root)


def _squares(node: ir.Node) -> bool:
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])


def _until_division(node: ir.Node) -> list[ir.Node]:
    """What follows a norm's statistic, up to the node that divides by it."""
    nodes: list[ir.Node] = []
    while True:
        user = only_user(node.outputs[0])
        if user is None or user.op_type not in PATH:
            return nodes
        nodes.append(user)
        if sum(v is not None and not is_constant(v) for v in user.inputs) > 1:
            return nodes
        node = user


def _too_small(least: float, what: str = "variance + epsilon") -> Finding | None:
    if least >= SMALLEST:
        return None
    return f"norm: {what} falls to {short(least)}; fp16 loses bits below 6.1e-5", {"least": least}


# --- softmax ------------------------------------------------------------------------------------------------------


class SoftmaxScores(Gauge):
    """A softmax whose probabilities move when its scores are rounded: at 1024, fp16 knows whole numbers only.

    The nodes that make the scores stay in fp32 with it, from the product of queries and keys on; after that the harm
    would be done.
    """

    def __init__(self, node: ir.Node) -> None:
        self._axis = integer(node, "axis", -1)
        self.nodes = [node, *_score_nodes(node)]
        assert node.inputs[0] is not None
        self.watches = [(node.inputs[0], self.see)]
        self.peak, self.moved = 0.0, 0.0

    def see(self, x: np.ndarray) -> None:
        for part in _row_blocks(np.moveaxis(x, self._axis, -1).reshape(-1, x.shape[self._axis])):
            top = part.max(axis=1)
            # Scores far below the row's largest count for nothing; up to 64, rounding moves no probability by 1 %.
            far = np.abs(top) > 64
            if far.any():
                part = np.clip(part[far], -LARGEST, LARGEST)
                moved = np.abs(_softmax(part) - _softmax(part.astype(np.float16).astype(np.float32)))
                self.moved = max(self.moved, float(moved.max()))
                self.peak = max(self.peak, float(np.abs(top).max()))

    def finding(self) -> Finding | None:
        if self.moved <= MOVED:
            return None
        peak, moved = short(self.peak), short(self.moved)
        reason = f"softmax: scores reach {peak}, and rounding them to fp16 moves a probability by {moved}"
        return reason, {"peak": self.peak, "moved": self.moved}


class AttentionScores(Gauge):
    """An Attention node whose scores, bounded by the lengths of queries and keys, may be too large for fp16."""

    LIMIT = 1024.0

    def __init__(self, node: ir.Node) -> None:
        self._node, self.nodes = node, [node]
        q, k = node.inputs[:2]
        assert q is not None
        assert k is not None
        self.watches = [(q, self.see_queries), (k, self.see_keys)]
        self.query, self.key, self.size = 0.0, 0.0, 1

    def see_queries(self, x: np.ndarray) -> None:
        self.query = max(self.query, self._longest(x, "q_num_heads"))

    def see_keys(self, x: np.ndarray) -> None:
        self.key = max(self.key, self._longest(x, "kv_num_heads"))

    def _longest(self, x: np.ndarray, heads: str) -> float:
        """The longest vector of one head in (batch, heads, tokens, size) or (batch, tokens, heads * size)."""
        rows = x.reshape(*x.shape[:2], integer(self._node, heads, 1), -1) if x.ndim == 3 else x
        self.size = rows.shape[-1]
        return float(np.sqrt(np.square(rows, dtype=np.float64).sum(axis=-1)).max())

    def finding(self) -> Finding | None:
        scale = self._node.attributes.get("scale")
        product = self.query * self.key
        bound = product * (self.size**-0.5 if scale is None else scale.as_float())
        if product <= SAFE and bound <= self.LIMIT:
            return None
        reason = f"softmax: |q| |k| reaches {short(product)}, so scores may reach {short(bound)}"
        return reason, {"product": product, "scores": bound}


def _score_nodes(softmax: ir.Node) -> list[ir.Node]:
    """The nodes from the product of queries and keys to the softmax."""
    nodes: list[ir.Node] = []
    waiting = [softmax.inputs[0]]
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node in nodes:
            continue
        if node.op_type in PRODUCTS:
            nodes.append(node)
        elif node.op_type in SCORES:
            nodes.append(node)
            waiting += node.inputs
    return nodes


def _softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# --- sums ---------------------------------------------------------------------------------------------------------


class LongSum(Gauge):
    """A mean or sum over many elements that may pass the largest fp16 number on the way."""

    def __init__(self, node: ir.Node) -> None:
        self._node, self.nodes = node, [node]
        assert node.inputs[0] is not None
        self.watches = [(node.inputs[0], self.see)]
        self.length, self.sum = 0, 0.0

    def see(self, x: np.ndarray) -> None:
        rows = _per_channel(self._node, x) if self._node.op_type == "GlobalAveragePool" else _over_axes(self._node, x)
        self.length = rows.shape[1]
        for part in _row_blocks(rows) if self.length > LONG else ():
            self.sum = max(self.sum, float(np.abs(part).sum(axis=1, dtype=np.float64).max()))

    def finding(self) -> Finding | None:
        if self.sum <= SAFE:
            return None
        reason = f"sum: |x| over {self.length} elements adds up to {short(self.sum)}; {near(self.sum)}"
        return reason, {"length": self.length, "sum": self.sum}


def _row_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, about BLOCK elements at a time."""
    step = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]

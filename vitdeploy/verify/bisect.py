"""The first node of a graph whose value departs from a reference graph, and why. Run when a verification has failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.edit import constant, is_constant
from vitdeploy.graph.run import Probe, values
from vitdeploy.verify.cause import Evidence, bare_name, is_finite, likely_cause, node_name, reach
from vitdeploy.verify.metrics import TensorMetrics, compare_tensors, json_safe

# Ops that make no tensor. The exporter leaves the type of their outputs open.
SEQUENCES = {"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "Optional"}


@dataclass(frozen=True)
class Departure:
    """Where a candidate graph first departs from its reference.

    Attributes:
        node, op_type: the node, by its name or its output's.
        output: the value that departs.
        position, nodes: the node is the position-th of nodes in the candidate, from 1.
        rel_bound: the share of the reference's largest value that was allowed.
        metrics: of the output; None where the reference has no such value or one of another size.
        inputs: metrics of the node's inputs that the reference has too; weights left out.
        index: where the output is worst.
        reference, candidate: values at that index; the reference's is None where it has none.
        suspects: nodes before this one whose values the reference does not have, so that they may be at fault instead.
        cause: what is likely wrong, a sentence.
    """

    node: str
    op_type: str
    output: str
    position: int
    nodes: int
    rel_bound: float
    metrics: TensorMetrics | None
    inputs: Mapping[str, TensorMetrics]
    index: tuple[int, ...]
    reference: float | None
    candidate: float
    suspects: tuple[str, ...]
    cause: str

    def __str__(self) -> str:
        lines = [f"{self.op_type} '{self.node}', node {self.position} of {self.nodes}, departs first: '{self.output}'."]
        here = f"at {list(self.index)} it is {self.candidate:.6g}"
        if self.metrics is not None:
            here = (
                f"at {list(self.index)} the reference has {self.reference:.6g} and the candidate {self.candidate:.6g}"
            )
            lines.append(
                f"Its largest error {self.metrics.max_abs:.2g} is {self.metrics.rel_max:.2g} of the reference's "
                f"largest value {self.metrics.reference_max:.3g}, where {self.rel_bound:g} is allowed; {here}."
            )
        else:
            lines.append(f"The reference has no value to compare it with; {here}.")
        if self.inputs:
            lines.append(f"Its inputs agree to {max(m.rel_max for m in self.inputs.values()):.2g}.")
        if self.suspects:
            named = ", ".join(f"'{name}'" for name in self.suspects[-3:])
            lines.append(f"{len(self.suspects)} nodes before it cannot be compared, the last of them {named}.")
        return "\n".join([*lines, f"Likely cause: {self.cause}"])

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a figure that is not finite becomes None."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json_safe(own) | {
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
            "inputs": {name: metrics.to_dict() for name, metrics in self.inputs.items()},
            "index": list(self.index),
            "suspects": list(self.suspects),
        }


def bisect(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: Mapping[str, np.ndarray],
    *,
    rel_bound: float,
    atol: float = 1e-8,
    threads: int = 1,
    chunk_bytes: int = 256 << 20,
) -> Departure | None:
    """Find the candidate's first node, in topological order, whose output departs from the reference's value.

    A name in both graphs means the same numbers (the rule of `graph.edit`). A value departs when an element is farther
    off than `atol + rel_bound * max|reference|`, when its size is another, or, where the reference has none of that
    name, when it is NaN or Inf while what the node reads is finite. Every value is looked at, because an error may heal
    downstream.

    Args:
        reference, candidate: graphs with inputs of the same names; neither is changed.
        feeds: one batch by input name; cast to the float type that each graph takes.
        rel_bound, atol: how far a value may be off.
        threads: intra-op threads.
        chunk_bytes: about how many bytes of values are alive at once.

    Returns:
        The departure, or None where nothing departs.

    Raises:
        UsageError: the feeds do not fit, or no value is in both graphs.
        BackendError: ONNX Runtime refuses a graph.
    """
    pairs = pairs_of(reference, candidate)
    if not pairs:
        raise UsageError("The two graphs have no value in common, so they cannot be compared node by node.")
    ours, theirs = cast_feeds(feeds, candidate), cast_feeds(feeds, reference)
    with (
        Probe(candidate, _tensors_made(candidate), threads=threads, chunk_bytes=chunk_bytes // 2) as probe,
        Probe(reference, list(pairs.values()), threads=threads, chunk_bytes=chunk_bytes // 2) as twin,
    ):
        both = side_by_side(probe.run(ours), twin.run(theirs), pairs)
        output = _first_departure(candidate.graph, feeds, both, rel_bound, atol)
    if output is None:
        return None
    return _describe(reference, candidate, (ours, theirs), pairs, output, rel_bound)


def pairs_of(reference: ir.Model, candidate: ir.Model) -> dict[str, str]:
    """The reference's name of each candidate's node output that it has, in the candidate's order."""
    known = dict.fromkeys(_tensors_made(reference)) | dict.fromkeys(reference.graph.initializers)
    bare: dict[str, str] = {}
    for name in known:
        bare.setdefault(bare_name(name), name)
    bare |= {name: name for name in known}
    found = ((name, bare.get(name, bare.get(bare_name(name)))) for name in _tensors_made(candidate))
    return {name: twin for name, twin in found if twin is not None}


def side_by_side(
    ours: Iterator[tuple[str, np.ndarray]], theirs: Iterator[tuple[str, np.ndarray]], pairs: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
    """(name, candidate's value, reference's value or None). A reference's value with two partners waits for both."""
    waiting: dict[str, np.ndarray] = {}
    uses = Counter(pairs.values())
    for name, got in ours:
        twin = pairs.get(name)
        if twin is None:
            yield name, got, None
            continue
        if twin not in waiting:
            found, value = next(theirs)
            waiting[found] = value
        want = waiting[twin]
        uses[twin] -= 1
        if not uses[twin]:
            del waiting[twin]
        yield name, got, want


def _first_departure(
    graph: ir.Graph,
    feeds: Mapping[str, np.ndarray],
    both: Iterator[tuple[str, np.ndarray, np.ndarray | None]],
    rel_bound: float,
    atol: float,
) -> str | None:
    producers = {out.name: node for node in graph for out in node.outputs}
    wild = {name for name, array in feeds.items() if not is_finite(array)}
    for name, got, want in both:
        node = producers[name]
        if want is not None:
            if want.size != got.size or not _error(want, got).max(initial=0) <= atol + rel_bound * reach(want):
                return name
        elif not is_finite(got) and _is_to_blame(node, wild):
            return name
        if not is_finite(got):
            wild.add(name)
    return None


def _is_to_blame(node: ir.Node, wild: set[str]) -> bool:
    """Whether NaN or Inf starts at this node: no input brought it, unless it is a NaN among its weights."""
    if node.op_type == "Constant":
        return False
    fixed = [data for v in node.inputs if is_constant(v) and (data := constant(v)) is not None]
    if any(np.isnan(data).any() for data in fixed if data.dtype.kind == "f"):
        return True
    return all(is_finite(data) for data in fixed) and not any(v is not None and v.name in wild for v in node.inputs)


def _describe(
    reference: ir.Model,
    candidate: ir.Model,
    feeds: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    pairs: Mapping[str, str],
    output: str,
    rel_bound: float,
) -> Departure:
    """Read the node's values once more, and explain."""
    order = list(candidate.graph)
    node = next(each for each in order if output in (out.name for out in each.outputs))
    read = [v.name for v in node.inputs if v is not None and v.name and _is_tensor(v) and not is_constant(v)]
    names = list(dict.fromkeys([output, *read]))
    got = dict(values(candidate, feeds[0], names))
    suspects = _suspects(node, order, pairs)
    makers = {out.name: each for each in reference.graph for out in each.outputs}
    weights = {v.name for each in (*suspects, node) for v in each.inputs if is_constant(v) and v is not None}
    twins = {name: pairs[name] for name in names if name in pairs} | {n: n for n in weights if n and n in makers}
    theirs = dict(values(reference, feeds[1], list(twins.values())))
    want = {name: theirs[twin] for name, twin in twins.items()}
    metrics = {
        name: compare_tensors(want[name].reshape(got[name].shape), got[name])
        for name in names
        if name in want and want[name].size == got[name].size > 0
    }
    evidence = Evidence(
        reference, candidate, node, makers.get(pairs.get(output)), output, suspects, got, want, metrics, rel_bound
    )
    index, there, here = _worst(got[output], want.get(output))
    return Departure(
        node=node_name(node),
        op_type=node.op_type,
        output=output,
        position=order.index(node) + 1,
        nodes=len(order),
        rel_bound=rel_bound,
        metrics=metrics.get(output),
        inputs={name: metrics[name] for name in read if name in metrics},
        index=index,
        reference=there,
        candidate=here,
        suspects=tuple(node_name(each) for each in suspects),
        cause=likely_cause(evidence),
    )


def _suspects(node: ir.Node, order: Sequence[ir.Node], pairs: Mapping[str, str]) -> list[ir.Node]:
    """Nodes that lead to `node` from values that were compared, without such a value themselves."""
    found: set[ir.Node] = set()
    stack = [node]
    while stack:
        for value in stack.pop().inputs:
            maker = None if value is None or is_constant(value) else value.producer()
            if maker is not None and maker not in found and not any(out.name in pairs for out in maker.outputs):
                found.add(maker)
                stack.append(maker)
    return [each for each in order if each in found]


def _error(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Absolute differences in float64, in `got`'s shape; 0 where both hold the same Inf or NaN, else NaN or Inf."""
    if got.dtype.kind not in "fiub":
        return np.zeros(got.shape)
    want, got = want.reshape(got.shape).astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, np.abs(got - want))


def _worst(got: np.ndarray, want: np.ndarray | None) -> tuple[tuple[int, ...], float | None, float]:
    """Where `got` is farthest off, or first not finite; the reference's value there and its own."""
    if want is None or want.size != got.size:
        error, want = np.where(np.isfinite(got), 0.0, np.inf), None
    else:
        error = np.nan_to_num(_error(want, got), nan=np.inf, posinf=np.inf)
    if not got.size:
        return (), None, float("nan")
    flat = int(error.argmax())
    index = tuple(int(i) for i in np.unravel_index(flat, got.shape))
    return index, None if want is None else float(want.reshape(-1)[flat]), float(got.reshape(-1)[flat])


def cast_feeds(feeds: Mapping[str, np.ndarray], model: ir.Model) -> dict[str, np.ndarray]:
    """The feeds in the float types that the graph takes."""
    types = {v.name: v.dtype.numpy() for v in model.graph.inputs if v.dtype is not None}

    def fitting(name: str, array: np.ndarray) -> np.ndarray:
        kind = types.get(name, array.dtype)
        return array.astype(kind, copy=False) if array.dtype.kind == kind.kind == "f" else array

    return {name: fitting(name, array) for name, array in feeds.items()}


def _tensors_made(model: ir.Model) -> list[str]:
    return [out.name for node in model.graph for out in node.outputs if out.name and _is_tensor(out)]


def _is_tensor(value: ir.Value) -> bool:
    if value.type is not None:
        return isinstance(value.type, ir.TensorType)
    maker = value.producer()
    return maker is None or maker.op_type not in SEQUENCES

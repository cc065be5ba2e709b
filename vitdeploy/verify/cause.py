"""Why a node departs from its reference: what differs between the two graphs there, else what the numbers say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, dims
from vitdeploy.verify.metrics import TensorMetrics

# Passes add these to the name of a value that they write in another shape or type: the numbers stay the same.
SAME_NUMBERS = ("/flat", "/restored", "/fp16", "/fp32")

# Ops that hand on their first input's numbers.
HANDING_ON = ("Cast", "Reshape", "Identity")

# An error this many times the bound or less, on inputs that were off by a like share of it, is rounding that added up.
GRADUAL = 4


@dataclass(frozen=True)
class Evidence:
    """All that is known about a departure.

    Attributes:
        node: the candidate's node that departs; `twin` makes the same value in the reference, None where none does.
        output: the value that departs.
        suspects: nodes before it whose values could not be compared.
        got: the candidate's values of `output` and of what the node reads, weights left out.
        want: the reference's values of these, by the candidate's names, where it has them; also what it computes and
            the candidate holds as a weight.
        metrics: of those in both.
        rel_bound: what was allowed.
    """

    reference: ir.Model
    candidate: ir.Model
    node: ir.Node
    twin: ir.Node | None
    output: str
    suspects: Sequence[ir.Node]
    got: Mapping[str, np.ndarray]
    want: Mapping[str, np.ndarray]
    metrics: Mapping[str, TensorMetrics]
    rel_bound: float

    @property
    def reads(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.got.items() if name != self.output}


def likely_cause(evidence: Evidence) -> str:
    """The likely cause of a departure, a sentence."""
    checks: tuple[Callable[[Evidence], str | None], ...] = (
        _bad_weight,
        _beyond_range,
        _other_op,
        _other_inputs,
        _other_attribute,
        _other_size,
        _overflow,
        _earlier_nodes,
        _rounding,
    )
    return next(sentence for check in checks if (sentence := check(evidence)) is not None)


def bare_name(name: str) -> str:
    """The name of the value whose numbers these are."""
    end = next((end for end in SAME_NUMBERS if name.endswith(end)), None)
    return name if end is None else bare_name(name[: -len(end)])


def node_name(node: ir.Node) -> str:
    """The node's name, or its first output's where it has none."""
    return node.name or next((out.name for out in node.outputs if out.name), node.op_type)


def _bad_weight(evidence: Evidence) -> str | None:
    """A weight of this node that is not the reference's, or a NaN in one of a node before it.

    Weights are held against what the twin reads, not against those of the same name: passes fold into them.
    """
    for node in (*evidence.suspects, evidence.node):
        for i, value in enumerate(node.inputs):
            got = constant(value)
            if value is None or got is None or got.dtype.kind not in "fiub":
                continue
            want, label = _weight_of_reference(evidence, node, i, value.name or "")
            difference = _difference(want, got)
            if difference is not None:
                return f"initializer '{value.name}' differs{label}: {difference}."
            if got.dtype.kind == "f" and np.isnan(got).any() and (want is None or not np.isnan(want).any()):
                at = [int(n) for n in np.argwhere(np.isnan(got))[0]]
                return f"initializer '{value.name}' holds {int(np.isnan(got).sum())} NaN, the first at {at}."
    return None


def _weight_of_reference(evidence: Evidence, node: ir.Node, i: int, name: str) -> tuple[np.ndarray | None, str]:
    """What the reference has for a node's weight, None where that is not known; and its name if it is another."""
    computed, twin = evidence.want.get(name), evidence.twin
    if computed is not None or node is not evidence.node or twin is None or not _same_op(node, twin):
        return computed, ""
    if node.op_type in HANDING_ON:  # the shape may be another, the numbers are not
        return None, ""
    other = twin.inputs[i] if i < len(twin.inputs) else None
    if other is None or bare_name(other.name or "") == bare_name(name):
        return constant(other), ""
    return constant(other), f" from '{other.name}'"


def _difference(want: np.ndarray | None, got: np.ndarray) -> str | None:
    """How two constants differ beyond the rounding to `got`'s type; None when they do not, or cannot be compared."""
    if want is None or want.dtype.kind not in "fiub":
        return None
    if want.shape != got.shape:
        return f"its shape is {list(got.shape)}, the reference's {list(want.shape)}"
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype).astype(np.float64)
        precision = 4 * float(np.finfo(got.dtype).eps) if got.dtype.kind == "f" else 0.0
        off = np.abs(got.astype(np.float64) - rounded)
        close = np.isfinite(rounded) & (off <= precision * np.abs(rounded))
        wrong = ~(close | (got == rounded) | (np.isnan(got) & np.isnan(rounded)))
    if not wrong.any():
        return None
    size = np.where(wrong, np.where(np.isnan(off), np.inf, off), -1.0)
    at = np.unravel_index(int(size.argmax()), size.shape)
    where = [int(n) for n in at]
    how = f"by up to {size.max():.3g} at {where}" if np.isfinite(got[at]) else f"{got[at]} at {where}"
    return f"{int(wrong.sum())} of {got.size} values, {how}"


def _beyond_range(evidence: Evidence) -> str | None:
    """The reference's numbers do not fit into the candidate's type."""
    got, want = evidence.got[evidence.output], evidence.want.get(evidence.output)
    if want is None or is_finite(got):
        return None
    limit = float(np.finfo(got.dtype).max)
    kind = "fp16" if got.dtype == np.float16 else got.dtype.name
    if reach(want) <= limit:
        return None
    return f"output is not finite: |x| reaches {reach(want):.2g} and {kind} ends at {limit:.6g}."


def _other_op(evidence: Evidence) -> str | None:
    node, twin = evidence.node, evidence.twin
    if twin is None or evidence.suspects or _same_op(node, twin):
        return None
    source = node.inputs[0] if node.inputs else None
    if source is not None and node.op_type in HANDING_ON and bare_name(source.name or "") == bare_name(evidence.output):
        return None
    return f"{node.op_type} makes this value, {twin.op_type} does in the reference."


def _other_inputs(evidence: Evidence) -> str | None:
    node, twin = evidence.node, evidence.twin
    if twin is None or not _same_op(node, twin):
        return None
    ours, theirs = _inputs(node), _inputs(twin)
    if len(ours) != len(theirs):
        longer = theirs if len(theirs) > len(ours) else ours
        extra = [v.name for v in longer[min(len(ours), len(theirs)) :] if v is not None]
        lacks = "is missing" if longer is theirs else "is extra"
        return f"{node.op_type} has {len(ours)} inputs, the reference's {len(theirs)}: {_listed(extra)} {lacks}."
    names = _names(evidence.candidate), _names(evidence.reference)
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine is None or other is None:
            if mine is not other:
                return f"input {i} of {node.op_type} is {_called(mine)}, the reference has {_called(other)}."
        elif mine.name != other.name and mine.name in names[1] and other.name in names[0]:
            return f"input {i} of {node.op_type} is '{mine.name}', the reference reads '{other.name}'."
    return None


def _other_attribute(evidence: Evidence) -> str | None:
    node, twin = evidence.node, evidence.twin
    if twin is None or not _same_op(node, twin):
        return None
    ours = _attributes(node, evidence.candidate.opset_imports.get(node.domain))
    theirs = _attributes(twin, evidence.reference.opset_imports.get(twin.domain))
    for name in sorted(set(ours) | set(theirs)):
        mine, other = ours.get(name), theirs.get(name)
        if name == "axis" and _from_the_end(mine, node) == _from_the_end(other, twin):
            continue
        if not _same(mine, other):
            return f"{node.op_type} {name} is {_shown(mine)}, the reference has {_shown(other)}."
    return None


def _other_size(evidence: Evidence) -> str | None:
    want, got = evidence.want.get(evidence.output), evidence.got[evidence.output]
    if want is None or want.size == got.size:
        return None
    return f"its shape is {list(got.shape)}, the reference's {list(want.shape)}."


def _overflow(evidence: Evidence) -> str | None:
    """NaN or Inf out of finite numbers."""
    got = evidence.got[evidence.output]
    if is_finite(got) or not all(map(is_finite, evidence.reads.values())):
        return None
    most = max(map(reach, evidence.reads.values()), default=0.0)
    sentence = f"output is not finite though its inputs are, up to |x| = {most:.2g}"
    if got.dtype != np.float16:
        return f"{sentence}."
    return f"{sentence}: fp16 ends at 65504, which {evidence.node.op_type} passes on the way."


def _earlier_nodes(evidence: Evidence) -> str | None:
    if not evidence.suspects:
        return None
    first, last = node_name(evidence.suspects[0]), node_name(evidence.node)
    return f"something between '{first}' and '{last}': values between them are not in the reference."


def _rounding(evidence: Evidence) -> str:
    """No difference between the graphs explains it: numbers do."""
    inputs = max((evidence.metrics[name].rel_max for name in evidence.reads if name in evidence.metrics), default=0.0)
    output = evidence.metrics[evidence.output].rel_max if evidence.output in evidence.metrics else float("inf")
    bound = evidence.rel_bound
    if output <= GRADUAL * bound and inputs >= bound / GRADUAL:
        return "rounding: the error grows gradually, no single node stands out."
    if inputs > 0 and np.isfinite(output / inputs):
        return f"precision: the error grows {output / inputs:.2g} times at this node, and nothing in the graph differs."
    return "precision, or the runtime's kernel: the inputs agree, and nothing in the graph differs."


def _same_op(node: ir.Node, twin: ir.Node) -> bool:
    return (node.op_type, node.domain) == (twin.op_type, twin.domain)


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """The node's inputs without the empty ones at the end."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _names(model: ir.Model) -> set[str | None]:
    """Values that are computed or fed: weights may be named anew."""
    return {v.name for v in model.graph.inputs} | {out.name for node in model.graph for out in node.outputs}


def _attributes(node: ir.Node, opset: int | None) -> dict[str, Any]:
    """The node's attributes, with the operator's defaults where it leaves them out."""
    import onnx

    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset or onnx.defs.onnx_opset_version(), node.domain)
    except onnx.defs.SchemaError:
        pass
    else:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.type:
                default = onnx.helper.get_attribute_value(attribute.default_value)
                found[name] = default.decode() if isinstance(default, bytes) else default
    return found | {name: _value(attribute) for name, attribute in node.attributes.items()}


def _value(attribute: ir.Attr) -> Any:
    if attribute.is_ref():
        return attribute.ref_attr_name
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None  # bodies of If and Loop are not compared
    return list(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value


def _same(mine: Any, other: Any) -> bool:
    if isinstance(mine, (np.ndarray, float)) or isinstance(other, (np.ndarray, float)):
        if mine is None or other is None or np.shape(mine) != np.shape(other):
            return False
        return bool(np.allclose(mine, other, rtol=1e-6, atol=0, equal_nan=True))
    return bool(mine == other)


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _from_the_end(axis: Any, node: ir.Node) -> Any:
    """An axis as a negative number, so that it reads the same for one and two leading dimensions."""
    shape = dims(node.inputs[0]) if node.inputs else None
    return axis - len(shape) if isinstance(axis, int) and axis >= 0 and shape is not None else axis


def _called(value: ir.Value | None) -> str:
    return "left out" if value is None else f"'{value.name}'"


def _listed(names: Sequence[str | None]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of any type holds neither NaN nor Inf."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def reach(array: np.ndarray) -> float:
    """The largest finite absolute value; 0 where there is none."""
    size = np.abs(array.astype(np.float64)) if array.dtype.kind in "fiub" else np.zeros(1)
    return float(size[np.isfinite(size)].max(initial=0))

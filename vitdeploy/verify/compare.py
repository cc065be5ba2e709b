"""The verdict over a model's outputs on several inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.verify.metrics import (
    Bounds,
    LogitMetrics,
    TensorMetrics,
    bounds_for,
    compare_logits,
    compare_tensors,
    judge,
)

# Relative to the outputs' scale: far below what any two images do to a live model, far above what float32 can hide.
CONSTANT_BELOW = 1e-6
CONSTANT_REASON = "The model's output does not depend on its input: this verification proves nothing."


@dataclass(frozen=True)
class Verification:
    """What a verification found. True when it passed.

    Attributes:
        precision: whose bounds were kept or broken.
        bounds: these bounds.
        outputs: per output, the worst figures over the cases.
        logits: per output that was compared as logits, the counts summed over the cases.
        cases: what was run, each {'source': 'synthetic seed 0' or 'data', 'batch': images at once}.
        reasons: why it failed, a sentence each; empty when it passed.
        reference: what the outputs were compared with.
        stand_in: what ran in the stead of a compiled file that cannot run on this machine; empty where the file ran.
    """

    precision: str
    bounds: Bounds
    outputs: Mapping[str, TensorMetrics]
    logits: Mapping[str, LogitMetrics]
    cases: Sequence[Mapping[str, Any]]
    reasons: Sequence[str]
    reference: str = "PyTorch in float32"
    stand_in: str = ""

    def __bool__(self) -> bool:
        return self.passed

    @property
    def passed(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        outputs: dict[str, dict[str, Any]] = {name: metrics.to_dict() for name, metrics in self.outputs.items()}
        for name, counts in self.logits.items():
            outputs[name]["logits"] = counts.to_dict()
        return {
            "passed": self.passed,
            "precision": self.precision,
            "bounds": self.bounds.to_dict(),
            "cases": [dict(case) for case in self.cases],
            "outputs": outputs,
            "reasons": list(self.reasons),
            "reference": self.reference,
            "stand_in": self.stand_in,
        }

    def summary(self) -> str:
        """One line: what was run, and the worst figures over the outputs."""
        worst = max(self.outputs.values(), key=lambda metrics: _badness(metrics.rel_max))
        cosine = _lowest(metrics.cosine for metrics in self.outputs.values())
        batches = ", ".join(str(batch) for batch in sorted({case["batch"] for case in self.cases}))
        parts = [
            f"{len(self.cases)} input{'s' if len(self.cases) > 1 else ''}, batch {batches}",
            f"max error {_short(worst.max_abs)} of {worst.reference_max:.2g}",
            f"cosine {cosine:.6f}",
        ]
        if self.logits:
            counts = min(self.logits.values(), key=lambda metrics: metrics.top1_agreement)
            parts.append(f"top-1 {counts.top1_matches}/{counts.samples}")
        return "   ".join(parts)


def verify_outputs(
    reference: Sequence[Mapping[str, np.ndarray]],
    candidate: Sequence[Mapping[str, np.ndarray]],
    precision: str,
    tolerance: float | None = None,
    cases: Sequence[Mapping[str, Any]] | None = None,
    logits: Collection[str] | None = None,
    *,
    frames: bool = False,
) -> Verification:
    """Compare a candidate's outputs with eager PyTorch's on the same inputs, which must differ from one another.

    Args:
        reference, candidate: one dict {output name: array} per case.
        precision: whose bounds apply.
        tolerance, frames: see `bounds_for`.
        cases: source and batch of each; None reads the batch from the first output.
        logits: the outputs that hold logits (N, classes); None takes every two-dimensional one.

    Raises:
        UsageError: no cases, unequal numbers of them, or outputs of other names or shapes.
    """
    bounds = bounds_for(precision, tolerance, frames=frames)
    names = _output_names(reference, candidate)
    if cases is None:
        cases = [{"source": "data", "batch": _batch(outputs[names[0]])} for outputs in reference]
    elif len(cases) != len(reference):
        raise UsageError(f"{len(cases)} cases describe {len(reference)} sets of outputs.")
    if logits is None:
        logits = {name for name in names if reference[0][name].ndim == 2}
    elif unknown := set(logits) - set(names):
        raise UsageError(f"There is no output named {', '.join(sorted(unknown))}: this model has {', '.join(names)}.")
    tensors: dict[str, TensorMetrics] = {}
    decisions: dict[str, LogitMetrics] = {}
    reasons: list[str] = []
    for name in names:
        pairs = [(want[name], got[name]) for want, got in zip(reference, candidate, strict=True)]
        tensors[name], counts = _compare_output(name, pairs, bounds, name in logits)
        if counts is not None:
            decisions[name] = counts
        prefix = f"Output '{name}': " if len(names) > 1 else ""
        reasons += [prefix + reason for reason in judge(tensors[name], bounds, counts)]
    watched = [name for name in names if name in logits] or names
    if all(_is_constant([outputs[name] for outputs in reference]) for name in watched):
        reasons.append(CONSTANT_REASON)
    return Verification(precision, bounds, tensors, decisions, tuple(dict(case) for case in cases), tuple(reasons))


def _output_names(
    reference: Sequence[Mapping[str, np.ndarray]], candidate: Sequence[Mapping[str, np.ndarray]]
) -> list[str]:
    if not reference or not reference[0]:
        raise UsageError("There are no outputs to verify.")
    if len(reference) != len(candidate):
        raise UsageError(f"{len(reference)} sets of reference outputs stand against {len(candidate)} of the candidate.")
    names = list(reference[0])
    for outputs in (*reference, *candidate):
        if set(outputs) != set(names):
            raise UsageError(f"The outputs {sorted(outputs)} are not the reference's {sorted(names)}.")
    return names


def _compare_output(
    name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], bounds: Bounds, as_logits: bool
) -> tuple[TensorMetrics, LogitMetrics | None]:
    try:
        tensors = [compare_tensors(want, got) for want, got in pairs]
        if not as_logits:
            return worst_of(tensors), None
        flat = [(want.reshape(-1, want.shape[-1]), got.reshape(-1, got.shape[-1])) for want, got in pairs]
        counts = [
            compare_logits(want, got, allowed_error=bounds.rel_max * metrics.reference_max)
            for (want, got), metrics in zip(flat, tensors, strict=True)
        ]
        return worst_of(tensors), sum_of(counts)
    except UsageError as error:
        raise UsageError(f"Output '{name}': {error.message}") from None


def worst_of(metrics: Sequence[TensorMetrics]) -> TensorMetrics:
    """The worst of each figure, NaN being worse than any; counts are summed.

    max_abs, reference_max and rel_max stay together: they are those of the case with the largest rel_max, so that the
    reported error is always read against the output that it occurred in.
    """
    worst = max(metrics, key=lambda m: _badness(m.rel_max))
    return TensorMetrics(
        max_abs=worst.max_abs,
        mean_abs=max((m.mean_abs for m in metrics), key=_badness),
        reference_max=worst.reference_max,
        rel_max=worst.rel_max,
        rel_l2=max((m.rel_l2 for m in metrics), key=_badness),
        cosine=_lowest(m.cosine for m in metrics),
        psnr=_lowest(m.psnr for m in metrics),
        nan_count=sum(m.nan_count for m in metrics),
        inf_count=sum(m.inf_count for m in metrics),
        reference_nan_count=sum(m.reference_nan_count for m in metrics),
        reference_inf_count=sum(m.reference_inf_count for m in metrics),
    )


def sum_of(metrics: Sequence[LogitMetrics]) -> LogitMetrics:
    """Counts summed; the top-5 overlap averaged over all samples."""
    samples = sum(m.samples for m in metrics)
    return LogitMetrics(
        samples=samples,
        classes=metrics[0].classes,
        top1_matches=sum(m.top1_matches for m in metrics),
        top5_overlap=sum(m.top5_overlap * m.samples for m in metrics) / samples,
        decidable=sum(m.decidable for m in metrics),
        judged=sum(m.judged for m in metrics),
        flips=sum(m.flips for m in metrics),
    )


def _is_constant(arrays: Sequence[np.ndarray]) -> bool:
    """Whether an output is the same for every sample of every case; False where fewer than two can be compared."""
    rows = [np.asarray(row, np.float64) for array in arrays if array.ndim for row in array]
    if len(rows) < 2 or len({row.shape for row in rows}) > 1:
        return False
    stacked = np.stack(rows)
    with np.errstate(invalid="ignore"):
        return bool(np.abs(stacked - stacked[0]).max() <= CONSTANT_BELOW * np.abs(stacked).max())


def _batch(array: np.ndarray) -> int:
    return len(array) if array.ndim else 1


def _badness(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _lowest(values: Iterable[float]) -> float:
    return min(values, key=lambda value: -math.inf if math.isnan(value) else value)


def _short(value: float) -> str:
    """2.1e-3, not 2.1e-03."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa

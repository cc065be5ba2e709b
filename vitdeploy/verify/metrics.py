"""How far one output lies from its reference, and how far it may. Pure numpy, computed in float64.

Every bound is written so that NaN breaks it: `not error <= bound`, never `error > bound`, which is False for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError

TOP_K = 5


@dataclass(frozen=True)
class TensorMetrics:
    """A candidate against its reference. Where either holds NaN or Inf, the figures that it touches are not finite.

    Attributes:
        max_abs, mean_abs: of the difference, in the output's own unit.
        reference_max: largest absolute value of the reference.
        rel_max: max_abs / reference_max; inf where only the reference is all zero.
        rel_l2: norm of the difference / norm of the reference; inf likewise.
        cosine: of both as flat vectors; 1 when both are zero, 0 when one is.
        psnr: in dB, the peak being the reference's range (its largest absolute value when constant); inf when equal.
        nan_count, inf_count: in the candidate.
        reference_nan_count, reference_inf_count: in the reference.
    """

    max_abs: float
    mean_abs: float
    reference_max: float
    rel_max: float
    rel_l2: float
    cosine: float
    psnr: float
    nan_count: int = 0
    inf_count: int = 0
    reference_nan_count: int = 0
    reference_inf_count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a figure that is not finite becomes None."""
        return json_safe(asdict(self))


@dataclass(frozen=True)
class LogitMetrics:
    """Class decisions of a candidate against its reference's. A row with NaN or Inf on either side agrees with nothing.

    Attributes:
        samples, classes: shape of the logits.
        top1_matches: rows with the same largest logit.
        top5_overlap: mean share of the k largest that both name, k = min(5, classes).
        decidable: rows whose reference margin (largest minus second) exceeds twice that row's largest error.
        judged: rows whose reference margin exceeds twice the error that the bound allows: none of them may flip.
        flips: judged rows that flipped all the same.
    """

    samples: int
    classes: int
    top1_matches: int
    top5_overlap: float
    decidable: int
    judged: int
    flips: int

    @property
    def top1_agreement(self) -> float:
        return self.top1_matches / self.samples

    @property
    def judged_agreement(self) -> float:
        """1 where no row is judged."""
        return (self.judged - self.flips) / self.judged if self.judged else 1.0

    def to_dict(self) -> dict[str, Any]:
        return json_safe(asdict(self) | {"top1_agreement": self.top1_agreement})


@dataclass(frozen=True)
class Bounds:
    """What an output must keep to pass; None is no bound.

    Attributes:
        rel_max, rel_l2: upper bounds.
        cosine, top1: lower bounds, top1 of the agreement over judged rows.
        reason: why these figures.
    """

    rel_max: float
    rel_l2: float | None = None
    cosine: float | None = None
    top1: float = 1.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


BOUNDS: Mapping[str, Bounds] = MappingProxyType(
    {
        "fp32": Bounds(
            rel_max=1e-5,
            reason="the same arithmetic in another order: about a hundred roundings of 2^-24 over the depth",
        ),
        "fp16": Bounds(
            rel_max=2e-2,
            rel_l2=1e-2,
            cosine=0.9999,
            reason="float16 keeps 11 bits: each weight and activation moves by up to 2^-11, adding up over the depth",
        ),
        "bf16": Bounds(
            rel_max=0.25,
            rel_l2=0.15,
            cosine=0.99,
            reason="bfloat16 keeps 8 bits: each value moves by up to 2^-8, adding up over the depth",
        ),
        "fp8": Bounds(
            rel_max=0.5,
            rel_l2=0.35,
            cosine=0.94,
            reason="fp8 keeps 4 bits: each weight and activation moves by up to 2^-4, adding up over the depth: "
            "trained models end at 0.02 to 0.04, random weights up to 0.21; accuracy is what `vitdeploy eval` measures",
        ),
        "int8": Bounds(
            rel_max=0.4,
            rel_l2=0.25,
            cosine=0.97,
            reason="8 bits leave each activation an error of about 1 %, which adds up over the depth: trained models "
            "end at 0.02 to 0.05, LeViT with random weights at 0.18; accuracy is what `vitdeploy eval` measures",
        ),
        "int8+bf16": Bounds(
            rel_max=0.4,
            rel_l2=0.25,
            cosine=0.97,
            reason="as for int8, which loses more than bfloat16 does",
        ),
        "int8-dynamic": Bounds(
            rel_max=0.25,
            rel_l2=0.15,
            cosine=0.99,
            reason="as for int8, with each tensor's own range in every run",
        ),
        "int8-weights": Bounds(
            rel_max=0.25,
            rel_l2=0.15,
            cosine=0.99,
            reason="activations stay exact, and 8 bits move each weight by up to 0.4 % of its channel's largest",
        ),
        "int4-weights": Bounds(
            rel_max=0.7,
            rel_l2=0.45,
            cosine=0.9,
            reason="activations stay exact, and 4 bits move the weights by about 8 % of their size; random "
            "weights magnify that to 0.4 in L2, trained ones to 0.08",
        ),
    }
)


# Of files that resize camera frames. Up to 1.8e-4 was seen on 210 photos, half of them below 2e-5; another filter than
# the weights were trained with gives ten times that.
LEVELS = 5e-4
LEVELS_REASON = "and single pixels in ten thousand that the file's resize rounds to the next level"


def bounds_for(precision: str, tolerance: float | None = None, *, frames: bool = False) -> Bounds:
    """The bounds of a precision.

    Args:
        precision: a key of `BOUNDS`.
        frames: the file makes its tensors of camera frames.
        tolerance: replaces rel_max. When it is looser, the other bounds loosen in proportion (1 - cosine grows with the
            error's square), so that none of them still refuses what was allowed.

    Raises:
        UsageError: an unknown precision, or a tolerance that is negative or not finite.
    """
    if precision not in BOUNDS:
        raise UsageError(f"No bounds are set for precision '{precision}': one of {', '.join(BOUNDS)}.")
    bounds = BOUNDS[precision]
    if tolerance is None:
        if not frames or bounds.rel_max >= LEVELS:
            return bounds
        return replace(bounds, rel_max=LEVELS, reason=f"{bounds.reason}; {LEVELS_REASON}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"The tolerance {tolerance} is not a finite number of at least 0.")
    factor = max(1.0, tolerance / bounds.rel_max)
    return replace(
        bounds,
        rel_max=tolerance,
        rel_l2=None if bounds.rel_l2 is None else bounds.rel_l2 * factor,
        cosine=None if bounds.cosine is None else max(-1.0, 1 - (1 - bounds.cosine) * factor**2),
        reason=f"the user's tolerance {tolerance:g}",
    )


def compare_tensors(reference: np.ndarray, candidate: np.ndarray) -> TensorMetrics:
    """Measure a candidate against its reference.

    Args:
        reference, candidate: real numbers of any dtype, of the same shape, not empty.

    Raises:
        UsageError: the shapes differ or hold no element.
    """
    check_shapes(reference, candidate)
    want, got = _flat(reference), _flat(candidate)
    with np.errstate(all="ignore"):
        difference = np.abs(got - want)
        max_abs, reference_max = float(difference.max()), float(np.abs(want).max())
        # Norms are taken at a scale near 1, so that squares neither overflow nor vanish.
        scale = max(reference_max, float(np.abs(got).max())) or 1.0
        unit_want, unit_got, unit_difference = want / scale, got / scale, difference / scale
        want_norm, got_norm = float(np.linalg.norm(unit_want)), float(np.linalg.norm(unit_got))
        if want_norm == 0 or got_norm == 0:
            cosine = 1.0 if want_norm == got_norm else 0.0
        else:
            cosine = float(np.clip(unit_want @ unit_got / (want_norm * got_norm), -1, 1))
        peak = float(np.ptp(want)) or reference_max
        return TensorMetrics(
            max_abs=max_abs,
            mean_abs=float(difference.mean()),
            reference_max=reference_max,
            rel_max=_ratio(max_abs, reference_max),
            rel_l2=_ratio(float(np.linalg.norm(unit_difference)), want_norm),
            cosine=cosine,
            psnr=_psnr(peak / scale, float(np.mean(unit_difference**2))),
            nan_count=int(np.isnan(got).sum()),
            inf_count=int(np.isinf(got).sum()),
            reference_nan_count=int(np.isnan(want).sum()),
            reference_inf_count=int(np.isinf(want).sum()),
        )


def compare_logits(reference: np.ndarray, candidate: np.ndarray, allowed_error: float = 0.0) -> LogitMetrics:
    """Compare the classes that two sets of logits decide for.

    Args:
        reference, candidate: (N, classes), N and classes at least 1.
        allowed_error: largest error of one logit that the bound allows, in the logits' unit.

    Raises:
        UsageError: the shapes differ, are not two-dimensional or hold no element.
    """
    check_shapes(reference, candidate)
    if reference.ndim != 2:
        raise UsageError(f"Logits have the shape (samples, classes), not {list(reference.shape)}.")
    want, got = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    samples, classes = want.shape
    finite = np.isfinite(want).all(axis=1) & np.isfinite(got).all(axis=1)
    same = finite & (want.argmax(axis=1) == got.argmax(axis=1))
    k = min(TOP_K, classes)
    want_top, got_top = (np.argsort(-array, axis=1, kind="stable")[:, :k] for array in (want, got))
    shared = (want_top[:, :, None] == got_top[:, None, :]).any(axis=2).mean(axis=1)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want).max(axis=1)
        two = np.sort(want, axis=1)[:, -2:]
        margin = two[:, -1] - two[:, 0]  # 0 with a single class: nothing to decide
        judged = margin > 2 * allowed_error
        decidable = margin > 2 * error  # never where the error is NaN or Inf
    return LogitMetrics(
        samples=samples,
        classes=classes,
        top1_matches=int(same.sum()),
        top5_overlap=float(np.where(finite, shared, 0.0).mean()),
        decidable=int(decidable.sum()),
        judged=int(judged.sum()),
        flips=int((judged & ~same).sum()),
    )


def judge(metrics: TensorMetrics, bounds: Bounds, logits: LogitMetrics | None = None) -> list[str]:
    """The reasons why an output fails its bounds, a sentence each; empty when it passes."""
    reasons = []
    for who, nans, infs in (
        ("The reference", metrics.reference_nan_count, metrics.reference_inf_count),
        ("The candidate", metrics.nan_count, metrics.inf_count),
    ):
        if nans or infs:
            reasons.append(f"{who} holds {nans} NaN and {infs} Inf.")
    if reasons:
        return reasons
    if not metrics.rel_max <= bounds.rel_max:
        reasons.append(
            f"The largest error {metrics.max_abs:.2g} is {metrics.rel_max:.2g} of the reference's largest value "
            f"{metrics.reference_max:.3g}; at most {bounds.rel_max:g} is allowed."
        )
    if bounds.rel_l2 is not None and not metrics.rel_l2 <= bounds.rel_l2:
        reasons.append(f"The relative L2 error is {metrics.rel_l2:.2g}; at most {bounds.rel_l2:g} is allowed.")
    if bounds.cosine is not None and not metrics.cosine >= bounds.cosine:
        reasons.append(f"The cosine is {metrics.cosine:.6g}; at least {bounds.cosine:g} is needed.")
    if logits is not None and not logits.judged_agreement >= bounds.top1:
        reasons.append(
            f"The top-1 class flipped on {logits.flips} of {logits.judged} samples whose margin is wider than twice "
            "the allowed error."
        )
    return reasons


def check_shapes(reference: np.ndarray, candidate: np.ndarray) -> None:
    """Raise UsageError unless both have the same shape and hold an element."""
    if reference.shape != candidate.shape:
        raise UsageError(
            f"Outputs of different shapes cannot be compared: the reference has {list(reference.shape)}, the candidate "
            f"{list(candidate.shape)}."
        )
    if reference.size == 0:
        raise UsageError(f"Outputs of shape {list(reference.shape)} hold nothing to compare.")


def json_safe(data: Mapping[str, Any]) -> dict[str, Any]:
    """Floats that JSON cannot hold become None."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in data.items()}


def _flat(array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(np.float64).ravel()


def _ratio(part: float, whole: float) -> float:
    if whole == 0 and part >= 0:
        return math.inf if part > 0 else 0.0
    return part / whole if whole else math.nan


def _psnr(peak: float, mean_square: float) -> float:
    if mean_square == 0:
        return math.inf
    if peak == 0:
        return -math.inf
    return 20 * math.log10(peak) - 10 * math.log10(mean_square)

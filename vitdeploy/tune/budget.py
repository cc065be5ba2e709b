"""What a plan may cost, and whether one that was measured keeps to it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.tune.plans import Answers, Trial

ONE_SIDED = 1.6448536269514722  # of the normal distribution: 95 % lie below


@dataclass(frozen=True)
class Budget:
    """Limits; None is none.

    Attributes:
        max_drop: percentage points of top-1 on labelled images. Without labels, the percentage of images that change
            class, which the drop cannot exceed.
        max_error: relative L2 of the logits.
        max_latency: p50 in milliseconds.
        max_size: bytes of the model's files.
    """

    max_drop: float | None = None
    max_error: float | None = None
    max_latency: float | None = None
    max_size: int | None = None

    def check(self) -> None:
        """Raise UsageError on a limit that is no limit."""
        for name, value in asdict(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"--{name.replace('_', '-')} {value} is not a limit.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def inaccurate(self, answers: Answers) -> str:
        """Why these answers break the budget; empty where they keep to it.

        The drop must be within the limit with a confidence of 95 %, so that what holds on these images holds on others.
        """
        if not math.isfinite(answers.error):
            return "NaN or Inf in the logits"
        if self.max_error is not None and answers.error > self.max_error:
            return f"relative L2 {answers.error:.3g}, more than {self.max_error:g}"
        if self.max_drop is None:
            return ""
        bound = bound_of(answers)
        if answers.drop is None:
            said = f"{answers.change:.2f} % of {answers.images} images change class"
        else:
            said = f"top-1 drops by {answers.drop:.2f} pp, with {answers.images} images perhaps by {bound:.2f}"
        return "" if bound <= self.max_drop else f"{said}: more than {self.max_drop:g}"

    def share(self, answers: Answers) -> float:
        """By what factor the error must shrink to keep to the limits; 1 where it need not."""
        found = [1.0]
        if self.max_error is not None:
            found.append(self.max_error / max(answers.error, 1e-12))
        if self.max_drop is not None:
            found.append(self.max_drop / max(bound_of(answers), 1e-12))
        return min(found)

    def too_big(self, trial: Trial) -> str:
        """Why the file or its latency break the budget; empty where they keep to it."""
        if self.max_size is not None and trial.bytes > self.max_size:
            return f"{trial.bytes / 1e6:.1f} MB, more than {self.max_size / 1e6:g}"
        if self.max_latency is not None and trial.p50 > self.max_latency:
            return f"p50 {trial.p50:.2f} ms, more than {self.max_latency:g}"
        return ""

    def why_not(self, trial: Trial) -> str:
        """Why a trial is out; empty where it keeps to everything."""
        if trial.failed:
            return trial.failed
        answers = trial.answers
        return ("not measured" if answers is None else self.inaccurate(answers)) or self.too_big(trial)


def bound_of(answers: Answers) -> float:
    """Percentage points of top-1 that a plan loses at most, with a confidence of 95 %.

    One-sided and paired: the standard error of lost - gained is the root of lost + gained (McNemar 1947). Without
    labels the images that change class.
    """
    if answers.drop is None or answers.gained is None or answers.lost is None:
        return answers.change
    return answers.drop + 100 * ONE_SIDED * math.sqrt(answers.gained + answers.lost) / answers.images

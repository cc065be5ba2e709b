"""Right answers and agreement on labelled images, with intervals. Pure numpy.

An answer is a row of class indices, best first. Where the logits hold NaN or Inf the row is -1: it is never right, and
agrees with nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitdeploy.errors import UsageError

Z95 = 1.959963984540054  # of the normal distribution: 95 % lie within
NO_ANSWER = -1


@dataclass(frozen=True)
class Rate:
    """`hits` out of `total`, as a fraction with Wilson's 95 % score interval.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        n, p, z2 = self.total, self.value, Z95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # Exact at the ends, where rounding would leave 1 - 1e-17.
        return (0.0 if self.hits == 0 else centre - half, 1.0 if self.hits == n else centre + half)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "hits": self.hits, "total": self.total}


@dataclass(frozen=True)
class Paired:
    """Two models' answers to the same images.

    Attributes:
        agreement: images on which both name the same class, right or wrong.
        gained: images that only the first model gets right.
        lost: images that only the second model gets right.
    """

    agreement: Rate
    gained: int
    lost: int

    @property
    def difference(self) -> float:
        """The first model's top-1 less the second's, as a fraction."""
        return (self.gained - self.lost) / self.agreement.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `difference`: paired normal, with one image added to both discordant cells.

        Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
        paired data". Without that adjustment (McNemar's standard error alone) two models that always agree would get
        an interval of no width, on however few images.
        """
        n = self.agreement.total + 2
        first, second = (self.gained + 1) / n, (self.lost + 1) / n
        half = Z95 * math.sqrt((first + second - (first - second) ** 2) / n)
        return max(-1.0, first - second - half), min(1.0, first - second + half)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        points = {"value": 100 * self.difference, "low": 100 * low, "high": 100 * high}
        only = {"only_first_right": self.gained, "only_second_right": self.lost}
        return {"agreement": self.agreement.to_dict(), "top1_difference_pp": {**points, **only}}


def best_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """int64 (N, k): the k largest logits' classes, best first, the lower index before its equal.

    Args:
        logits: (N, classes) of any float dtype, classes at least k.
    """
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :k].astype(np.int64)
    order[~np.isfinite(logits).all(axis=1)] = NO_ANSWER
    return order


def top_k(best: np.ndarray, labels: np.ndarray, k: int) -> Rate:
    """How often the label is among the first k answers.

    Args:
        best: (N, at least k) from `best_classes`.
        labels: int64 (N,), not negative.

    Raises:
        UsageError: no answers, or not one label for each.
    """
    if len(best) == 0 or len(best) != len(labels):
        raise UsageError(f"{len(labels)} labels for {len(best)} answers cannot be scored.")
    return Rate(int((best[:, :k] == labels[:, None]).any(axis=1).sum()), len(labels))


def compare_answers(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Paired:
    """Hold two models' first answers to the same images, int64 (N,) each, against each other.

    Raises:
        UsageError: no answers, or not as many of each.
    """
    if not len(first) == len(second) == len(labels) or len(labels) == 0:
        raise UsageError(f"{len(first)} and {len(second)} answers to {len(labels)} images cannot be compared.")
    same = (first == second) & (first != NO_ANSWER)
    right, other_right = first == labels, second == labels
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return Paired(Rate(int(same.sum()), len(labels)), gained, lost)

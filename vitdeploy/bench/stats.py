"""Statistics over latencies. Nothing is clipped: the slowest run is part of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from vitdeploy.errors import UsageError

Samples: TypeAlias = "Sequence[float] | np.ndarray"

FEW_SAMPLES = 20
UNSTABLE_TAIL = 1.25
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100  # bounds the memory where there are many samples


@dataclass(frozen=True)
class LatencyStats:
    """Latencies of single runs, in milliseconds.

    Attributes:
        count: number of runs.
        batch: images a run.
        min, mean, max, std: std is the sample standard deviation, 0 for a single run.
        p50, p90, p95, p99: percentiles, interpolated linearly between neighbouring samples.
    """

    count: int
    batch: int
    min: float
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def from_seconds(cls, samples: Samples, batch: int = 1) -> LatencyStats:
        """Summarise latencies given in seconds.

        Raises:
            UsageError: no samples, a negative or non-finite one, or a batch below 1.
        """
        milliseconds = _checked(samples) * 1e3
        if batch < 1:
            raise UsageError(f"A batch of {batch} images cannot be timed.")
        p50, p90, p95, p99 = (float(p) for p in np.percentile(milliseconds, [50, 90, 95, 99]))
        return cls(
            count=len(milliseconds),
            batch=batch,
            min=float(milliseconds.min()),
            mean=float(milliseconds.mean()),
            std=float(milliseconds.std(ddof=1)) if len(milliseconds) > 1 else 0.0,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(milliseconds.max()),
        )

    @property
    def throughput(self) -> float:
        """Images a second, of runs one after another: batch / mean; 0 where the clock saw no time pass."""
        return self.batch * 1e3 / self.mean if self.mean > 0 else 0.0

    @property
    def warnings(self) -> list[str]:
        """Why these figures deserve doubt, a sentence each."""
        found = []
        if self.count < FEW_SAMPLES:
            found.append(f"Only {self.count} runs: the percentiles are rough. Measure for longer.")
        if self.p95 > UNSTABLE_TAIL * self.p50:
            found.append(
                f"Unstable: p95 {self.p95:.3g} ms is more than {UNSTABLE_TAIL:g} times p50 {self.p50:.3g} ms. "
                "Other work may be running."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; latencies in milliseconds, throughput in images a second."""
        return asdict(self) | {"throughput": self.throughput, "warnings": self.warnings}


@dataclass(frozen=True)
class Ratio:
    """A ratio of latencies with its 95 % interval."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio_of_interleaved(a: Sequence[Samples], b: Sequence[Samples], seed: int = 0) -> Ratio:
    """The median over rounds of median(a[i]) / median(b[i]), so that drift of the machine cancels out.

    Above 1, `b` is the faster. The interval is the percentile bootstrap's over rounds (Efron 1979): calls of one turn
    are too much alike to count as independent.

    Args:
        a, b: latencies by turn from `measure_interleaved`, of equally many rounds, all positive.

    Raises:
        UsageError: the rounds differ, there are no samples, or one is not positive.
    """
    if len(a) != len(b):
        raise UsageError(f"{len(a)} and {len(b)} rounds cannot be paired: measure them interleaved.")
    top, bottom = (_checked([np.median(_checked(turn)) for turn in turns]) for turns in (a, b))
    if not (top.min() > 0 and bottom.min() > 0):
        raise UsageError("A latency of 0 has no ratio: the clock is too coarse for these runs.")
    ratios = top / bottom
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = (rng.choice(ratios, (RESAMPLES_AT_ONCE, len(ratios))) for _ in range(RESAMPLES // RESAMPLES_AT_ONCE))
    low, high = np.percentile([np.median(draw, axis=1) for draw in draws], [2.5, 97.5])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


def _checked(samples: Samples) -> np.ndarray:
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError("There are no latencies to summarise.")
    if not (np.isfinite(array).all() and array.min() >= 0):
        raise UsageError("Latencies must be finite and not negative.")
    return array

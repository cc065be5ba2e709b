"""Where the time of a run goes on a GPU: transfers, compute, and the launching of it, as trtexec splits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitdeploy.bench.stats import LatencyStats

# trtexec's own limits.
ENQUEUE_BOUND = 0.8  # of the time on the GPU
UNSTABLE = 0.025  # standard deviation over mean
WORDS = {"latency": "latency", "h2d": "host to device", "compute": "GPU compute", "d2h": "device to host"}
WORDS |= {"enqueue": "enqueue"}


@dataclass(frozen=True)
class Parts:
    """Statistics of each part; empty where the host's clock is all there is.

    Attributes:
        stats: by part: 'h2d', 'compute', 'd2h', 'latency' (their sum) and, where it is apart, 'enqueue'.
    """

    stats: Mapping[str, LatencyStats] = field(default_factory=dict)

    @classmethod
    def from_seconds(cls, parts: Mapping[str, Sequence[float]]) -> Parts:
        """Summarise what Session.parts returns."""
        return cls({name: LatencyStats.from_seconds(samples) for name, samples in parts.items() if len(samples)})

    @property
    def warnings(self) -> list[str]:
        """Why the latency deserves doubt, a sentence each."""
        found = []
        compute, enqueue = self.stats.get("compute"), self.stats.get("enqueue")
        if compute is not None and enqueue is not None and enqueue.p50 > ENQUEUE_BOUND * compute.p50:
            found.append(
                f"Enqueue-bound: launching takes {enqueue.p50:.3g} ms of the host's time and the GPU computes for "
                f"{compute.p50:.3g} ms. CUDA graphs or a larger batch would feed it."
            )
        if compute is not None and compute.mean > 0 and compute.std / compute.mean > UNSTABLE:
            found.append(
                f"Unstable: GPU compute varies by {compute.std / compute.mean:.1%} of its mean. Its clocks may be "
                "changing: lock them, or measure for longer."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; milliseconds."""
        keys = ("count", "min", "mean", "std", "p50", "p90", "p95", "p99", "max")
        return {name: {key: getattr(stats, key) for key in keys} for name, stats in self.stats.items()}

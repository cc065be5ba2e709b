"""Latency of compiled artifacts, measured in child processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.backends import isolate
from vitdeploy.backends.base import RunOptions
from vitdeploy.bench.parts import Parts
from vitdeploy.bench.stats import LatencyStats, Ratio, ratio_of_interleaved
from vitdeploy.bench.timer import Turns, measure_interleaved
from vitdeploy.errors import UsageError
from vitdeploy.spec import TensorSpec


@dataclass(frozen=True)
class Candidate:
    """One thing to measure: which backend opens which file, with options of its own where it has any."""

    backend: str
    model: Path
    label: str
    options: RunOptions | None = None


@dataclass(frozen=True)
class Measured:
    """Latency of one candidate.

    Attributes:
        label: the candidate's.
        batch: images a run.
        stats: over every sample.
        turns: seconds of every timed run, by turn of the interleaved measurement; nothing removed.
        peak_rss: bytes, of a process that only loads and runs this candidate; None where it was not asked for.
        options: threads, device and what the timing includes.
        parts: where the time of a run goes on a device with memory of its own; see Session.parts.
    """

    label: str
    batch: int
    stats: LatencyStats
    turns: Turns
    peak_rss: int | None
    options: dict[str, Any]
    parts: Parts = field(default_factory=Parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "batch": self.batch,
            "latency_ms": self.stats.to_dict(),
            "throughput": self.stats.throughput,
            "warnings": [*self.stats.warnings, *self.parts.warnings],
            "parts": self.parts.to_dict(),
            "peak_rss_bytes": self.peak_rss,
            "runs_a_turn": len(self.turns[0]),
            "samples_ms": [round(s * 1e3, 6) for turn in self.turns for s in turn],
            **self.options,
        }


def time_runs(
    candidates: Sequence[Candidate],
    options: RunOptions,
    batch: int | None,
    warmup: float,
    duration: float,
    transfers: bool = True,
) -> list[tuple[int, Turns]]:
    """Time the candidates in turn; returns (batch, seconds by turn) each. Made to run in a child process."""
    from vitdeploy.backends import registry

    sessions = [registry.get(c.backend).open(c.model, c.options or options) for c in candidates]
    calls, batches = [], []
    for session, candidate in zip(sessions, candidates, strict=True):
        feeds = {spec.name: random_input(spec, batch, candidate.label) for spec in session.inputs}
        given = next(iter(feeds.values()))
        batches.append(1 if given.dtype == np.uint8 else given.shape[0])
        calls.append(partial(session.run, feeds) if transfers else session.resident(feeds))
    turns = measure_interleaved(calls, warmup, duration)
    for session in sessions:
        session.close()
    return list(zip(batches, turns, strict=True))


def random_input(spec: TensorSpec, batch: int | None, label: str) -> np.ndarray:
    """Normal noise of the input's shape, or zeros where it takes whole numbers: they may be indices.

    A camera frame, which is uint8, is noise too; where it may have any size it has an example's.

    A fixed batch other than the one asked for is a UsageError.
    """
    if spec.dtype == "uint8":
        if batch not in (None, 1):
            raise UsageError(f"{label} takes one frame at a time, not {batch}.")
        return np.random.default_rng(0).integers(0, 256, spec.example, np.uint8)
    first, *rest = spec.shape
    if any(isinstance(n, str) for n in rest):
        raise UsageError(f"{label} has dynamic dimensions {list(rest)} beside its batch.")
    if isinstance(first, int) and batch not in (None, first):
        raise UsageError(f"{label} was exported for batch {first}, not {batch}.", fix="Export it with --batch 1:8:32.")
    size = first if isinstance(first, int) else batch or 1
    whole = (size, *(int(n) for n in rest))
    if np.dtype(spec.dtype).kind not in "f":
        return np.zeros(whole, spec.dtype)
    return np.random.default_rng(0).standard_normal(whole, dtype=np.float32).astype(spec.dtype)


@dataclass(frozen=True)
class Alone:
    """What a candidate tells when it has the device for itself.

    Attributes:
        parts: see Session.parts.
        includes: see Session.includes.
        device_state: see Session.device_state; right after its runs.
    """

    parts: dict[str, list[float]]
    includes: str
    device_state: dict[str, float]


def run_alone(
    candidate: Candidate, options: RunOptions, batch: int | None, seconds: float, transfers: bool = True
) -> Alone:
    """Load and run: what a program that only infers does. Made to run in a child process, for its peak memory.

    Where the device takes times by part, it is kept busy for `seconds`.
    """
    from vitdeploy.backends import registry

    with registry.get(candidate.backend).open(candidate.model, candidate.options or options) as session:
        feeds = {spec.name: random_input(spec, batch, candidate.label) for spec in session.inputs}
        for _ in range(2):
            session.run(feeds)
        return Alone(session.parts(feeds, seconds), session.includes(transfers=transfers), session.device_state())


def op_milliseconds(candidate: Candidate, options: RunOptions, batch: int | None) -> dict[str, float]:
    """See Session.op_seconds. Made to run in a child process."""
    from vitdeploy.backends import registry

    with registry.get(candidate.backend).open(candidate.model, candidate.options or options) as session:
        feeds = {spec.name: random_input(spec, batch, candidate.label) for spec in session.inputs}
        found = session.op_seconds(feeds)
    return {op: round(1e3 * seconds, 6) for op, seconds in sorted(found.items(), key=lambda one: -one[1])}


def bench_sessions(
    candidates: Sequence[Candidate],
    options: RunOptions,
    *,
    batch: int | None = None,
    warmup: float = 0.5,
    duration: float = 3.0,
    transfers: bool = True,
) -> list[Measured]:
    """Measure candidates interleaved in one child process; then each one's peak memory in a process of its own.

    Args:
        batch: images a run; None takes a static graph's own batch and 1 for a dynamic one.
        warmup, duration: seconds a candidate.
        transfers: whether runs copy inputs to the device and outputs back; see Session.resident.
    """
    from vitdeploy.backends import registry

    timed = isolate.call(time_runs, list(candidates), options, batch, warmup, duration, transfers)
    facts = {
        "threads": options.threads,
        "transfers": transfers,
        "warmup_s": warmup,
        "duration_s": duration,
    }
    results = []
    for candidate, (size, turns) in zip(candidates, timed, strict=True):
        used = registry.get(candidate.backend).settled(candidate.options or options)
        alone, peak = isolate.call_measured(run_alone, candidate, options, batch, duration, transfers)
        stats = LatencyStats.from_seconds([sample for turn in turns for sample in turn], size)
        own = {"device": used.provider or used.device, "includes": alone.includes, **facts}
        own |= {"device_state": alone.device_state} if alone.device_state else {}
        parts = Parts.from_seconds(alone.parts)
        results.append(Measured(candidate.label, size, stats, turns, peak or None, own, parts))
    return results


def ratios(measured: Sequence[Measured]) -> list[Ratio]:
    """How much faster each candidate is than the first, from the interleaved rounds (above 1: faster)."""
    return [ratio_of_interleaved(measured[0].turns, other.turns) for other in measured]

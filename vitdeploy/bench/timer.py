"""Take latencies: warm up, then keep every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from vitdeploy.errors import UsageError


def measure(
    run: Callable[[], Any],
    warmup_s: float = 0.5,
    duration_s: float = 3.0,
    min_runs: int = 10,
    max_runs: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Seconds of each call of `run`, in order; as `measure_interleaved` with one candidate."""
    return measure_interleaved([run], warmup_s, duration_s, min_runs, max_runs, clock, progress)[0]


def measure_interleaved(
    runs: Sequence[Callable[[], Any]],
    warmup_s: float = 0.5,
    duration_s: float = 3.0,
    min_runs: int = 10,
    max_runs: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
) -> list[list[float]]:
    """Seconds of each call, candidate by candidate, taken in rounds of one call each.

    A round starts with the candidate after the one that the last round started with, so that no candidate always
    follows the same neighbour's caches. Sample i of every candidate comes from round i.

    Args:
        runs: the candidates. Each call must end when its work has ended (synchronise the device inside).
        warmup_s: seconds of calls to each candidate before the first sample; at least one call. Not counted.
        duration_s: seconds of sampling a candidate. The round in which they pass is finished.
        min_runs: rounds at least, however long they take.
        max_runs: rounds at most, however short they are.
        clock: seconds, never going back.
        progress: told the finished share of the sampling, in (0, 1], after each round, outside the timed calls.

    Raises:
        UsageError: no candidates, negative times, or min_runs or max_runs below 1 or crossing each other.
    """
    if not runs:
        raise UsageError("There is nothing to measure.")
    if not (warmup_s >= 0 and duration_s >= 0):
        raise UsageError(f"Warm-up ({warmup_s} s) and duration ({duration_s} s) must not be negative.")
    if min_runs < 1 or (max_runs is not None and max_runs < min_runs):
        raise UsageError(f"At least {min_runs} and at most {max_runs} runs is no range of 1 or more.")
    for run in runs:
        _warm_up(run, warmup_s, clock)
    budget = duration_s * len(runs)
    samples: list[list[float]] = [[] for _ in runs]
    rounds = 0
    begin = clock()
    while True:
        for turn in range(len(runs)):
            index = (rounds + turn) % len(runs)
            start = clock()
            runs[index]()
            samples[index].append(clock() - start)
        rounds += 1
        elapsed = clock() - begin
        done = rounds == max_runs or (rounds >= min_runs and elapsed >= budget)
        if progress is not None:
            progress(1.0 if done else _share(rounds, elapsed, min_runs, max_runs, budget))
        if done:
            return samples


def _warm_up(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> None:
    begin = clock()
    run()
    while clock() - begin < seconds:
        run()


def _share(rounds: int, elapsed: float, min_runs: int, max_runs: int | None, budget: float) -> float:
    share = min(rounds / min_runs, elapsed / budget if budget > 0 else 1.0)
    if max_runs is not None:
        share = max(share, rounds / max_runs)
    return min(share, 1.0)

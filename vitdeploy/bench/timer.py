"""Take latencies: warm up, then keep every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vitdeploy.errors import UsageError

Turns: TypeAlias = list[list[float]]  # seconds of each call, by turn

TURN_S = 0.3
SETTLE_S = 0.1
ROUNDS = 10


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
    turns = measure_interleaved([run], warmup_s, duration_s, min_runs, max_runs, clock, progress)[0]
    return [sample for turn in turns for sample in turn]


def measure_interleaved(
    runs: Sequence[Callable[[], Any]],
    warmup_s: float = 0.5,
    duration_s: float = 3.0,
    min_runs: int = 10,
    max_runs: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] | None = None,
    settle_s: float = SETTLE_S,
) -> list[Turns]:
    """Seconds of each call, candidate by candidate, taken in rounds in which each has one turn.

    A turn is as many calls for each candidate: about 0.3 s of the slowest's, or a tenth of duration_s if that is
    shorter. Where there are several candidates, it opens with calls that are not kept, for 0.1 s and one at least: the
    threads of the candidate before go on spinning for a while, and a call that follows a change of candidate can take
    three times as long as one in a program that runs a single model. A round starts with the candidate after the one
    that the last round started with. Turn i of every candidate comes from round i.

    Args:
        runs: the candidates. Each call must end when its work has ended (synchronise the device inside).
        warmup_s: seconds of calls to each candidate before the first turn; at least one call, and where there are
            several candidates at least settle_s. Not kept.
        duration_s: seconds of kept calls a candidate. The round in which they pass is finished.
        min_runs: kept calls of each candidate at least, however long they take.
        max_runs: kept calls of each candidate at most, however short they are.
        clock: seconds, never going back.
        progress: told the finished share of the sampling, in (0, 1], after each round, outside the timed calls.
        settle_s: seconds of calls that open a turn and are not kept.

    Raises:
        UsageError: no candidates, negative times, or min_runs or max_runs below 1 or crossing each other.
    """
    if not runs:
        raise UsageError("There is nothing to measure.")
    if not (warmup_s >= 0 and duration_s >= 0):
        raise UsageError(f"Warm-up ({warmup_s} s) and duration ({duration_s} s) must not be negative.")
    if min_runs < 1 or (max_runs is not None and max_runs < min_runs):
        raise UsageError(f"At least {min_runs} and at most {max_runs} runs is no range of 1 or more.")
    alone = len(runs) == 1
    # Turns are sized by what is seen here: a first call alone would make them many times too short.
    slowest = max(_unkept(run, warmup_s if alone else max(warmup_s, settle_s), clock) for run in runs)
    calls = 1 if alone or slowest <= 0 else max(1, int(min(TURN_S, duration_s / ROUNDS) / slowest))
    calls = min(calls, max_runs or calls)
    turns: list[Turns] = [[] for _ in runs]
    budget = duration_s * len(runs)
    rounds, seconds = 0, 0.0
    while True:
        for place in range(len(runs)):
            index = (rounds + place) % len(runs)
            if not alone:
                _unkept(runs[index], settle_s, clock)
            turns[index].append([_timed(runs[index], clock) for _ in range(calls)])
            seconds += sum(turns[index][-1])
        rounds += 1
        of_time = seconds / budget if seconds < budget else 1.0
        share = min(of_time, rounds * calls / min_runs)
        if max_runs is not None:
            share = 1.0 if (rounds + 1) * calls > max_runs else max(share, rounds * calls / max_runs)
        if progress is not None:
            progress(share)
        if share >= 1.0:
            return turns


def _unkept(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """Call `run` for `seconds`, once at least; returns the seconds of the shortest call."""
    begin = clock()
    shortest = _timed(run, clock)
    while clock() - begin < seconds:
        shortest = min(shortest, _timed(run, clock))
    return shortest


def _timed(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start

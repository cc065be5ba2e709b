from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import pytest

from vitdeploy.bench.timer import measure, measure_interleaved
from vitdeploy.errors import UsageError


class FakeClock:
    """Time passes only in the runs; in 64ths of a second, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, *ticks: int) -> Callable[[], None]:
        """A run that takes each of these ticks in turn, the last for good."""
        left = list(ticks)

        def call() -> None:
            self.calls.append(name)
            self.now += (left.pop(0) if len(left) > 1 else left[0]) / 64

        return call


def test_measure_keeps_every_sample_when_one_is_an_outlier() -> None:
    clock = FakeClock()
    samples = measure(clock.run("a", 50, 1, 2, 64, 3), warmup_s=0, duration_s=0, min_runs=4, clock=clock)
    assert [s * 64 for s in samples] == [1, 2, 64, 3]  # the first call, 50 ticks, was the warm-up


def test_measure_warms_up_once_when_warmup_is_zero() -> None:
    clock = FakeClock()
    samples = measure(clock.run("a", 8), warmup_s=0, duration_s=0, min_runs=1, clock=clock)
    assert len(clock.calls) == 2
    assert len(samples) == 1


def test_measure_warms_up_until_time_is_over_when_warmup_is_long() -> None:
    clock = FakeClock()
    samples = measure(clock.run("a", 16), warmup_s=0.6, duration_s=0, min_runs=1, clock=clock)
    assert len(clock.calls) - len(samples) == 3  # 0.25, 0.5, 0.75 s


def test_measure_samples_until_duration_is_over_when_runs_are_quick() -> None:
    clock = FakeClock()
    assert len(measure(clock.run("a", 8), warmup_s=0, duration_s=3, min_runs=1, clock=clock)) == 24


def test_measure_takes_min_runs_when_each_exceeds_the_duration() -> None:
    clock = FakeClock()
    samples = measure(clock.run("a", 640), warmup_s=0, duration_s=1, clock=clock)
    assert [s * 64 for s in samples] == [640] * 10


def test_measure_stops_at_max_runs_when_runs_are_quick() -> None:
    clock = FakeClock()
    assert len(measure(clock.run("a", 1), warmup_s=0, duration_s=1000, min_runs=5, max_runs=7, clock=clock)) == 7


def test_measure_reports_growing_progress_when_asked() -> None:
    clock = FakeClock()
    seen: list[float] = []
    measure(clock.run("a", 8), warmup_s=1, duration_s=1, min_runs=4, clock=clock, progress=seen.append)
    assert seen == [i / 8 for i in range(1, 9)]
    seen.clear()
    measure(clock.run("a", 0), warmup_s=0, duration_s=1, min_runs=1, max_runs=4, clock=clock, progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_measure_leaves_progress_out_of_samples_when_it_is_slow() -> None:
    clock = FakeClock()

    def slow(share: float) -> None:
        clock.now += 100

    samples = measure(clock.run("a", 8), warmup_s=0, duration_s=0, min_runs=5, clock=clock, progress=slow)
    assert samples == [0.125] * 5


def test_measure_lets_errors_through_when_the_run_fails() -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        measure(fail, clock=FakeClock())


def test_measure_uses_a_real_clock_when_none_is_given() -> None:
    samples = measure(lambda: None, warmup_s=0, duration_s=0, min_runs=3)
    assert len(samples) == 3
    assert all(s >= 0 for s in samples)


def test_measure_interleaved_rotates_the_order_when_rounds_pass() -> None:
    clock = FakeClock()
    runs = [clock.run("a", 1), clock.run("b", 2), clock.run("c", 8)]
    turns = measure_interleaved(runs, warmup_s=0, duration_s=0, min_runs=4, clock=clock)
    order = [name for name, _ in groupby(clock.calls)]
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"  # the warm-ups, and four rounds
    assert [[[s * 64 for s in turn] for turn in row] for row in turns] == [[[1]] * 4, [[2]] * 4, [[8]] * 4]


def test_measure_interleaved_keeps_no_call_that_follows_a_change_of_candidate() -> None:
    clock = FakeClock()
    last = ["a"]

    def slow_after_another(name: str) -> Callable[[], None]:
        def call() -> None:
            clock.now += (1 if last[0] == name else 5) / 64
            last[0] = name

        return call

    runs = [slow_after_another("a"), slow_after_another("b")]
    turns = measure_interleaved(runs, warmup_s=1, duration_s=4, clock=clock)
    kept = {s * 64 for row in turns for turn in row for s in turn}
    assert kept == {1.0}
    sizes = {len(turn) for row in turns for turn in row}
    assert sizes == {19}  # 0.3 s of 1/64 s
    assert all(len(row) == 14 for row in turns)  # 19/64 s each: 4 s are over in the 14th


def test_measure_interleaved_gives_every_candidate_as_many_calls_when_one_is_slow() -> None:
    clock = FakeClock()
    turns = measure_interleaved([clock.run("a", 1), clock.run("b", 4)], 0, 30, clock=clock)
    assert {len(turn) for row in turns for turn in row} == {4}  # 0.3 s of the slower


def test_measure_interleaved_takes_ten_rounds_or_more_when_the_duration_is_short() -> None:
    clock = FakeClock()
    turns = measure_interleaved([clock.run("a", 1), clock.run("b", 1)], warmup_s=0, duration_s=1, clock=clock)
    assert [len(row) for row in turns] == [11, 11]  # of 6 calls: 0.1 s is not a whole number of them


def test_measure_interleaved_never_exceeds_max_runs() -> None:
    clock = FakeClock()
    runs = [clock.run("a", 1), clock.run("b", 1)]
    turns = measure_interleaved(runs, warmup_s=0, duration_s=9, min_runs=5, max_runs=25, clock=clock)
    assert sum(len(turn) for turn in turns[0]) == 19


def test_measure_interleaved_lasts_the_duration_a_candidate_when_two() -> None:
    clock = FakeClock()
    turns = measure_interleaved(
        [clock.run("a", 8), clock.run("b", 24)], warmup_s=0, duration_s=2, min_runs=1, clock=clock
    )
    assert [len(row) for row in turns] == [8, 8]  # 8 rounds of half a second are 2 s for each of two


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_s": -1.0},
        {"duration_s": -1.0},
        {"duration_s": float("nan")},
        {"min_runs": 0},
        {"min_runs": 5, "max_runs": 4},
    ],
)
def test_measure_raises_usage_error_when_options_are_wrong(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        measure(lambda: None, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to measure"):
        measure_interleaved([])

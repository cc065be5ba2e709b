from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.bench.stats import LatencyStats, ratio_of_interleaved
from vitdeploy.errors import UsageError


def _percentile(values: list[float], q: float) -> float:
    """Linear interpolation between neighbours, written out."""
    values = sorted(values)
    position = (len(values) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-5, 10), min_size=2, max_size=60))
def test_latency_stats_equal_plain_python_when_samples_are_any(samples: list[float]) -> None:
    stats = LatencyStats.from_seconds(samples, batch=4)
    assert stats.count == len(samples)
    assert stats.min == pytest.approx(min(samples) * 1e3)
    assert stats.max == pytest.approx(max(samples) * 1e3)
    assert stats.mean == pytest.approx(statistics.fmean(samples) * 1e3)
    assert stats.std == pytest.approx(statistics.stdev(samples) * 1e3, abs=1e-6)
    for q in (50, 90, 95, 99):
        assert getattr(stats, f"p{q}") == pytest.approx(_percentile(samples, q) * 1e3)
    assert stats.throughput == pytest.approx(4 / statistics.fmean(samples))


def test_latency_stats_keep_the_outlier_when_one_run_is_slow() -> None:
    stats = LatencyStats.from_seconds([0.010] * 99 + [1.0])
    assert stats.max == pytest.approx(1000)
    assert stats.mean == pytest.approx((99 * 10 + 1000) / 100)
    assert stats.p50 == pytest.approx(10)


def test_latency_stats_of_one_run_have_no_spread_when_count_is_one() -> None:
    stats = LatencyStats.from_seconds([0.02])
    assert stats.count == 1
    assert [stats.min, stats.mean, stats.p50, stats.p99, stats.max] == pytest.approx([20] * 5)
    assert stats.std == 0
    assert LatencyStats.from_seconds([0.0]).throughput == 0


def test_warnings_name_the_doubt_when_few_or_unstable() -> None:
    assert LatencyStats.from_seconds([0.01] * 20).warnings == []
    few = LatencyStats.from_seconds([0.01] * 19).warnings
    assert len(few) == 1
    assert "Only 19 runs" in few[0]
    unstable = LatencyStats.from_seconds([0.01] * 90 + [0.0126] * 10).warnings
    assert len(unstable) == 1
    assert "Unstable" in unstable[0]
    assert LatencyStats.from_seconds([0.01] * 90 + [0.0124] * 10).warnings == []


def test_to_dict_is_json_when_built() -> None:
    data = json.loads(json.dumps(LatencyStats.from_seconds([0.01, 0.03], batch=2).to_dict(), allow_nan=False))
    assert data["throughput"] == pytest.approx(100)
    assert data["p50"] == pytest.approx(20)
    assert (data["count"], data["batch"], len(data["warnings"])) == (2, 2, 2)


@pytest.mark.parametrize(
    ("samples", "batch"), [([], 1), ([-1.0], 1), ([math.nan], 1), ([math.inf], 1), ([1.0], 0), ([[1.0]], 1)]
)
def test_latency_stats_raise_usage_error_when_samples_are_wrong(samples: list[float], batch: int) -> None:
    with pytest.raises(UsageError):
        LatencyStats.from_seconds(samples, batch)


def test_ratio_is_of_the_rounds_when_the_machine_drifts() -> None:
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 5, 200)[:, None]  # the machine slows down fivefold, both candidates alike
    a, b = 2 * drift * rng.uniform(0.99, 1.01, (200, 7)), drift * rng.uniform(0.99, 1.01, (200, 7))
    ratio = ratio_of_interleaved(a.tolist(), b.tolist())
    by_round = [statistics.median(x) / statistics.median(y) for x, y in zip(a, b, strict=True)]
    assert ratio.median == pytest.approx(statistics.median(by_round))
    assert 1.99 < ratio.low <= ratio.median <= ratio.high < 2.01
    assert ratio.low < ratio.high
    assert ratio == ratio_of_interleaved(list(a), list(b))
    inverse = ratio_of_interleaved(list(b), list(a))
    assert inverse.median == pytest.approx(0.5, rel=0.01)


def test_ratio_interval_covers_the_truth_when_calls_of_a_turn_are_alike() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        turns = np.exp(rng.normal(0, 0.1, (40, 1)) + rng.normal(0, 0.01, (40, 20)))
        ratio = ratio_of_interleaved(list(turns), [[1.0]] * 40, seed=trial)
        hits += ratio.low <= 1.0 <= ratio.high
    assert 51 <= hits <= 60  # 19 in 20, within chance


def test_ratio_interval_narrows_when_rounds_are_more() -> None:
    rng = np.random.default_rng(2)
    drawn = (list(rng.uniform(0.9, 1.1, (n, 1))) for n in (20, 500))
    wide, narrow = (ratio_of_interleaved(turns, [[1.0]] * len(turns)) for turns in drawn)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], []),
        ([[]], [[]]),
        ([[1.0]], [[1.0], [2.0]]),
        ([[1.0]], [[0.0]]),
        ([[0.0]], [[1.0]]),
        ([[1.0]], [[math.nan]]),
    ],
)
def test_ratio_raises_usage_error_when_samples_do_not_pair(a: list[list[float]], b: list[list[float]]) -> None:
    with pytest.raises(UsageError):
        ratio_of_interleaved(a, b)

"""Counts against ones made by hand, intervals against published figures and against their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitdeploy.errors import UsageError
from vitdeploy.verify.score import Paired, Rate, best_classes, compare_answers, top_k


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(hits: int, total: int, low: float, high: float) -> None:
    assert Rate(hits, total).interval == pytest.approx((low, high), abs=5e-5)
    mirrored = Rate(total - hits, total).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_ends_where_the_rate_does_when_all_or_none_hit() -> None:
    assert Rate(0, 7).interval[0] == 0
    assert Rate(7, 7).interval[1] == 1
    assert 0 < Rate(7, 7).interval[0] < 1


def test_wilson_interval_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.9, 0.98):
        draws = rng.binomial(200, truth, 3000)
        held = [low <= truth <= high for low, high in (Rate(int(n), 200).interval for n in draws)]
        assert 0.925 < np.mean(held) < 0.98


def test_paired_interval_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    for gain, loss in ((0.05, 0.05), (0.02, 0.06), (0.002, 0.004)):
        held = []
        for a, b, _ in rng.multinomial(500, [gain, loss, 1 - gain - loss], 2000):
            low, high = Paired(Rate(500 - a - b, 500), int(a), int(b)).interval
            held.append(low <= gain - loss <= high)
        assert np.mean(held) > 0.93


def test_paired_interval_is_mcnemars_when_there_are_many_images() -> None:
    n, gained, lost = 10**6, 30_000, 20_000
    low, high = Paired(Rate(n - gained - lost, n), gained, lost).interval
    half = 1.959964 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert (low, high) == pytest.approx((0.01 - half, 0.01 + half), abs=1e-6)


def test_paired_interval_has_a_width_when_both_always_agree() -> None:
    for n in (1, 50):
        same = Paired(Rate(n, n), 0, 0)
        low, high = same.interval
        assert same.difference == 0
        assert -1 <= low < 0 < high <= 1
        assert low == pytest.approx(-high)


def test_best_classes_are_the_largest_logits_in_order() -> None:
    logits = np.array([[0.1, 3.0, -2.0, 1.0], [5.0, 5.0, 9.0, 5.0], [0.0, 0.0, 0.0, 0.0]], np.float16)
    assert best_classes(logits, 3).tolist() == [[1, 3, 0], [2, 0, 1], [0, 1, 2]]
    assert best_classes(logits, 1).dtype == np.int64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_answer_is_none_and_wrong_when_a_logit_is_not_finite(bad: float) -> None:
    logits = np.array([[0.0, 1.0], [0.0, bad]], np.float32)
    best = best_classes(logits, 2)
    assert best.tolist() == [[1, 0], [-1, -1]]
    assert top_k(best, np.array([1, 1]), 2).hits == 1
    paired = compare_answers(best[:, 0], best[:, 0], np.array([1, 1]))
    assert (paired.agreement.hits, paired.gained, paired.lost) == (1, 0, 0)


def test_top_k_counts_labels_among_the_first_k() -> None:
    best = np.array([[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]])
    labels = np.array([0, 1, 2, 3])
    assert [top_k(best, labels, k).hits for k in (1, 2, 3)] == [1, 2, 3]
    assert top_k(best, labels, 1).to_dict()["value"] == 0.25


def test_comparison_counts_agreement_and_who_alone_is_right() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5])
    first = np.array([0, 1, 2, 9, 9, 8])
    second = np.array([0, 9, 9, 3, 9, 7])
    paired = compare_answers(first, second, labels)
    assert (paired.agreement.hits, paired.gained, paired.lost) == (2, 2, 1)
    assert paired.difference == pytest.approx(1 / 6)
    found = paired.to_dict()["top1_difference_pp"]
    assert found["value"] == pytest.approx(100 / 6)
    assert found["low"] < found["value"] < found["high"]
    assert (found["only_first_right"], found["only_second_right"]) == (2, 1)


def test_scoring_is_refused_when_there_is_nothing_or_not_as_many() -> None:
    none, two = np.zeros(0, np.int64), np.zeros(2, np.int64)
    for best, labels in ((none[:, None], none), (two[:, None], none)):
        with pytest.raises(UsageError, match="cannot be scored"):
            top_k(best, labels, 1)
    for first, second, labels in ((none, none, none), (two, none, two)):
        with pytest.raises(UsageError, match="cannot be compared"):
            compare_answers(first, second, labels)

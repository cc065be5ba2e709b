from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.errors import UsageError
from vitdeploy.verify.metrics import BOUNDS, Bounds, bounds_for, compare_logits, compare_tensors, judge

EXACT = Bounds(rel_max=0.0, rel_l2=0.0, cosine=-1.0)


def test_compare_tensors_gives_hand_computed_figures_when_values_are_small() -> None:
    metrics = compare_tensors(np.array([[3.0, -4.0]]), np.array([[3.0, -3.5]]))
    assert metrics.max_abs == 0.5
    assert metrics.mean_abs == 0.25
    assert metrics.reference_max == 4.0
    assert metrics.rel_max == 0.125
    assert metrics.rel_l2 == pytest.approx(0.5 / 5)
    assert metrics.cosine == pytest.approx((9 + 14) / (5 * math.sqrt(9 + 12.25)))
    assert metrics.psnr == pytest.approx(10 * math.log10(7**2 / (0.25 / 2)))
    assert (metrics.nan_count, metrics.inf_count, metrics.reference_nan_count, metrics.reference_inf_count) == (0,) * 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=30),
)
def test_compare_tensors_equals_plain_python_when_values_are_any(pairs: list[tuple[float, float]]) -> None:
    want, got = [a for a, _ in pairs], [b for _, b in pairs]
    metrics = compare_tensors(np.array(want, np.float32), np.array(got, np.float32))
    errors = [abs(a - b) for a, b in pairs]
    assert metrics.max_abs == max(errors)
    assert metrics.mean_abs == pytest.approx(math.fsum(errors) / len(errors))
    norm = math.sqrt(math.fsum(a * a for a in want))
    if norm > 1e-100:
        assert metrics.rel_l2 == pytest.approx(math.sqrt(math.fsum(e * e for e in errors)) / norm, rel=1e-6)
    assert -1 <= metrics.cosine <= 1


def test_compare_tensors_is_perfect_when_equal() -> None:
    values = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    metrics = compare_tensors(values, values.copy())
    assert (metrics.max_abs, metrics.rel_max, metrics.rel_l2) == (0, 0, 0)
    assert metrics.cosine == pytest.approx(1.0)
    assert metrics.psnr == math.inf
    assert judge(metrics, BOUNDS["fp32"]) == []


def test_compare_tensors_is_safe_when_zeros_are_compared() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    both = compare_tensors(zeros, zeros)
    assert (both.rel_max, both.rel_l2, both.cosine, both.psnr) == (0.0, 0.0, 1.0, math.inf)
    reference_only = compare_tensors(zeros, ones)
    assert (reference_only.rel_max, reference_only.rel_l2, reference_only.cosine) == (math.inf, math.inf, 0.0)
    assert judge(reference_only, BOUNDS["fp16"])
    candidate_only = compare_tensors(ones, zeros)
    assert (candidate_only.rel_max, candidate_only.rel_l2, candidate_only.cosine) == (1.0, 1.0, 0.0)
    assert candidate_only.psnr == pytest.approx(0.0)  # a constant reference: its value is the peak


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e9, 1e300])
def test_compare_tensors_relative_figures_stay_when_scale_is(scale: float) -> None:
    want, got = np.array([1.0, -2.0, 0.5]), np.array([1.1, -2.0, 0.4])
    plain, scaled = compare_tensors(want, got), compare_tensors(want * scale, got * scale)
    for name in ("rel_max", "rel_l2", "cosine", "psnr"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-9), name


def test_compare_tensors_sees_the_error_when_dtype_is_half() -> None:
    want = np.array([60000.0, 1.0], np.float32)
    metrics = compare_tensors(want, np.array([-60000.0, 1.0], np.float16))
    assert metrics.max_abs == 120000.0  # would be inf in float16


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["candidate", "reference", "both"])
def test_judge_fails_when_a_value_is_not_finite(bad: float, where: str) -> None:
    want, got = np.ones((2, 3)), np.ones((2, 3))
    if where in ("reference", "both"):
        want[0, 1] = bad
    if where in ("candidate", "both"):
        got[0, 1] = bad
    metrics = compare_tensors(want, got)
    reasons = judge(metrics, Bounds(rel_max=math.inf))
    assert len(reasons) == (2 if where == "both" else 1)
    nans, infs = int(math.isnan(bad)), int(math.isinf(bad))
    assert all(f"{nans} NaN and {infs} Inf" in reason for reason in reasons)
    if where != "reference":
        assert "candidate" in reasons[-1]
        assert (metrics.nan_count, metrics.inf_count) == (nans, infs)
    if where != "candidate":
        assert "reference" in reasons[0]
        assert (metrics.reference_nan_count, metrics.reference_inf_count) == (nans, infs)


def test_judge_fails_when_a_figure_is_nan_without_counts() -> None:
    from dataclasses import replace

    good = compare_tensors(np.ones(3), np.ones(3))
    for name in ("rel_max", "rel_l2", "cosine"):
        assert len(judge(replace(good, **{name: math.nan}), EXACT)) == 1, name


def test_judge_names_each_broken_bound_when_outputs_are_unrelated() -> None:
    rng = np.random.default_rng(0)
    reasons = judge(compare_tensors(rng.standard_normal(100), rng.standard_normal(100)), BOUNDS["fp16"])
    assert len(reasons) == 3
    assert "0.02" in reasons[0]
    assert "L2" in reasons[1]
    assert "cosine" in reasons[2]


def test_judge_turns_exactly_at_the_bound_when_error_grows() -> None:
    want = np.array([1.0, 0.0])
    assert judge(compare_tensors(want, np.array([1.0, 1e-5])), BOUNDS["fp32"]) == []
    assert len(judge(compare_tensors(want, np.array([1.0, 1.01e-5])), BOUNDS["fp32"])) == 1


def test_to_dict_is_json_when_figures_are_not_finite() -> None:
    equal = compare_tensors(np.ones(2), np.ones(2)).to_dict()
    assert equal["psnr"] is None
    broken = compare_tensors(np.ones(2), np.array([1, math.nan])).to_dict()
    assert broken["max_abs"] is None
    assert broken["nan_count"] == 1
    json.dumps([equal, broken], allow_nan=False)
    json.dumps(compare_logits(np.ones((2, 3)), np.ones((2, 3))).to_dict(), allow_nan=False)
    json.dumps([bounds.to_dict() for bounds in BOUNDS.values()], allow_nan=False)


@pytest.mark.parametrize("compare", [compare_tensors, compare_logits])
def test_compare_raises_usage_error_when_shapes_differ(compare) -> None:
    with pytest.raises(UsageError, match=r"\[2, 3\].*\[3, 2\]"):
        compare(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)))


def test_compare_logits_raises_usage_error_when_not_two_dimensional() -> None:
    with pytest.raises(UsageError, match="samples, classes"):
        compare_logits(np.zeros(3), np.zeros(3))


def test_compare_logits_counts_when_one_sample_flips() -> None:
    want = np.array([[3.0, 1.0, 0.0], [1.0, 1.2, 0.0], [0.0, 0.1, 5.0]])
    got = np.array([[2.9, 1.1, 0.0], [1.2, 1.1, 0.0], [0.0, 0.1, 5.0]])  # the second, of margin 0.2, flips
    metrics = compare_logits(want, got, allowed_error=0.15)
    assert (metrics.samples, metrics.classes, metrics.top1_matches) == (3, 3, 2)
    assert metrics.top1_agreement == pytest.approx(2 / 3)
    assert metrics.top5_overlap == 1.0  # k is the number of classes
    assert metrics.decidable == 2
    assert (metrics.judged, metrics.flips) == (2, 0)
    assert judge(compare_tensors(want, got), Bounds(rel_max=1.0), metrics) == []
    strict = compare_logits(want, got, allowed_error=0.09)
    assert (strict.judged, strict.flips) == (3, 1)
    reasons = judge(compare_tensors(want, got), Bounds(rel_max=1.0), strict)
    assert len(reasons) == 1
    assert "1 of 3" in reasons[0]


def test_compare_logits_top5_overlap_equals_set_arithmetic_when_random() -> None:
    rng = np.random.default_rng(1)
    want, got = rng.standard_normal((20, 12)), rng.standard_normal((20, 12))
    shares = []
    for a, b in zip(want, got, strict=True):
        top = [set(sorted(range(12), key=lambda i, row=row: -row[i])[:5]) for row in (a, b)]
        shares.append(len(top[0] & top[1]) / 5)
    assert compare_logits(want, got).top5_overlap == pytest.approx(sum(shares) / 20)


def test_compare_logits_agree_with_nothing_when_rows_hold_nan() -> None:
    want = np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 1.0]])
    got = np.array([[math.nan, 1.0], [5.0, 1.0], [math.inf, 1.0]])
    metrics = compare_logits(want, got, allowed_error=0.1)
    assert metrics.top1_matches == 1
    assert metrics.decidable == 1
    assert (metrics.judged, metrics.flips) == (3, 2)
    assert metrics.top5_overlap == pytest.approx(1 / 3)


def test_compare_logits_judges_nothing_when_single_class_or_tie() -> None:
    single = compare_logits(np.array([[2.0]]), np.array([[-3.0]]))
    assert (single.top1_matches, single.judged, single.judged_agreement) == (1, 0, 1.0)
    tie = compare_logits(np.array([[1.0, 1.0]]), np.array([[1.0, 1.1]]))
    assert (tie.judged, tie.flips, tie.top1_matches) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1.0))
def test_compare_logits_never_flips_a_judged_row_when_error_is_allowed(seed: int, error: float) -> None:
    rng = np.random.default_rng(seed)
    want = rng.standard_normal((8, 5))
    got = want + rng.uniform(-error, error, want.shape)
    metrics = compare_logits(want, got, allowed_error=error)
    assert metrics.flips == 0
    assert metrics.decidable >= metrics.judged


def test_bounds_for_gives_the_table_when_no_tolerance_is_set() -> None:
    assert bounds_for("fp32").rel_max == 1e-5
    fp16 = bounds_for("fp16")
    assert (fp16.rel_max, fp16.rel_l2, fp16.cosine) == (2e-2, 1e-2, 0.9999)
    assert all(bounds.reason for bounds in BOUNDS.values())


def test_bounds_for_loosens_all_when_tolerance_is_looser() -> None:
    loose = bounds_for("fp16", 0.1)
    assert loose.rel_max == 0.1
    assert loose.rel_l2 == pytest.approx(0.05)
    assert loose.cosine == pytest.approx(1 - 25e-4)
    assert bounds_for("fp16", 1e6).cosine == -1.0


def test_bounds_for_tightens_the_maximum_alone_when_tolerance_is_tighter() -> None:
    tight = bounds_for("fp16", 1e-3)
    assert (tight.rel_max, tight.rel_l2, tight.cosine) == (1e-3, 1e-2, pytest.approx(0.9999))
    assert bounds_for("fp32", 0).rel_max == 0


def test_bounds_for_raises_usage_error_when_precision_or_tolerance_is_wrong() -> None:
    with pytest.raises(UsageError, match="fp12"):
        bounds_for("fp12")
    for tolerance in (-1e-3, math.nan, math.inf):
        with pytest.raises(UsageError, match="tolerance"):
            bounds_for("fp32", tolerance)

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vitdeploy.errors import UsageError
from vitdeploy.verify.compare import CONSTANT_REASON, Verification, verify_outputs

Outputs = list[dict[str, np.ndarray]]


def _logits(cases: int = 4, batch: int = 1, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return [{"logits": rng.standard_normal((batch, 10)).astype(np.float32)} for _ in range(cases)]


def _moved(outputs: Outputs, error: float, case: int | None = None) -> Outputs:
    """The same outputs, the first value of one case (or of all) moved by error x the case's largest value."""
    moved = [{name: array.astype(np.float64) for name, array in row.items()} for row in outputs]
    for index, row in enumerate(moved):
        if case in (None, index):
            for array in row.values():
                array.flat[0] += error * np.abs(array).max()
    return moved


def _with(outputs: Outputs, case: int, value: float) -> Outputs:
    changed = [{name: array.copy() for name, array in row.items()} for row in outputs]
    changed[case]["logits"][0, 0] = value
    return changed


def test_verification_passes_when_outputs_are_equal() -> None:
    result = verify_outputs(_logits(), _logits(), "fp32")
    assert bool(result) is True
    assert result.passed
    assert result.reasons == ()
    assert result.logits["logits"].top1_matches == 4


@pytest.mark.parametrize(("error", "precision"), [(5e-6, "fp32"), (5e-3, "fp16")])
def test_verification_passes_when_error_is_under_the_bound(error: float, precision: str) -> None:
    assert verify_outputs(_logits(), _moved(_logits(), error), precision)


@pytest.mark.parametrize("case", range(4))
def test_verification_fails_when_any_single_case_is_off(case: int) -> None:
    result = verify_outputs(_logits(), _moved(_logits(), 1e-4, case), "fp32")
    assert bool(result) is False
    assert len(result.reasons) == 1
    assert "largest error" in result.reasons[0]
    reference = _logits()[case]["logits"]
    metrics = result.outputs["logits"]
    assert metrics.rel_max == pytest.approx(1e-4, rel=1e-6)
    assert metrics.reference_max == pytest.approx(np.abs(reference).max())
    assert metrics.max_abs == pytest.approx(1e-4 * np.abs(reference).max(), rel=1e-6)
    assert verify_outputs(_logits(), _moved(_logits(), 1e-4, case), "fp32", tolerance=1e-3)


def test_verification_fails_when_a_small_case_hides_behind_a_large_one() -> None:
    reference = [{"logits": np.array([[1000.0, 1.0]])}, {"logits": np.array([[1e-3, 5e-4]])}]
    candidate = [{"logits": np.array([[1000.0, 1.0]])}, {"logits": np.array([[1e-3, 9e-4]])}]
    assert not verify_outputs(reference, candidate, "fp32")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("case", [0, 3])
def test_verification_fails_when_either_side_is_not_finite(bad: float, case: int) -> None:
    good, broken = _logits(), _with(_logits(), case, bad)
    for reference, candidate, who in ((good, broken, "candidate"), (broken, good, "reference")):
        result = verify_outputs(reference, candidate, "fp32", tolerance=1e9)
        assert not result
        assert any(who in reason for reason in result.reasons)
    assert not verify_outputs(broken, broken, "fp32")


def test_verification_fails_when_reference_does_not_depend_on_input() -> None:
    row = np.random.default_rng(0).standard_normal((1, 10))
    constant = [{"logits": row * (1 + 1e-8 * i)} for i in range(3)]
    assert verify_outputs(constant, constant, "fp32").reasons == (CONSTANT_REASON,)
    one_batch = [{"logits": np.repeat(row, 2, axis=0)}]
    assert verify_outputs(one_batch, one_batch, "fp32").reasons == (CONSTANT_REASON,)
    zeros = [{"logits": np.zeros((2, 10))}]
    assert verify_outputs(zeros, zeros, "fp32").reasons == (CONSTANT_REASON,)


def test_verification_passes_when_tiny_logits_depend_on_input() -> None:
    tiny = [{"logits": 1e-9 * outputs["logits"].astype(np.float64)} for outputs in _logits()]
    assert verify_outputs(tiny, tiny, "fp32")
    near = [{"logits": np.ones((1, 4)) + 1e-5 * np.arange(4) * i} for i in range(3)]
    assert verify_outputs(near, near, "fp32")


def test_verification_does_not_judge_dependence_when_there_is_one_sample() -> None:
    assert verify_outputs(_logits(1), _logits(1), "fp32")


def test_verification_fails_when_logits_are_constant_beside_a_live_output() -> None:
    outputs = [{"logits": np.ones((1, 4)), "map": np.full((1, 2, 2), float(i))} for i in range(1, 4)]
    assert CONSTANT_REASON in verify_outputs(outputs, outputs, "fp32").reasons
    assert verify_outputs(outputs, outputs, "fp32", logits=["logits"]).reasons
    assert verify_outputs(outputs, outputs, "fp32", logits=[]).passed


def test_verification_names_the_output_when_one_of_two_is_off() -> None:
    rng = np.random.default_rng(0)
    reference = [{"logits": rng.standard_normal((2, 5)), "map": rng.standard_normal((2, 4, 3, 3))} for _ in range(2)]
    candidate = [{"logits": row["logits"], "map": row["map"] * 1.01} for row in reference]
    result = verify_outputs(reference, candidate, "fp32")
    assert [reason.startswith("Output 'map': ") for reason in result.reasons] == [True]
    assert list(result.logits) == ["logits"]  # the map is no set of logits


def test_verification_counts_flips_when_top1_changes() -> None:
    reference = [{"logits": np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.001]])}]
    candidate = [{"logits": np.array([[1.0, 2.0, 0.0], [0.0, 1.001, 1.0]])}]
    result = verify_outputs(reference, candidate, "fp16")
    assert result.logits["logits"].flips == 1  # the second row's margin is under twice 2e-2 of 2
    assert any("1 of 1 samples" in reason for reason in result.reasons)


def test_verification_allows_flips_relative_to_scale_when_logits_are_large() -> None:
    reference = [{"logits": np.array([[100.0, 0.0, 0.0], [0.0, 50.0, 53.0], [0.0, 50.0, 55.0]])}]
    candidate = [{"logits": np.array([[100.0, 0.0, 0.0], [0.0, 53.0, 50.0], [0.0, 55.0, 50.0]])}]
    counts = verify_outputs(reference, candidate, "fp16").logits["logits"]
    assert (counts.judged, counts.flips) == (2, 1)  # margins 100, 3 and 5 against twice 2e-2 of 100


def test_verification_sums_counts_and_keeps_the_worst_when_cases_are_many() -> None:
    reference = _logits(2, batch=1) + _logits(2, batch=4, seed=1)
    candidate = _moved(reference, 1e-3)
    result = verify_outputs(reference, candidate, "fp16")
    assert result.logits["logits"].samples == 10
    assert [case["batch"] for case in result.cases] == [1, 1, 4, 4]
    cosines = []
    for want, got in zip(reference, candidate, strict=True):
        a, b = want["logits"].astype(np.float64).ravel(), got["logits"].ravel()
        cosines.append(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))
    assert result.outputs["logits"].cosine == pytest.approx(min(cosines), abs=1e-12)


def test_verification_compares_in_float64_when_candidate_is_half() -> None:
    reference = _logits(3)
    half = [{"logits": row["logits"].astype(np.float16)} for row in reference]
    assert verify_outputs(reference, half, "fp16")
    assert not verify_outputs(reference, half, "fp32")


def test_summary_shows_the_figures_when_passed() -> None:
    rng = np.random.default_rng(0)
    reference = [{"logits": rng.uniform(-1, 1, (4, 10))} for _ in range(4)]
    for row in reference:
        row["logits"][:, 3] = 4.9
    candidate = [{"logits": row["logits"].copy()} for row in reference]
    candidate[0]["logits"][0, 0] += 2.1e-3
    cases = [{"source": f"synthetic seed {i}", "batch": 4} for i in range(4)]
    result = verify_outputs(reference, candidate, "fp16", cases=cases)
    assert result.summary() == "4 inputs, batch 4   max error 2.1e-3 of 4.9   cosine 1.000000   top-1 16/16"
    assert result.cases[2]["source"] == "synthetic seed 2"


def test_summary_leaves_out_top1_when_there_are_no_logits() -> None:
    outputs = [{"map": np.full((1, 2, 2), float(i))} for i in range(1, 3)]
    assert "top-1" not in verify_outputs(outputs, outputs, "fp32").summary()
    one = verify_outputs(outputs[:1], outputs[:1], "fp32").summary()
    assert one.startswith("1 input, batch 1   max error 0 of 1 ")


def test_summary_shows_nan_when_outputs_hold_nan() -> None:
    result = verify_outputs(_logits(), _with(_logits(), 2, math.nan), "fp16")
    assert "max error nan" in result.summary()
    assert "cosine nan" in result.summary()
    assert "top-1 3/4" in result.summary()


def test_to_dict_is_json_when_failed_on_nan() -> None:
    result = verify_outputs(_logits(), _with(_logits(), 2, math.nan), "fp16")
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert data["precision"] == "fp16"
    assert data["bounds"]["rel_max"] == 0.02
    assert data["outputs"]["logits"]["nan_count"] == 1
    assert data["outputs"]["logits"]["logits"]["samples"] == 4
    assert data["reasons"]
    assert len(data["cases"]) == 4


@pytest.mark.parametrize(
    ("reference", "candidate", "options", "says"),
    [
        ([], [], {}, "no outputs"),
        ([{}], [{}], {}, "no outputs"),
        (_logits(2), _logits(3), {}, "2 sets"),
        (_logits(1), [{"probabilities": np.zeros((1, 10))}], {}, "probabilities"),
        (_logits(1), [{"logits": np.zeros((1, 9))}], {}, r"'logits'.*\[1, 10\].*\[1, 9\]"),
        (_logits(2), _logits(2), {"cases": [{"source": "data", "batch": 1}]}, "1 cases"),
        (_logits(2), _logits(2), {"logits": ["scores"]}, "scores"),
        (_logits(2), _logits(2), {"tolerance": -1.0}, "tolerance"),
    ],
)
def test_verify_outputs_raises_usage_error_when(reference: Outputs, candidate: Outputs, options, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        verify_outputs(reference, candidate, "fp32", **options)


def test_verification_is_frozen_when_built() -> None:
    result = verify_outputs(_logits(), _logits(), "fp32")
    assert isinstance(result, Verification)
    with pytest.raises(AttributeError):
        result.reasons = ()  # type: ignore[misc]

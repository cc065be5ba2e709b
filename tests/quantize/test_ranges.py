"""Statistics gathered in a stream equal those of all the data at once; ranges keep what their methods promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.errors import UsageError
from vitdeploy.quantize import calibrate
from vitdeploy.quantize.clip import METHODS, find_range
from vitdeploy.quantize.int8 import FUNCTIONS, quant_params, silu, storable
from vitdeploy.quantize.observe import BINS, TensorStatistics
from vitdeploy.quantize.options import METHODS as NAMES
from vitdeploy.quantize.schemes import SCHEMES, Scheme


def observed(*arrays: np.ndarray, axis: int = -1) -> TensorStatistics:
    statistics = TensorStatistics(axis)
    for array in arrays:
        assert statistics.update(array)
    return statistics


def error(x: np.ndarray, found: tuple[float, float], scheme: Scheme) -> float:
    """Mean square error of really quantising x so."""
    return float(np.mean((quant_params(found, scheme).apply(x) - x) ** 2))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6), st.integers(0, 1000))
def test_statistics_are_those_of_all_the_data_whatever_the_order(scales: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [(rng.standard_normal((5, 7, 3)) * scale).astype(np.float32) for scale in scales]
    whole, one, other = np.concatenate(arrays), observed(*arrays), observed(*arrays[::-1])
    assert (one.minimum, one.maximum) == (whole.min(), whole.max())
    assert np.array_equal(one.counts, other.counts)
    assert one.counts.sum() == whole.size
    assert np.log2(one.limit) == round(np.log2(one.limit))
    assert one.limit > np.abs(whole).max()
    expected, _ = np.histogram(whole.astype(np.float64), BINS, (-one.limit, one.limit))
    assert np.array_equal(one.counts, expected)
    rows = whole.reshape(-1, 3)
    assert np.array_equal(one.channel_max, rows.max(axis=0))
    assert np.allclose(one.mean, rows.mean(axis=0), atol=1e-4 * np.abs(whole).max())
    assert np.allclose(one.power, (rows.astype(np.float64) ** 2).mean(axis=0), rtol=1e-4)


def test_channels_are_counted_along_the_axis_that_is_given() -> None:
    image = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
    assert np.array_equal(observed(image, axis=1).channel_min, image.min(axis=(0, 2, 3)))


@settings(max_examples=60, deadline=None)
@given(st.floats(-20, 15).map(lambda exponent: float(np.float32(2.0**exponent))))
def test_scale_is_the_next_fp16_number_when_the_rest_is_fp16(exact: float) -> None:
    found = storable(exact, SCHEMES["tensorrt"])
    assert found.dtype == np.float32
    assert float(np.float16(found)) == float(found) >= exact
    assert float(np.nextafter(np.float16(found), np.float16(0))) < exact
    assert storable(exact, SCHEMES["openvino"]) == np.float32(exact)


def test_scale_of_tiny_weights_keeps_them_apart_when_the_rest_is_fp16() -> None:
    """Weights behind a small BatchNorm gain, as a trained LeViT has them, are steps of a subnormal scale."""
    exact = np.float32([2e-4 / 127, 1e-9, 1e9])
    found = storable(exact, SCHEMES["tensorrt"])
    assert 2e-4 / found[0] > 120
    assert found[1] == 2.0**-24
    assert found[2] == exact[2]  # no fp16 number: what has such a range stays in fp32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_is_taken_in_when_a_value_is_not_finite(bad: float) -> None:
    statistics = observed(np.ones((2, 3), np.float32))
    assert not statistics.update(np.array([[1, bad, 1]], np.float32))
    assert statistics.counts.sum() == 6
    assert statistics.maximum == 1


def test_option_names_are_the_methods_there_are() -> None:
    assert {*METHODS, "output"} == set(NAMES)  # whose ranges clip_output.py finds


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheme", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("shift", [-20.0, 0.0, 20.0])
def test_range_contains_zero_and_stays_within_the_data(method: str, scheme: str, shift: float) -> None:
    x = (np.random.default_rng(0).standard_normal(20000) + shift).astype(np.float32)
    chosen = SCHEMES[scheme]
    low, high = find_range(observed(x), method, symmetric=chosen.symmetric, grid=chosen.grid)
    assert low <= 0 <= high
    assert high > low
    peak = max(-x.min(), x.max())
    assert max(-low, high) <= peak * 1.01
    if chosen.symmetric:
        assert low == -high


@pytest.mark.parametrize("scheme", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("tail", [3.0, 5.0, 30.0])
def test_mse_is_within_a_hundredth_of_the_best_range_there_is(scheme: str, tail: float) -> None:
    x = np.random.default_rng(0).standard_t(tail, 100_000).astype(np.float32)
    chosen = SCHEMES[scheme]
    found = find_range(observed(x), "mse", symmetric=chosen.symmetric, grid=chosen.grid)
    peak = float(np.abs(x).max())
    best = min(error(x, (-peak * share, peak * share), chosen) for share in np.linspace(0.02, 1, 200))
    # The search stops at a fifth of the range; heavier tails than that are not met with.
    floor = error(x, (-peak / 5, peak / 5), chosen) if tail == 3.0 else best
    assert error(x, found, chosen) <= max(best, floor) * 1.05


def test_percentile_leaves_the_share_that_it_names_outside() -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    low, high = find_range(observed(x), "percentile", symmetric=False)
    outside = ((x < low) | (x > high)).mean()
    assert 0.2e-4 < outside < 1.5e-4


def test_entropy_cuts_a_far_outlier_that_minmax_keeps() -> None:
    x = np.append(np.random.default_rng(0).standard_normal(100_000), 100).astype(np.float32)
    statistics = observed(x)
    assert find_range(statistics, "minmax", symmetric=True) == (-100, 100)
    assert find_range(statistics, "entropy", symmetric=True)[1] < 40


def test_no_steps_are_spent_on_what_the_function_behind_makes_zero() -> None:
    x = (4 * np.random.default_rng(1).standard_normal(50_000)).astype(np.float32)
    hard_swish = FUNCTIONS["HardSwish"]
    low, _ = find_range(observed(x), "mse", symmetric=False, through=hard_swish)
    plain, _ = find_range(observed(x), "mse", symmetric=False)
    assert -3.2 < low < -2.9
    assert plain < -8


def test_silu_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        assert silu(np.array([-1e4, 0, 1e4])).tolist() == pytest.approx([0, 0, 1e4], abs=1e-3)


def test_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match=r"'median'.*mse"):
        find_range(observed(np.ones(3, np.float32)), "median", symmetric=False)


# --- the cache ----------------------------------------------------------------------------------------------------


def test_kept_statistics_come_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    kept = {
        "a/b": observed(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)),
        "c": observed(np.ones((2, 2), np.float32)),
    }
    calibrate.remember("key", kept, 7)
    found = calibrate.cached("key")
    assert found is not None
    back, images = found
    assert images == 7
    assert list(back) == list(kept)
    for name, one in kept.items():
        for field, value in vars(one).items():
            assert np.array_equal(getattr(back[name], field), value), field
            assert type(getattr(back[name], field)) is type(value), field


def test_damaged_cache_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    calibrate.remember("key", {"a": observed(np.ones((2, 2), np.float32))}, 1)
    (path,) = calibrate.cache_folder().glob("*.npz")
    path.write_bytes(path.read_bytes()[:200])
    assert calibrate.cached("key") is None
    assert calibrate.cached("other") is None


def test_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "file"))
    calibrate.remember("key", {"a": observed(np.ones((2, 2), np.float32))}, 1)
    assert calibrate.cached("key") is None


def test_cache_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate, "CACHED", 3)
    for i in range(6):
        calibrate.remember(f"key{i}", {"a": observed(np.ones((2, 2), np.float32))}, 1)
    assert len(list(calibrate.cache_folder().iterdir())) == 3

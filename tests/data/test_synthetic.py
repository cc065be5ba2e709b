from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

SPEC = InputSpec(shape=(3, 64, 48))


def _pixels(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Undo the normalisation in float64."""
    std, mean = (np.array(values)[:, None, None] for values in (spec.std, spec.mean))
    return images.astype(np.float64) * std + mean


def test_synthetic_images_are_pixels_of_8_bits_when_denormalised() -> None:
    images = synthetic_images(SPEC, 4)
    assert images.shape == (4, 3, 64, 48)
    assert images.dtype == np.float32
    levels = _pixels(images, SPEC) * 255
    assert levels.min() > -1e-3
    assert levels.max() < 255 + 1e-3
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert levels.std(axis=(1, 2, 3)).min() > 5


def test_synthetic_images_all_differ_when_many() -> None:
    images = synthetic_images(SPEC, 16, seed=3)
    assert len({image.tobytes() for image in images}) == 16


def test_synthetic_images_repeat_when_seed_is_the_same() -> None:
    first = synthetic_images(SPEC, 3, seed=5)
    np.testing.assert_array_equal(first, synthetic_images(SPEC, 3, seed=5))
    np.testing.assert_array_equal(first[:2], synthetic_images(SPEC, 2, seed=5))
    others = synthetic_images(SPEC, 3, seed=6)
    assert all(not np.array_equal(a, b) for a in first for b in others)


def test_synthetic_images_end_in_corner_cases_when_eight_or_more() -> None:
    black, white, checker = _pixels(synthetic_images(SPEC, 8)[-3:], SPEC)
    np.testing.assert_allclose(black, 0, atol=1e-6)
    np.testing.assert_allclose(white, 1, atol=1e-6)
    np.testing.assert_allclose(np.unique(np.rint(checker * 255)), [0, 255])
    assert checker.mean() == pytest.approx(0.5, abs=1e-6)
    assert all(0.02 < image.mean() < 0.98 for image in _pixels(synthetic_images(SPEC, 7), SPEC))


def test_synthetic_images_have_a_natural_spectrum_when_compared_with_white_noise() -> None:
    spec = InputSpec(shape=(3, 128, 128), mean=(0.0,), std=(1.0,))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    power = np.mean([np.abs(np.fft.fft2(image[0] - image[0].mean())) ** 2 for image in synthetic_images(spec, 6)], 0)
    low, high = (power[(frequency > a) & (frequency < b)].mean() for a, b in [(0.02, 0.06), (0.3, 0.5)])
    assert low > 30 * high  # white noise gives 1, amplitude 1/f about 100
    assert high > 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 1, 1), (3, 1, 7), (5, 9, 8), (3, 224, 320)])
def test_synthetic_images_are_finite_when_shape_is(shape: tuple[int, int, int]) -> None:
    images = synthetic_images(InputSpec(shape=shape, mean=(0.5,), std=(0.5,)), 8)
    assert images.shape == (8, *shape)
    assert np.isfinite(images).all()


def test_synthetic_images_raise_usage_error_when_count_or_seed_is_wrong() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        synthetic_images(SPEC, 0)
    with pytest.raises(UsageError, match="negative"):
        synthetic_images(SPEC, 1, seed=-1)

"""`preprocess` against timm's evaluation transform, which runs torchvision's own Resize and CenterCrop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from timm_import import import_timm

from vitdeploy.data.images import preprocess
from vitdeploy.spec import InputSpec

import_timm()

SIZES = [
    (480, 640),
    (640, 480),
    (333, 501),
    (501, 333),
    (224, 224),
    (7, 5),
    (1, 1),
    (1000, 301),
    (225, 1023),
    (23, 190),
]


def _image(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 10007 + width)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) % 256], axis=-1)
    return Image.fromarray((0.6 * smooth + 0.4 * rng.integers(0, 256, smooth.shape)).astype(np.uint8))


def _assert_parity(image: Image.Image, spec: InputSpec) -> None:
    from timm.data import create_transform

    theirs = create_transform(
        spec.shape,
        is_training=False,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )
    expected = theirs(image).numpy()
    ours = preprocess(image, spec)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(224, 224), (225, 225), (160, 224), (97, 64)])
def test_preprocess_equals_timm_when(target: tuple[int, int], size: tuple[int, int], crop_mode: str) -> None:
    _assert_parity(_image(*size), InputSpec(shape=(3, *target), crop_pct=0.9, crop_mode=crop_mode))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.888, 0.95, 1.0])
def test_preprocess_equals_timm_when_filter_is(crop_pct: float, interpolation: str) -> None:
    spec = InputSpec(shape=(3, 112, 112), crop_pct=crop_pct, interpolation=interpolation, mean=(0.5,), std=(0.5,))
    for size in [(481, 333), (60, 91)]:
        _assert_parity(_image(*size), spec)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(120, 201), (28, 28), (90, 40)])
def test_preprocess_equals_timm_when_image_is_grey(size: tuple[int, int], crop_mode: str) -> None:
    spec = InputSpec(shape=(1, 64, 64), mean=(0.286,), std=(0.353,), crop_mode=crop_mode)
    _assert_parity(_image(*size).convert("L"), spec)


@pytest.mark.parametrize("seed", range(40))
def test_preprocess_equals_timm_when_sizes_are_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, target_h, target_w = (int(n) for n in rng.integers(8, 300, 4))
    spec = InputSpec(
        shape=(3, target_h, target_w if seed % 2 else target_h),
        crop_pct=float(rng.uniform(0.7, 1.0)),
        crop_mode=("center", "squash", "border")[seed % 3],
        interpolation=("bilinear", "bicubic")[seed % 2],
    )
    _assert_parity(_image(height, width), spec)

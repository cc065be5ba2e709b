"""Images made of nothing: what verification and benchmarks eat where the user gives no photos.

White noise is a poor stand-in for photos: its energy lies in frequencies that a patch embedding averages away. These
images have the 1/f amplitude spectrum of natural scenes (Field 1987, "Relations between the statistics of natural
images and the response properties of cortical cells"), colour gradients, and shapes with hard edges.
"""

from __future__ import annotations

import numpy as np

from vitdeploy.data.frames import to_frame
from vitdeploy.data.images import image_of, normalise
from vitdeploy.data.packed import item
from vitdeploy.errors import UsageError
from vitdeploy.spec import Frame, InputSpec

CORNER_CASES_FROM = 8
CORNER_CASES = 3
CHECKER_SIDE = 8
# (height, width): lying and standing, even and odd, wide and square.
FRAME_SIZES = ((480, 640), (641, 427), (335, 503), (300, 300), (405, 720), (231, 173))


def synthetic_images(spec: InputSpec, count: int, seed: int = 0) -> np.ndarray:
    """Image-like inputs, normalised with the spec's mean and std.

    Image i depends on the seed and i alone. With 8 or more, the last three are all black, all white and a black and
    white checkerboard. Pixels are multiples of 1/255 before normalisation, as a decoded file's are.

    Args:
        count: number of images, at least 1.
        seed: not negative.

    Returns:
        float32 (N, C, H, W), or (N, C, F, H, W) of a spec for videos; of one for packed images N sequences, see
        packed.item.

    Raises:
        UsageError: count below 1 or a negative seed.
    """
    check(count, seed)
    return np.stack([item(synthetic_image(spec, i, count, seed), spec) for i in range(count)])


def synthetic_image(spec: InputSpec, index: int, count: int, seed: int = 0) -> np.ndarray:
    """float32 (C, H, W): image `index` of `synthetic_images(spec, count, seed)`, not packed, without the others.

    A video, (C, F, H, W), is a view that moves across a wider scene.
    """
    channels, (height, width), steps = spec.shape[0], spec.size, (spec.frames or 1) - 1
    corner = index - (count - CORNER_CASES)
    if count >= CORNER_CASES_FROM and corner >= 0:
        scene = _corner_cases(height, width + steps, channels)[corner]
    else:
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        scene = _scene(rng, height, width + steps, channels)
    views = [normalise(scene[:, step : step + width], spec) for step in range(steps + 1)]
    return views[0] if spec.frames is None else np.stack(views, axis=1)


def synthetic_frame(frame: Frame, seed: int, index: int = 0) -> np.ndarray:
    """A frame that shows such an image, uint8; where it may have any size, that depends on the seed and the index."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    height, width = frame.size or FRAME_SIZES[(seed + index) % len(FRAME_SIZES)]
    return to_frame(image_of(_scene(rng, height, width, 3)), frame)


def check(count: int, seed: int) -> None:
    """Raise UsageError unless there can be `count` images of this seed."""
    if count < 1:
        raise UsageError(f"{count} images were asked for: at least 1 is needed.")
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative.")


def _scene(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 (H, W, C)"""
    image = _gradient(rng, height, width, channels)
    for _ in range(rng.integers(3, 9)):
        _draw_shape(rng, image)
    luminance = _pink_noise(rng, height, width)[..., None]
    colour = np.stack([_pink_noise(rng, height, width) for _ in range(channels)], axis=-1)
    image += rng.uniform(0.05, 0.2) * luminance + rng.uniform(0.01, 0.06) * colour
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _gradient(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """float64 (H, W, C): one colour fading into another along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = np.cos(angle) * (x / max(width - 1, 1) - 0.5) + np.sin(angle) * (y / max(height - 1, 1) - 0.5)
    weight = np.clip(along / np.sqrt(2) + 0.5, 0, 1)[..., None]
    start, end = rng.uniform(0, 1, (2, channels))
    return (1 - weight) * start + weight * end


def _draw_shape(rng: np.random.Generator, image: np.ndarray) -> None:
    """Blend one ellipse or rectangle, turned by a random angle, into the image in place."""
    height, width, channels = image.shape
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / width - rng.uniform(0, 1), y / height - rng.uniform(0, 1)
    angle = rng.uniform(0, np.pi)
    half = rng.uniform(0.05, 0.35, 2)
    along = (np.cos(angle) * x + np.sin(angle) * y) / half[0]
    across = (np.cos(angle) * y - np.sin(angle) * x) / half[1]
    inside = along**2 + across**2 < 1 if rng.random() < 0.5 else np.maximum(np.abs(along), np.abs(across)) < 1
    opacity = rng.uniform(0.5, 1)
    image[inside] = (1 - opacity) * image[inside] + opacity * rng.uniform(0, 1, channels)


def _pink_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float64 (H, W) with amplitude 1/f, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, s=(height, width))
    spread = noise.std()
    return noise / spread if spread > 0 else noise


def _corner_cases(height: int, width: int, channels: int) -> list[np.ndarray]:
    y, x = np.mgrid[0:height, 0:width]
    checker = ((y // CHECKER_SIDE + x // CHECKER_SIDE) % 2 * 255).astype(np.uint8)
    planes = [np.zeros_like(checker), np.full_like(checker, 255), checker]
    return [np.repeat(plane[..., None], channels, axis=-1) for plane in planes]

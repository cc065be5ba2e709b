"""Camera frames: what a file with its preprocessing inside is given, to and from images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.data.images import preprocess
from vitdeploy.errors import UsageError
from vitdeploy.spec import Frame, InputSpec

if TYPE_CHECKING:
    from PIL import Image

# JFIF: BT.601 with the full range of 8 bits.
RED_OF_V, GREEN_OF_U, GREEN_OF_V, BLUE_OF_U = 1.402, -0.344136, -0.714136, 1.772


def as_input(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """What a file is given for an image: a frame, uint8, where the spec has one, or else float32 (C, H, W)."""
    return preprocess(image, spec) if spec.frame is None else to_frame(image, spec.frame)


def to_frame(image: Image.Image, frame: Frame) -> np.ndarray:
    """An image as a frame, uint8 of `frame.shape`.

    Where the frame has a size, the image fills it, and what stands out on two sides is cut off, as a camera's view is;
    of nv21 without a size an odd last row or column is left out.
    """
    from PIL import Image, ImageOps

    image = image.convert("RGB")
    if frame.size is not None:
        image = ImageOps.fit(image, frame.size[::-1], Image.Resampling.BICUBIC)
    elif frame.format == "nv21":
        if min(image.size) < 2:
            raise UsageError(f"An image of {image.width}x{image.height} pixels is too small for a frame of nv21.")
        image = image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))
    pixels = np.asarray(image)
    if frame.format == "nv21":
        return _to_nv21(pixels)
    if frame.format == "rgb":
        return pixels.copy()
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    colours = pixels if frame.format == "rgba" else pixels[..., ::-1]
    return np.concatenate([colours, opaque], axis=2)


def to_image(array: np.ndarray, frame: Frame) -> Image.Image:
    """The picture that a frame shows, RGB.

    Raises:
        UsageError: the array is not uint8 of the frame's shape.
    """
    from PIL import Image

    wanted = frame.shape
    fits = array.ndim == len(wanted) and all(
        isinstance(w, str) or w == n for w, n in zip(wanted, array.shape, strict=True)
    )
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise UsageError(f"This is no frame of uint8 {list(wanted)}: it is {array.dtype} {list(array.shape)}.")
    if frame.format == "nv21":
        return Image.fromarray(_from_nv21(array))
    return Image.fromarray(np.ascontiguousarray(array[..., 2::-1] if frame.format == "bgra" else array[..., :3]))


def _to_nv21(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of RGB, H and W even -> (H * 3 / 2, W); chroma is the mean of 2 x 2 pixels."""
    from PIL import Image

    height, width = pixels.shape[:2]
    luma, blue, red = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("YCbCr")), 2, 0)
    chroma = np.stack([red, blue], axis=2).astype(np.float32)
    halved = chroma.reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3))
    return np.concatenate([luma, np.rint(halved).astype(np.uint8).reshape(height // 2, width)])


def _from_nv21(array: np.ndarray) -> np.ndarray:
    """The inverse, each pixel with the chroma of its 2 x 2."""
    rows, width = array.shape
    if rows % 3 or width % 2:
        raise UsageError(f"A frame of nv21 has rows in threes and an even width, not {rows} and {width}.")
    height = rows * 2 // 3
    luma = array[:height].astype(np.float32)
    chroma = array[height:].reshape(height // 2, width // 2, 2).astype(np.float32) - np.float32(128)
    v, u = np.moveaxis(chroma.repeat(2, axis=0).repeat(2, axis=1), 2, 0)
    parts = (
        luma + np.float32(RED_OF_V) * v,
        luma + np.float32(GREEN_OF_U) * u + np.float32(GREEN_OF_V) * v,
        luma + np.float32(BLUE_OF_U) * u,
    )
    return np.floor(np.stack(parts, axis=2) + np.float32(0.5)).clip(0, 255).astype(np.uint8)

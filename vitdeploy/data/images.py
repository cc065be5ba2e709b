"""From an image file to the model's input, equal to timm's evaluation transform on Pillow images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

if TYPE_CHECKING:
    from PIL import Image

EXIF_ORIENTATION = 0x0112
MODES = {1: "L", 3: "RGB"}


def decode(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright by its EXIF orientation; of an animation, the first frame.

    Alpha is dropped as `convert("RGB")` drops it; 16-bit grey keeps its high byte, as 16-bit RGB does.

    Raises:
        UsageError: no such file, a folder, not an image, truncated, too large, or pixels without a defined range.
    """
    from PIL import Image

    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not an image file.")
    if not path.is_file():
        raise UsageError(f"No such image file: {path}.")
    try:
        with Image.open(path) as image:
            image.load()
            return _upright(_to_rgb(image, path), _orientation(image))
    except UsageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise UsageError(f"{path} has too many pixels to be decoded safely.") from None
    except Image.UnidentifiedImageError:
        raise UsageError(f"{path} is not an image that Pillow can read.") from None
    # Pillow's decoders meet broken files with almost any exception: OSError, SyntaxError, struct.error, IndexError ...
    except Exception as error:
        raise UsageError(f"{path} is a damaged image ({type(error).__name__}: {error}).") from None


def preprocess(image: Image.Image, spec: InputSpec, *, across_first: bool = False) -> np.ndarray:
    """One image as the model's input: resize, centre crop, scale to [0, 1], normalise.

    Args:
        image: a Pillow image of mode RGB or L; others are converted.
        spec: with 3 channels (RGB) or 1 (grey).
        across_first: resize the width first in any case, as Pillow did up to version 12; since then it begins with the
            height where that loses more than twice as many pixels. Levels differ by rounding.

    Returns:
        float32 (C, H, W), equal to `timm.data.create_transform(..., is_training=False)` up to float rounding.

    Raises:
        UsageError: the spec's channels are not 1 or 3 in RGB order, or the image is too elongated to be resized.
    """
    if spec.frames is not None:
        raise UsageError(
            f"The model takes videos of {spec.frames} frames, not images.",
            fix="Give an .npy file of preprocessed float32 (N, C, F, H, W), where videos are wanted.",
        )
    mode = MODES.get(spec.shape[0])
    if mode is None or spec.channel_order != "RGB":
        raise UsageError(f"Image files give 1 or 3 channels in RGB order, not {spec.shape[0]} in {spec.channel_order}.")
    if image.mode != mode:
        image = image.convert(mode)
    height, width = resized_size(image.height, image.width, spec)
    if across_first:
        image = _resize(image, (image.height, width), spec.interpolation)
    resized = _resize(image, (height, width), spec.interpolation)
    return normalise(np.asarray(_centre(resized, spec)), spec)


def preprocess_array(images: np.ndarray, spec: InputSpec) -> np.ndarray:
    """The same path for images that are arrays already.

    Args:
        images: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3).
        spec: as for `preprocess`.

    Returns:
        float32 (N, C, H, W).

    Raises:
        UsageError: another dtype or shape, or no image at all.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.size == 0 or not (images.ndim == 3 or images.shape[3:] in ((1,), (3,))):
        raise UsageError(f"Images must be uint8 (N, H, W) or (N, H, W, 3), not {images.dtype} {list(images.shape)}.")
    return np.stack([preprocess(image_of(image), spec) for image in images])


def image_of(pixels: np.ndarray) -> Image.Image:
    """uint8 (H, W), (H, W, 1) or (H, W, 3) as a Pillow image."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def normalise(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """uint8 (H, W) or (H, W, C) -> float32 (C, H, W), scaled to [0, 1] and normalised by the spec's mean and std."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray((planes.astype(np.float32) / np.float32(255) - mean) / std)


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """The (height, width) an image of this height and width is resized to before the centre crop.

    The roundings differ from case to case, because those of timm and torchvision do: a square target truncates the
    long side, any other rounds both sides half to even.

    Raises:
        UsageError: the result would hold more pixels than Pillow takes for safe.
    """
    from PIL import Image

    target = [math.floor(side / spec.crop_pct) for side in spec.size]
    if spec.crop_mode == "squash":
        size = (target[0], target[1])
    elif spec.crop_mode == "center" and target[0] == target[1]:
        short = min(height, width)
        size = (int(target[0] * height / short), int(target[0] * width / short))
    else:
        ratios = (height / target[0], width / target[1])
        ratio = max(ratios) if spec.crop_mode == "border" else min(ratios)
        size = (max(1, round(height / ratio)), max(1, round(width / ratio)))
    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise UsageError(
            f"An image of {width}x{height} pixels is too elongated: resized for {spec.size[1]}x{spec.size[0]} it "
            f"would be {size[1]}x{size[0]}."
        )
    return size


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    from PIL import Image

    height, width = size
    if (image.height, image.width) == (height, width):
        return image
    return image.resize((width, height), Image.Resampling[interpolation.upper()])


def _centre(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Crop around the centre; pad where the image is smaller: black, or the mean's colour in border mode."""
    from PIL import Image

    height, width = spec.size
    fill = [round(255 * mean) if spec.crop_mode == "border" else 0 for mean in spec.mean]
    canvas = Image.new(image.mode, (width, height), tuple(fill) if len(fill) > 1 else fill[0])
    canvas.paste(image, (crop_offset(width, image.width), crop_offset(height, image.height)))
    return canvas


def crop_offset(target: int, side: int) -> int:
    """Where the image's edge lies on a centred canvas; torchvision floors paddings and rounds crops half to even."""
    return (target - side) // 2 if target > side else -round((side - target) / 2)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    # convert() would clip these wide pixels at 255 and so turn a 16-bit photo white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        from PIL import Image

        high_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(high_byte.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UsageError(f"{path} has 32-bit pixels without a defined range.", fix="Convert it to 8 or 16 bits.")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # mangled EXIF says nothing about the pixels, which decoded well
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image

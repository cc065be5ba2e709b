"""Images on disk: files and folders of them, folders with a class each, and .npz data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vitdeploy.data.images import decode, preprocess
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".avif",
    ]
)


def find_images(path: str | Path) -> list[Path]:
    """The image files at `path`: a folder searched through its subfolders (links followed, hidden names skipped),
    or that one file whatever its extension. Sorted by their names below `path`.

    Raises:
        UsageError: no such path, or no image in the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"No such file or folder: {path}.")
    images = sorted(_walk(path), key=lambda file: file.relative_to(path).parts)
    if not images:
        raise UsageError(f"No image in {path} (looked for {', '.join(sorted(EXTENSIONS))}).")
    return images


def labelled_folder(path: str | Path) -> list[tuple[Path, str]]:
    """The images of a folder that holds one subfolder per class, each with its class name, sorted.

    Raises:
        UsageError: not a folder, no image in it, or an image that lies in no class's folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder.", fix="Give a folder that holds one subfolder of images per class.")
    images = find_images(path)
    for image in images:
        if image.parent == path:
            raise UsageError(f"{image} belongs to no class.", fix="Put each class's images into a subfolder named so.")
    return [(image, image.relative_to(path).parts[0]) for image in images]


def load_batch(paths: Sequence[str | Path], spec: InputSpec) -> np.ndarray:
    """Decode and preprocess image files into one float32 array (N, C, H, W).

    Raises:
        UsageError: no paths, or a file that `decode` or `preprocess` refuses.
    """
    if not paths:
        raise UsageError("No images to load.")
    return np.stack([preprocess(decode(path), spec) for path in paths])


def load_npz(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a data set of arrays `images` and, where there is one, `labels`. Nothing in the file is executed.

    Returns:
        images uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), and labels int64 (N,) or None.

    Raises:
        UsageError: no such file, not an .npz, damaged, or arrays of another name, dtype or shape.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"No such .npz file: {path}.")
    arrays = _read_arrays(path)
    if "images" not in arrays:
        raise UsageError(f"{path} has no array named 'images'.")
    images, labels = arrays["images"], arrays.get("labels")
    shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not shaped or images.size == 0:
        raise UsageError(
            f"'images' in {path} must be uint8 (N, H, W) or (N, H, W, 3), not {images.dtype} {list(images.shape)}."
        )
    if labels is None:
        return images, None
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise UsageError(f"'labels' in {path} must be {len(images)} integers, not {labels.dtype} {list(labels.shape)}.")
    return images, labels.astype(np.int64)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise UsageError(f"{path} is a single array, not an .npz file.", fix="Save it with numpy.savez.")
            return {name: file[name] for name in ("images", "labels") if name in file.files}
    except UsageError:
        raise
    # zipfile, zlib and numpy's header parser each fail in their own way on a damaged or hostile file.
    except Exception as error:
        raise UsageError(f"{path} is not a readable .npz file ({type(error).__name__}: {error}).") from None


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = str(Path(here).resolve())
        if real in seen:  # a link that leads back up would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(here) / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        )

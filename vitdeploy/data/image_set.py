"""A user's images, prepared for a model one batch at a time: for calibration and for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitdeploy.artifact import digest_file
from vitdeploy.data.folder import find_images, labelled_folder, load_npz
from vitdeploy.data.frames import as_input
from vitdeploy.data.images import decode, image_of, preprocess_array
from vitdeploy.data.labels import check_numbers, class_indices
from vitdeploy.data.list_file import read_list
from vitdeploy.data.packed import item, item_type
from vitdeploy.data.synthetic import check, synthetic_frame, synthetic_image
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

LISTS = (".txt", ".lst", ".csv")
HOW_TO_LABEL = (
    "Give a folder with one subfolder per class, a list with a label after each path, or an .npz with the arrays "
    "'images' and 'labels'."
)


class Items(Protocol):
    """Where the candidates come from, by their index."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> np.ndarray:
        """float32 (C, H, W), or a frame. Raises UsageError or OSError when this image cannot be read."""

    def name(self, index: int) -> str: ...

    def digest(self, index: int) -> bytes:
        """Of the image's content before preprocessing."""


@dataclass
class ImageSet:
    """Images that are decoded and preprocessed while one iterates, as often as one likes and always the same.

    Attributes:
        source: 'folder', 'list', 'npz', 'npy', 'file' (one image) or 'synthetic'.
        path: as it was given; None for synthetic images.
        spec: what the images are prepared for.
        labels: int64 (candidates,), or None where they are not known.
        label_rule: how labels became class indices: 'names', 'numbers', 'order' (see labels.class_indices) or ''.
        strict: an image that cannot be read ends the iteration.
        skipped: of the latest iteration so far: one sentence for each image that could not be read.
        kept: of the latest iteration so far: positions (0 to len - 1) of the images that could be, in order.
    """

    source: str
    path: Path | None
    spec: InputSpec
    items: Items = field(repr=False)
    chosen: np.ndarray = field(repr=False)
    labels: np.ndarray | None = None
    label_rule: str = ""
    strict: bool = False
    skipped: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    _digest: str | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Candidates: images that may turn out to be unreadable included."""
        return len(self.chosen)

    def batches(self, size: int, *, skip_last: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """float32 (n, C, H, W) with int64 (n,) labels or None; n is `size`, but for the last batch.

        Where the spec packs images, n sequences (see packed.item), each made of one image; where it takes frames, one
        frame, uint8 (1, ...), of its own size.

        Nothing but the batch that is being filled is held in memory.

        Args:
            skip_last: leave the last batch out where it is not full.

        Raises:
            UsageError: size below 1, or of frames not 1; no image could be read, or none fills a batch; the first
                unreadable one if strict.
        """
        if size < 1:
            raise UsageError(f"Batches of {size} images are not possible.")
        if size != 1 and self.spec.frame is not None:
            raise UsageError("Frames come one by one.")
        if skip_last and size > len(self):
            raise UsageError(f"{len(self)} images do not fill a batch of {size}.")
        size = min(size, len(self))
        skipped: list[str] = []
        kept: list[int] = []
        self.skipped, self.kept = skipped, kept
        batch: np.ndarray | None = None
        begin = 0  # of the batch, in `kept`
        for place, index in enumerate(self.chosen):
            image = self._load(int(index), skipped)
            if image is None:
                continue
            if self.spec.frame is not None:
                batch = image[None]
            elif batch is None:
                batch = np.empty(size, item_type(self.spec))
            batch[len(kept) - begin] = image
            kept.append(place)
            if len(kept) - begin == size:
                yield batch, self._labels_of(kept[begin:])
                batch, begin = None, len(kept)
        if not kept:
            raise UsageError(f"None of the {len(self)} images can be read. The first: {skipped[0]}")
        if skip_last and begin == 0:
            raise UsageError(f"{len(kept)} images do not fill a batch of {size}.")
        if batch is not None and not skip_last:
            yield batch[: len(kept) - begin], self._labels_of(kept[begin:])

    def digest(self) -> str:
        """sha256 over the images' contents (files as bytes, arrays with dtype and shape) in their order, no names."""
        if self._digest is None:
            total = hashlib.sha256()
            for index in self.chosen:
                total.update(self.items.digest(int(index)))
            self._digest = total.hexdigest()
        return self._digest

    def _load(self, index: int, skipped: list[str]) -> np.ndarray | None:
        try:
            return item(self.items.load(index), self.spec)
        except (UsageError, OSError) as error:
            name = self.items.name(index)
            said = error.message if isinstance(error, UsageError) else f"Cannot read {name}: {error.strerror or error}."
            sentence = said if name in said else f"{name}: {said}"
        if self.strict:
            raise UsageError(sentence)
        skipped.append(sentence)
        return None

    def _labels_of(self, places: list[int]) -> np.ndarray | None:
        return None if self.labels is None else self.labels[places]


def open_images(
    path: str | Path,
    spec: InputSpec,
    *,
    limit: int | None = None,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    labelled: bool = False,
) -> ImageSet:
    """Images from a folder, a list, an .npz, an .npy or one image file; nothing is decoded yet.

    - A folder is searched through its subfolders; where every image lies in a subfolder, those may be classes.
    - A list (.txt, .lst, .csv) has one path a line, and perhaps a label: see list_file.read_list.
    - An .npz has the arrays `images`, uint8 (N, H, W) or (N, H, W, 3), and perhaps `labels`, integers (N,).
    - An .npy is such an array of images; or float32 (N, C, H, W), of videos (N, C, F, H, W), taken as it is: already
      preprocessed.

    Args:
        limit: keep that many candidates, evenly spread over them in their order.
        strict: an image that cannot be read is an error when its turn comes, not a line in `skipped`.
        classes, num_classes: the model's, to turn names into indices: see labels.class_indices.
        labelled: labels are needed. Without it, labels that do not fit the model are left out.

    Raises:
        UsageError: nothing there, not readable as what it is, wrong shape or dtype, NaN or Inf, no labels that fit
            where they are needed, or a spec that image files cannot meet (channels other than 1 or 3, BGR).
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UsageError(f"A limit of {limit} images leaves none.")
    found = _look(path, spec, labelled)
    if not isinstance(found.items, _Tensors):
        preprocess_array(np.zeros((1, 8, 8), np.uint8), spec)  # a spec that fits no image must not blame each of them
    labels, rule = None, ""
    try:
        labels, rule = _resolve(found, classes, num_classes)
    except UsageError as error:
        if labelled:
            raise UsageError(f"{path}: {error.message}", fix=error.fix) from None
    count = len(found.items)
    chosen = np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit
    if isinstance(found.items, _Tensors):
        found.items.check_finite(chosen)
    labels = labels[chosen] if labels is not None else None
    return ImageSet(found.source, path, spec, found.items, chosen, labels, rule, strict)


def synthetic_set(spec: InputSpec, count: int, seed: int = 0) -> ImageSet:
    """Images made of nothing, without labels: those of synthetic.synthetic_images, made one by one."""
    check(count, seed)
    return ImageSet("synthetic", None, spec, _Synthetic(spec, count, seed), np.arange(count))


@dataclass(frozen=True)
class _Found:
    """What lies at a path: images, and labels as names (one an image), as numbers, or neither."""

    source: str
    items: Items
    names: Sequence[str] | None = None
    numbers: np.ndarray | None = None


def _look(path: Path, spec: InputSpec, labelled: bool) -> _Found:
    kind = path.suffix.lower() if path.is_file() else ""
    if kind == ".npz":
        images, numbers = load_npz(path)
        return _Found("npz", _Pixels(path, images, spec), numbers=numbers)
    if kind == ".npy":
        return _Found("npy", _open_array(path, spec))
    if kind in LISTS:
        entries = read_list(path)
        names = [label for _, label in entries if label is not None]
        whole = len(names) == len(entries)
        if labelled and names and not whole:
            first = next(file for file, label in entries if label is None)
            raise UsageError(f"{path} gives no label for {first}.", fix="Put one behind each path.")
        return _Found("list", _Files([file for file, _ in entries], spec), names if whole else None)
    if path.is_dir() and labelled:
        pairs = labelled_folder(path)
        return _Found("folder", _Files([file for file, _ in pairs], spec), [name for _, name in pairs])
    files = find_images(path)
    parts = [file.relative_to(path).parts for file in files]
    flat = any(len(part) < 2 for part in parts)
    return _Found("folder" if path.is_dir() else "file", _Files(files, spec), None if flat else [p[0] for p in parts])


def _resolve(found: _Found, classes: Sequence[str] | None, num_classes: int | None) -> tuple[np.ndarray, str]:
    """Labels as class indices, and the rule by which they became so."""
    if found.numbers is not None:
        check_numbers(found.numbers.tolist(), num_classes if num_classes is not None or not classes else len(classes))
        return found.numbers, "numbers"
    if found.names is None:
        raise UsageError("There are no labels.", fix=HOW_TO_LABEL)
    indices, rule = class_indices(found.names, classes, num_classes)
    return np.array([indices[name] for name in found.names], np.int64), rule


class _Files:
    def __init__(self, paths: Sequence[Path], spec: InputSpec) -> None:
        self.paths, self.spec = paths, spec

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        return as_input(decode(self.paths[index]), self.spec)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def digest(self, index: int) -> bytes:
        try:
            return bytes.fromhex(digest_file(self.paths[index]))
        except UsageError:
            return bytes(32)  # it is missing, and the others are what they are


class _Pixels:
    """uint8 images that are to be preprocessed."""

    def __init__(self, path: Path, images: np.ndarray, spec: InputSpec) -> None:
        if images.ndim == 3 and images.shape[2] == 3:
            raise UsageError(
                f"The images in {path} have the shape {list(images.shape)}: one image in colour, or grey ones that are "
                "3 pixels wide?",
                fix="Save one colour image as (1, H, W, 3).",
            )
        self.path, self.images, self.spec = path, images, spec

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> np.ndarray:
        return as_input(image_of(self.images[index]), self.spec)

    def name(self, index: int) -> str:
        return f"Image {index} of {self.path}"

    def digest(self, index: int) -> bytes:
        return _array_digest(self.images[index])


class _Tensors:
    """float32 images that are preprocessed already, read from the disk when their turn comes."""

    def __init__(self, path: Path, images: np.ndarray, spec: InputSpec) -> None:
        if spec.frame is not None:
            raise UsageError(f"{path} holds preprocessed tensors, and the model takes {spec.frame}.")
        if images.shape[1:] != spec.shape:
            raise UsageError(
                f"{path} holds tensors of shape {list(images.shape[1:])}, and the model takes {list(spec.shape)}."
            )
        self.path, self.images = path, images

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> np.ndarray:
        return np.asarray(self.images[index], np.float32)

    def name(self, index: int) -> str:
        return f"Image {index} of {self.path}"

    def digest(self, index: int) -> bytes:
        return _array_digest(self.load(index))

    def check_finite(self, indices: np.ndarray) -> None:
        for index in indices:
            if not np.isfinite(self.images[index]).all():
                raise UsageError(f"Image {index} of {self.path} (the first is 0) holds NaN or Inf.")


class _Synthetic:
    def __init__(self, spec: InputSpec, count: int, seed: int) -> None:
        self.spec, self.count, self.seed = spec, count, seed

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        if self.spec.frame is not None:
            return synthetic_frame(self.spec.frame, self.seed, index)
        return synthetic_image(self.spec, index, self.count, self.seed)

    def name(self, index: int) -> str:
        return f"Synthetic image {index}"

    def digest(self, index: int) -> bytes:
        return _array_digest(self.load(index))


def _open_array(path: Path, spec: InputSpec) -> _Pixels | _Tensors:
    """An .npy file, whose content stays on the disk. Nothing in it is executed."""
    images: Any
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    # numpy's header parser and mmap each fail in their own way on a damaged or hostile file.
    except Exception as error:
        raise UsageError(f"{path} is not a readable .npy file ({type(error).__name__}: {error}).") from None
    if not isinstance(images, np.ndarray):  # a zip under this name
        raise UsageError(f"{path} is not a readable .npy file.", fix="Name it .npz if numpy.savez wrote it.")
    if images.dtype == np.uint8 and images.size and (images.ndim == 3 or images.shape[3:] in ((1,), (3,))):
        return _Pixels(path, images, spec)
    if images.dtype.kind == "f" and images.dtype.itemsize == 4 and images.size and images.ndim in (4, 5):
        return _Tensors(path, images, spec)
    raise UsageError(
        f"{path} must hold images, uint8 (N, H, W) or (N, H, W, 3), or preprocessed float32 (N, C, H, W), not "
        f"{images.dtype} {list(images.shape)}."
    )


def _array_digest(image: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{image.dtype.str} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.digest()

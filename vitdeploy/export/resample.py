"""Pillow's resize as matrices: what a file with its preprocessing inside multiplies a picture with.

Pillow resizes across, rounds to whole levels, resizes down, and rounds again; each pass is a product with a matrix
whose rows are a filter at the places of the new pixels, widened where the picture shrinks (its antialiasing). A centre
crop takes some of the rows. The matrices are banded: some rows at a time read a part of the picture. (From version 13
on Pillow goes down first where a picture loses more than twice as many pixels down as across. Here it is across first.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vitdeploy.data.images import crop_offset, resized_size
from vitdeploy.errors import UnsupportedModel
from vitdeploy.spec import InputSpec

BAND = 64  # rows of a matrix that are multiplied at once, at most
LEAST = 16  # rows for which a band is worth its while


@dataclass(frozen=True)
class Axis:
    """One side of a picture on its way: `size` pixels become `resized`; of these, `target` are kept from `first` on.

    `first` is negative where the picture is smaller than what is wanted: what lies outside is padding.
    """

    size: int
    resized: int
    first: int
    target: int


def axes(height: int, width: int, spec: InputSpec) -> tuple[Axis, Axis]:
    """Down and across, for pictures of this size. Raises UsageError as data.images.resized_size does."""
    down, across = (
        Axis(size, resized, -crop_offset(target, resized), target)
        for size, resized, target in zip((height, width), resized_size(height, width, spec), spec.size, strict=True)
    )
    return down, across


def bands(axis: Axis, interpolation: str) -> Iterator[tuple[int, int, np.ndarray]]:
    """The matrix by parts: float32 (rows, stop - start), with the start and stop of the pixels that it reads."""
    rows = band_rows(axis.target)
    for begin in range(0, axis.target, rows):
        whole = _rows(axis, axis.first + np.arange(begin, begin + rows), interpolation)
        used = np.flatnonzero(whole.any(axis=0))
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        yield start, stop, whole[:, start:stop].astype(np.float32)


def band_rows(target: int) -> int:
    """How many of `target` rows a band has: the same in all."""
    rows = max(n for n in range(1, min(target, BAND) + 1) if target % n == 0)
    return rows if rows >= LEAST else target


def inside(axis: Axis) -> np.ndarray:
    """float32 (target,): 1 where there is picture, 0 where there is padding."""
    x = axis.first + np.arange(axis.target)
    return ((x >= 0) & (x < axis.resized)).astype(np.float32)


def check_interpolation(spec: InputSpec) -> None:
    """Raises UnsupportedModel for a filter that no formula gives: between two pixels Pillow takes either."""
    if spec.interpolation not in FILTERS:
        raise UnsupportedModel(
            f"Pillow's {spec.interpolation} filter decides by rounding errors which pixels it takes, and so cannot be "
            "put into a file.",
            fix="Use --interpolation bicubic or bilinear, as the weights were trained, or leave preprocessing outside.",
        )


def _rows(axis: Axis, x: np.ndarray, interpolation: str) -> np.ndarray:
    """float64 (len(x), size): how much of each pixel goes into pixel x of the resized picture; 0 outside of it."""
    i, valid = np.arange(axis.size), ((x >= 0) & (x < axis.resized))[:, None]
    # Whole numbers until the division: so far apart are the pixels' centres, in steps of the filter.
    apart = (2 * i + 1) * axis.resized - ((2 * x + 1) * axis.size)[:, None]
    weights = FILTERS[interpolation](np.abs(apart) / (2 * max(axis.size, axis.resized))) * valid
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981 with a = -0.5, as two cubics that begin at 2 and at 1 from the centre; twice its height."""
    outer, inner = np.maximum(2 - x, 0), np.maximum(1 - x, 0)
    return outer**2 * (outer - 1) + inner**2 * (2 - 4 * inner)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.sinc(x) * np.sinc(x / 3) * (x < 3)


def _hamming(x: np.ndarray) -> np.ndarray:
    return np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)) * (x < 1)


FILTERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
    "hamming": _hamming,
}
REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3, "hamming": 1}  # where each filter ends

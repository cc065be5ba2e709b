"""ncnn's own two files, written layer by layer: `.param`, the layers as text, and `.bin`, their weights in turn.

The formats are those of ncnn's developer guide (param-and-model-file-structure, operators). A blob has from 1 to 4
dimensions and no batch. Shapes are written here as NumPy has them, outermost first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import BinaryIO

import numpy as np

from vitdeploy.errors import UnsupportedModel

MAGIC = 7767517
MOST = 4  # dimensions of a blob
SHAPE_HINT = 30  # the parameter of any layer that holds the shapes that it gives
BATCH = 20  # the parameter of Input, which ncnn does not read, that holds (min, opt, max) of the batch
FP16 = 0x01306B47  # what weights in fp16 begin with
TABLE = 1  # weights in 8 bits: anything but a known tag and 0, then a table of 256 fp32 values, then a byte each
LEVELS = 256
BINS, COARSE = 1 << 14, 1 << 8  # of the histogram that a table is found on, and of the one that it is begun with
ROUNDS = 30
Shape = tuple[int, ...]
Number = int | float


@dataclass(frozen=True)
class Blob:
    """What a layer gives: its name and shape."""

    name: str
    shape: Shape


@dataclass
class Layer:
    """One line of the text. `params` are ncnn's numbered ones; a sequence of integers is an array."""

    kind: str
    reads: list[str]
    gives: list[Blob]
    params: dict[int, Number | Sequence[int]]
    name: str = ""

    def line(self) -> str:
        hint = hints(self.gives)
        entries = {**self.params, **({SHAPE_HINT: hint} if hint else {})}
        words = [parameter(key, value) for key, value in entries.items()]
        blobs = [*self.reads, *(blob.name for blob in self.gives)]
        return " ".join(
            [f"{self.kind:<16}", f"{self.name:<24}", f"{len(self.reads)} {len(self.gives)}", *blobs, *words]
        )


@dataclass
class Writer:
    """Layers as they come; weights go to `weights` at once.

    In ncnn a blob is read once: `text` puts a Split behind those that more layers read, or that are outputs as well.
    """

    weights: BinaryIO
    layers: list[Layer] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(
        self,
        kind: str,
        reads: Sequence[Blob],
        shape: Shape,
        name: str,
        params: Mapping[int, Number | Sequence[int]] | None = None,
    ) -> Blob:
        """A layer of one output. Raises UnsupportedModel on a shape that no blob has."""
        if not 1 <= len(shape) <= MOST:
            raise UnsupportedModel(f"ncnn has no blob of {len(shape)} dimensions, as `{name}` needs.")
        blob = Blob(self.fresh(name), shape)
        self.layers.append(Layer(kind, [one.name for one in reads], [blob], dict(params or {})))
        return blob

    def fresh(self, name: str) -> str:
        """A blob's name, short enough for every reader and not taken."""
        base = "_".join(name.split())[-120:] or "blob"
        found, i = base, 1
        while found in self.names:
            i += 1
            found = f"{base}_{i}"
        self.names.add(found)
        return found

    def raw(self, array: np.ndarray) -> None:
        """fp32 numbers without a tag, as biases and norms have them."""
        self.weights.write(np.ascontiguousarray(array, "<f4").tobytes())

    def tagged(self, array: np.ndarray, storage: str = "fp32") -> None:
        """Weights behind a tag that says what they are stored in: 'fp32', 'fp16' or 'int8'."""
        if storage == "fp16":
            data = np.ascontiguousarray(array, "<f2").tobytes()
            self.weights.write(np.array(FP16, "<u4").tobytes() + data + bytes(-len(data) % 4))
        elif storage == "int8":
            table, indices = in_table(array)
            head = np.array(TABLE, "<u4").tobytes() + table.astype("<f4").tobytes()
            self.weights.write(head + indices.tobytes() + bytes(-indices.size % 4))
        else:
            self.weights.write(bytes(4))
            self.raw(array)

    def text(self, outputs: Mapping[str, Blob]) -> str:
        """The `.param` file, in which each of `outputs` is a blob of that name that nothing reads."""
        wanted: dict[str, list[str]] = {}  # of each blob, the names that its copies must have
        for name, blob in outputs.items():
            wanted.setdefault(blob.name, []).append(name)
        readers: dict[str, int] = {}
        for layer in self.layers:
            for read in layer.reads:
                readers[read] = readers.get(read, 0) + 1
        taken = set(outputs)
        written: list[Layer] = []
        copies: dict[str, list[str]] = {}
        for layer in self.layers:
            layer.reads = [copies[read].pop(0) for read in layer.reads]
            (blob,) = layer.gives
            ends, inner = wanted.get(blob.name, []), readers.get(blob.name, 0)
            own = blob.name if blob.name not in taken else self.fresh(f"{blob.name}_inner")
            if len(ends) + inner == 1:
                layer.gives = [Blob(ends[0] if ends else own, blob.shape)]
                copies[blob.name] = [layer.gives[0].name]
                written.append(layer)
                continue
            layer.gives = [Blob(own, blob.shape)]
            several = [self.fresh(f"{own}_split_{i}") for i in range(inner)]
            copies[blob.name] = list(several)
            written += [layer, Layer("Split", [own], [Blob(name, blob.shape) for name in (*ends, *several)], {})]
        count: dict[str, int] = {}
        for layer in written:
            count[layer.kind] = count.get(layer.kind, -1) + 1
            layer.name = f"{layer.kind.lower()}_{count[layer.kind]}"
        blobs = sum(len(layer.gives) for layer in written)
        return "\n".join([str(MAGIC), f"{len(written)} {blobs}", *(layer.line() for layer in written)]) + "\n"


def hints(blobs: Sequence[Blob]) -> list[int]:
    """The shapes as ncnn writes them: dimensions, width, height, (depth,) channels of each blob."""
    found: list[int] = []
    deep = any(len(blob.shape) == MOST for blob in blobs)
    for blob in blobs:
        sizes = list(blob.shape[::-1])
        if deep:
            found += [4, *sizes]
        else:
            found += [len(sizes), *sizes, *[1] * (3 - len(sizes))]
    return found


def parameter(key: int, value: Number | Sequence[int]) -> str:
    """`key=value` as ncnn reads it: a number of at most 15 characters, or an array under its number below -23300."""
    if isinstance(value, float):
        return f"{key}={value:.7e}"
    if isinstance(value, int):
        return f"{key}={value}"
    return f"{-23300 - key}={len(value)}," + ",".join(map(str, value))


def sizes(shape: Shape) -> dict[int, Number | Sequence[int]]:
    """A shape as the parameters of Input, Reshape and MemoryData. Raises UnsupportedModel on one that no blob has."""
    if not 1 <= len(shape) <= MOST:
        raise UnsupportedModel(f"ncnn's blobs have no {len(shape)} dimensions, as {list(shape)} has.")
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(sorted(zip(keys, shape, strict=True)))


def order(perm: Sequence[int]) -> int:
    """Permute's number of a permutation of NumPy's axes."""
    return list(permutations(range(len(perm)))).index(tuple(perm))


def in_table(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """256 values that stand for an array with the least squared error, by Lloyd's method, and which of them each is.

    Returns:
        float32 (256,), ascending, and uint8 of as many elements as the array.
    """
    flat = np.asarray(array, np.float32).ravel()
    low, high = float(flat.min()), float(flat.max())
    if np.unique(flat[: LEVELS * 16]).size <= LEVELS:
        exact = np.unique(flat)
        if exact.size <= LEVELS:
            table = np.concatenate([exact, np.full(LEVELS - exact.size, exact[-1], np.float32)])
            return table, np.searchsorted(exact, flat).astype(np.uint8)
    count, edges = np.histogram(flat, BINS, (low, high))
    total, _ = np.histogram(flat, BINS, (low, high), weights=flat.astype(np.float64))
    middle = (edges[:-1] + edges[1:]) / 2
    # Lloyd's method keeps the density of levels that it is begun with for long: the cube root of the values' is best.
    density = np.cumsum(np.cbrt(count.reshape(COARSE, -1).sum(axis=1)))
    levels = np.interp(
        (np.arange(LEVELS) + 0.5) / LEVELS, density / density[-1], edges[BINS // COARSE :: BINS // COARSE]
    )
    for _ in range(ROUNDS):
        near = np.searchsorted((levels[:-1] + levels[1:]) / 2, middle)
        members = np.bincount(near, count, LEVELS)
        sums = np.bincount(near, total, LEVELS)
        levels = np.sort(np.where(members > 0, sums / np.maximum(members, 1), levels))
    table = levels.astype(np.float32)
    return table, np.searchsorted((table[:-1] + table[1:]) / 2, flat).astype(np.uint8)


def merged(perm: Sequence[int], shape: Shape) -> tuple[Shape, Shape]:
    """A transposition with no axis of size 1, and with axes that stay together as one.

    Returns:
        The shape to transpose, and the permutation of its axes.
    """
    kept = [axis for axis in perm if shape[axis] != 1]
    runs: list[list[int]] = []
    between = [axis for axis in range(len(shape)) if shape[axis] != 1]
    following = dict(pairwise(between))
    for axis in kept:
        if runs and following.get(runs[-1][-1]) == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    places = sorted(range(len(runs)), key=lambda i: runs[i][0])
    whole = tuple(math.prod(shape[axis] for axis in runs[i]) for i in places)
    return whole, tuple(places.index(i) for i in range(len(runs)))


def collapsed(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """Two shapes of one rank that broadcast, in as few dimensions: axes that broadcast alike become one."""
    ways: list[tuple[bool, bool]] = []
    left: list[int] = []
    right: list[int] = []
    for m, n in zip(a, b, strict=True):
        if m == n == 1:
            continue
        way = (m == 1, n == 1)
        if ways and ways[-1] == way:
            left[-1] *= m
            right[-1] *= n
        else:
            ways.append(way)
            left.append(m)
            right.append(n)
    return tuple(left) or (1,), tuple(right) or (1,)

"""What a product multiplies: rows of activations (of a convolution, its windows) and its weight as a matrix.

Products with groups are a batch of matrices: activations (groups, rows, K), weights (groups, K, outputs a group).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import integer, ints
from vitdeploy.graph.feeds import feeds_of
from vitdeploy.graph.run import Probe
from vitdeploy.quantize.calibrate import not_finite
from vitdeploy.quantize.targets import Target

ROWS = 256  # of each product's inputs that a sample holds
LARGEST = 4  # one row in so many is one of the largest: trained models have few outliers, and live by them

Place = tuple[np.ndarray, ...]  # of windows' corners in the padded input, along each axis


@dataclass(frozen=True)
class Samples:
    """Some rows of every product's input; of all of it, the mean and the extremes of each channel.

    Attributes:
        rows: float32 (groups, rows, K) by the product's name; products that read alike share them.
        weights: float32 (rows,), likewise: how many rows each stands for.
        extremes: the least and the largest, float32 (channels,) each, by the product's name.
        means: over the first axis, which stays with length 1, float64, by the tensor's name.
    """

    rows: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    extremes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    means: Mapping[str, np.ndarray]


def sample(model: ir.Model, targets: Sequence[Target], batches: Sequence[np.ndarray], *, threads: int = 0) -> Samples:
    """Rows of what each product reads in the float graph, evenly over the images: the same for the same images.

    Args:
        batches: float32 (N, C, H, W); N is a multiple of the graph's fixed batch.

    Raises:
        UsageError: NaN or Inf in one of the tensors.
    """
    images = sum(map(len, batches))
    readings = {target.name: _reading(target) for target in targets}
    kinds = {reading: target for target in reversed(targets) for reading in [readings[target.name]]}
    parts: dict[tuple[object, ...], list[tuple[np.ndarray, np.ndarray]]] = {reading: [] for reading in kinds}
    extremes: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    rng = np.random.Generator(np.random.PCG64(0))
    names = list(dict.fromkeys(str(reading[0]) for reading in kinds))
    with Probe(model, names, threads=threads) as probe:
        for batch in whole(model, batches):
            wanted = -(-ROWS * len(batch) // images)
            for name, value in probe.run(feeds_of(model, batch)):
                if not np.isfinite(value).all():
                    raise not_finite(name)
                sums[name] = sums.get(name, 0) + value.sum(axis=0, keepdims=True, dtype=np.float64)
                counts[name] = counts.get(name, 0) + len(value)
                for reading, target in kinds.items():
                    if reading[0] == name:
                        parts[reading].append(rows_of(target, value, wanted, rng))
                        others = tuple(i for i in range(value.ndim) if i != target.channels % value.ndim)
                        low, high = value.min(axis=others), value.max(axis=others)
                        before = extremes.get(reading, (low, high))
                        extremes[reading] = np.minimum(before[0], low), np.maximum(before[1], high)
    rows = {reading: np.concatenate([part for part, _ in found], axis=1) for reading, found in parts.items()}
    weights = {reading: np.concatenate([part for _, part in found]) for reading, found in parts.items()}
    return Samples(
        {name: rows[reading] for name, reading in readings.items()},
        {name: weights[reading] for name, reading in readings.items()},
        {name: extremes[reading] for name, reading in readings.items()},
        {name: total / counts[name] for name, total in sums.items()},
    )


def whole(model: ir.Model, batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Batches cut to the graph's fixed batch size, where it has one."""
    shape = model.graph.inputs[0].shape
    fixed = shape[0] if shape is not None and isinstance(shape[0], int) else None
    for batch in batches:
        step = fixed or len(batch)
        yield from (batch[start : start + step] for start in range(0, len(batch), step))


def _reading(target: Target) -> tuple[object, ...]:
    """The tensor that a product reads, and of a convolution how."""
    name = target.activations[0].name or ""
    if target.node.op_type != "Conv":
        return (name,)
    return (name, integer(target.node, "group", 1), *map(tuple, window(target.node)))


def rows_of(target: Target, value: np.ndarray, wanted: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """About so many rows of a product's input, (groups, rows, K), and how many rows each stands for, (rows,).

    Of a linear layer's input they are the largest ones and some of the others, of a convolution's any.
    """
    groups, width = sizes(target)
    if target.node.op_type != "Conv":
        flat = value.reshape(-1, width)
        chosen, weights = _largest_and_some(np.abs(flat).max(axis=1), wanted, rng)
        return flat[chosen][None], weights
    each = -(-wanted // len(value))
    found = [patches(target.node, image, groups, positions(target.node, value.shape, each, rng)) for image in value]
    rows = np.concatenate(found, axis=1)
    return rows, np.ones(rows.shape[1], np.float32)


def _largest_and_some(
    peaks: np.ndarray, wanted: int, rng: np.random.Generator
) -> tuple[np.ndarray | slice, np.ndarray]:
    count = len(peaks)
    if count <= wanted:
        return slice(None), np.ones(count, np.float32)
    largest = wanted // LARGEST
    order = np.argsort(-peaks, kind="stable")
    others = rng.choice(order[largest:], wanted - largest, replace=False)
    weights = np.ones(wanted, np.float32)
    weights[largest:] = (count - largest) / (wanted - largest)
    return np.concatenate([order[:largest], others]), weights


def sizes(target: Target) -> tuple[int, int]:
    """Groups, and K of each."""
    w = target.node.inputs[1]
    assert w is not None
    assert w.shape is not None
    shape = [int(n) for n in w.shape]  # type: ignore[arg-type]
    if target.node.op_type == "Conv":
        return integer(target.node, "group", 1), int(np.prod(shape[1:]))
    assert target.axis is not None
    return 1, shape[1 - target.axis]


def window(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations and pads of a Conv; of a kernel over n axes, 2n pads: those before, then behind."""
    w = node.inputs[1]
    assert w is not None
    assert w.shape is not None
    kernel = [int(n) for n in w.shape[2:]]  # type: ignore[arg-type]
    return (
        kernel,
        ints(node, "strides") or [1] * len(kernel),
        ints(node, "dilations") or [1] * len(kernel),
        ints(node, "pads") or [0] * 2 * len(kernel),
    )


def positions(node: ir.Node, shape: tuple[int, ...], wanted: int, rng: np.random.Generator) -> Place:
    """Some output places of a Conv, by the windows that they read."""
    kernel, strides, dilations, pads = window(node)
    axes = len(kernel)
    counts = [
        (shape[2 + i] + pads[i] + pads[axes + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in range(axes)
    ]
    count = math.prod(counts)
    chosen = np.arange(count) if count <= wanted else rng.choice(count, wanted, replace=False)
    return tuple(at * stride for at, stride in zip(np.unravel_index(chosen, counts), strides, strict=True))


def patches(node: ir.Node, image: np.ndarray, groups: int, place: Place) -> np.ndarray:
    """What the Conv multiplies at these places: float32 (groups, places, channels a group x kernel)."""
    kernel, _, dilations, pads = window(node)
    axes = len(kernel)
    padded = np.pad(image, ((0, 0), *zip(pads[:axes], pads[axes:], strict=True)))
    reach = np.ix_(*(np.arange(size) * dilation for size, dilation in zip(kernel, dilations, strict=True)))
    corners = (at.reshape(-1, *(1,) * axes) for at in place)
    where = (corner + away for corner, away in zip(corners, reach, strict=True))
    found = np.moveaxis(padded, 0, -1)[tuple(where)]  # (places, *kernel, C)
    channels = len(image) // groups
    found = found.reshape(len(place[0]), -1, groups, channels).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(found.reshape(groups, len(place[0]), -1))


def matrix(target: Target, w: np.ndarray) -> np.ndarray:
    """The weight as float64 (groups, K, outputs a group)."""
    if target.node.op_type == "Conv":
        groups = integer(target.node, "group", 1)
        return w.astype(np.float64).reshape(groups, len(w) // groups, -1).transpose(0, 2, 1)
    return (w if target.axis == 1 else w.T).astype(np.float64)[None]


def tensor(target: Target, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `matrix`, for int8."""
    if target.node.op_type == "Conv":
        return np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(shape)
    return np.ascontiguousarray(found[0] if target.axis == 1 else found[0].T)


def spread_inputs(target: Target, channels: np.ndarray) -> np.ndarray:
    """A figure for each input channel, as one for each of the K of every group: (groups, K)."""
    groups, width = sizes(target)
    each = channels.reshape(groups, -1)
    return np.repeat(each, width // each.shape[1], axis=1)


def power(y: np.ndarray, weights: np.ndarray, centred: bool) -> float:
    """The sum of squares of products (groups, rows, outputs); with `centred`, of what differs from the mean row."""
    square = float(np.square(y).sum(axis=(0, 2)) @ weights)
    if centred:
        mean = weights @ y / weights.sum()
        square -= float(weights.sum()) * float(np.square(mean, dtype=np.float64).sum())
    return max(square, 1e-20)

"""The input pipeline inside the graph: from a camera frame to the tensor that the model takes, in standard ops.

What it computes is data.images.preprocess, and so Pillow's resize, level by level: see export.resample. Frames of a
fixed size are multiplied with constants; for those of any size the graph makes the matrices out of the frame's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.data.frames import BLUE_OF_U, GREEN_OF_U, GREEN_OF_V, RED_OF_V
from vitdeploy.export.nodes import BOOL, FLOAT, INT64, UINT8, Nodes, Number
from vitdeploy.export.resample import REACH, Axis, axes, band_rows, bands, check_interpolation, inside
from vitdeploy.spec import IMAGE, Frame, InputSpec

ZERO, ONE, TWO = np.array([0]), np.array([1]), np.array([2])
GREY = (19595, 38470, 7471)  # of red, green and blue, in 65536ths, as Pillow's 'L'


def embed_preprocessing(model: ir.Model, spec: InputSpec) -> int:
    """Give the graph `spec.frame` as its input `image` in place of the tensor that it takes; returns MatMuls added.

    Args:
        model: takes float32 (1, channels, height, width).
        spec: with a frame.

    Raises:
        UnsupportedModel: an interpolation that cannot be put into a graph.
    """
    assert spec.frame is not None
    check_interpolation(spec)
    graph = model.graph
    tensor = graph.inputs[0]
    nodes = Nodes(graph, "preprocess")
    image = ir.Value(name=IMAGE, shape=ir.Shape(list(spec.frame.shape)), type=ir.TensorType(UINT8))
    tensor.name = f"{IMAGE}/tensor"
    made, products = _tensor(nodes, image, spec)
    made.shape, made.type = tensor.shape, tensor.type
    ir.convenience.replace_all_uses_with(tensor, made)
    made.name = tensor.name
    graph.inputs[0] = image
    graph.insert_before(graph[0], nodes.written)
    return products


def _tensor(nodes: Nodes, image: ir.Value, spec: InputSpec) -> tuple[ir.Value, int]:
    """float32 (1, channels, height, width), and the number of products that made it."""
    assert spec.frame is not None
    down, across = (_fixed if spec.frame.size is not None else _free)(nodes, image, spec)
    planes = _planes(nodes, image, spec.frame, down.start, down.stop)
    if spec.shape[0] == 1:
        planes = _grey(nodes, planes)
    planes = _levels(nodes, _resize(nodes, planes, across, 2))
    planes = _levels(nodes, _resize(nodes, planes, down, 1))
    if spec.crop_mode == "border":
        planes = _pad(nodes, planes, down, across, spec)
    scaled = nodes("Div", planes, np.float32(255))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    if any(spec.mean):
        scaled = nodes("Sub", scaled, mean)
    if any(value != 1 for value in spec.std):
        scaled = nodes("Div", scaled, std)
    return nodes("Unsqueeze", scaled, np.array([0])), len(down.bands) + len(across.bands)


@dataclass(frozen=True)
class Side:
    """One side of the resize and crop, in the graph.

    Attributes:
        start, stop: the pixels that are read at all.
        bands: parts of the matrix, with the start and stop of the pixels that each reads; across they are turned.
        inside: float32 (target,), 1 where there is picture; None where there is nothing else.
    """

    start: Number
    stop: Number
    bands: Sequence[tuple[Number, Number, ir.Value]]
    inside: ir.Value | None


def _fixed(nodes: Nodes, image: ir.Value, spec: InputSpec) -> tuple[Side, Side]:
    """Down and across."""
    assert spec.frame is not None
    assert spec.frame.size is not None

    def side(axis: Axis, turned: bool) -> Side:
        parts = [
            (start, stop, nodes.constant(matrix.T.copy() if turned else matrix))
            for start, stop, matrix in bands(axis, spec.interpolation)
        ]
        first, last = min(start for start, _, _ in parts), max(stop for _, stop, _ in parts)
        return Side(first, last, parts, nodes.constant(inside(axis)) if spec.crop_mode == "border" else None)

    down, across = axes(*spec.frame.size, spec)
    return side(down, False), side(across, True)


def _free(nodes: Nodes, image: ir.Value, spec: InputSpec) -> tuple[Side, Side]:
    """The same from the frame's own size; every number is int64 (1,)."""
    assert spec.frame is not None
    shape = nodes("Shape", image, kind=INT64)
    height, width = (nodes("Gather", shape, np.array([axis])) for axis in (0, 1))
    if spec.frame.format == "nv21":
        height = nodes("Div", nodes("Mul", height, TWO), np.array([3]))
    high, wide = _resized(nodes, height, width, spec)
    down = FreeAxis(nodes, height, high, spec.size[0], spec)
    return _free_side(down, False), _free_side(FreeAxis(nodes, width, wide, spec.size[1], spec), True)


def _resized(nodes: Nodes, height: ir.Value, width: ir.Value, spec: InputSpec) -> list[ir.Value]:
    """data.images.resized_size."""
    high, wide = (np.array([math.floor(side / spec.crop_pct)]) for side in spec.size)
    if spec.crop_mode == "squash":
        return [nodes.constant(high), nodes.constant(wide)]
    if spec.crop_mode == "center" and high == wide:
        short = nodes("Min", height, width)
        return [nodes("Div", nodes("Mul", side, high), short) for side in (height, width)]
    # The side that decides, and what becomes of it.
    than = "GreaterOrEqual" if spec.crop_mode == "border" else "LessOrEqual"
    decides = nodes(than, nodes("Mul", height, wide), nodes("Mul", width, high), kind=BOOL)
    target = nodes("Where", decides, high, wide, kind=INT64)
    side = nodes("Where", decides, height, width, kind=INT64)
    rounded = [_half_even(nodes, nodes("Mul", size, target), side) for size in (height, width)]
    return [nodes("Max", size, ONE) for size in rounded]


def _half_even(nodes: Nodes, a: ir.Value, b: ir.Value) -> ir.Value:
    """a / b of whole numbers, neither negative, rounded half to even."""
    quotient = nodes("Div", a, b)
    rest = nodes("Sub", a, nodes("Mul", quotient, b))
    odd = nodes("Mod", quotient, TWO)
    up = nodes("Greater", nodes("Add", nodes("Mul", rest, TWO), odd), b, kind=BOOL)
    return nodes("Add", quotient, nodes("Cast", up, kind=INT64, to=INT64.value))


@dataclass(frozen=True)
class FreeAxis:
    """A resample.Axis whose size, and with it what that is resized to, is known when the graph runs."""

    nodes: Nodes
    size: ir.Value
    resized: ir.Value
    target: int
    spec: InputSpec


def _free_side(axis: FreeAxis, turned: bool) -> Side:
    """resample.bands, all at once: matrices of as many columns as the widest needs."""
    nodes, rows = axis.nodes, band_rows(axis.target)
    count = axis.target // rows
    first = _first(axis)
    starts, width = _windows(axis, nodes("Add", first, rows * np.arange(count)), rows)
    # Rows and columns, as (band, row, column).
    x = nodes("Add", np.arange(axis.target).reshape(count, rows, 1), first)
    columns = nodes("Range", np.int64(0), nodes("Squeeze", width, np.array([0])), np.int64(1))
    i = nodes("Add", nodes("Unsqueeze", starts, np.array([1, 2])), columns)
    matrices, is_inside = _matrices(axis, x, i), None
    if axis.spec.crop_mode == "border":
        places = nodes("Reshape", x, np.array([axis.target]))
        valid = (nodes("GreaterOrEqual", places, ZERO, kind=BOOL), nodes("Less", places, axis.resized, kind=BOOL))
        is_inside = nodes("Cast", nodes("And", *valid), kind=FLOAT, to=FLOAT.value)
        matrices = nodes("Mul", matrices, nodes("Reshape", is_inside, np.array([count, rows, 1])))
    if turned:
        matrices = nodes("Transpose", matrices, perm=[0, 2, 1])
    stops = nodes("Add", starts, width)
    if count == 1:
        matrices = nodes("Squeeze", matrices, np.array([0]))
        return Side(starts, stops, [(starts, stops, matrices)], is_inside)
    begin, end = nodes.split(starts, count), nodes.split(stops, count)
    return Side(begin[0], end[-1], list(zip(begin, end, nodes.split(matrices, count), strict=True)), is_inside)


def _first(axis: FreeAxis) -> ir.Value:
    """data.images.crop_offset, which is of the other sign."""
    nodes = axis.nodes
    room = nodes("Sub", axis.resized, np.array([axis.target]))
    cropped = _half_even(nodes, nodes("Max", room, ZERO), nodes.constant(TWO))
    if axis.spec.crop_mode != "border":
        return cropped
    return nodes("Sub", cropped, nodes("Div", nodes("Max", nodes("Neg", room), ZERO), TWO))


def _windows(axis: FreeAxis, x: ir.Value, rows: int) -> tuple[ir.Value, ir.Value]:
    """Where the pixels begin that bands with the first rows `x` read, and how many they are at most."""
    nodes = axis.nodes
    reach = nodes("Mul", nodes("Max", axis.size, axis.resized), np.array([2 * REACH[axis.spec.interpolation]]))
    step = nodes("Mul", axis.resized, TWO)
    last = nodes("Add", x, np.array([rows - 1]))
    low = nodes("Max", nodes("Div", nodes("Sub", _centre(nodes, x, axis.size), reach), step), ZERO)
    high = nodes("Add", nodes("Div", nodes("Add", _centre(nodes, last, axis.size), reach), step), ONE)
    widths = nodes("Sub", nodes("Min", high, axis.size), low)
    width = nodes("Max", nodes("ReduceMax", widths, np.array([0]), keepdims=1), ONE)
    return nodes("Max", nodes("Min", low, nodes("Sub", axis.size, width)), ZERO), width


def _matrices(axis: FreeAxis, x: ir.Value, i: ir.Value) -> ir.Value:
    """float32: how much of pixel i goes into pixel x of the resized picture."""
    nodes = axis.nodes
    # Whole numbers until the division: so far apart are the pixels' centres, in steps of the filter.
    apart = nodes("Sub", _centre(nodes, i, axis.resized), _centre(nodes, x, axis.size))
    step = nodes("Mul", nodes("Max", axis.size, axis.resized), TWO)
    apart, step = (nodes("Cast", one, kind=FLOAT, to=FLOAT.value) for one in (apart, step))
    weights = FILTERS[axis.spec.interpolation](nodes, nodes("Abs", nodes("Div", apart, step)))
    total = nodes("ReduceSum", weights, np.array([2]), keepdims=1)
    if axis.spec.crop_mode == "border":
        total = nodes("Max", total, np.float32(1e-30))  # of padding all are 0
    return nodes("Div", weights, total)


def _centre(nodes: Nodes, places: ir.Value, scale: ir.Value) -> ir.Value:
    """Twice where the centres of pixels lie, scaled."""
    return nodes("Mul", nodes("Add", nodes("Mul", places, TWO), ONE), scale)


def _bilinear(nodes: Nodes, x: ir.Value) -> ir.Value:
    return nodes("Relu", nodes("Sub", np.float32(1), x))


def _bicubic(nodes: Nodes, x: ir.Value) -> ir.Value:
    outer = nodes("Relu", nodes("Sub", np.float32(2), x))
    beyond = nodes("Sub", outer, np.float32(1))
    inner = nodes("Relu", beyond)
    wide = nodes("Mul", nodes("Mul", outer, outer), beyond)
    slope = nodes("Sub", np.float32(2), nodes("Mul", inner, np.float32(4)))
    return nodes("Add", wide, nodes("Mul", nodes("Mul", inner, inner), slope))


def _lanczos(nodes: Nodes, x: ir.Value) -> ir.Value:
    third = nodes("Mul", x, np.float32(1 / 3))
    return _within(nodes, x, 3, nodes("Mul", _sinc(nodes, x), _sinc(nodes, third)))


def _hamming(nodes: Nodes, x: ir.Value) -> ir.Value:
    cosine = nodes("Cos", nodes("Mul", x, np.float32(np.pi)))
    window = nodes("Add", nodes("Mul", cosine, np.float32(0.46)), np.float32(0.54))
    return _within(nodes, x, 1, nodes("Mul", _sinc(nodes, x), window))


def _sinc(nodes: Nodes, x: ir.Value) -> ir.Value:
    angle = nodes("Mul", nodes("Max", x, np.float32(1e-4)), np.float32(np.pi))  # where it is 1 in float32
    return nodes("Div", nodes("Sin", angle), angle)


def _within(nodes: Nodes, x: ir.Value, reach: int, weights: ir.Value) -> ir.Value:
    near = nodes("Less", x, np.float32(reach), kind=BOOL)
    return nodes("Mul", weights, nodes("Cast", near, kind=FLOAT, to=FLOAT.value))


FILTERS: Mapping[str, Callable[[Nodes, ir.Value], ir.Value]] = {
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
    "hamming": _hamming,
}


def _planes(nodes: Nodes, image: ir.Value, frame: Frame, start: Number, stop: Number) -> ir.Value:
    """float32 (3, rows, width) of levels 0 to 255: rows `start` to `stop` of the picture."""
    if frame.format == "nv21":
        return nodes.slice(_of_nv21(nodes, image, frame), start, stop, 1)
    levels = nodes("Cast", image, kind=FLOAT, to=FLOAT.value)  # first: TensorRT does nothing else with uint8
    planes = nodes("Transpose", nodes.slice(levels, start, stop, 0), perm=[2, 0, 1])
    if frame.format != "rgb":
        channels = [0, 1, 2] if frame.format == "rgba" else [2, 1, 0]
        planes = nodes("Gather", planes, np.array(channels), axis=0)
    return planes


def _of_nv21(nodes: Nodes, image: ir.Value, frame: Frame) -> ir.Value:
    """data.frames: float32 (3, height, width)."""
    levels = nodes("Cast", image, kind=FLOAT, to=FLOAT.value)
    if frame.size is not None:
        height, width = frame.size
        half = nodes.constant(np.array([height // 2, 1, width // 2, 1, 2]))
        doubled = nodes.constant(np.array([height // 2, 2, width // 2, 2, 2]))
        whole: Number = height
        flat = nodes.constant(np.array([height, width, 2]))
    else:
        shape = nodes("Shape", image, kind=INT64)
        third = nodes("Div", nodes("Gather", shape, np.array([0])), np.int64(3))
        across = nodes("Div", nodes("Gather", shape, np.array([1])), np.int64(2))
        one, two = np.array([1]), np.array([2])
        half = nodes("Concat", third, one, across, one, two, axis=0)
        doubled = nodes("Concat", third, two, across, two, two, axis=0)
        down = nodes("Mul", third, np.int64(2))
        whole = down
        flat = nodes("Concat", down, nodes("Mul", across, np.int64(2)), two, axis=0)
    luma = nodes("Unsqueeze", nodes.slice(levels, 0, whole, 0), np.array([0]))
    chroma = nodes("Reshape", nodes.slice(levels, whole, np.iinfo(np.int32).max, 0), half)
    chroma = nodes("Reshape", nodes("Expand", nodes("Sub", chroma, np.float32(128)), doubled), flat)
    v, u = (nodes("Gather", chroma, np.array([i]), axis=2) for i in (0, 1))
    v, u = (nodes("Transpose", part, perm=[2, 0, 1]) for part in (v, u))
    of_v, of_u = (RED_OF_V, GREEN_OF_V, 0.0), (0.0, GREEN_OF_U, BLUE_OF_U)
    tints = [
        nodes("Mul", part, np.array(factors, np.float32)[:, None, None]) for part, factors in ((v, of_v), (u, of_u))
    ]
    colours = nodes("Add", luma, nodes("Add", *tints))
    rounded = nodes("Floor", nodes("Add", colours, np.float32(0.5)))
    return nodes("Clip", rounded, np.float32(0), np.float32(255))


def _grey(nodes: Nodes, planes: ir.Value) -> ir.Value:
    """Pillow's 'L': float32 (1, rows, width)."""
    weighted = nodes("Mul", planes, np.array(GREY, np.float32)[:, None, None])
    total = nodes("Add", nodes("ReduceSum", weighted, np.array([0]), keepdims=1), np.float32(1 << 15))
    return nodes("Floor", nodes("Mul", total, np.float32(1 / (1 << 16))))


def _resize(nodes: Nodes, planes: ir.Value, side: Side, axis: int) -> ir.Value:
    """One pass: along rows (axis 2) or, of rows from `side.start` on, down (axis 1)."""
    parts = []
    for start, stop, matrix in side.bands:
        if axis == 2:
            parts.append(nodes("MatMul", nodes.slice(planes, start, stop, 2), matrix))
        else:
            start, stop = nodes.minus(start, side.start), nodes.minus(stop, side.start)
            parts.append(nodes("MatMul", matrix, nodes.slice(planes, start, stop, 1)))
    return parts[0] if len(parts) == 1 else nodes("Concat", *parts, axis=axis)


def _levels(nodes: Nodes, planes: ir.Value) -> ir.Value:
    """Rounded to whole levels, as Pillow does after each pass."""
    rounded = nodes("Floor", nodes("Add", planes, np.float32(0.5)))
    return nodes("Clip", rounded, np.float32(0), np.float32(255))


def _pad(nodes: Nodes, planes: ir.Value, down: Side, across: Side, spec: InputSpec) -> ir.Value:
    """The mean's colour around the picture, where now there is 0."""
    assert down.inside is not None
    assert across.inside is not None
    rows = nodes("Unsqueeze", down.inside, np.array([1]))
    columns = nodes("Unsqueeze", across.inside, np.array([0]))
    outside = nodes("Sub", np.float32(1), nodes("Mul", rows, columns))
    colour = np.array([round(255 * mean) for mean in spec.mean], np.float32)[:, None, None]
    return nodes("Add", planes, nodes("Mul", outside, colour))

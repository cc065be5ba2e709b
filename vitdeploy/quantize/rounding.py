"""Weights rounded so that the products change least, not the weights.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323): round one input row after another, and let the rows to come make up for the error, as far as the
inputs' covariance allows. Here the inputs are the *quantised* activations, while the product to match is that of the
float ones (Li et al. 2025, "GPTAQ", arXiv:2504.02692). The mean is left to the bias (bias.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import integer, ints
from vitdeploy.graph.run import Probe
from vitdeploy.quantize.int8 import QuantParams, Rounding, along
from vitdeploy.quantize.targets import Target

ROWS_PER_WIDTH = 24  # rows to see for each input of a product
FEWEST_ROWS = 4096
DAMPING = 0.01  # of the mean variance, so that the covariance can be inverted
BLOCK = 128


@dataclass
class Moments:
    """Of one product's inputs, over rows: first and second moments of the quantised and of the float activations.

    Attributes:
        quantised, exact: sums of x̂ and of x, float64 (groups, K).
        gram: x̂ᵀx̂, float64 (groups, K, K).
        cross: x̂ᵀx, likewise.
        rows: how many there were.
    """

    quantised: np.ndarray
    exact: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    rows: int = 0

    @staticmethod
    def zeros(groups: int, width: int) -> Moments:
        line, square = (groups, width), (groups, width, width)
        return Moments(np.zeros(line), np.zeros(line), np.zeros(square), np.zeros(square))

    def add(self, exact: np.ndarray, quantised: np.ndarray) -> None:
        """Rows of float and of quantised activations, float32 (groups, rows, K)."""
        turned = quantised.transpose(0, 2, 1)
        self.gram += turned @ quantised
        self.cross += turned @ exact
        self.quantised += quantised.sum(axis=1, dtype=np.float64)
        self.exact += exact.sum(axis=1, dtype=np.float64)
        self.rows += exact.shape[1]


def gather(
    model: ir.Model,
    targets: Sequence[Target],
    params: Mapping[str, QuantParams],
    batches: Iterable[np.ndarray],
    images: int,
    *,
    threads: int = 0,
) -> dict[str, Moments]:
    """The moments of every product's inputs, by target name, from the float graph.

    Args:
        params: of each activation that is quantised.
        batches: float32 (N, C, H, W), `images` in all; N is a multiple of the graph's fixed batch.
    """
    found = {target.name: Moments.zeros(*_sizes(target)) for target in targets}
    names = list(dict.fromkeys(target.activations[0].name or "" for target in targets))
    feed = model.graph.inputs[0].name or ""
    shape = model.graph.inputs[0].shape
    fixed = shape[0] if shape is not None and isinstance(shape[0], int) else None
    rng = np.random.Generator(np.random.PCG64(0))
    with Probe(model, names, threads=threads) as probe:
        for batch in batches:
            step = fixed or len(batch)
            for start in range(0, len(batch), step):
                share = step / images
                for name, value in probe.run({feed: batch[start : start + step]}):
                    quantised = params[name].apply(value)
                    for target in targets:
                        if target.activations[0].name == name:
                            _add(found[target.name], target, value, quantised, share, rng)
    return found


def _sizes(target: Target) -> tuple[int, int]:
    w = target.node.inputs[1]
    assert w is not None
    assert w.shape is not None
    shape = [int(n) for n in w.shape]  # type: ignore[arg-type]
    if target.node.op_type == "Conv":
        return integer(target.node, "group", 1), int(np.prod(shape[1:]))
    assert target.axis is not None
    return 1, shape[1 - target.axis]


def _add(
    moments: Moments, target: Target, exact: np.ndarray, quantised: np.ndarray, share: float, rng: np.random.Generator
) -> None:
    groups, width = moments.quantised.shape
    wanted = int(np.ceil(max(FEWEST_ROWS, ROWS_PER_WIDTH * width) * share))
    if target.node.op_type != "Conv":
        rows = exact.size // width
        chosen = slice(None) if rows <= wanted else rng.choice(rows, wanted, replace=False)
        moments.add(exact.reshape(1, -1, width)[:, chosen], quantised.reshape(1, -1, width)[:, chosen])
        return
    for start in range(len(exact)):
        place = _positions(target.node, exact.shape, -(-wanted // len(exact)), rng)
        moments.add(
            _patches(target.node, exact[start], groups, place), _patches(target.node, quantised[start], groups, place)
        )


def _window(node: ir.Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations and pads of a two-dimensional Conv."""
    w = node.inputs[1]
    assert w is not None
    assert w.shape is not None
    kernel = [int(n) for n in w.shape[2:]]  # type: ignore[arg-type]
    return (
        kernel,
        ints(node, "strides") or [1, 1],
        ints(node, "dilations") or [1, 1],
        ints(node, "pads") or [0, 0, 0, 0],
    )


def _positions(
    node: ir.Node, shape: tuple[int, ...], wanted: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some output places of a Conv: rows and columns of the windows' corners in the padded input."""
    kernel, strides, dilations, pads = _window(node)
    sizes = [
        (shape[2 + i] + pads[i] + pads[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(2)
    ]
    count = sizes[0] * sizes[1]
    chosen = np.arange(count) if count <= wanted else rng.choice(count, wanted, replace=False)
    return chosen // sizes[1] * strides[0], chosen % sizes[1] * strides[1]


def _patches(node: ir.Node, image: np.ndarray, groups: int, place: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What the Conv multiplies at these places: float32 (groups, places, channels a group x kernel)."""
    kernel, _, dilations, pads = _window(node)
    padded = np.pad(image, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    rows = place[0][:, None, None] + (np.arange(kernel[0]) * dilations[0])[None, :, None]
    columns = place[1][:, None, None] + (np.arange(kernel[1]) * dilations[1])[None, None, :]
    found = padded[:, rows, columns]  # (C, places, kh, kw)
    channels = len(image) // groups
    found = found.reshape(groups, channels, len(place[0]), -1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(found.reshape(groups, len(place[0]), -1))


def rounding(moments: Mapping[str, Moments], peak: int) -> Rounding:
    """Rounds the weights of the products that `moments` knows, and others to nearest; `peak` is the largest int8."""

    def rounded(target: Target, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        known = moments.get(target.name)
        assert target.axis is not None
        if known is None:
            return np.clip(np.rint(w / along(step, target.axis, w.ndim)), -peak, peak).astype(np.int8)
        unit = step.astype(np.float64).reshape(len(known.exact), 1, -1)
        centred = len(target.node.inputs) > 2 and target.node.inputs[2] is not None
        return _tensor(target, _round(_matrix(target, w), unit, known, peak, centred=centred), w.shape)

    return rounded


def _matrix(target: Target, w: np.ndarray) -> np.ndarray:
    """The weight as float64 (groups, K, outputs a group)."""
    if target.node.op_type == "Conv":
        groups = integer(target.node, "group", 1)
        return w.astype(np.float64).reshape(groups, len(w) // groups, -1).transpose(0, 2, 1)
    return (w if target.axis == 1 else w.T).astype(np.float64)[None]


def _tensor(target: Target, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_matrix`, for int8."""
    if target.node.op_type == "Conv":
        return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)
    return np.ascontiguousarray(matrix[0] if target.axis == 1 else matrix[0].T)


def _round(w: np.ndarray, step: np.ndarray, moments: Moments, peak: int, *, centred: bool) -> np.ndarray:
    """GPTQ over a batch of groups: float64 (groups, K, outputs) -> int8."""
    gram, cross = moments.gram / moments.rows, moments.cross / moments.rows
    if centred:  # the mean is the bias's affair
        quantised, exact = moments.quantised / moments.rows, moments.exact / moments.rows
        gram = gram - quantised[:, :, None] * quantised[:, None, :]
        cross = cross - quantised[:, :, None] * exact[:, None, :]
    width = gram.shape[1]
    spread = np.einsum("gkk->gk", gram)
    damping = np.maximum(DAMPING * spread.mean(axis=1), 1e-10)
    eye = np.eye(width)
    hessian = gram + damping[:, None, None] * eye
    # The float weights that best undo the activations' error come first: (x̂ᵀx̂ + d) W* = (x̂ᵀx + d) W.
    w = np.linalg.solve(hessian, (cross + damping[:, None, None] * eye) @ w)
    order = np.argsort(-spread, axis=1, kind="stable")
    w = np.take_along_axis(w, order[:, :, None], axis=1)
    hessian = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], 1), order[:, None, :], 2)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).transpose(0, 2, 1)
    q = np.zeros(w.shape, np.int8)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = np.zeros((len(w), stop - start, w.shape[2]))
        for i in range(start, stop):
            level = np.clip(np.rint(w[:, i] / step[:, 0]), -peak, peak)
            q[:, i] = level
            error = (w[:, i] - level * step[:, 0]) / upper[:, i, i, None]
            w[:, i + 1 : stop] -= upper[:, i, i + 1 : stop, None] * error[:, None]
            errors[:, i - start] = error
        w[:, stop:] -= upper[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(q)
    np.put_along_axis(result, order[:, :, None], q, axis=1)
    return result

"""Weights rounded so that the products change least, not the weights.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323): round one input row after another, and let the rows to come make up for the error, as far as the
inputs' covariance allows. Here the inputs are the *quantised* activations, while the product to match is that of the
float ones (Li et al. 2025, "GPTAQ", arXiv:2504.02692). The mean is left to the bias (bias.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.run import Probe
from vitdeploy.quantize.int8 import QuantParams, Rounding, along
from vitdeploy.quantize.rows import matrix, patches, positions, sizes, tensor, whole
from vitdeploy.quantize.targets import Target

ROWS_PER_WIDTH = 24  # rows to see for each input of a product
FEWEST_ROWS = 4096
DAMPING = 0.01  # of the mean variance, so that the covariance can be inverted; where rows are few it needs more
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
    batches: Sequence[np.ndarray],
    *,
    threads: int = 0,
) -> dict[str, Moments]:
    """The moments of every product's inputs, by target name, from the float graph.

    Args:
        params: of each activation that is quantised.
        batches: float32 (N, C, H, W); N is a multiple of the graph's fixed batch.
    """
    found = {target.name: Moments.zeros(*sizes(target)) for target in targets}
    names = list(dict.fromkeys(target.activations[0].name or "" for target in targets))
    feed = model.graph.inputs[0].name or ""
    images = sum(map(len, batches))
    rng = np.random.Generator(np.random.PCG64(0))
    with Probe(model, names, threads=threads) as probe:
        for batch in whole(model, batches):
            share = len(batch) / images
            for name, value in probe.run({feed: batch}):
                quantised = params[name].apply(value)
                for target in targets:
                    if target.activations[0].name == name:
                        _add(found[target.name], target, value, quantised, share, rng)
    return found


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
        place = positions(target.node, exact.shape, -(-wanted // len(exact)), rng)
        moments.add(
            patches(target.node, exact[start], groups, place), patches(target.node, quantised[start], groups, place)
        )


def rounding(moments: Mapping[str, Moments], peak: int) -> Rounding:
    """Rounds the weights of the products that `moments` knows, and others to nearest; `peak` is the largest int8."""

    def rounded(target: Target, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        known = moments.get(target.name)
        assert target.axis is not None
        if known is None:
            return np.clip(np.rint(w / along(step, target.axis, w.ndim)), -peak, peak).astype(np.int8)
        unit = step.astype(np.float64).reshape(len(known.exact), 1, -1)
        centred = len(target.node.inputs) > 2 and target.node.inputs[2] is not None
        return tensor(target, _round(matrix(target, w), unit, known, peak, centred=centred), w.shape)

    return rounded


def _round(w: np.ndarray, step: np.ndarray, moments: Moments, peak: int, *, centred: bool) -> np.ndarray:
    """GPTQ over a batch of groups: float64 (groups, K, outputs) -> int8."""
    gram, cross = moments.gram / moments.rows, moments.cross / moments.rows
    if centred:  # the mean is the bias's affair
        quantised, exact = moments.quantised / moments.rows, moments.exact / moments.rows
        gram = gram - quantised[:, :, None] * quantised[:, None, :]
        cross = cross - quantised[:, :, None] * exact[:, None, :]
    width = gram.shape[1]
    spread = np.einsum("gkk->gk", gram)
    damping = np.maximum((DAMPING + width / moments.rows) * spread.mean(axis=1), 1e-10)
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

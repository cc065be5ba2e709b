"""Weights rounded so that the products change least, not the weights.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323): round one input row after another, and let the rows to come make up for the error, as far as the
inputs' covariance allows. Here the inputs are the *quantised* activations, and where biases are corrected (bias.py) the
mean is their affair. Fitting the weights to the float activations besides (Li et al. 2025, "GPTAQ", arXiv:2504.02692)
was tried: with biases corrected it gains nothing on MobileViT, and on LeViT it loses more than rounding gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.feeds import feeds_of
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
    """Of one product's quantised inputs x, over rows.

    Attributes:
        total: the sum of x, float64 (groups, K).
        gram: xᵀx, float64 (groups, K, K).
        rows: how many there were.
    """

    total: np.ndarray
    gram: np.ndarray
    rows: int = 0

    @staticmethod
    def zeros(groups: int, width: int) -> Moments:
        return Moments(np.zeros((groups, width)), np.zeros((groups, width, width)))

    def add(self, x: np.ndarray) -> None:
        """Rows, float32 (groups, rows, K)."""
        self.gram += x.transpose(0, 2, 1) @ x
        self.total += x.sum(axis=1, dtype=np.float64)
        self.rows += x.shape[1]


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
    images = sum(map(len, batches))
    rng = np.random.Generator(np.random.PCG64(0))
    with Probe(model, names, threads=threads) as probe:
        for batch in whole(model, batches):
            share = len(batch) / images
            for name, value in probe.run(feeds_of(model, batch)):
                quantised = params[name].apply(value)
                for target in targets:
                    if target.activations[0].name == name:
                        _add(found[target.name], target, quantised, share, rng)
    return found


def _add(moments: Moments, target: Target, x: np.ndarray, share: float, rng: np.random.Generator) -> None:
    groups, width = moments.total.shape
    wanted = int(np.ceil(max(FEWEST_ROWS, ROWS_PER_WIDTH * width) * share))
    if target.node.op_type != "Conv":
        rows = x.size // width
        chosen = slice(None) if rows <= wanted else rng.choice(rows, wanted, replace=False)
        moments.add(x.reshape(1, -1, width)[:, chosen])
        return
    for image in x:
        place = positions(target.node, x.shape, -(-wanted // len(x)), rng)
        moments.add(patches(target.node, image, groups, place))


def rounding(moments: Mapping[str, Moments], peak: int, *, centred: bool) -> Rounding:
    """Rounds the weights of the products that `moments` knows, and others to nearest.

    Args:
        peak: the largest int8.
        centred: what rounding does to the mean is taken care of elsewhere, for products that have a bias.
    """

    def rounded(target: Target, w: np.ndarray, step: np.ndarray) -> np.ndarray:
        known = moments.get(target.name)
        assert target.axis is not None
        if known is None:
            return np.clip(np.rint(w / along(step, target.axis, w.ndim)), -peak, peak).astype(np.int8)
        unit = step.astype(np.float64).reshape(len(known.total), 1, -1)
        biased = len(target.node.inputs) > 2 and target.node.inputs[2] is not None
        return tensor(target, _round(matrix(target, w), unit, known, peak, centred=centred and biased), w.shape)

    return rounded


def _round(w: np.ndarray, step: np.ndarray, moments: Moments, peak: int, *, centred: bool) -> np.ndarray:
    """GPTQ over a batch of groups: float64 (groups, K, outputs) -> int8."""
    gram = moments.gram / moments.rows
    if centred:
        mean = moments.total / moments.rows
        gram = gram - mean[:, :, None] * mean[:, None, :]
    width = gram.shape[1]
    spread = np.einsum("gkk->gk", gram)
    damping = np.maximum((DAMPING + width / moments.rows) * spread.mean(axis=1), 1e-10)
    hessian = gram + damping[:, None, None] * np.eye(width)
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

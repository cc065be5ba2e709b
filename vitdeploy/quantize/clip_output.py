"""A tensor's range by what the products that read it lose: x^ W - x W on a sample of rows, instead of x^ - x.

A channel that meets small weights may be clipped, one that meets large ones may not, and errors that the weights cancel
do not count. Nahshan et al. 2019, "Loss Aware Post-training Quantization" (arXiv:1911.07190), choose them by the whole
network's loss; here it is what one layer on makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant
from vitdeploy.quantize.clip import Range
from vitdeploy.quantize.int8 import Places, QuantParams, quant_params
from vitdeploy.quantize.rows import Samples, matrix, power
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)  # of each end, that a search tries
PASSES = 2  # over both ends


@dataclass(frozen=True)
class _Reading:
    """Rows (groups, rows, K), how many each stands for, and the matrix (groups, K, outputs) of all that read them."""

    rows: np.ndarray
    weights: np.ndarray
    matrix: np.ndarray

    def lost(self, params: QuantParams, centred: bool) -> float:
        return power((params.apply(self.rows) - self.rows) @ self.matrix, self.weights, centred)


def readers(places: Places, targets: Sequence[Target]) -> dict[str, list[Target]]:
    """The quantised values that quantised products alone read, and those products."""
    slots: dict[tuple[ir.Node, int], Target] = {(target.node, 0): target for target in targets}
    found = {}
    for name, value in places.inputs.items():
        found[name] = [slots[use] for use in value.uses() if use in slots]
    for name, value in places.outputs.items():
        uses = list(value.uses())
        if uses and all(use in slots for use in uses):
            found[name] = [slots[use] for use in uses]
    return {name: products for name, products in found.items() if products}


def output_ranges(
    reading: Mapping[str, Sequence[Target]],
    samples: Samples,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    *,
    centred: bool,
) -> dict[str, Range]:
    """Ranges of the values in `reading`, starting from those in `ranges`.

    Args:
        samples: of the products in `reading`.
        centred: whether a product's mean will be corrected, so that a shift of it costs nothing.
    """
    found = {}
    for name, products in reading.items():
        parts = _parts(products, samples, centred)
        lows, highs = zip(*(samples.extremes[target.name] for target in products), strict=True)
        whole = min(*(float(low.min()) for low in lows), 0.0), max(*(float(high.max()) for high in highs), 0.0)
        found[name] = _search(parts, whole, ranges[name], scheme, centred)
    return found


def _parts(products: Sequence[Target], samples: Samples, centred: bool) -> list[_Reading]:
    """What is read alike goes together, each product weighed by its own size."""
    together: dict[int, list[_Reading]] = {}
    for target in products:
        w, rows, weights = constant(target.node.inputs[1]), samples.rows[target.name], samples.weights[target.name]
        assert w is not None
        found = matrix(target, w).astype(np.float32)
        found = found / np.float32(np.sqrt(power(rows @ found, weights, centred)))
        together.setdefault(id(rows), []).append(_Reading(rows, weights, found))
    return [
        _Reading(parts[0].rows, parts[0].weights, _square(np.concatenate([part.matrix for part in parts], axis=2)))
        for parts in together.values()
    ]


def _square(matrix: np.ndarray) -> np.ndarray:
    """A matrix (groups, K, K) behind which every row is as long as behind `matrix`, where that has more columns."""
    if matrix.shape[2] <= matrix.shape[1]:
        return matrix
    r: np.ndarray = np.linalg.qr(matrix.transpose(0, 2, 1), mode="r")  # type: ignore[assignment]
    return r.transpose(0, 2, 1)


def _search(parts: Sequence[_Reading], whole: Range, start: Range, scheme: Scheme, centred: bool) -> Range:
    def lost(found: Range) -> float:
        params = quant_params(found, scheme)
        return sum(part.lost(params, centred) for part in parts)

    if scheme.symmetric:
        peak = max(-whole[0], whole[1])
        return min([start, *((-peak * share, peak * share) for share in SHARES)], key=lost)
    best = min([start, whole], key=lost)
    for _ in range(PASSES):
        best = min([best, *((best[0], whole[1] * share) for share in SHARES)], key=lost)
        best = min([best, *((whole[0] * share, best[1]) for share in SHARES)], key=lost)
    return best

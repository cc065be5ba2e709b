"""Which range of a tensor 8 bits should cover: everything seen, or less, where rare outliers cost the rest its bits.

Percentile and entropy: Wu et al. 2020, "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602). Mean
squared error: Banner et al. 2019, "Post training 4-bit quantization of convolutional networks" (arXiv:1810.05723), on
the measured histogram instead of a fitted distribution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.quantize.grid import GRIDS, Grid
from vitdeploy.quantize.observe import TensorStatistics

Range = tuple[float, float]
Function = Callable[[np.ndarray], np.ndarray]

PERCENTILE = 99.99
SHARES = np.linspace(1.0, 0.2, 81)  # of the whole range, that a search tries
DEEP = np.linspace(1.0, 0.02, 197)  # where a function makes most of the range zero
TOGETHER = 64  # values that a sum adds up, at the least
TINY = 1e-12


def find_range(
    statistics: TensorStatistics,
    method: str,
    *,
    symmetric: bool,
    grid: Grid = GRIDS["uint8"],
    through: Function | None = None,
) -> Range:
    """The (low, high) that quantisation should cover; it always contains zero, which padding and attention need exact.

    Args:
        statistics: of the tensor.
        method: 'minmax', 'percentile', 'entropy' or 'mse'.
        symmetric: whether low must be -high.
        grid: the quantised values there are.
        through: the function that alone reads the tensor, where there is one: 'mse' then counts the error behind it.
            Whatever HardSwish makes zero needs no steps.

    Raises:
        UsageError: an unknown method.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown calibration method '{method}': one of {', '.join(METHODS)}.")
    low, high = METHODS[method](statistics, symmetric, grid, through)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def _minmax(statistics: TensorStatistics, symmetric: bool, grid: Grid, through: Function | None) -> Range:
    return statistics.minimum, statistics.maximum


def _percentile(statistics: TensorStatistics, symmetric: bool, grid: Grid, through: Function | None) -> Range:
    """The range that leaves the same share of values outside on either end."""
    share = np.cumsum(statistics.counts) / max(statistics.counts.sum(), 1)
    outside = (1 - PERCENTILE / 100) / 2
    edge = 2 * statistics.limit / len(share)
    low = np.searchsorted(share, outside) * edge - statistics.limit
    high = (np.searchsorted(share, 1 - outside) + 1) * edge - statistics.limit
    return max(float(low), statistics.minimum), min(float(high), statistics.maximum)


def _mse(statistics: TensorStatistics, symmetric: bool, grid: Grid, through: Function | None) -> Range:
    """The range whose rounding error (step^2 / 12 inside) and clipping error (outside) are least together."""
    shares = SHARES if through is None else DEEP
    filled = statistics.counts > 0
    counts = statistics.counts[filled].astype(np.float64)
    centres = statistics.centres[filled].clip(statistics.minimum, statistics.maximum)
    seen, weight = centres, counts
    if through is not None:
        width = 2 * statistics.limit / len(statistics.counts)
        seen, weight = through(centres), counts * _slope(through, centres, width) ** 2

    def cost(low: float, high: float) -> float:
        unit = grid.unit(low, high, symmetric=symmetric)
        clipped = centres.clip(low, high)
        ends = clipped if through is None else through(clipped)
        inside = clipped == centres
        steps = grid.spacing(centres[inside] / max(unit, TINY))
        rounded = (weight[inside] * steps**2).sum() * unit**2 / 12
        missed = counts * (seen - ends)
        # Rounding errors cancel out in the sums that follow; what clipping takes away does not.
        together = TOGETHER * missed.sum() ** 2 / counts.sum()
        return float(rounded + (missed * (seen - ends)).sum() + together)

    low, high = min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)
    if symmetric:
        peak = max(-low, high)
        best = min(shares, key=lambda share: cost(-peak * share, peak * share))
        return float(-peak * best), float(peak * best)
    # One end at a time: they share nothing but the step.
    for _ in range(2):
        top, bottom = high, low
        high = float(min(shares * max(statistics.maximum, 0.0), key=lambda end: cost(bottom, end)))
        top = high
        low = float(min(shares * min(statistics.minimum, 0.0), key=lambda end: cost(end, top)))
    return low, high


def _slope(function: Function, at: np.ndarray, width: float) -> np.ndarray:
    return (function(at + width / 2) - function(at - width / 2)) / width


def _entropy(statistics: TensorStatistics, symmetric: bool, grid: Grid, through: Function | None) -> Range:
    """The range that loses least information: the Kullback-Leibler divergence from the histogram to its coarse form."""
    levels = int(2 * grid.high if symmetric else grid.high - grid.low) + 1
    counts = statistics.counts.astype(np.float64)
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1]) + 1
    edge = 2 * statistics.limit / len(counts)
    best, least = (first, last), np.inf
    zero = len(counts) // 2
    for share in SHARES:
        if symmetric:
            half = round(max(zero - first, last - zero) * share)
            start, stop = zero - half, zero + half
        else:
            start, stop = zero - round((zero - first) * share), zero + round((last - zero) * share)
        if stop - start < levels:
            continue
        found = _divergence(counts, start, stop, levels)
        if found < least:
            best, least = (start, stop), found
    return best[0] * edge - statistics.limit, best[1] * edge - statistics.limit


def _divergence(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    inside = counts[start:stop]
    clipped = inside.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    groups = np.arange(len(inside)) * levels // len(inside)
    total = np.bincount(groups, inside, levels)
    alive = np.bincount(groups, inside > 0, levels)
    coarse = np.where(inside > 0, (total / np.maximum(alive, 1))[groups], 0)
    p, q = clipped / clipped.sum(), coarse / max(coarse.sum(), TINY)
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], TINY))).sum())


METHODS: dict[str, Callable[[TensorStatistics, bool, Grid, Function | None], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}

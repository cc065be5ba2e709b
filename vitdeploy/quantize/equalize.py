"""Scale and move channels so that one step fits them all, without changing what the float graph computes.

An activation has one scale for all its channels, so an outlier channel costs the others their bits. Now x W is
((x - c) / s) (s W) + c W: dividing a channel by s and multiplying the weights that read it hands the outlier to the
weights, and moving it by c centres it. Both go into the weights, biases, or LayerNorm gains that write the channel
(channels.py finds where), so they cost nothing when the model runs. Three rules for s and c, of which each site takes
what really brings its products nearer, or none. Half of the images make s, c and the range, and the products are judged
on the other half: ranges that fit every channel closely clip every channel of an image that is unlike them.

- 'smoothquant': s = max|x|^a / max|W|^(1-a), with a searched. Xiao et al. 2022, "SmoothQuant" (arXiv:2211.10438).
- 'repq': s and c give every channel the same range, as if each had its own scale and zero point. Li et al. 2022,
  "RepQ-ViT" (arXiv:2212.08254).
- 'cross-layer': s makes a channel's weights as large where it is written as where it is read. Nagel et al. 2019,
  "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant, fresh_name, integer, sweep
from vitdeploy.quantize.channels import FIXED, End, Site, find_sites
from vitdeploy.quantize.int8 import quant_params
from vitdeploy.quantize.rewrite import rewrite_constant, rewrite_reader, rewrite_writer
from vitdeploy.quantize.rows import Samples, matrix, power, sample, spread_inputs
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target

ALPHAS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARES = (1.0, 0.85, 0.7, 0.55, 0.4)  # of the range, that the best candidates may be clipped to
BEST = 3  # candidates that are tried with each
GAIN = 0.98  # of the error that has to be left, or the site stays as it is
SPREAD = 1e-4  # of the largest channel, below which all count alike


@dataclass(frozen=True)
class Change:
    """x' = (x - shift) / scale for each channel of a site; and the rule that says so."""

    technique: str
    scale: np.ndarray
    shift: np.ndarray
    alpha: float | None = None


@dataclass(frozen=True)
class Equalized:
    """What equalize did: each site that was changed, as JSON values; and what the values in between are called now."""

    sites: Sequence[Mapping[str, Any]]
    renamed: Mapping[str, str]


Extremes = tuple[np.ndarray, np.ndarray]


@dataclass
class _Reading:
    """One tensor that readers of a site read: rows of it, and the products that multiply them.

    Attributes:
        channels: which channel of the site each channel of the tensor is.
        rows, weights: of the images that judge.
        seen: the least and the largest of each channel, in the images that do not.
        whole: the same in all.
        products: weight matrices (groups, K, outputs) and the products themselves.
    """

    target: Target
    channels: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    seen: Extremes
    whole: Extremes
    products: list[tuple[np.ndarray, np.ndarray]]


def equalize(
    model: ir.Model,
    targets: Sequence[Target],
    techniques: Sequence[str],
    scheme: Scheme,
    batches: Sequence[np.ndarray],
    *,
    clipped: bool = True,
    centred: bool = True,
    threads: int = 0,
) -> Equalized:
    """Equalise an fp32 graph, in place.

    Args:
        targets: the products that will be quantised.
        techniques: some of 'smoothquant', 'repq' and 'cross-layer'.
        batches: float32 (N, C, H, W), as the graph takes them. A single one proves nothing, and nothing is changed.
        clipped: whether ranges will be searched for (or are extremes).
        centred: whether means will be corrected.
    """
    sites = find_sites(model) if techniques else []
    by_node = {target.node: target for target in targets}
    read = [by_node[end.node] for site in sites for end in site.readers if end.node in by_node]
    if not read or len(batches) < 2:
        return Equalized([], {})
    read = list(dict.fromkeys(read))
    halves = [sample(model, read, batches[half::2], threads=threads) for half in range(2)]
    whole = {name: _wider([half.extremes[name] for half in halves]) for name in halves[0].extremes}
    done: list[dict[str, Any]] = []
    changed: dict[ir.Value, None] = {}
    shares = SHARES if clipped else SHARES[:1]
    for site in sites:
        readings = _readings(site, by_node, halves, whole)
        if not readings:
            continue
        final = list(_candidates(site, readings, techniques, [reading.whole for reading in readings]))
        trial = list(_candidates(site, readings, techniques, [reading.seen for reading in readings]))
        first = [_error(readings, change, scheme, SHARES[:1], centred) for change in trial]
        before = after = _error(readings, _nothing(site), scheme, shares, centred)
        best = _nothing(site)
        for i in np.argsort(first, kind="stable")[:BEST]:
            error = _error(readings, trial[i], scheme, shares, centred)
            if error < after:
                after, best = error, final[i]
        if after < GAIN * before:
            _apply(site, best, readings)
            changed |= dict.fromkeys(site.values)
            done.append(_described(site, best, before, after))
    sweep(model)
    return Equalized(done, _rename(model, changed))


def _wider(extremes: Sequence[Extremes]) -> Extremes:
    return np.minimum(*(low for low, _ in extremes)), np.maximum(*(high for _, high in extremes))


def _readings(
    site: Site, by_node: Mapping[ir.Node, Target], halves: Sequence[Samples], whole: Mapping[str, Extremes]
) -> list[_Reading]:
    readings: dict[int, _Reading] = {}
    for end in site.readers:
        target = by_node.get(end.node)
        if target is None:
            continue
        name = target.name
        rows, weights = halves[1].rows[name], halves[1].weights[name]
        known = _Reading(target, end.channels, rows, weights, halves[0].extremes[name], whole[name], [])
        w = matrix(target, _weight(end)).astype(np.float32)
        readings.setdefault(id(rows), known).products.append((w, rows @ w))
    return list(readings.values())


def _nothing(site: Site) -> Change:
    return Change("none", np.ones(site.size), np.zeros(site.size))


def _candidates(
    site: Site, readings: Sequence[_Reading], techniques: Sequence[str], extremes: Sequence[Extremes]
) -> Iterator[Change]:
    low, high = np.full(site.size, np.inf), np.full(site.size, -np.inf)
    weights = np.zeros(site.size)
    for reading, (least, most) in zip(readings, extremes, strict=True):
        free = reading.channels != FIXED
        np.minimum.at(low, reading.channels[free], least[free])
        np.maximum.at(high, reading.channels[free], most[free])
    for end in site.readers:
        _peaks(weights, end, reading_axis(end), _weight(end))
    still = np.zeros(site.size)
    size, weights = _floor(np.maximum(-low, high)), _floor(weights)
    if "smoothquant" in techniques:
        for alpha in ALPHAS:
            yield Change("smoothquant", _even(size**alpha / weights ** (1 - alpha)), still, alpha)
    if "repq" in techniques and site.movable:
        span, middle = _floor(high - low), (low + high) / 2
        yield Change("repq", _even(span), middle)
        # Both at once: Wei et al. 2023, "Outlier Suppression+" (arXiv:2304.09145).
        for alpha in ALPHAS[:-1] if "smoothquant" in techniques else ():
            yield Change("smoothquant+repq", _even(span**alpha / weights ** (1 - alpha)), middle, alpha)
    if "cross-layer" in techniques and not any(end.node.op_type == "LayerNormalization" for end in site.writers):
        written = np.zeros(site.size)
        for end in site.writers:
            _peaks(written, end, writing_axis(end), _weight(end))
        yield Change("cross-layer", _even(np.sqrt(_floor(written) / weights)), still)


def reading_axis(end: End) -> int:
    """The axis of a reader's weight that counts input channels (of a convolution, of a group)."""
    return 1 if end.node.op_type == "Conv" else integer(end.node, "transB", 0)


def writing_axis(end: End) -> int:
    """The axis of a writer's weight that counts output channels."""
    return 0 if end.node.op_type == "Conv" else 1 - integer(end.node, "transB", 0)


def _weight(end: End) -> np.ndarray:
    found = constant(end.node.inputs[1])
    assert found is not None
    return found


def _peaks(into: np.ndarray, end: End, axis: int, w: np.ndarray) -> None:
    """Take the largest weight of each of the site's channels in."""
    groups = len(end.channels) // w.shape[axis]
    blocks = np.abs(np.moveaxis(w, axis, 1)).reshape(groups, -1, w.shape[axis], *_behind(w, axis))
    peak = blocks.max(axis=tuple(i for i in range(blocks.ndim) if i not in (0, 2))).reshape(-1)
    free = end.channels != FIXED
    np.maximum.at(into, end.channels[free], peak[free])


def _behind(w: np.ndarray, axis: int) -> tuple[int, ...]:
    return tuple(np.moveaxis(w, axis, 1).shape[2:])


def _floor(sizes: np.ndarray) -> np.ndarray:
    return np.maximum(sizes, max(float(sizes.max()) * SPREAD, 1e-12))


def _even(scale: np.ndarray) -> np.ndarray:
    """With a geometric mean of one: all together matter to nobody."""
    return scale / np.exp(np.log(scale).mean())


def _error(
    readings: Sequence[_Reading], change: Change, scheme: Scheme, shares: Sequence[float], centred: bool
) -> float:
    """What quantising loses of the products after a change: squares, relative to each product's own, summed."""
    total = 0.0
    for reading in readings:
        scale, shift = _of(change, reading.channels)
        low, high = ((end - shift) / scale for end in reading.seen)
        factor, offset = (spread_inputs(reading.target, v)[:, None].astype(np.float32) for v in (scale, shift))
        x = (reading.rows - offset) / factor
        products = [
            (_rounded(w * factor.transpose(0, 2, 1), scheme), y - offset @ w, power(y, reading.weights, centred))
            for w, y in reading.products
        ]
        least = np.inf
        for share in shares:
            params = quant_params((min(0.0, float(low.min()) * share), max(0.0, float(high.max()) * share)), scheme)
            seen = params.apply(x)
            lost = sum(power(seen @ w - y, reading.weights, centred) / size for w, y, size in products)
            least = min(least, lost)
        total += least
    return total


def _of(change: Change, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of these channels, those that are no part of the site included."""
    fixed = channels == FIXED
    return np.where(fixed, 1.0, change.scale[channels]), np.where(fixed, 0.0, change.shift[channels])


def _rounded(w: np.ndarray, scheme: Scheme) -> np.ndarray:
    """A weight matrix (groups, K, outputs) as 8 bits with the scheme's scales have it."""
    axes = 1 if scheme.weight_scales == "channel" else None
    step = np.maximum(np.abs(w).max(axis=axes, keepdims=True) / scheme.weight_peak, np.float32(1e-30))
    return scheme.weight_grid.nearest(w / step) * step


def _apply(site: Site, change: Change, readings: Sequence[_Reading]) -> None:
    """Change weights, biases and LayerNorms, and the samples with them."""
    for end in site.writers:
        rewrite_writer(end, *_of(change, end.channels))
    for end in site.constants:
        rewrite_constant(end, _of(change, end.channels)[0])
    for end in site.readers:
        rewrite_reader(end, *_of(change, end.channels))
    done = set()
    for reading in readings:
        scale, shift = _of(change, reading.channels)
        factor, offset = (spread_inputs(reading.target, v)[:, None].astype(np.float32) for v in (scale, shift))
        reading.rows[:] = (reading.rows - offset) / factor
        for ends in (*reading.seen, *reading.whole):
            if id(ends) not in done:  # a tensor may be read in two ways
                done.add(id(ends))
                ends[:] = (ends - shift) / scale


def _rename(model: ir.Model, changed: Iterable[ir.Value]) -> dict[str, str]:
    """Values that hold other numbers now get another name."""
    names = {}
    for value in changed:
        old = value.name or ""
        names[old] = value.name = fresh_name(model.graph, f"{old}/equalised")
    return names


def _described(site: Site, change: Change, before: float, after: float) -> dict[str, Any]:
    w = site.writers[0].node.inputs[1]
    return {
        "site": ((w.name if w is not None else "") or "").removesuffix(".T").removesuffix(".weight"),
        "readers": len(site.readers),
        "channels": site.size,
        "technique": change.technique,
        "alpha": change.alpha,
        "factors": [float(change.scale.min()), float(change.scale.max())],
        "moved": float(np.abs(change.shift).max()),
        "error": [before, after],
    }

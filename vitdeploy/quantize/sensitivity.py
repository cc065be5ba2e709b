"""How much each product costs when it alone is quantised, and how well 8 bits hold each tensor.

Errors of single ops add up in squares as long as they are small, so these figures tell which ops a plan should leave in
float first: Wu et al. 2020, "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602), section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import constant
from vitdeploy.graph.feeds import feeds_of
from vitdeploy.graph.run import Probe
from vitdeploy.quantize.clip import Range
from vitdeploy.quantize.int8 import (
    Places,
    QuantParams,
    all_params,
    along,
    find_places,
    insert,
    scale_axis,
    weight_step,
)
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import Target, find_targets


@dataclass(frozen=True)
class Sensitivity:
    """What int8 or fp8 costs at one product.

    Attributes:
        label: of its weight: what a user knows it by.
        name: of its output.
        error: relative L2 error of the graph's first output when only this product is quantised.
        input_sqnr, weight_sqnr: signal to quantisation noise of what it multiplies, in dB; None where there is no noise
            (or no weight).
    """

    label: str
    name: str
    error: float
    input_sqnr: float | None
    weight_sqnr: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sensitivities(
    model: ir.Model,
    chosen: Sequence[Target],
    places: Places,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    batches: Iterable[np.ndarray],
    *,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Sensitivity]:
    """Quantise one product at a time, and run.

    Args:
        model: the fp32 graph; it is not changed.
        chosen: products to try, found in it.
        places, ranges: of a plan that has all of them quantised.
        batches: float32 (N, C, H, W), as the graph takes them; held in memory.
        progress: hears how many products are done.
    """
    images = list(batches)
    params = all_params(places, ranges, scheme)
    noise = _input_sqnr(model, params, images, threads)
    wanted = _outputs(model, images, threads)
    found = []
    for done, target in enumerate(chosen, 1):
        one = model.clone()
        others = {other.name: other for other in find_targets(one, scheme)}
        alone = [others[target.name]]
        plan = {target.name: scheme.precision}
        insert(one, alone, plan, find_places(alone, plan, scheme), ranges, scheme)
        error = _relative(_outputs(one, images, threads), wanted)
        source = target.activations[0].name or ""
        found.append(Sensitivity(target.label, target.name, error, noise.get(source), _weight_sqnr(target, scheme)))
        if progress is not None:
            progress(done)
    return found


def _outputs(model: ir.Model, images: Sequence[np.ndarray], threads: int) -> list[np.ndarray]:
    with Probe(model, [model.graph.outputs[0].name or ""], threads=threads) as probe:
        return [value for batch in images for _, value in probe.run(feeds_of(model, batch))]


def _relative(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    off = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(got, wanted, strict=True))
    size = sum(float(np.square(b, dtype=np.float64).sum()) for b in wanted)
    return math.sqrt(off / max(size, 1e-300))


def _input_sqnr(
    model: ir.Model, params: Mapping[str, QuantParams], images: Sequence[np.ndarray], threads: int
) -> dict[str, float | None]:
    """Of each quantised activation, in dB."""
    signal, noise = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    with Probe(model, list(params), threads=threads) as probe:
        for batch in images:
            for name, value in probe.run(feeds_of(model, batch)):
                signal[name] += float(np.square(value, dtype=np.float64).sum())
                noise[name] += float(np.square(params[name].apply(value) - value, dtype=np.float64).sum())
    return {name: _decibel(signal[name], noise[name]) for name in params}


def _weight_sqnr(target: Target, scheme: Scheme) -> float | None:
    w = constant(target.node.inputs[1])
    if target.axis is None or w is None:
        return None
    axis = scale_axis(target, scheme)
    step = along(weight_step(w, axis, scheme.weight_peak, None, np.float32(1)), axis, w.ndim)
    rounded = scheme.weight_grid.nearest(w / step) * step
    return _decibel(float(np.square(w, dtype=np.float64).sum()), float(np.square(rounded - w, dtype=np.float64).sum()))


def _decibel(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None

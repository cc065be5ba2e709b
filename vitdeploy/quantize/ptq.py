"""Post-training static int8, the whole way: calibrate, choose ranges, write Q/DQ, correct biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel
from vitdeploy.graph.edit import sweep
from vitdeploy.graph.ops import macs, parameters
from vitdeploy.quantize.bias import correct_biases, correctable, mean_outputs
from vitdeploy.quantize.calibrate import cache_key, cached, calibrate, remember
from vitdeploy.quantize.clip import Range, find_range
from vitdeploy.quantize.fp16 import Fp16Report, to_fp16
from vitdeploy.quantize.int8 import Places, all_params, default_plan, find_places, insert, seen_through
from vitdeploy.quantize.observe import TensorStatistics
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.rounding import gather, rounding
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.sensitivity import Sensitivity, sensitivities
from vitdeploy.quantize.targets import Target, find_targets, matching, to_gemm

BATCH = 8  # images run at once where the graph's batch is dynamic
BIAS_IMAGES = 64  # enough for means: each image gives a row a token
SENSITIVITY_IMAGES = 8
NOTHING = "Nothing is left for int8 in this graph: no product with constant weights."
HALF_IMAGES = 8  # that what fp16 can hold is measured on


@dataclass(frozen=True)
class Int8Report:
    """What to_int8 did.

    Attributes:
        scheme: by name.
        options: as they were given.
        images: calibration images that were read; source and digest: where from, and of what.
        ops: each product: its label, op type, precision, MACs, and why it is in float where it is.
        macs: of all products; int8_macs: of those in int8.
        weight_bytes_before, weight_bytes_after: of all weights.
        fp16: what was done to the rest, where the scheme wants it in fp16.
    """

    scheme: str
    options: Int8Options
    images: int
    source: str
    digest: str
    ops: Sequence[Mapping[str, Any]]
    macs: int
    int8_macs: int
    weight_bytes_before: int
    weight_bytes_after: int
    fp16: Fp16Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Images:
    """Calibration images as this room needs them, whatever they come from.

    Attributes:
        batches: a fresh pass over them, at most so many at once: float32 (n, C, H, W).
        count: how many there are, unreadable ones included.
        digest: of their content and preprocessing.
        source: a word for the report.
    """

    batches: Callable[[int], Iterable[np.ndarray]]
    count: int
    digest: str
    source: str


def to_int8(
    model: ir.Model,
    images: Images,
    scheme: Scheme,
    options: Int8Options | None = None,
    *,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Int8Report:
    """Turn an fp32 graph into one with explicit int8 Q/DQ, in place.

    Args:
        model: the graph, with one input (N, C, H, W).
        images: what activations are measured on.
        scheme: how the runtime wants it.
        progress: hears how many images the sweep has read.

    Raises:
        UsageError: an unknown option, a pattern that matches nothing, an opset too old for the scheme, no images, or
            NaN or Inf in them or behind them.
        UnsupportedModel: nothing in the graph can run in int8.
    """
    options = options or Int8Options()
    options.check()
    scheme.check_opset(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))
    before = parameters(model)[1]
    if scheme.linear == "Gemm":
        to_gemm(model)
    targets = find_targets(model, scheme)
    kept = matching(targets, options.keep)
    plan = default_plan(targets)
    plan |= {t.name: "int8" for t in targets if options.attention and t.axis is None}
    plan |= dict.fromkeys(kept, "float")
    weighted = [target for target in targets if plan[target.name] == "int8" and target.axis is not None]
    if not weighted:
        raise UnsupportedModel(NOTHING)
    places = find_places(targets, plan, scheme)
    statistics, seen = _statistics(model, places, images, threads, progress)
    ranges = _ranges(places, statistics, scheme, options.method)
    few = _some(images, model)
    wanted: Mapping[str, np.ndarray] = {}
    if options.correct_bias:
        wanted = mean_outputs(model, {t.name: t.channels for t in weighted}, few(), threads=threads)
    learned = None
    if options.rounding == "learned":
        moments = gather(model, weighted, all_params(places, ranges, scheme), few(), BIAS_IMAGES, threads=threads)
        learned = rounding(moments, scheme.weight_peak)
    work = macs(model).nodes
    ops = [_described(target, plan, work, kept) for target in targets]
    insert(model, targets, plan, places, ranges, scheme, learned)
    if options.correct_bias:
        correct_biases(model, {name: wanted[name] for name in correctable(model)}, few(), threads=threads)
        sweep(model)
    total, integer = sum(op["macs"] for op in ops), sum(op["macs"] for op in ops if op["precision"] == "int8")
    half = to_fp16(model, list(islice(few(), -(-HALF_IMAGES // _batch(model))))) if scheme.rest == "fp16" else None
    sizes = before, parameters(model)[1]
    return Int8Report(scheme.name, options, seen, images.source, images.digest, ops, total, integer, *sizes, half)


def measure_sensitivity(
    model: ir.Model,
    images: Images,
    scheme: Scheme,
    options: Int8Options | None = None,
    *,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Sensitivity]:
    """What int8 costs at each product that `to_int8` would quantise, one at a time. The graph is not changed.

    Args:
        progress: hears how many products are done.

    Raises:
        UsageError, UnsupportedModel: as to_int8.
    """
    options = options or Int8Options()
    options.check()
    model = model.clone()
    if scheme.linear == "Gemm":
        to_gemm(model)
    targets = find_targets(model, scheme)
    plan = default_plan(targets) | dict.fromkeys(matching(targets, options.keep), "float")
    chosen = [target for target in targets if plan[target.name] == "int8"]
    if not chosen:
        raise UnsupportedModel(NOTHING)
    places = find_places(targets, plan, scheme)
    statistics, _ = _statistics(model, places, images, threads, None)
    ranges = _ranges(places, statistics, scheme, options.method)
    few = islice(_some(images, model)(), -(-SENSITIVITY_IMAGES // _batch(model)))
    return sensitivities(model, chosen, places, ranges, scheme, few, threads=threads, progress=progress)


def _ranges(
    places: Places, statistics: Mapping[str, TensorStatistics], scheme: Scheme, method: str
) -> dict[str, Range]:
    """What each quantised value covers. What a product writes is judged behind the function that reads it."""
    through = {name: seen_through(value) for name, value in places.outputs.items()}
    return {
        name: find_range(
            statistics[name], method, symmetric=scheme.symmetric, levels=scheme.levels, through=through.get(name)
        )
        for name in (*places.inputs, *places.outputs)
    }


def _statistics(
    model: ir.Model, places: Places, images: Images, threads: int, progress: Callable[[int], None] | None
) -> tuple[dict[str, TensorStatistics], int]:
    """The sweep, or the one that was kept from before; and how many images it read."""
    key = cache_key(model, images.digest, places.axes)
    known = cached(key)
    if known is not None:
        return known
    seen = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal seen
        for batch in images.batches(_batch(model)):
            seen += len(batch)
            yield batch

    found = calibrate(model, places.axes, _whole(counted(), model), threads=threads, progress=progress)
    remember(key, found, seen)
    return found, seen


def _batch(model: ir.Model) -> int:
    shape = model.graph.inputs[0].shape
    fixed = shape[0] if shape is not None else None
    return fixed if isinstance(fixed, int) else BATCH


def _whole(batches: Iterable[np.ndarray], model: ir.Model) -> Iterator[np.ndarray]:
    """Batches as the graph takes them: where its batch is fixed, a last one that is short starts over."""
    shape = model.graph.inputs[0].shape
    size = _batch(model) if shape is not None and isinstance(shape[0], int) else 0
    for batch in batches:
        yield batch if len(batch) >= size else batch[np.arange(size) % len(batch)]


def _some(images: Images, model: ir.Model) -> Callable[[], Iterable[np.ndarray]]:
    """A pass over the first images, as many as means need."""
    size = _batch(model)
    return lambda: _whole(islice(images.batches(size), -(-BIAS_IMAGES // size)), model)


def _described(target: Target, plan: Mapping[str, str], work: Mapping[str, int], kept: Sequence[str]) -> dict[str, Any]:
    integer = plan[target.name] == "int8"
    reason = ""
    if not integer:
        asked = "asked for" if target.name in kept else ""
        reason = asked or target.unfit or "the product of two activations: quantising both costs more than it saves"
    return {
        "label": target.label,
        "op_type": target.node.op_type,
        "precision": "int8" if integer else "float",
        "macs": work.get(target.node.name or target.name, 0),
        "reason": reason,
    }

"""Post-training static int8, the whole way: calibrate, choose ranges, write Q/DQ, correct biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.edit import sweep
from vitdeploy.graph.ops import macs, parameters
from vitdeploy.quantize.bias import correct_biases, correctable, mean_outputs
from vitdeploy.quantize.calibrate import cache_key, cached, calibrate, check_images, remember
from vitdeploy.quantize.clip import Range, find_range
from vitdeploy.quantize.clip_output import output_ranges, readers
from vitdeploy.quantize.equalize import Equalized, equalize
from vitdeploy.quantize.fp16 import Fp16Report, to_fp16
from vitdeploy.quantize.int8 import Places, all_params, default_plan, find_places, insert, seen_through
from vitdeploy.quantize.observe import TensorStatistics
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.rounding import gather, rounding
from vitdeploy.quantize.rows import Samples, sample
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.sensitivity import Sensitivity, sensitivities
from vitdeploy.quantize.targets import Target, find_targets, matching, to_gemm

BATCH = 8  # images run at once where the graph's batch is dynamic
SENSITIVITY_IMAGES = 8
HALF_IMAGES = 8  # that what fp16 can hold is measured on
FEW = 64  # images that are enough for means and for samples of rows: each gives a row a token


@dataclass(frozen=True)
class Int8Report:
    """What to_int8 did.

    Attributes:
        scheme: by name.
        options: as they were given.
        images: calibration images that were read; source and digest: where from, and of what.
        ops: each product: its label, op type, precision, MACs, and why it is in float where it is.
        equalized: each site whose channels were scaled or moved: the layer that writes it, technique, range of factors,
            and the relative error of the products that read it, before and after.
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
    equalized: Sequence[Mapping[str, Any]] = ()
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
    found = _prepare(model, images, scheme, options, threads, progress)
    work = macs(model).nodes
    ops = []
    for target in found.targets:
        precision, reason = _precision(target, found)
        ops.append(target.described(precision, work, reason))
    _write(model, found, scheme, options, threads)
    total, integer = sum(op["macs"] for op in ops), sum(op["macs"] for op in ops if op["precision"] == "int8")
    half = to_fp16(model, found.few[: -(-HALF_IMAGES // _batch(model))]) if scheme.rest == "fp16" else None
    return Int8Report(
        scheme=scheme.name,
        options=options,
        images=found.seen,
        source=images.source,
        digest=images.digest,
        ops=ops,
        macs=total,
        int8_macs=integer,
        weight_bytes_before=before,
        weight_bytes_after=parameters(model)[1],
        equalized=found.even.sites,
        fp16=half,
    )


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
    found = _prepare(model, images, scheme, options, threads, None)
    chosen = _weighted(found.targets, found.plan)
    few = found.few[: -(-SENSITIVITY_IMAGES // _batch(model))]
    return sensitivities(model, chosen, found.places, found.ranges, scheme, few, threads=threads, progress=progress)


@dataclass(frozen=True)
class Prepared:
    """What is known before the first Q/DQ is written.

    Attributes:
        targets: found in the graph as equalisation left it; plan: 'int8' or 'float' for each, by name.
        kept: names of those that the user wants in float.
        places, ranges: what gets Q/DQ, and the range that it covers.
        few: some of the images, as the graph takes them.
        seen: images that the sweep read.
        even: what was equalised.
    """

    targets: Sequence[Target]
    plan: Mapping[str, str]
    kept: Sequence[str]
    places: Places
    ranges: Mapping[str, Range]
    few: Sequence[np.ndarray]
    seen: int
    even: Equalized


def _prepare(
    model: ir.Model,
    images: Images,
    scheme: Scheme,
    options: Int8Options,
    threads: int,
    progress: Callable[[int], None] | None,
) -> Prepared:
    """Equalise the graph, in place, and choose ranges."""
    if scheme.linear == "Gemm":
        to_gemm(model)
    few = _some(images, model)
    targets = find_targets(model, scheme)
    kept = matching(targets, options.keep)
    plan = default_plan(targets)
    plan |= {t.name: "int8" for t in targets if options.attention and t.axis is None}
    plan |= dict.fromkeys(kept, "float")
    weighted = _weighted(targets, plan)
    if not weighted:
        raise UnsupportedModel("Nothing is left for int8 in this graph: no product with constant weights.")
    even = equalize(
        model,
        weighted,
        options.equalizers,
        scheme,
        few,
        clipped=options.method != "minmax",
        centred=options.correct_bias,
        threads=threads,
    )
    plan = {even.renamed.get(name, name): precision for name, precision in plan.items()}
    kept = [even.renamed.get(name, name) for name in kept]
    targets = find_targets(model, scheme)
    places = find_places(targets, plan, scheme)
    statistics, seen = _statistics(model, places, images, threads, progress)
    read = _weighted(targets, plan)
    ranges = _ranges(places, read, statistics, scheme, options, lambda some: sample(model, some, few, threads=threads))
    return Prepared(targets, plan, kept, places, ranges, few, seen, even)


def _write(model: ir.Model, found: Prepared, scheme: Scheme, options: Int8Options, threads: int) -> None:
    """Q/DQ into the graph, with weights rounded and biases corrected as the options say."""
    weighted = _weighted(found.targets, found.plan)
    wanted: Mapping[str, np.ndarray] = {}
    if options.correct_bias:
        wanted = mean_outputs(model, {t.name: t.channels for t in weighted}, found.few, threads=threads)
    learned = None
    if options.rounding == "learned":
        moments = gather(model, weighted, all_params(found.places, found.ranges, scheme), found.few, threads=threads)
        learned = rounding(moments, scheme.weight_peak)
    insert(model, found.targets, found.plan, found.places, found.ranges, scheme, learned)
    if options.correct_bias:
        correct_biases(model, {name: wanted[name] for name in correctable(model)}, found.few, threads=threads)
        sweep(model)


def _precision(target: Target, found: Prepared) -> tuple[str, str]:
    """'int8' or 'float', and why it is in float."""
    if found.plan[target.name] == "int8":
        return "int8", ""
    asked = "asked for" if target.name in found.kept else ""
    return "float", asked or target.unfit or "the product of two activations: quantising both costs more than it saves"


def _weighted(targets: Sequence[Target], plan: Mapping[str, str]) -> list[Target]:
    """Those with constant weights that will be int8."""
    return [target for target in targets if plan[target.name] == "int8" and target.axis is not None]


def _ranges(
    places: Places,
    targets: Sequence[Target],
    statistics: Mapping[str, TensorStatistics],
    scheme: Scheme,
    options: Int8Options,
    rows: Callable[[Sequence[Target]], Samples],
) -> dict[str, Range]:
    """What each quantised value covers. What a product writes is judged behind the function that reads it."""
    through = {name: seen_through(value) for name, value in places.outputs.items()}
    output = options.method == "output"
    method = "mse" if output else options.method
    found = {
        name: find_range(
            statistics[name], method, symmetric=scheme.symmetric, levels=scheme.levels, through=through.get(name)
        )
        for name in (*places.inputs, *places.outputs)
    }
    if output:
        reading = readers(places, targets)
        chosen = rows([target for products in reading.values() for target in products])
        found |= output_ranges(reading, chosen, found, scheme, centred=options.correct_bias)
    return found


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


def _some(images: Images, model: ir.Model) -> list[np.ndarray]:
    """Some of the images, evenly spread, in batches as the graph takes them: they may be sorted by class.

    Raises UsageError on NaN or Inf in any image.
    """
    size = _batch(model)
    chosen = set(np.linspace(0, images.count - 1, min(FEW, images.count)).round().astype(int).tolist())
    found: list[np.ndarray] = []
    done = 0
    for batch in images.batches(size):
        check_images(batch, done)
        found += [image.copy() for i, image in enumerate(batch, done) if i in chosen]
        done += len(batch)
    if not found:
        raise UsageError("There are no calibration images.")
    parts = max(-(-len(found) // size), min(2, len(found)))
    return list(_whole((np.stack(found[i::parts]) for i in range(parts)), model))  # each batch spread evenly too

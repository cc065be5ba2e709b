"""Post-training static int8 and fp8, the whole way: calibrate, choose ranges, write Q/DQ, correct biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.edit import sweep
from vitdeploy.graph.ops import macs, parameters
from vitdeploy.quantize.bias import correct_biases, correctable, mean_output
from vitdeploy.quantize.calibrate import cache_key, cached, calibrate, check_images, remember
from vitdeploy.quantize.clip import Range, find_range
from vitdeploy.quantize.clip_output import output_ranges, readers
from vitdeploy.quantize.equalize import Equalized, equalize
from vitdeploy.quantize.fp16 import Fp16Report, to_fp16
from vitdeploy.quantize.int8 import Places, all_params, default_plan, find_places, insert, seen_through
from vitdeploy.quantize.norms import lift_norms
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
        macs: of all products; quantised_macs: of those in int8 or fp8.
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
    quantised_macs: int
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


@dataclass(frozen=True)
class Prepared:
    """A float graph as equalisation left it, and what was measured of it before the first Q/DQ is written.

    It serves every plan that quantises no more products than `options` says: see `to_int8`.

    Attributes:
        kept: names of the products that `options` keeps in float.
        ranges: what each quantised value covers.
        means: of each channel that a product writes, by the product's name.
        few: some of the images, as the graph takes them.
        seen: images that the sweep read.
        even: what was equalised.
    """

    model: ir.Model
    scheme: Scheme
    options: Int8Options
    kept: Sequence[str]
    ranges: Mapping[str, Range]
    means: Mapping[str, np.ndarray]
    few: Sequence[np.ndarray]
    seen: int
    even: Equalized


def to_int8(
    model: ir.Model,
    images: Images,
    scheme: Scheme,
    options: Int8Options | None = None,
    *,
    prepared: Prepared | None = None,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Int8Report:
    """Turn an fp32 graph into one with explicit Q/DQ in the scheme's int8 or fp8, in place.

    Args:
        model: the graph, with one input (N, C, H, W).
        images: what activations are measured on.
        scheme: how the runtime wants it.
        prepared: what `prepare` found with the same images, scheme and options, but for layers that `options` keeps in
            float beyond them; then the graph is a clone of `prepared.model`, and nothing is measured again.
        progress: hears how many images the sweep has read.

    Raises:
        UsageError: an unknown option, a pattern that matches nothing, an opset too old for the scheme, no images, or
            NaN or Inf in them or behind them.
        UnsupportedModel: nothing in the graph can be quantised.
    """
    options = options or Int8Options()
    before = parameters(model)[1]
    found = prepared or prepare(model, images, scheme, options, threads=threads, progress=progress)
    layout = _layout(model, found, options.keep)
    work = macs(model).nodes
    ops = []
    for target in layout.targets:
        precision, reason = _precision(target, layout)
        ops.append(target.described(precision, work, reason))
    _write(model, found, layout, threads)
    total, done = sum(op["macs"] for op in ops), sum(op["macs"] for op in ops if op["precision"] != "float")
    half = to_fp16(model, found.few[: -(-HALF_IMAGES // _batch(model))]) if scheme.rest == "fp16" else None
    return Int8Report(
        scheme=scheme.name,
        options=options,
        images=found.seen,
        source=images.source,
        digest=images.digest,
        ops=ops,
        macs=total,
        quantised_macs=done,
        weight_bytes_before=before,
        weight_bytes_after=parameters(model)[1],
        equalized=found.even.sites,
        fp16=half,
    )


def measure_sensitivity(
    prepared: Prepared, *, threads: int = 0, progress: Callable[[int], None] | None = None
) -> list[Sensitivity]:
    """What it costs to quantise each product that `to_int8` would quantise, one at a time. The graph is not changed.

    Args:
        progress: hears how many products are done.
    """
    model, scheme = prepared.model, prepared.scheme
    layout = _layout(model, prepared)
    few = prepared.few[: -(-SENSITIVITY_IMAGES // _batch(model))]
    ranges = prepared.ranges
    return sensitivities(model, layout.weighted, layout.places, ranges, scheme, few, threads=threads, progress=progress)


def prepare(
    model: ir.Model,
    images: Images,
    scheme: Scheme,
    options: Int8Options,
    *,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Equalise an fp32 graph, in place, and measure what its quantisation needs.

    Raises as `to_int8` does.
    """
    options.check(scheme.precision)
    scheme.check_opset(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)))
    if scheme.linear == "Gemm":
        to_gemm(model)
    few = _some(images, model)
    targets = find_targets(model, scheme)
    kept = matching(targets, options.keep)
    before = _planned(targets, scheme, options, kept)
    even = equalize(
        model,
        before.weighted,
        options.equalizers,
        scheme,
        few,
        clipped=options.method != "minmax",
        centred=options.correct_bias,
        threads=threads,
    )
    kept = [even.renamed.get(name, name) for name in kept]
    layout = _planned(find_targets(model, scheme), scheme, options, kept)
    read = layout.weighted
    statistics, seen = _statistics(model, layout.places, images, threads, progress)
    samples = sample(model, read, few, threads=threads)
    ranges = _ranges(layout, statistics, scheme, options, samples)
    means = {t.name: mean_output(model, [t.node], samples.means[t.activations[0].name or ""], t.channels) for t in read}
    return Prepared(model, scheme, options, kept, ranges, means, few, seen, even)


@dataclass(frozen=True)
class _Layout:
    """A plan in one graph.

    Attributes:
        targets: found in it; plan: the scheme's precision or 'float' for each, by name.
        kept: names of those that the user wants in float.
        places: what gets Q/DQ.
    """

    targets: Sequence[Target]
    plan: Mapping[str, str]
    kept: Sequence[str]
    places: Places

    @property
    def weighted(self) -> list[Target]:
        """Those with constant weights that will be quantised."""
        return [target for target in self.targets if self.plan[target.name] != "float" and target.axis is not None]


def _layout(model: ir.Model, found: Prepared, keep: Sequence[str] = ()) -> _Layout:
    """The plan that `found` is for, with more layers in float, in its graph or a clone of it."""
    targets = find_targets(model, found.scheme)
    more = [pattern for pattern in keep if pattern not in found.options.keep]
    return _planned(targets, found.scheme, found.options, [*found.kept, *matching(targets, more)])


def _planned(targets: Sequence[Target], scheme: Scheme, options: Int8Options, kept: Sequence[str]) -> _Layout:
    """Raises UnsupportedModel where nothing is left to quantise."""
    plan = default_plan(targets, scheme.precision)
    plan |= {t.name: scheme.precision for t in targets if options.attention and t.axis is None and not t.unfit}
    plan |= dict.fromkeys(kept, "float")
    found = _Layout(targets, plan, kept, find_places(targets, plan, scheme))
    if not found.weighted:
        nothing = f"Nothing is left for {scheme.precision} in this graph: no product with constant weights"
        raise UnsupportedModel(f"{nothing} is fit for it.")
    return found


def _write(model: ir.Model, found: Prepared, layout: _Layout, threads: int) -> None:
    """Q/DQ into the graph, with weights rounded and biases corrected as the options say."""
    scheme, places, ranges = found.scheme, layout.places, found.ranges
    learned = None
    if found.options.rounding == "learned":
        moments = gather(model, layout.weighted, all_params(places, ranges, scheme), found.few, threads=threads)
        learned = rounding(moments, scheme.weight_peak, centred=found.options.correct_bias)
    insert(model, layout.targets, layout.plan, places, ranges, scheme, learned)
    if found.options.correct_bias:
        correct_biases(model, {name: found.means[name] for name in correctable(model)}, found.few, threads=threads)
        sweep(model)
    if scheme.lifted:
        lift_norms(model)


def _precision(target: Target, layout: _Layout) -> tuple[str, str]:
    """'int8', 'fp8' or 'float', and why it is in float."""
    if layout.plan[target.name] != "float":
        return layout.plan[target.name], ""
    asked = "asked for" if target.name in layout.kept else ""
    return "float", asked or target.unfit or "the product of two activations: quantising both costs more than it saves"


def _ranges(
    layout: _Layout,
    statistics: Mapping[str, TensorStatistics],
    scheme: Scheme,
    options: Int8Options,
    samples: Samples,
) -> dict[str, Range]:
    """What each quantised value covers. What a product writes is judged behind the function that reads it."""
    places = layout.places
    through = {name: seen_through(value) for name, value in places.outputs.items()}
    output = options.method == "output"
    method = "mse" if output else options.method
    found = {
        name: find_range(
            statistics[name], method, symmetric=scheme.symmetric, grid=scheme.grid, through=through.get(name)
        )
        for name in (*places.inputs, *places.outputs)
    }
    if output:
        reading = readers(places, layout.weighted)
        found |= output_ranges(reading, samples, found, scheme, centred=options.correct_bias)
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

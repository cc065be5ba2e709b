"""What each precision means to an export: how the graph becomes it, and what must then run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import Census
from vitdeploy.errors import PrecisionNotApplied, UsageError
from vitdeploy.export.program import PRODUCTS as PROGRAM_PRODUCTS
from vitdeploy.pipeline.request import ExportRequest, Steps
from vitdeploy.report.tables import mb
from vitdeploy.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from vitdeploy.data.image_set import ImageSet
    from vitdeploy.quantize.ptq import Prepared
    from vitdeploy.verify.collect import Case

RANGE_SAMPLES = 4  # images that activation ranges are measured on
MEMCPY = ("MemcpyFromHost", "MemcpyToHost")  # ONNX Runtime's copies around what it left to the CPU
# What a deliberate island may run as, at most: a program's attention, where nothing fuses it, is two products.
PRODUCTS = (
    {"Conv": 1, "MatMul": 1, "Gemm": 1} | dict.fromkeys(PROGRAM_PRODUCTS, 1) | {"scaled_dot_product_attention": 2}
)
SHORT = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Job:
    """What a conversion works on: the graph, in place, and all that is known about it.

    Attributes:
        samples: what fp16 measures activation ranges on, as the graph takes them.
        calib: what int8 and fp8 are calibrated on; by default the request's images.
        prepared: the calibration itself, where it was done before on the graph that `graph` is a clone of.
    """

    graph: ir.Model
    spec: ModelSpec
    request: ExportRequest
    steps: Steps
    samples: Sequence[np.ndarray]
    calib: ImageSet | None = None
    prepared: Prepared | None = None


Convert = Callable[[Job], dict[str, Any]]  # returns its reports by name, for the manifest
Told = Callable[[ExportRequest, Mapping[str, Any], Mapping[str, int]], list[str]]  # of the report and of what ran


@dataclass(frozen=True)
class Conversion:
    """One precision.

    Attributes:
        convert: turns the fp32 graph into it; None where the runtime does, or nothing needs to.
        told: holds what runs against what was asked; returns what to tell, raises PrecisionNotApplied on a miss.
        opset: the first that can express it.
    """

    convert: Convert | None = None
    told: Told | None = None
    opset: int = 1


def convert(job: Job) -> dict[str, Any]:
    """Convert the graph to the request's precision, and write that into it. Returns what was applied."""
    from vitdeploy.export.metadata import write_metadata

    precision = job.request.precision
    conversion = CONVERSIONS[precision]
    reports = {} if conversion.convert is None else conversion.convert(job)
    write_metadata(job.graph, job.spec, precision, job.request.batch)
    return {"precision": precision, **reports}


def lowest_opset(precision: str) -> int:
    """The first opset that can express a precision."""
    return CONVERSIONS[precision].opset


def precision_notes(request: ExportRequest, applied: Mapping[str, Any], census: Census | None) -> list[str]:
    """Hold what runs against what was asked. Returns what to tell; raises PrecisionNotApplied on a miss."""
    told, report = CONVERSIONS[request.precision].told, own_report(request.precision, applied)
    if not report.get("native", True):
        return [f"written for {report['scheme']}, verified on {request.backend}"]
    if census is None:
        return []
    copies = sum(sum(census.ops.get(op, {}).values()) for op in MEMCPY)
    notes = [f"{copies} copies between GPU and CPU within the graph"] if copies else []
    notes += census.notes
    if told is None:
        return notes
    ran: dict[str, int] = {}
    for kind, count in census.compute.items():
        if count:
            ran[SHORT.get(kind, kind)] = ran.get(SHORT.get(kind, kind), 0) + count
    resize = applied.get("embed", {}).get("products", 0)  # which always run in fp32, or in what all runs in
    ran["fp32"] = max(ran.get("fp32", 0) - resize, 0)
    return [*told(request, report, ran), *notes]


def own_report(precision: str, applied: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the precision's own conversion reported; empty where there is none."""
    return applied.get(precision.partition("+")[0], {})


def to_half(job: Job) -> dict[str, Any]:
    from vitdeploy.backends import registry
    from vitdeploy.quantize.fp16 import to_fp16

    request = job.request
    with job.steps.step("fp16") as detail:
        slow = registry.get(request.backend).slow_in_fp16(request.run)
        report = to_fp16(job.graph, job.samples, io_precision=request.io_precision, slow_in_fp16=slow)
        detail.append(f"{len(report.islands)} ops kept in fp32")
    return {"fp16": report.to_dict()}


def to_calibrated(job: Job) -> dict[str, Any]:
    from vitdeploy.pipeline.calibration import quantise

    return quantise(job.graph, job.spec, job.request, job.steps, job.calib, job.prepared)


def to_dynamic_int8(job: Job) -> dict[str, Any]:
    from vitdeploy.backends import registry
    from vitdeploy.quantize.dynamic import to_int8_dynamic

    scheme = registry.get(job.request.backend).scheme(job.request.run)
    with job.steps.step("int8") as detail:
        report = to_int8_dynamic(job.graph, scheme, keep=job.request.int8.keep)
        planned = sum(op["precision"] == "int8" for op in report.ops)
        detail += [f"{planned} of {len(report.ops)} compute ops", f"scheme {report.scheme}"]
    return {"int8-dynamic": report.to_dict()}


def to_stored(bits: int) -> Convert:
    """The conversion that stores weights in so many bits."""

    def store(job: Job) -> dict[str, Any]:
        from vitdeploy.backends import registry
        from vitdeploy.quantize.weight_only import to_weight_only

        if registry.get(job.request.backend).stores_weights:
            if job.request.int8.keep:
                raise UsageError(f"{job.request.backend} stores all weights alike: --keep is not for it.")
            return {}
        with job.steps.step("weights") as detail:
            report = to_weight_only(job.graph, bits, keep=job.request.int8.keep)
            stored = sum(op["precision"] == f"int{bits}" for op in report.ops)
            detail.append(f"int{bits} in {stored} of {len(report.ops)} layers")
            detail.append(f"weights {mb(report.weight_bytes_before)} -> {mb(report.weight_bytes_after)}")
        return {f"int{bits}-weights": report.to_dict()}

    return store


def range_samples(request: ExportRequest, cases: Sequence[Case]) -> list[np.ndarray]:
    """What activation ranges are measured on: the verification's inputs of the first batch size, real ones first."""
    first = [case for case in cases if len(case.image) == request.batches[0]]
    first.sort(key=lambda case: case.source != "data")
    return [case.image for case in first[: max(1, RANGE_SAMPLES // request.batches[0])]]


def half_notes(request: ExportRequest, report: Mapping[str, Any], ran: Mapping[str, int]) -> list[str]:
    """Compute in fp16 but for the islands, or fp16 storage where the provider promises no more."""
    from vitdeploy.backends import registry

    half, single = ran.get("fp16", 0), ran.get("fp32", 0) + ran.get("tf32", 0)
    backend = registry.get(request.backend)
    promise = backend.capabilities().precisions.get(request.precision, "")
    on_cpu = (request.run.provider or backend.settled(request.run).device) == "cpu"
    if on_cpu and "fp32 compute" in promise:
        if half == 0:
            return ["applied: fp16 storage, fp32 compute (this provider has no fp16 kernels)"]
        return [f"applied: fp16 storage; {half} of {half + single} compute ops run in fp16, the rest in fp32"]
    islands = sum(PRODUCTS.get(i["op_type"], 0) for i in report.get("islands", []))
    if single > islands:
        raise PrecisionNotApplied(
            f"fp16 was asked for, but {single} of {half + single} compute ops run in fp32 ({islands} on purpose).",
            fix="See `vitdeploy inspect` for the ops, and `vitdeploy doctor` for what this device computes in fp16.",
        )
    return [f"applied: fp16 compute in {half} ops, fp32 in {single}"]


def bf16_notes(request: ExportRequest, report: Mapping[str, Any], ran: Mapping[str, int]) -> list[str]:
    """Every product runs in bf16: the graph keeps none in fp32 on purpose."""
    done, total = ran.get("bf16", 0), sum(ran.values())
    if done < total or not done:
        raise PrecisionNotApplied(
            f"bf16 was asked for, but only {done} of {total} compute ops run in it.",
            fix="See `vitdeploy doctor` for what this device computes in bf16.",
        )
    return [f"applied: {report.get('storage', 'fp32')} storage, bf16 compute in all {done} compute ops"]


def planned_notes(precision: str) -> Told:
    """Every product that the plan has in int8 or fp8 must run so."""

    def notes(request: ExportRequest, report: Mapping[str, Any], ran: Mapping[str, int]) -> list[str]:
        planned = sum(op["precision"] == precision for op in report["ops"])
        done, total = ran.get(precision, 0), sum(ran.values())
        if done < planned:
            raise PrecisionNotApplied(
                f"{precision} was planned for {planned} compute ops, but only {done} of {total} run in {precision}.",
                fix="See `vitdeploy inspect` for the ops; --keep leaves a layer in float on purpose.",
            )
        share = report["quantised_macs"] / max(report["macs"], 1)
        return [f"applied: {precision} compute in {done} of {total} ops, {share:.0%} of the MACs"]

    return notes


def storage_notes(request: ExportRequest, report: Mapping[str, Any], ran: Mapping[str, int]) -> list[str]:
    """Weights are stored in few bits, and no product is computed in fewer than fp32 has."""
    others = {kind: count for kind, count in ran.items() if kind != "fp32"}
    if others:
        found = ", ".join(f"{count} in {kind}" for kind, count in others.items())
        raise PrecisionNotApplied(
            f"{request.precision} is computed in fp32, but of {sum(ran.values())} compute ops {found} run.",
            fix="Leave out the provider option that lowers the precision of compute.",
        )
    asked = f"int{report['bits']}"
    stored = sum(op["precision"] == asked for op in report["ops"])
    return [f"applied: {asked} weight storage in {stored} of {len(report['ops'])} layers, fp32 compute"]


CONVERSIONS: Mapping[str, Conversion] = {
    "fp32": Conversion(),
    "fp16": Conversion(to_half, half_notes),
    "bf16": Conversion(told=bf16_notes),
    "fp8": Conversion(to_calibrated, planned_notes("fp8"), opset=19),
    "int8": Conversion(to_calibrated, planned_notes("int8")),
    "int8+bf16": Conversion(to_calibrated, planned_notes("int8")),
    "int8-dynamic": Conversion(to_dynamic_int8, planned_notes("int8")),
    "int8-weights": Conversion(to_stored(8), storage_notes),
    "int4-weights": Conversion(to_stored(4), storage_notes, opset=21),
}

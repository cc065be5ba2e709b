"""From the user's calibration images to an int8 or fp8 graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitdeploy.data.image_set import ImageSet, open_images, synthetic_set
from vitdeploy.errors import UnsupportedModel
from vitdeploy.pipeline.request import ExportRequest, Steps
from vitdeploy.quantize import schemes
from vitdeploy.quantize.ptq import Images, Prepared, measure_sensitivity, prepare, to_int8
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.spec import InputSpec, ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

RANDOM_IMAGES = 16
NAMED = 3  # unreadable images that are named one by one
RANDOM_NOTE = "Calibrated on synthetic images: the file's latency is real, its accuracy is not."


def quantise(
    graph: ir.Model,
    spec: ModelSpec,
    request: ExportRequest,
    steps: Steps,
    calib: ImageSet | None = None,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Quantise the graph, in place, as the request says; `calib` takes the place of its images.

    With `prepared`, as `ptq.to_int8` takes it, the images are not read.

    Returns:
        For the manifest: 'int8' or 'fp8' with Int8Report's values, the images left out, and whether the dialect is the
        backend's own; and 'fp16' where the rest went that way.

    Raises:
        UsageError: calibration images that cannot be used.
        UnsupportedModel: the backend has no such precision.
    """
    scheme, native = dialect(request)
    chosen = calib or calibration_images(request, spec.input)
    images = as_images(chosen)

    def progress(done: int) -> None:
        steps.listener.progress(done, len(chosen))

    sensitivity = []
    if request.sensitivity:
        prepared = prepared or prepare(graph, images, scheme, request.int8, progress=progress)
        sensitivity = measured_sensitivity(prepared, steps)
    with steps.step(scheme.precision) as detail:
        report = to_int8(graph, images, scheme, request.int8, prepared=prepared, progress=progress)
        planned = sum(op["precision"] == scheme.precision for op in report.ops)
        detail += [
            f"{report.images} images",
            f"{planned} of {len(report.ops)} compute ops",
            f"scheme {report.scheme}, ranges by {report.options.method}",
        ]
        detail += [f"{len(report.equalized)} sites equalised"] if report.equalized else []
        if report.fp16 is not None:
            detail.append(f"the rest in fp16, {len(report.fp16.islands)} ops kept in fp32")
    tell_skipped(chosen, steps)
    if request.calib_random:
        steps.note(RANDOM_NOTE)
    done = report.to_dict()
    half = done.pop("fp16")
    done |= {"skipped": list(chosen.skipped), "native": native, "sensitivity": sensitivity}
    return {scheme.precision: done} if half is None else {scheme.precision: done, "fp16": half}


def dialect(request: ExportRequest) -> tuple[Scheme, bool]:
    """The scheme to write, and whether the backend computes what it says. fp8 is also written where none does."""
    from vitdeploy.backends import registry

    try:
        own = registry.get(request.backend).scheme(request.run, request.precision.partition("+")[0])
    except UnsupportedModel:
        foreign = request.scheme or schemes.FOREIGN.get(request.precision)
        if foreign is None:
            raise
        return schemes.get(foreign), False
    scheme = own if request.scheme is None else schemes.get(request.scheme)
    return scheme, scheme == own


def measured_sensitivity(prepared: Prepared, steps: Steps) -> list[dict[str, Any]]:
    """What quantising each product alone costs, the dearest first."""
    with steps.step("sensitivity") as detail:
        found = measure_sensitivity(prepared)
        found.sort(key=lambda one: -one.error)
        detail += [
            f"{len(found)} ops, each alone quantised",
            f"most at {found[0].label}: {found[0].error:.2%} of the logits",
        ]
    return [one.to_dict() for one in found]


def calibration_images(request: ExportRequest, spec: InputSpec) -> ImageSet:
    if request.calib is None:
        return synthetic_set(spec, RANDOM_IMAGES, seed=1)  # verification looks at other seeds' images
    return open_images(request.calib, spec, limit=request.calib_images, strict=request.strict)


def as_images(chosen: ImageSet) -> Images:
    def batches(size: int) -> Iterator[np.ndarray]:
        for images, _ in chosen.batches(size):
            yield images

    digest = hashlib.sha256(f"{chosen.digest()} {chosen.spec}".encode()).hexdigest()
    return Images(batches, len(chosen), digest, chosen.source)


def tell_skipped(chosen: ImageSet, steps: Steps) -> None:
    for sentence in chosen.skipped[:NAMED]:
        steps.note(f"Left out: {sentence}")
    if len(chosen.skipped) > NAMED:
        steps.note(f"Left out: {len(chosen.skipped) - NAMED} more images that cannot be read.")

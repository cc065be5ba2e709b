"""From the user's calibration images to an int8 graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitdeploy.data.image_set import ImageSet, open_images, synthetic_set
from vitdeploy.pipeline.request import ExportRequest, Steps
from vitdeploy.quantize.ptq import Images, to_int8
from vitdeploy.spec import InputSpec, ModelSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

RANDOM_IMAGES = 16
NAMED = 3  # unreadable images that are named one by one
RANDOM_NOTE = "Calibrated on synthetic images: the file's latency is real, its accuracy is not."


def quantise(graph: ir.Model, spec: ModelSpec, request: ExportRequest, steps: Steps) -> dict[str, Any]:
    """Quantise the graph, in place, as the request says. Returns Int8Report's values, and the images left out.

    Raises UsageError on calibration images that cannot be used, UnsupportedModel where the backend has no int8.
    """
    from vitdeploy.backends import registry

    scheme = registry.get(request.backend).scheme(request.run)
    chosen = calibration_images(request, spec.input)
    with steps.step("int8") as detail:
        report = to_int8(
            graph,
            as_images(chosen),
            scheme,
            request.int8,
            progress=lambda done: steps.listener.progress(done, len(chosen)),
        )
        planned = sum(op["precision"] == "int8" for op in report.ops)
        detail += [
            f"{report.images} images",
            f"{planned} of {len(report.ops)} compute ops",
            f"scheme {report.scheme}, ranges by {report.options.method}",
        ]
        detail += [f"{len(report.equalized)} sites equalised"] if report.equalized else []
    tell_skipped(chosen, steps)
    if request.calib_random:
        steps.note(RANDOM_NOTE)
    return {**report.to_dict(), "skipped": list(chosen.skipped)}


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

"""What is wrong with a request, told before anything heavy is imported."""

from __future__ import annotations

import math
from dataclasses import replace

from vitdeploy.errors import UsageError
from vitdeploy.export.trace import OPSET, OPSETS
from vitdeploy.models.build import check
from vitdeploy.pipeline.request import LAYOUTS, ExportRequest
from vitdeploy.pipeline.triton import check_triton
from vitdeploy.quantize import schemes
from vitdeploy.quantize.options import Int8Options
from vitdeploy.spec import CALIBRATED, LARGEST_BATCH, PRECISIONS


def check_request(request: ExportRequest) -> None:
    """Raise UsageError, or UnsupportedModel, on what cannot work."""
    for what, value in (("precision", request.precision), ("io_precision", request.io_precision)):
        if value not in PRECISIONS:
            raise UsageError(f"Unknown {what} '{value}': one of {', '.join(PRECISIONS)}.")
    if request.io_precision not in ("fp32", "fp16"):
        raise UsageError("Inputs and outputs are fp32 or fp16.")
    if request.precision != "fp16" and request.io_precision == "fp16":
        raise UsageError("fp16 inputs and outputs need --precision fp16.")
    check_calibration(request)
    if request.int8.keep and request.precision in ("fp32", "fp16", "bf16"):
        raise UsageError(f"--keep leaves layers out of int8, fp8 or int4, and {request.precision} is none of them.")
    check_layout(request)
    check_embed(request)
    check_common(request)


def check_layout(request: ExportRequest) -> None:
    if request.layout not in LAYOUTS:
        raise UsageError(f"Unknown layout '{request.layout}': one of {', '.join(LAYOUTS)}.")
    if request.layout == "triton":
        check_triton(request)


def check_embed(request: ExportRequest) -> None:
    """What cannot be around a model in a file."""
    request.embed.check()
    if request.embed.embed_preprocessing and request.batch != 1:
        raise UsageError("A file with its preprocessing inside takes one frame at a time.", fix="Use --batch 1.")
    inside = request.embed.embed_preprocessing or request.embed.embed_postprocessing
    if inside and request.io_precision != "fp32":
        raise UsageError(
            "Preprocessing and postprocessing in the file take and give fp32.", fix="Leave --io-precision."
        )
    if inside and request.layout != "plain":
        raise UsageError(f"--layout {request.layout} is for models that take and give tensors alone.")


def check_common(request: ExportRequest) -> None:
    """What is wrong whatever the precision."""
    check_batch(request.batch)
    if request.opset is not None and request.opset not in OPSETS:
        raise UsageError(f"Opset {request.opset} is not one from {OPSETS.start} to {OPSETS.stop - 1}.")
    if request.run.threads < 0 or request.duration < 0 or request.warmup < 0:
        raise UsageError("Threads, warm-up and duration cannot be negative.")
    check_tolerance(request.tolerance)
    for path in (request.data, request.calib):
        if path is not None and not path.exists():
            raise UsageError(f"There is no {path}.")
    check(request.model, request.build)


def check_calibration(request: ExportRequest) -> None:
    given = request.calib is not None or request.calib_random
    if request.precision not in CALIBRATED:
        if request.sensitivity:
            raise UsageError("The sensitivity of ops is measured for --int8 and --fp8.")
        if given:
            raise UsageError("Calibration images are for --int8 and --fp8.")
        if request.scheme is not None:
            raise UsageError("A scheme is for --int8 and --fp8.")
        if replace(request.int8, keep=()) != Int8Options():
            raise UsageError("How to find ranges, equalise, round and correct biases is for --int8 and --fp8.")
        return
    if not given:
        raise UsageError(
            f"{request.precision} needs images to measure activations on.",
            fix="Give --calib FOLDER with a few hundred photos of the kind that the model will see, or --calib-random "
            "for a file whose latency is all that counts.",
        )
    if request.calib is not None and request.calib_random:
        raise UsageError("--calib and --calib-random contradict each other.")
    if request.calib_images < 1:
        raise UsageError(f"{request.calib_images} calibration images are too few.")
    check_scheme(request)


def check_scheme(request: ExportRequest) -> None:
    """Refuse a dialect of another precision, options that the precision has no use for, and an opset too old."""
    precision = request.precision.partition("+")[0]
    request.int8.check(precision)
    name = request.scheme or schemes.FOREIGN.get(precision)
    if name is None:
        return
    scheme = schemes.get(name)
    if scheme.precision != precision:
        fitting = ", ".join(other for other in schemes.SCHEMES if schemes.get(other).precision == precision)
        raise UsageError(f"The scheme {name} is for {scheme.precision}.", fix=f"{precision} has {fitting}.")
    scheme.check_opset(request.opset or OPSET)


def check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UsageError(f"The tolerance {tolerance} is not a positive number.")


def check_batch(batch: int | tuple[int, int, int]) -> None:
    sizes = (batch,) if isinstance(batch, int) else batch
    text = ":".join(map(str, sizes))
    if any(n < 1 for n in sizes):
        raise UsageError(f"Batch {text} is not positive.")
    if any(n > LARGEST_BATCH for n in sizes):
        raise UsageError(f"Batch {text} is larger than {LARGEST_BATCH}.")
    if list(sizes) != sorted(sizes):
        raise UsageError(f"Batch {text} is not min:opt:max in rising order.")
    if len(sizes) == 3 and sizes[0] == sizes[2]:
        raise UsageError(f"Batch {text} leaves nothing dynamic.", fix=f"Use --batch {sizes[0]}.")

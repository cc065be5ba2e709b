"""What a pipeline is asked to do, and who hears how it goes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UsageError
from vitdeploy.export.trace import OPSET, OPSETS
from vitdeploy.models.build import BuildOptions, Built, check
from vitdeploy.quantize import schemes
from vitdeploy.quantize.options import Int8Options
from vitdeploy.spec import CALIBRATED, LARGEST_BATCH, PRECISIONS

LAYOUTS = ("plain", "triton")


@dataclass(frozen=True)
class ExportRequest:
    """What an export is asked to do.

    Attributes:
        model: see models.build.build.
        build: about the model and its weights.
        precision: one of spec.PRECISIONS.
        io_precision: of the graph's input and output.
        backend: by name.
        batch: a fixed size, or (min, opt, max).
        opset: of the default ONNX domain; None leaves it to the backend and the precision.
        run: device, threads and the like.
        data: real images that verification also uses.
        calib: images that int8 and fp8 are calibrated on: whatever data.image_set.open_images reads.
        calib_random: calibrate on synthetic images instead, which is for latency work only.
        calib_images: how many of them at most, evenly spread.
        strict: a calibration image that cannot be read is an error.
        int8: how to quantise; of it, what has less than 16 bits all takes `keep`.
        scheme: whose dialect of Q/DQ to write; None takes the backend's own for this machine.
        sensitivity: int8, fp8: also measure the error of each op alone.
        tolerance: on the maximum error relative to the largest logit; None takes the precision's.
        bench: measure latency; warmup, duration: its seconds.
        layout: of the artifact's folder, one of LAYOUTS.
        out: the artifact's folder; None derives it from model and precision.
        force: replace an existing artifact.
    """

    model: str
    build: BuildOptions = field(default_factory=BuildOptions)
    precision: str = "fp32"
    io_precision: str = "fp32"
    backend: str = "onnxruntime"
    batch: int | tuple[int, int, int] = 1
    opset: int | None = None
    run: RunOptions = field(default_factory=RunOptions)
    data: Path | None = None
    calib: Path | None = None
    calib_random: bool = False
    calib_images: int = 256
    strict: bool = False
    int8: Int8Options = field(default_factory=Int8Options)
    scheme: str | None = None
    sensitivity: bool = False
    tolerance: float | None = None
    bench: bool = True
    warmup: float = 0.5
    duration: float = 3.0
    layout: str = "plain"
    out: Path | None = None
    force: bool = False

    @property
    def folder(self) -> Path:
        """Where the artifact goes."""
        if self.out is not None:
            return self.out
        name = re.sub(r"^(timm:|hf[-_]hub:)", "", self.model).replace(".py:", "-")
        name = re.sub(r"[^\w.\-]+", "-", Path(name).name).strip("-.") or "model"
        scheme = (self.scheme or "").removesuffix(f"-{self.precision}")
        return Path("-".join(filter(None, (name, self.precision, scheme))))

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes to verify: the fixed one, or the smallest and another of a range."""
        if isinstance(self.batch, int):
            return (self.batch,)
        low, opt, high = self.batch
        return (low, opt if opt != low else high)


class Listener:
    """Hears what a pipeline does. This one says nothing; the console's prints."""

    def model(self, built: Built) -> None:
        """The model is built."""

    def started(self, name: str) -> None:
        """A step begins."""

    def step(self, name: str, detail: str, seconds: float) -> None:
        """A step ended."""

    def progress(self, done: int, total: int) -> None:
        """So many images of the running step are done."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Steps:
    """Times the steps, tells the listener, and keeps them for the manifest."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.done: list[dict[str, Any]] = []
        self.notes: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; the body puts its detail into the list that it is given."""
        detail: list[str] = []
        self.listener.started(name)
        start = time.perf_counter()
        yield detail
        seconds = time.perf_counter() - start
        text = "   ".join(detail)
        self.done.append({"name": name, "seconds": round(seconds, 3), "detail": text})
        self.listener.step(name, text, seconds)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.listener.note(text)


def check_request(request: ExportRequest) -> None:
    """Refuse what cannot work before anything heavy is imported."""
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
    check_common(request)


def check_layout(request: ExportRequest) -> None:
    from vitdeploy.pipeline.triton import check_triton

    if request.layout not in LAYOUTS:
        raise UsageError(f"Unknown layout '{request.layout}': one of {', '.join(LAYOUTS)}.")
    if request.layout == "triton":
        check_triton(request)


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


def request_record(request: ExportRequest) -> dict[str, Any]:
    """The request as JSON values, for the manifest."""
    record = asdict(request)
    record["batch"] = request.batch if isinstance(request.batch, int) else list(request.batch)
    for name in ("data", "calib", "out"):
        record[name] = None if record[name] is None else str(record[name])
    record["build"] = {k: list(v) if isinstance(v, tuple) else v for k, v in record["build"].items()}
    record["int8"]["keep"] = list(request.int8.keep)
    record["run"]["provider_options"] = dict(record["run"]["provider_options"])
    return record

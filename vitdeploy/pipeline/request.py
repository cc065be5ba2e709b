"""What a pipeline is asked to do, and who hears how it goes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.backends.base import RunOptions
from vitdeploy.export.options import EmbedOptions
from vitdeploy.models.build import BuildOptions, Built
from vitdeploy.quantize.options import Int8Options

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
        embed: what is put into the file around the model.
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
    embed: EmbedOptions = field(default_factory=EmbedOptions)
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


def request_record(request: ExportRequest) -> dict[str, Any]:
    """The request as JSON values, for the manifest."""
    record = asdict(request)
    record["batch"] = request.batch if isinstance(request.batch, int) else list(request.batch)
    for name in ("data", "calib", "out"):
        record[name] = None if record[name] is None else str(record[name])
    record["build"] = {k: list(v) if isinstance(v, tuple) else v for k, v in record["build"].items()}
    record["embed"] = {k: list(v) if isinstance(v, tuple) else v for k, v in record["embed"].items()}
    record["int8"]["keep"] = list(request.int8.keep)
    record["run"]["provider_options"] = dict(record["run"]["provider_options"])
    return record

"""ExecuTorch: a .pte file, made by its own converter and run by its own runtime with XNNPACK."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitdeploy.backends.base import (
    POSTPROCESSING,
    PREPROCESSING,
    Backend,
    Capabilities,
    Census,
    Program,
    RunOptions,
    Session,
    closed_session_error,
)
from vitdeploy.backends.executorch_file import FORWARD, IDENTIFIER, REPORT, check_whole, products, read
from vitdeploy.backends.library import check_options, check_program, installed, save_program, whole, words
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

INSTALL = "pip install 'vitdeploy[executorch]'"
PRECISIONS = {
    "fp32": "fp32 compute",
    "fp16": "fp16 compute of products, sums and most of the rest; norms are summed in fp32",
    "int8": "int8 compute of products with weights, fp32 around them",
    "int8-dynamic": "int8 compute of linear layers, activations rounded as they come",
}


class ExecuTorchBackend(Backend):
    """The artifact is a .pte file of a fixed batch, whose method `forward` takes `image` and returns `logits`."""

    name = "executorch"
    source = "program"
    dynamic_batch = False
    embeds = (PREPROCESSING, POSTPROCESSING)

    def capabilities(self) -> Capabilities:
        found = installed("executorch")
        if found is None:
            return Capabilities(False, reason="executorch is not installed", fix=INSTALL)
        return Capabilities(True, found, ("cpu",), PRECISIONS)

    def made(self, model: Path) -> bool:
        try:
            with model.open("rb") as file:
                head = file.read(8)
        except OSError:
            return False
        return head[4:6] == IDENTIFIER and head[6:8].isdigit()

    def describe(self, model: Path) -> dict[str, Any]:
        found = read(model)
        return {
            "format": "ExecuTorch program",
            "inputs": [asdict(spec) for spec in found.inputs],
            "outputs": [asdict(spec) for spec in found.outputs],
            "ops": {op: sum(kinds.values()) for op, kinds in found.census.ops.items()},
            "compute": dict(found.census.compute),
            "macs": sum(one["macs"] for one in products(found)),
            "delegated": sum(not op.portable for op in found.ops),
            "portable": sum(op.portable for op in found.ops),
        }

    def compile_report(self, model: Path) -> dict[str, Any]:
        found = read(model)
        report: dict[str, Any] = json.loads(found.constants.get(REPORT, "{}"))
        for precision, own in report.items():
            if precision.startswith("int8"):
                ops = products(found)
                quantised = sum(one["macs"] for one in ops if one["precision"] == "int8")
                own |= {"ops": ops, "macs": sum(one["macs"] for one in ops), "quantised_macs": quantised}
        return report

    def _check(self, options: RunOptions) -> None:
        check(options)

    def _compile_program(self, program: Program, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends import isolate
        from vitdeploy.backends.executorch_convert import convert

        check(options)
        check_installed()
        check_program(program, "ExecuTorch", precision, PRECISIONS)
        assert isinstance(program.batch, int)
        if precision == "fp16" and program.frame is not None:
            raise UnsupportedModel(
                "ExecuTorch files in fp16 cannot have their preprocessing inside: levels of pixels need fp32.",
                fix="Use fp32, int8 or int8-dynamic, or leave the preprocessing to the app.",
            )
        model = folder / "model.pte"
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            saved, images = Path(name) / "program.pt2", Path(name) / "images.npy"
            save_program(program, saved)
            if precision == "int8":
                np.save(images, whole(program.images(program.batch), program.batch))
            elif precision == "fp16":
                np.save(images, np.concatenate(program.samples))
            work = (saved, model, program.takes, program.gives, precision, images, dict(program.metadata))
            isolate.call(convert, *work, what="ExecuTorch's converter")
        return [model]

    def _open(self, model: Path, options: RunOptions) -> Session:
        check(options)
        check_installed()
        return ExecuTorchSession(model, options)


class Threads:
    """The one pool of threads that all programs of a process share; a program that is loaded keeps a pointer to it.

    Attributes:
        made: how often it was made anew. What was loaded before must be loaded again.
    """

    def __init__(self) -> None:
        self.made = 0
        self.lock = threading.RLock()
        self._usual = 0

    def set(self, library: Any, threads: int) -> int:
        """Make the pool so large, 0 for the runtime's own number; returns `made`."""
        have = library._threadpool_get_thread_count()
        self._usual = self._usual or have
        if have != (threads or self._usual):
            library._unsafe_reset_threadpool(threads or self._usual)
            self.made += 1
        return self.made


POOL = Threads()


class ExecuTorchSession(Session):
    """A program and its method `forward`. `native` is ExecuTorch's program, None once closed."""

    def __init__(self, model: Path, options: RunOptions) -> None:
        check_whole(model)
        self._model, self._threads = model, options.threads
        found = read(model)
        self.inputs, self.outputs = found.inputs, found.outputs
        self.native: Any = None
        self._method: Any = None
        self._loaded = -1
        try:
            with POOL.lock, silent():
                from executorch.extension.pybindings import portable_lib

                self._library: Any = portable_lib
                verification = portable_lib.Verification.InternalConsistency
                self.native = portable_lib._load_program(str(model), program_verification=verification)
                self._load()
        except Exception as error:
            raise UsageError(f"{model} is not an ExecuTorch program that can be opened: {words(error)}.") from error

    def _load(self) -> None:
        """Load the method, again where the pool of threads that it knows is gone."""
        if self._loaded != POOL.set(self._library, self._threads):
            self._method = None
            self._method = self.native.load_method(FORWARD)
            self._loaded = POOL.made

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        if self.native is None:
            raise closed_session_error("ExecuTorch")
        arrays = [feeds[spec.name] for spec in self.inputs]
        given = [np.require(array, array.dtype.newbyteorder("="), ["C", "W"]) for array in arrays]
        try:
            with POOL.lock:
                if self._loaded != POOL.made:
                    with silent():
                        self._load()
                results = self._method([torch.from_numpy(array) for array in given])
        except Exception as error:
            raise BackendError(f"ExecuTorch failed: {words(error)}.") from error
        return {spec.name: one.numpy() for spec, one in zip(self.outputs, results, strict=True)}

    def census(self) -> Census:
        """Ops of the file: those of XNNPACK's graphs, and those that portable kernels run."""
        if self.native is None:
            raise closed_session_error("ExecuTorch")
        return read(self._model).census

    def close(self) -> None:
        self._method = None
        self.native = None


@contextmanager
def silent() -> Iterator[None]:
    """Keep what native code writes to standard error off it: the runtime logs there whatever it does."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(sink)
        os.close(kept)


def check(options: RunOptions) -> None:
    """Raises UsageError on what ExecuTorch has no use for."""
    check_options(options, "ExecuTorch", "optimises when a file is made")


def check_installed() -> None:
    """Raises MissingDependency where files can be neither made nor run."""
    if installed("executorch") is None:
        raise MissingDependency("executorch, which makes and runs .pte files, is not installed.", fix=INSTALL)

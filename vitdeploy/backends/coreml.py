"""Core ML: a .mlpackage for Apple's devices, made by coremltools on any machine, run by Core ML on a Mac.

Elsewhere the written file is read again and its program runs in PyTorch, which is said wherever it is told of: see
vitdeploy.backends.coreml_stand_in.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vitdeploy.backends.base import (
    Backend,
    Capabilities,
    Census,
    Program,
    RunOptions,
    Session,
    closed_session_error,
)
from vitdeploy.backends.coreml_file import DATA, MODEL, PACKAGE, Facts, convert, root
from vitdeploy.backends.coreml_file import describe as describe_file
from vitdeploy.backends.coreml_file import read as read_file
from vitdeploy.backends.coreml_file import report as report_of_file
from vitdeploy.backends.library import check_options, check_program, installed, words
from vitdeploy.errors import BackendError, MissingDependency, UsageError
from vitdeploy.staging import files_in

INSTALL = "pip install 'vitdeploy[coreml]'"
PRECISIONS = {
    "fp32": "fp32 compute, on CPU and GPU",
    "fp16": "fp16 compute, also on the Neural Engine",
    "int8-weights": "int8 storage, fp32 compute",
}
UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE"}
ELSEWHERE = "files can be made but not run: Core ML runs on macOS alone"


class CoreMlBackend(Backend):
    """The artifact is a .mlpackage of a fixed batch, with the input `image` and the output `logits`."""

    name = "coreml"
    source = "program"
    usual_device = "all"
    dynamic_batch = False
    stand_in = "the written file's program, op by op in PyTorch, and not Core ML"

    def capabilities(self) -> Capabilities:
        found = installed("coremltools")
        if found is None:
            return Capabilities(False, reason="coremltools is not installed", fix=INSTALL)
        if not runs_here():
            return Capabilities(True, found, (), PRECISIONS, ELSEWHERE, "Run them on a Mac.")
        return Capabilities(True, found, tuple(UNITS), PRECISIONS)

    def compiles_ahead(self, options: RunOptions) -> bool:
        return not runs_here()

    def made(self, model: Path) -> bool:
        model = root(model)
        try:
            with model.open("rb") as file:
                return model.suffix == Path(MODEL).suffix and file.read(1) == b"\x08"  # the specification's version
        except OSError:
            return False

    def describe(self, model: Path) -> dict[str, Any]:
        from vitdeploy.backends import isolate

        check_installed()
        return isolate.call(describe_file, root(model), what="coremltools")

    def compile_report(self, model: Path) -> dict[str, Any]:
        from vitdeploy.backends import isolate

        return isolate.call(report_of_file, root(model), what="coremltools")

    def _check(self, options: RunOptions) -> None:
        check(options)

    def _compile_program(self, program: Program, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        import torch

        from vitdeploy.backends import isolate
        from vitdeploy.export.program import export_program
        from vitdeploy.export.program_norms import fold_norms_of
        from vitdeploy.export.trace import quiet

        check(options)
        check_installed()
        check_program(program, "Core ML", precision, PRECISIONS)
        package = folder / PACKAGE
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            saved = Path(name) / "program.pt2"
            with quiet():
                exported = export_program(program.module, program.shape, batch=program.batch)
                fold_norms_of(exported)
                torch.export.save(exported, saved)
            del exported
            about = f"Made by vitdeploy, {precision}"
            facts = Facts(about, program.metadata.get("vitdeploy.input", ""), dict(program.metadata))
            given = (saved, package, program.takes, program.gives, precision, facts)
            isolate.call(convert, *given, what="Core ML's converter")
        model = package / "Data" / DATA / MODEL
        return [model, *(file for file in files_in(package) if file != model)]

    def _open(self, model: Path, options: RunOptions) -> Session:
        check(options)
        check_installed()
        if not runs_here():
            raise MissingDependency(
                "Core ML runs on macOS alone.", fix="`vitdeploy verify` proves the file here with a stand-in."
            )
        return CoreMlSession(checked(self, model), options)

    def _open_stand_in(self, model: Path, options: RunOptions) -> Session:
        from vitdeploy.backends.coreml_stand_in import StandIn

        check(options)
        check_installed()
        return StandIn(checked(self, model), options.threads)


class CoreMlSession(Session):
    """A model that Core ML has compiled and loaded. `native` is coremltools' MLModel, None once closed."""

    def __init__(self, model: Path, options: RunOptions) -> None:
        import coremltools as ct

        found = read_file(model)
        self.inputs, self.outputs, self._census = found.inputs, found.outputs, found.census
        units = getattr(ct.ComputeUnit, UNITS[options.device])
        try:
            self.native: Any = ct.models.MLModel(str(model.parents[2]), compute_units=units)
        except Exception as error:
            raise UsageError(f"{model} is not a Core ML model that can be opened: {words(error)}.") from error

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.native is None:
            raise closed_session_error("Core ML")
        try:
            given = {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in feeds.items()}
            made = self.native.predict(given)
            return {spec.name: np.array(made[spec.name], spec.dtype).reshape(spec.example) for spec in self.outputs}
        except Exception as error:
            raise BackendError(f"Core ML failed: {words(error)}.") from error

    def census(self) -> Census:
        """Ops of the file, by the types that they are given: where Core ML runs them it decides on the device."""
        if self.native is None:
            raise closed_session_error("Core ML")
        return self._census

    def close(self) -> None:
        self.native = None


def runs_here() -> bool:
    """Whether this is a system that has Core ML."""
    return sys.platform == "darwin"


def checked(backend: CoreMlBackend, model: Path) -> Path:
    """The model file of a package, or itself. Raises UsageError on what is none."""
    if not backend.made(model):
        raise UsageError(f"{model} is not a Core ML package, nor the model file of one.")
    return root(model)


def check(options: RunOptions) -> None:
    """Raises UsageError on what Core ML has no use for. It has a number of threads of its own."""
    check_options(options, "Core ML", "always optimises the whole program", tuple(UNITS))


def check_installed() -> None:
    """Raises MissingDependency where files can neither be made nor read."""
    if installed("coremltools") is None:
        raise MissingDependency("coremltools, which makes and reads Core ML files, is not installed.", fix=INSTALL)

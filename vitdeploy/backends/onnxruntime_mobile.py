"""ONNX Runtime's mobile form: an .ort file, optimised ahead of time, and what a reduced build needs to run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vitdeploy.backends import ort_file
from vitdeploy.backends.base import Backend, Capabilities, Census, RunOptions, Session, closed_session_error
from vitdeploy.backends.onnxruntime import OPTIMIZATION, OnnxRuntimeBackend, OnnxRuntimeSession
from vitdeploy.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

IDENTIFIER = slice(4, 8), b"ORTM"  # where a file says what it is (the flatbuffer's file_identifier)
PRECISIONS = {
    "fp32": "fp32 compute",
    "fp16": "fp16 storage, fp32 compute",
    "int8": "int8 compute",
    "int8-dynamic": "int8 compute in linear layers",
    "int8-weights": "int8 storage, fp32 compute",
}


class OnnxRuntimeMobileBackend(OnnxRuntimeBackend):
    """The artifact is model.ort, for ONNX Runtime's builds without the ONNX format, and required_operators.config."""

    name = "onnxruntime-mobile"
    form_of = "onnxruntime"

    def capabilities(self) -> Capabilities:
        can = super().capabilities()
        return replace(can, devices=("cpu",), precisions=PRECISIONS) if can.installed else can

    def made(self, model: Path) -> bool:
        where, what = IDENTIFIER
        try:
            with model.open("rb") as file:
                return file.read(8)[where] == what
        except OSError:
            return False

    def describe(self, model: Path) -> dict[str, Any]:
        from vitdeploy.backends import isolate

        self._check_file(model)
        return isolate.call(ort_file.describe, model, what="ONNX Runtime")

    def _opset(self, options: RunOptions, precision: str) -> int:
        """The older one always: what is shipped is to run in the runtimes that apps have."""
        return Backend._opset(self, options, precision)

    def _check(self, options: RunOptions) -> None:
        if options.device != "cpu" or options.provider not in (None, "cpu"):
            where = options.provider or options.device
            raise UsageError(f".ort files are run on the CPU here, not on '{where}'.", fix="Use --device cpu.")
        if options.provider_options:
            raise UsageError(f"{self.name} does not take the option {next(iter(options.provider_options))}.")

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends import isolate
        from vitdeploy.export.passes.store_half import store_half

        self._check(options)
        if precision not in PRECISIONS:
            raise UnsupportedModel(f"{self.name} has no {precision}.")
        if options.optimization not in OPTIMIZATION:
            raise UsageError(f"Unknown optimization '{options.optimization}': one of {', '.join(OPTIMIZATION)}.")
        if precision == "fp16":
            store_half(graph)
        files = [folder / "model.ort", folder / "required_operators.config"]
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            source = super()._compile(graph, Path(name), options, precision)[0]
            level = OPTIMIZATION[options.optimization]
            isolate.call(ort_file.convert, source, *files, level, precision, what="ONNX Runtime's converter")
        return files

    def _open(self, model: Path, options: RunOptions) -> Session:
        from vitdeploy.backends import isolate

        self._check(options)
        self._check_file(model)
        isolate.call(ort_file.check, model, what="ONNX Runtime")
        return OnnxRuntimeMobileSession(model, options)

    def _check_file(self, model: Path) -> None:
        if not model.is_file() or not self.made(model):
            raise UsageError(f"{model} is not an .ort file.")
        if model.suffix != ".ort":
            raise UsageError(f"{model} is an .ort file, which ONNX Runtime knows by its suffix.", fix="Rename it.")


class OnnxRuntimeMobileSession(OnnxRuntimeSession):
    """An .ort file opened by ONNX Runtime."""

    def census(self) -> Census:
        """Ops in the file by the types that it gives them: nothing is optimised when it is opened."""
        if self.native is None:
            raise closed_session_error("ONNX Runtime")
        if self._census is None:
            self._census = ort_file.census(self._model)
        return self._census

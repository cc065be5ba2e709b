"""ncnn, Tencent's runtime for phones: a .param and a .bin file, written here from the ONNX graph, run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends import ncnn_file
from vitdeploy.backends.base import Backend, Capabilities, Census, RunOptions, Session, closed_session_error
from vitdeploy.backends.library import check_options, installed
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.quantize.schemes import Scheme

INSTALL = "pip install 'vitdeploy[ncnn]'"
BEGINS = b"7767517"
PRECISIONS = {
    "fp32": "fp32 compute",
    "fp16": "fp16 storage, fp32 compute; fp16 compute where an app lets ncnn",
    "int8-weights": "8-bit storage, fp32 compute",
}


class NcnnBackend(Backend):
    """The artifact is model.ncnn.param and model.ncnn.bin. ncnn runs one image at a time: a batch is run in turns."""

    name = "ncnn"
    stores_weights = True

    def capabilities(self) -> Capabilities:
        found = installed("ncnn")
        if found is None:
            return Capabilities(False, reason="ncnn is not installed", fix=INSTALL)
        return Capabilities(True, found, ("cpu",), PRECISIONS)

    def made(self, model: Path) -> bool:
        try:
            with model.open("rb") as file:
                return file.read(len(BEGINS)) == BEGINS
        except OSError:
            return False

    def describe(self, model: Path) -> dict[str, Any]:
        return ncnn_file.describe(model)

    def compile_report(self, model: Path) -> dict[str, Any]:
        return ncnn_file.report(model)

    def _check(self, options: RunOptions) -> None:
        check_options(options, "ncnn", "runs a file's layers as they are")

    def _scheme(self, options: RunOptions, precision: str) -> Scheme:
        raise UnsupportedModel(
            f"ncnn has no {precision} here: it multiplies floats.", fix="Use --precision int8-weights."
        )

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends.ncnn_convert import convert
        from vitdeploy.export.passes.store_half import store_half

        self._check(options)
        if precision not in PRECISIONS:
            raise UnsupportedModel(f"ncnn has no {precision} here: it has {', '.join(PRECISIONS)}.")
        if precision == "fp16":
            store_half(graph)
        files = [folder / "model.ncnn.param", folder / "model.ncnn.bin"]
        try:
            convert(graph, *files, eight_bits=precision == "int8-weights")
        except BaseException:
            for file in files:
                file.unlink(missing_ok=True)
            raise
        return files

    def _open(self, model: Path, options: RunOptions) -> Session:
        self._check(options)
        if not model.is_file() or not self.made(model):
            raise UsageError(f"{model} is not an ncnn .param file.")
        if not self.capabilities().installed:
            raise MissingDependency("ncnn, which opens .param files, is not installed.", fix=INSTALL)
        return NcnnSession(model, options)


class NcnnSession(Session):
    """A net opened by ncnn. `native` is its Net, None once closed."""

    def __init__(self, model: Path, options: RunOptions) -> None:
        from vitdeploy.backends import isolate

        self._model = model
        try:  # in a child first: ncnn believes what a file says of itself
            self.inputs, self.outputs = isolate.call(ncnn_file.attempt, model, what="ncnn")
        except BackendError as error:
            raise UsageError(f"{model} cannot be run by ncnn: {error.message}") from error
        self.native: Any = ncnn_file.opened(model, options.threads)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.native is None:
            raise closed_session_error("ncnn")
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in feeds.items()}
        names = [spec.name for spec in self.outputs]
        count = len(next(iter(arrays.values())))
        try:
            rows = [ncnn_file.run(self.native, {n: a[i] for n, a in arrays.items()}, names) for i in range(count)]
        except RuntimeError as error:
            raise BackendError(f"ncnn failed: {error}.") from error
        return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}

    def census(self) -> Census:
        """The file's layers: ncnn runs each as it stands, and tells no more."""
        if self.native is None:
            raise closed_session_error("ncnn")
        return ncnn_file.read(self._model).census

    def close(self) -> None:
        self.native = None

"""LiteRT (once TensorFlow Lite): a .tflite file, made by litert-torch, run by ai-edge-litert with XNNPACK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
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
from vitdeploy.backends.library import check_options, check_program, installed, save_program, whole, words
from vitdeploy.backends.litert_file import IDENTIFIER, Found, convert, finish, products, read, specs
from vitdeploy.errors import BackendError, MissingDependency, UsageError

INSTALL = "pip install 'vitdeploy[litert]'"
PRECISIONS = {
    "fp32": "fp32 compute",
    "fp16": "fp16 storage, fp32 compute; fp16 compute where XNNPACK has it",
    "int8": "int8 compute of products with weights, fp32 around them",
    "int8-dynamic": "int8 compute of products with weights, activations rounded as they come",
    "int8-weights": "int8 storage, fp32 compute",
}


class LiteRtBackend(Backend):
    """The artifact is a .tflite file of a fixed batch, with the signature `image` to `logits`."""

    name = "litert"
    source = "program"
    dynamic_batch = False
    embeds = (PREPROCESSING, POSTPROCESSING)

    def capabilities(self) -> Capabilities:
        found = installed("ai-edge-litert")
        if found is None:
            return Capabilities(False, reason="ai-edge-litert is not installed", fix=INSTALL)
        can = Capabilities(True, found, ("cpu",), PRECISIONS)
        if installed("litert-torch") is None:
            can = replace(can, reason="files can be opened but not made: litert-torch is not installed", fix=INSTALL)
        return can

    def made(self, model: Path) -> bool:
        try:
            with model.open("rb") as file:
                return file.read(8)[4:] == IDENTIFIER
        except OSError:
            return False

    def describe(self, model: Path) -> dict[str, Any]:
        found = looked_into(model)
        return {
            "format": "LiteRT flatbuffer",
            "inputs": [asdict(spec) for spec in found.inputs],
            "outputs": [asdict(spec) for spec in found.outputs],
            "ops": {op: sum(kinds.values()) for op, kinds in found.census.ops.items()},
            "compute": dict(found.census.compute),
            "macs": sum(one["macs"] for one in products(found)),
        }

    def compile_report(self, model: Path) -> dict[str, Any]:
        found = looked_into(model)
        ops = products(found)
        quantised = sum(one["macs"] for one in ops if one["precision"] == "int8")
        if quantised:  # without ranges, activations are cast within the products
            report = {"ops": ops, "macs": sum(one["macs"] for one in ops), "quantised_macs": quantised}
            return {"int8" if found.census.casts else "int8-dynamic": report}
        if any(one["stored"] == "int8" for one in ops):
            return {"int8-weights": {"bits": 8, "ops": [{**one, "precision": one["stored"]} for one in ops]}}
        return {}

    def _check(self, options: RunOptions) -> None:
        check(options)

    def _compile_program(self, program: Program, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends import isolate

        check(options)
        if installed("litert-torch") is None:
            raise MissingDependency("litert-torch, which makes .tflite files, is not installed.", fix=INSTALL)
        check_program(program, "LiteRT", precision, PRECISIONS)
        assert isinstance(program.batch, int)
        model, what = folder / "model.tflite", "LiteRT's converter"
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            saved, images = Path(name) / "program.pt2", Path(name) / "images.npy"
            save_program(program, saved)
            if precision == "int8":
                np.save(images, whole(program.images(program.batch), program.batch))
            isolate.call(convert, saved, model, program.takes, program.gives, precision, images, what=what)
        isolate.call(finish, model, dict(program.metadata), what=what)
        return [model]

    def _open(self, model: Path, options: RunOptions) -> Session:
        check(options)
        check_installed()
        if not model.is_file() or not self.made(model):
            raise UsageError(f"{model} is not a LiteRT file.")
        return LiteRtSession(model, options)


class LiteRtSession(Session):
    """An interpreter with XNNPACK. `native` is ai-edge-litert's Interpreter, None once closed."""

    def __init__(self, model: Path, options: RunOptions) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            self.native: Any = Interpreter(str(model), num_threads=options.threads or None)
            self.native.allocate_tensors()
        except Exception as error:  # a damaged file, which it verifies first
            raise UsageError(f"{model} is not a LiteRT file that can be opened: {words(error)}.") from error
        self._model = model
        (self.inputs, self._in), (self.outputs, self._out) = specs(self.native)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.native is None:
            raise closed_session_error("LiteRT")
        try:
            for spec in self.inputs:
                array = feeds[spec.name]
                native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
                self.native.set_tensor(self._in[spec.name], native)
            self.native.invoke()
            return {spec.name: self.native.get_tensor(self._out[spec.name]) for spec in self.outputs}
        except Exception as error:
            raise BackendError(f"LiteRT failed: {words(error)}.") from error

    def census(self) -> Census:
        """Ops of the file, by the types that they are given: XNNPACK, which runs them, tells no more."""
        if self.native is None:
            raise closed_session_error("LiteRT")
        return read(self._model).census

    def close(self) -> None:
        self.native = None


def check(options: RunOptions) -> None:
    """Raises UsageError on what LiteRT has no use for."""
    check_options(options, "LiteRT", "always optimises the whole graph")


def check_installed() -> None:
    """Raises MissingDependency where files cannot be opened."""
    if installed("ai-edge-litert") is None:
        raise MissingDependency("ai-edge-litert, which opens .tflite files, is not installed.", fix=INSTALL)


def looked_into(model: Path) -> Found:
    """What is in a file, read in a child process: it may be anybody's."""
    from vitdeploy.backends import isolate

    check_installed()
    return isolate.call(read, model, what="LiteRT")

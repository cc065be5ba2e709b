"""Which backends there are: entry points of the group `vitdeploy.backends`, and the built-in ones."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.backends.base import Backend, Capabilities, RunOptions, Session
from vitdeploy.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

GROUP = "vitdeploy.backends"
# Listed here as well, so that they are found when the installed metadata is older than the code.
BUILT_IN = {
    "coreml": "vitdeploy.backends.coreml:CoreMlBackend",
    "executorch": "vitdeploy.backends.executorch:ExecuTorchBackend",
    "inductor": "vitdeploy.backends.inductor:InductorBackend",
    "litert": "vitdeploy.backends.litert:LiteRtBackend",
    "ncnn": "vitdeploy.backends.ncnn:NcnnBackend",
    "onnxruntime": "vitdeploy.backends.onnxruntime:OnnxRuntimeBackend",
    "onnxruntime-mobile": "vitdeploy.backends.onnxruntime_mobile:OnnxRuntimeMobileBackend",
    "openvino": "vitdeploy.backends.openvino:OpenVinoBackend",
    "tensorrt": "vitdeploy.backends.tensorrt:TensorRtBackend",
    "tensorrt-rtx": "vitdeploy.backends.tensorrt_rtx:TensorRtRtxBackend",
}


class BrokenBackend(Backend):
    """Stands for a backend whose code cannot be imported: it lists itself and says why it cannot run."""

    def __init__(self, name: str, reason: str, fix: str) -> None:
        self.name = name
        self._reason = reason
        self._fix = fix

    def capabilities(self) -> Capabilities:
        return Capabilities(installed=False, reason=self._reason, fix=self._fix)

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        raise MissingDependency(self._reason, fix=self._fix)

    def _open(self, model: Path, options: RunOptions) -> Session:
        raise MissingDependency(self._reason, fix=self._fix)


def backends() -> dict[str, Backend]:
    """Every backend by name, sorted. Never raises: one that cannot be imported says so in its capabilities."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    points |= {name: EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    return {name: _loaded(points[name]) for name in sorted(points)}


def get(name: str) -> Backend:
    """The backend of that name. Raises UsageError with the nearest names when there is none."""
    found = backends()
    if name in found:
        return found[name]
    near = get_close_matches(name.lower(), found, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(found)}."
    raise UsageError(f"Unknown backend '{name}'.", fix=hint)


def _loaded(point: EntryPoint) -> Backend:
    package = point.dist.name if point.dist is not None else "vitdeploy"
    fix = f"pip install --upgrade {package}"
    try:
        backend = point.load()()
    except Exception as error:  # A third party's module may fail in any way.
        return BrokenBackend(point.name, f"Backend '{point.name}' cannot be imported: {_sentence(error)}.", fix)
    if not isinstance(backend, Backend):
        return BrokenBackend(point.name, f"Backend '{point.name}' ({point.value}) is no vitdeploy Backend.", fix)
    return backend


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". ")

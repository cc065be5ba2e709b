"""What TensorRT and TensorRT-RTX have in common as backends."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vitdeploy.backends.base import (
    POSTPROCESSING,
    PREPROCESSING,
    Backend,
    Capabilities,
    Census,
    RunOptions,
    Session,
)
from vitdeploy.backends.nvidia import cuda
from vitdeploy.backends.nvidia.engine import PLAN, Facts
from vitdeploy.backends.nvidia.gpus import Driver, Gpu, driver
from vitdeploy.backends.nvidia.install import TITLES, installation
from vitdeploy.backends.nvidia.options import EngineOptions
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError, VitdeployError

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.quantize.schemes import Scheme

PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention"}
PRECISIONS = {"fp32": "fp32 compute", "fp16": "fp16 compute", "int8": "int8 compute, the rest fp16 compute"}
FP8_FROM = (8, 9)  # compute capability
DAMAGED = ("magic", "serialization", "deserializ", "truncated", "size mismatch", "checksum")


class EngineBackend(Backend):
    """Builds a plan file (`model.plan`) with `engine.json` beside it. `provider_options` are EngineOptions.

    Attributes:
        module: the Python module.
        magic: first bytes of its plan files.
        fix: what to do where it is not installed; no_gpu: where there is no GPU.
    """

    module: str
    magic: bytes
    fix: str
    no_gpu: str
    usual_device = "cuda"
    embeds = (PREPROCESSING, POSTPROCESSING)

    def capabilities(self) -> Capabilities:
        found, there = installation(self.module), driver()
        if not found:
            reasons = [found.reason, *([there.reason] if there.reason else [])]
            return Capabilities(installed=False, reason=", and ".join(reasons), fix=self.fix)
        devices = tuple(f"cuda:{index}" for index in range(len(there.gpus)))
        reason, fix = there.reason, "" if devices else self.no_gpu
        if devices and not cuda.available():
            reason = "engines can be built and not run: neither cuda-bindings nor a PyTorch that has CUDA is here"
            fix = cuda.INSTALL
        return Capabilities(True, found.version, devices, self._precisions(there), reason, fix)

    def _precisions(self, there: Driver) -> Mapping[str, str]:
        """fp8 where a GPU has it; without any, whatever could be compiled for."""
        fp8 = not there.gpus or any(gpu.compute_capability >= FP8_FROM for gpu in there.gpus)
        return PRECISIONS | ({"fp8": "fp8 compute, the rest fp16 compute"} if fp8 else {})

    def compiled_census(self, model: Path) -> Census | None:
        facts = Facts.read(model)
        return facts.census() if facts is not None else None

    def _check(self, options: RunOptions) -> None:
        self._target(options, EngineOptions.read(options.provider_options))

    def made(self, model: Path) -> bool:
        with model.open("rb") as file:
            return file.read(len(self.magic)) == self.magic

    def describe(self, model: Path) -> dict[str, Any] | None:
        """What `engine.json` tells, or else the engine itself, which takes a GPU."""
        from vitdeploy.backends import isolate

        facts = Facts.read(model)
        if facts is None:
            census = isolate.call(_open_census, self, model, what=TITLES[self.module])
            return {"runtime": self.module, "census": census.to_dict()}
        return facts.to_summary()

    def layer_seconds(self, model: Path) -> dict[str, float]:
        from vitdeploy.backends import isolate

        with suppress(VitdeployError):  # where it cannot run, it still tells what it is made of
            if installation(self.module) and driver().gpus:
                return isolate.call(_layer_times, self, model, what=TITLES[self.module])
        return {}

    def _scheme(self, options: RunOptions, precision: str) -> Scheme:
        from vitdeploy.quantize import schemes

        return schemes.get("tensorrt-fp8" if precision == "fp8" else "tensorrt")

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.backends import isolate
        from vitdeploy.backends.nvidia.build import Job, build
        from vitdeploy.export.metadata import read_batch
        from vitdeploy.graph.save import save

        wanted = EngineOptions.read(options.provider_options)
        gpu, device = self._target(options, wanted), self._index(options)
        check_dialect(graph, TITLES[self.module])
        plan = folder / PLAN
        products = {str(node.name): node.op_type for node in graph.graph if node.op_type in PRODUCTS}
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            model = save(graph, Path(name) / "model.onnx")[0]
            batch = read_batch(graph.metadata_props)
            job = Job(self.module, model, plan, wanted, batch, products, gpu, driver().version, device)
            facts = isolate.call(build, job, what=TITLES[self.module])
        return [plan, facts.write(plan)]

    def _target(self, options: RunOptions, wanted: EngineOptions) -> Gpu | None:
        """The GPU to build on; None to build ahead of time. Raises MissingDependency where there is neither."""
        if wanted.compute_capability:
            raise UsageError(
                "TensorRT builds on the GPU that the engine is for: it takes no compute_capability.",
                fix="--backend tensorrt-rtx does.",
            )
        return self._gpu(options)[1]

    def _gpu(self, options: RunOptions, fix: str = "") -> tuple[int, Gpu]:
        """The number of the GPU and what it is. Raises UsageError or MissingDependency where there is none such."""
        there, index = driver(), self._index(options)
        if not there.gpus:
            need = f"{TITLES[self.module]} needs an NVIDIA GPU, and {there.reason}."
            raise MissingDependency(need, fix=fix or self.no_gpu)
        if index >= len(there.gpus):
            raise UsageError(f"There is no {options.device}: this machine's last GPU is cuda:{len(there.gpus) - 1}.")
        return index, there.gpus[index]

    def _index(self, options: RunOptions) -> int:
        kind, colon, number = options.device.partition(":")
        if kind != "cuda" or (colon and not number.isdecimal()) or options.provider is not None:
            asked = options.provider or options.device
            raise UsageError(f"{TITLES[self.module]} has no device '{asked}'.", fix="One of cuda, cuda:0, cuda:1, ...")
        return int(number or 0)

    def _open(self, model: Path, options: RunOptions) -> Session:
        found = installation(self.module)
        if not found:
            raise MissingDependency(f"{model} cannot be opened: {found.reason}.", fix=self.fix)
        wanted = EngineOptions.read(options.provider_options)
        facts = Facts.read(model)
        if facts is not None and facts.runtime != self.module:
            raise UsageError(f"{model} was built by {TITLES.get(facts.runtime, facts.runtime)}.")
        index, _ = self._gpu(options, "Open it on the machine that it was compiled for." if facts else "")
        if facts is not None:
            facts.check_fits(model, found.version, driver(), index)
        return self._session(model, index, wanted, facts)

    def _session(self, model: Path, index: int, wanted: EngineOptions, facts: Facts | None) -> Session:
        from vitdeploy.backends.nvidia.build import listener, started
        from vitdeploy.backends.nvidia.session import TensorRtSession

        lane = cuda.lane(index)  # chooses the device that the engine is loaded onto
        trt = import_module(self.module)
        ears = listener(trt)
        runtime = started(trt.Runtime, TITLES[self.module], ears)
        if facts is not None and facts.options.get("version_compatible"):
            runtime.engine_host_code_allowed = True  # such a plan carries the runtime that it needs
        engine = runtime.deserialize_cuda_engine(model.read_bytes())
        if engine is None:
            raise not_loaded(model, TITLES[self.module], ears.errors)
        if wanted.weight_streaming_budget is not None:
            engine.weight_streaming_budget_v2 = wanted.weight_streaming_budget
        products = facts.products if facts is not None else {}
        return TensorRtSession(trt, engine, partial(cuda.lane, index), wanted, products, lane, index)


def _open_census(backend: EngineBackend, model: Path) -> Census:
    """Made to run in a child process."""
    with backend.open(model, RunOptions()) as session:
        return session.census()


def _layer_times(backend: EngineBackend, model: Path) -> dict[str, float]:
    """Seconds by layer, at the smallest shapes that the engine takes. Made to run in a child process."""
    from vitdeploy.backends.nvidia.session import TensorRtSession

    with backend.open(model, RunOptions()) as session:
        assert isinstance(session, TensorRtSession)
        return session.layer_seconds(session.smallest())


def check_dialect(graph: ir.Model, title: str) -> None:
    """Hold Q/DQ against the scheme before the parser, which misreads some of it in silence."""
    import onnx_ir as ir

    from vitdeploy.quantize import schemes
    from vitdeploy.quantize.lint import lint

    stored = {node.inputs[0].dtype for node in graph.graph if node.op_type == "DequantizeLinear" and node.inputs[0]}
    if not stored:
        return
    name = "tensorrt-fp8" if ir.DataType.FLOAT8E4M3FN in stored else "tensorrt"
    found = lint(graph, schemes.get(name))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UnsupportedModel(
            f"{title} would trip over the quantisation of '{found[0].node}': {found[0].message}{more}.",
            fix=f"Quantise with the scheme {name}; `vitdeploy inspect --scheme {name}` names every node.",
        )


def not_loaded(model: Path, title: str, errors: list[str]) -> UsageError | BackendError:
    """Why a plan file could not be opened."""
    from vitdeploy.backends.nvidia.refusals import one_line

    reason = one_line(errors[0]) if errors else "it does not say why"
    if any(word in reason.lower() for word in DAMAGED) and "version" not in reason.lower():
        return UsageError(f"{model} is not a plan file that {title} can read: {reason}.")
    return BackendError(f"{title} cannot open {model}: {reason}.", fix="Export it again on this machine.")

"""From an ONNX file to a plan file, by TensorRT 10, TensorRT 11 or TensorRT-RTX: one path for all three.

Networks are strongly typed: the precision of every tensor is in the graph, which is all that TensorRT 11 takes. Made to
run in a child process, since a builder that meets what it does not expect may crash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vitdeploy.backends.nvidia import layers, timing_cache
from vitdeploy.backends.nvidia.engine import Facts
from vitdeploy.backends.nvidia.gpus import Gpu
from vitdeploy.backends.nvidia.install import TITLES
from vitdeploy.backends.nvidia.layers import Layer
from vitdeploy.backends.nvidia.options import EngineOptions, Profile, Range
from vitdeploy.backends.nvidia.refusals import builder_refusal, parser_refusal
from vitdeploy.errors import BackendError, UnsupportedModel, UsageError

FLAGS = ("version_compatible", "exclude_lean_runtime", "refit", "strip_plan", "weight_streaming", "sparse_weights")
POOLS = ("workspace", "tactic_dram", "tactic_shared_memory")
LEVELS = ("builder_optimization_level", "avg_timing_iterations", "max_aux_streams")


@dataclass(frozen=True)
class Job:
    """What a builder is to do.

    Attributes:
        module: 'tensorrt' or 'tensorrt_rtx'.
        model: the ONNX file; plan: the file to write.
        options: of the builder.
        batch: (min, opt, max) of the graph's dynamic batch; None where it does not tell.
        products: op type by name, of the nodes that multiply.
        gpu: the one that is built on, or None to build ahead of time.
        driver: its version.
        device: the GPU's number.
    """

    module: str
    model: Path
    plan: Path
    options: EngineOptions
    batch: tuple[int, int, int] | None
    products: dict[str, str]
    gpu: Gpu | None
    driver: str = ""
    device: int = 0


def build(job: Job) -> Facts:
    """Write the plan file; return what is known of it.

    Raises UnsupportedModel or BackendError in the parser's or builder's words, UsageError on options that do not fit.
    """
    see_only(job.device)
    trt = import_module(job.module)
    title = TITLES[job.module]
    ears = listener(trt)
    builder = started(trt.Builder, title, ears)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, ears)
    if not parser.parse_from_file(str(job.model)):
        raise parser_refusal(title, parser)
    config = builder.create_builder_config()
    configure(trt, config, job)
    ranges = add_profiles(builder, network, config, job)
    cache = _timing_cache(trt, config, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise builder_refusal(title, ears.errors)
    try:
        job.plan.write_bytes(memoryview(plan))
    except OSError as error:
        raise UsageError(f"Cannot write {job.plan}: {error.strerror or error}.", fix="Free some space.") from error
    timing_cache.keep(config, cache)
    return _facts(trt, job, ears, ranges)


def see_only(device: int) -> None:
    """Have CUDA, which is not at work yet in this process, see one GPU: builders take the first."""
    if device:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        numbers = visible.split(",") if visible else [str(number) for number in range(device + 1)]
        os.environ["CUDA_VISIBLE_DEVICES"] = numbers[device]


def started(make: Any, title: str, ears: Any) -> Any:
    """A Builder or Runtime. Raises BackendError where the library cannot make one: it then returns a null pointer."""
    try:
        made = make(ears)
    except (TypeError, RuntimeError) as error:
        heard = ears.errors[0] if ears.errors else str(error)
        raise BackendError(
            f"{title} does not start: {heard.rstrip('. ')}.",
            fix="`vitdeploy doctor` tells what the driver and the libraries are.",
        ) from error
    return made


def configure(trt: Any, config: Any, job: Job) -> None:
    """Everything about the builder but the profiles."""
    options = job.options
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options.profiling_verbosity.upper())
    for name in LEVELS:
        if getattr(options, name) is not None:
            setattr(config, name, getattr(options, name))
    for name in POOLS:
        if getattr(options, name) is not None:
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, name.upper()), getattr(options, name))
    for name in FLAGS:
        if getattr(options, name):
            config.set_flag(getattr(trt.BuilderFlag, name.upper()))
    # TensorRT turns TF32 on by itself; fp32 that was asked for is fp32.
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.hardware_compatibility_level != "none":
        level = options.hardware_compatibility_level.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.compute_capability:
        _aim(trt, config, options.compute_capability)


def _aim(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    """Name the GPUs that an engine of TensorRT-RTX is for."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if member is None:
            raise UnsupportedModel(f"This TensorRT-RTX does not compile for compute capability {capability}.")
        config.set_compute_capability(member, index)


def add_profiles(builder: Any, network: Any, config: Any, job: Job) -> list[dict[str, Range]]:
    """The optimization profiles of a network with dynamic inputs; returns (min, opt, max) by input, of each profile."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    wanted = job.options.profile or ((Profile(batch=job.batch),) if dynamic else ())
    if wanted and not dynamic:
        raise UsageError("This graph has no dynamic dimension, so it takes no profile.")
    found = []
    for profile in wanted:
        unknown = set(profile.shapes or {}) - set(dynamic)
        if unknown:
            raise UsageError(f"The profile names '{min(unknown)}', and the dynamic inputs are {sorted(dynamic)}.")
        ranges = {name: profile.of(name, shape) for name, shape in dynamic.items()}
        made = builder.create_optimization_profile()
        for name, (low, opt, high) in ranges.items():
            made.set_shape(name, low, opt, high)
        if config.add_optimization_profile(made) < 0:
            raise UsageError(f"{TITLES[job.module]} refuses the profile {profile.to_text()}.")
        found.append(ranges)
    return found


def _timing_cache(trt: Any, config: Any, job: Job) -> Path | None:
    """The file that the builder's timings are kept in; only a GPU has any."""
    if job.gpu is None:
        return None
    device = f"{job.gpu.name} {job.gpu.sm}"
    file = timing_cache.place(job.options.timing_cache, job.module, str(trt.__version__), device)
    timing_cache.attach(config, file)
    return file


def _facts(trt: Any, job: Job, ears: Any, ranges: list[dict[str, Range]]) -> Facts:
    found, source = inspected(trt, job.plan, ears), layers.INSPECTOR
    if not found:
        found, source = layers.from_log(ears.layers), layers.BUILDER
    return Facts(
        runtime=job.module,
        version=str(trt.__version__),
        compute_capabilities=job.options.compute_capability or ((job.gpu.sm,) if job.gpu is not None else ()),
        gpu=job.gpu.name if job.gpu is not None else "",
        driver=job.driver,
        options=job.options.to_dict(),
        profiles=tuple(ranges),
        products=job.products,
        layers=tuple(found),
        source=source,
    )


def inspected(trt: Any, plan: Path, ears: Any) -> list[Layer]:
    """The engine's layers by its inspector, at the shapes that it is best at; empty where it cannot be opened here."""
    with suppress(BackendError):
        runtime = started(trt.Runtime, "TensorRT", ears)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is not None:
            return inspect(trt, engine)
    return []


def inspect(trt: Any, engine: Any) -> list[Layer]:
    """The layers of an open engine. Types of dynamic shapes are told only to a context that knows them."""
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in tuple(engine.get_tensor_shape(name)):
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    return layers.from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def listener(trt: Any) -> Any:
    """A logger that keeps the errors and the lines on layers, and prints nothing."""

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            self.layers += [line for line in message.splitlines() if "LayerType: " in line]

    return Listener()

"""ONNX Runtime: runs the ONNX file itself, on the CPU or through an execution provider."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends import cpu, ort_libraries
from vitdeploy.backends.base import (
    EMBEDS,
    PROFILED,
    Backend,
    Capabilities,
    Census,
    RunOptions,
    Session,
    TensorSpec,
    closed_session_error,
)
from vitdeploy.backends.ort_binding import PLACES, BoundRuns, bound_runs
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError
from vitdeploy.export.trace import ATTENTION_OPSET

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from vitdeploy.quantize.schemes import Scheme

INSTALL = "pip install onnxruntime"
# Short name: ONNX Runtime's name, and the wheel that has it.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider", INSTALL),
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "pip install onnxruntime-gpu"),
    "tensorrt-rtx": ("NvTensorRTRTXExecutionProvider", "pip install onnxruntime-trt-rtx"),
    "migraphx": ("MIGraphXExecutionProvider", "pip install onnxruntime-migraphx"),
    "rocm": ("ROCMExecutionProvider", "pip install onnxruntime-rocm"),
    "openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino"),
    "directml": ("DmlExecutionProvider", "pip install onnxruntime-directml"),
    "qnn": ("QNNExecutionProvider", "pip install onnxruntime-qnn"),
    "coreml": ("CoreMLExecutionProvider", "Install onnxruntime on macOS: its wheel there has Core ML."),
    "webgpu": ("WebGpuExecutionProvider", "pip install onnxruntime-webgpu"),
    "xnnpack": ("XnnpackExecutionProvider", "Build ONNX Runtime with --use_xnnpack."),
    "dnnl": ("DnnlExecutionProvider", "Build ONNX Runtime with --use_dnnl."),
    "acl": ("ACLExecutionProvider", "Build ONNX Runtime with --use_acl."),
    "nnapi": ("NnapiExecutionProvider", "Build ONNX Runtime for Android with --use_nnapi."),
    "vitisai": ("VitisAIExecutionProvider", "Install AMD's Ryzen AI software."),
    "cann": ("CANNExecutionProvider", "pip install onnxruntime-cann"),
    "azure": ("AzureExecutionProvider", INSTALL),
}
SHORT = {full: short for short, (full, _) in PROVIDERS.items()}
NUMBERED = {"cuda", "tensorrt", "tensorrt-rtx", "migraphx", "rocm", "directml", "cann"}
NVIDIA = {"cuda", "tensorrt", "tensorrt-rtx"}
OPTIMIZATION = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}
OPTIMIZATION["all"] = "ORT_ENABLE_ALL"
DTYPES = {"float": "float32", "double": "float64", "string": "object"}
FAST = ("int8", "int8-dynamic")  # precisions of which the file is for this kind of machine alone
UNPACKS = {"cpu", "cuda"}  # providers that run ONNX Runtime's own optimised graph
NO_DEVICE = re.compile("no CUDA-capable device|driver version is insufficient|invalid device ordinal")
RECORD = "session.record_ep_graph_assignment_info"  # ONNX Runtime 1.24 and later
# What lets TensorRT choose precisions, over the graph's.
CHOOSES = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")


class OnnxRuntimeBackend(Backend):
    """The artifact is the ONNX file; ONNX Runtime optimises it when it opens it."""

    name = "onnxruntime"
    embeds = EMBEDS

    def capabilities(self) -> Capabilities:
        try:
            ort = _import()
        except MissingDependency as error:
            return Capabilities(installed=False, reason=error.message, fix=error.fix or INSTALL)
        providers = [SHORT.get(name, name) for name in ort.get_available_providers()]
        half = _half_on_cpu()
        if {"cuda", "tensorrt"} & set(providers):
            half = f"fp16 compute on cuda, {half} on cpu"
        precisions = {"fp32": "fp32 compute", "fp16": half, "int8": "int8 compute"}
        precisions |= {"int8-dynamic": "int8 compute in linear layers"}
        precisions |= {"int8-weights": "int8 storage, fp32 compute", "int4-weights": "int4 storage, fp32 compute"}
        precisions |= {"fp8": "written for TensorRT, verified here"}
        return Capabilities(True, ort.__version__, tuple(_devices(providers)), precisions)

    def _scheme(self, options: RunOptions, precision: str) -> Scheme:
        from vitdeploy.quantize import schemes

        provider = options.provider or options.device.partition(":")[0]
        if provider in ("tensorrt", "tensorrt-rtx"):
            return schemes.get("tensorrt-fp8" if precision == "fp8" else "tensorrt")
        if precision == "fp8":
            raise UnsupportedModel(f"ONNX Runtime's {provider} provider does not compute in fp8.")
        if platform.machine().lower() in ("arm64", "aarch64"):
            return schemes.get("onnxruntime-arm")
        return schemes.get("onnxruntime-avx2" if cpu.saturates() else "onnxruntime")

    def _opset(self, options: RunOptions, precision: str) -> int:
        """What is fast because of this machine gets Attention too; what is to run anywhere stays at the older opset."""
        return ATTENTION_OPSET if _on_cpu(options) and precision in FAST else super()._opset(options, precision)

    def _slow_in_fp16(self, options: RunOptions) -> Mapping[str, str]:
        if not _on_cpu(options):
            return {}
        return {"Softmax": "ONNX Runtime's CPU provider spells an fp16 Softmax out in five passes over the scores"}

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.export.passes.fuse_attention import fuse_attention
        from vitdeploy.graph.save import save

        if _on_cpu(options):
            fuse_attention(graph)
        return save(graph, folder / "model.onnx")

    def _open(self, model: Path, options: RunOptions) -> Session:
        from vitdeploy.graph.load import check_external_data

        _import()
        return OnnxRuntimeSession(model, options, unpack=_is_unpacked(check_external_data(model)))


class OnnxRuntimeSession(Session):
    """A model file opened by ONNX Runtime. `native` is its InferenceSession, None once closed.

    On a GPU inputs and outputs have memory there, copies are ours, and `parts` tells their time; see ort_binding.

    Args:
        unpack: dequantise weights once, when the file is opened, and leave Q/DQ where it stands.
    """

    def __init__(self, model: Path, options: RunOptions, *, unpack: bool = False) -> None:
        self._model = model
        self._options = options
        self._unpack = unpack
        self._census: Census | None = None
        self.native = _open_native(model, options, unpack=unpack)
        self.inputs = [_spec(node) for node in self.native.get_inputs()]
        self.outputs = [_spec(node) for node in self.native.get_outputs()]
        self._bound = self._bind()
        if self._bound is not None:
            self.copies, self.launch = self._bound.copies, self._bound.launch

    def _bind(self) -> BoundRuns | None:
        short, chain = _providers(self._options)
        with _told(f"cannot use the memory of {short}"):
            return bound_runs(self.native, self.inputs, self.outputs, short, chain[0][1])

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.native is None:
            raise closed_session_error("ONNX Runtime")
        with _told("failed"):
            if self._bound is not None:
                return self._bound.run(_native(feeds))
            values = self.native.run(None, _native(feeds))
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def parts(self, feeds: Mapping[str, np.ndarray], seconds: float) -> dict[str, list[float]]:
        """On a GPU 'h2d', 'compute', 'd2h' and 'latency' by the host's clock, which waits for each; else empty."""
        self.check(feeds)
        if self.native is None:
            raise closed_session_error("ONNX Runtime")
        with _told("failed"):
            return {} if self._bound is None else self._bound.parts(_native(feeds), seconds)

    def _resident(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        if self.native is None:
            raise closed_session_error("ONNX Runtime")
        if self._bound is None:
            return super()._resident(feeds)
        with _told("failed"):
            return self._bound.resident(_native(feeds))

    def op_seconds(self, feeds: Mapping[str, np.ndarray], runs: int = PROFILED) -> dict[str, float]:
        """From ONNX Runtime's profile of a session of its own; on a GPU, what the host waits for."""
        self.check(feeds)
        with TemporaryDirectory(prefix="vitdeploy-") as name:
            native = _open_native(self._model, self._options, profile=Path(name) / "profile", unpack=self._unpack)
            with _told("failed"):
                for _ in range(1 + runs):
                    native.run(None, _native(feeds))
                events = json.loads(Path(native.end_profiling()).read_text(encoding="utf-8"))
        took: dict[tuple[str, str], list[int]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                took.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
        found: dict[str, float] = {}
        for (op, _), microseconds in took.items():
            kept = microseconds[len(microseconds) // (1 + runs) :]  # without those of the first run
            found[op] = found.get(op, 0.0) + 1e-6 * sum(kept) / runs
        return found

    def device_state(self) -> dict[str, float]:
        from vitdeploy.backends.nvidia import nvml

        short, chain = _providers(self._options)
        return nvml.state(int(chain[0][1].get("device_id", 0))) if short in NVIDIA else {}

    def census(self) -> Census:
        """Optimise the model once more into a temporary file and count its ops.

        TensorRT's providers compile parts of the graph into nodes of their own; there the model file itself is counted,
        whose types they keep. Raises BackendError where that is not enough, or where another provider hides its ops so.
        """
        if self.native is None:
            raise closed_session_error("ONNX Runtime")
        if self._census is None:
            self._census = _read_census(self._model, self._options, self.native, unpack=self._unpack)
        return self._census

    def close(self) -> None:
        self._bound = None
        self.native = None


def _import() -> Any:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        raise MissingDependency(f"ONNX Runtime cannot be imported: {_reason(error)}.", fix=INSTALL) from error
    return onnxruntime


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Any exception as a BackendError, but for what is the user's to mend."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise BackendError(f"ONNX Runtime {what}: {_reason(error)}.") from error


def _open_native(
    model: Path,
    options: RunOptions,
    optimized: Path | None = None,
    *,
    profile: Path | None = None,
    unpack: bool = False,
) -> Any:
    """An InferenceSession on `model`; with `optimized`, it also writes the optimised graph there.

    With `profile` it times every op, for files whose names begin so.
    """
    ort = _import()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from vitdeploy.backends.ort_census import check_placement

    short, providers = _providers(options)
    session_options = _session_options(options)
    if short in PLACES:
        session_options.add_session_config_entry(RECORD, "1")
    if unpack and short in UNPACKS:
        session_options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    if optimized is not None:
        session_options.optimized_model_filepath = str(optimized)
        key = "session.optimized_model_external_initializers"
        session_options.add_session_config_entry(f"{key}_file_name", f"{optimized.name}.data")
        session_options.add_session_config_entry(f"{key}_min_size_in_bytes", "1024")
    try:
        with ort_libraries.ready(short):
            session = ort.InferenceSession(str(model), session_options, providers=providers, enable_fallback=0)
    except (state.InvalidProtobuf, state.NoSuchFile) as error:
        raise UsageError(f"{model} is not a model that ONNX Runtime can read: {_reason(error)}.") from error
    except Exception as error:
        if why := ort_libraries.why_not_loaded(short) or (NO_DEVICE.search(str(error)) and _reason(error)):
            raise _unusable(short, why) from error
        raise BackendError(f"ONNX Runtime refuses {model}: {_reason(error)}.") from error
    if PROVIDERS[short][0] not in session.get_providers():
        raise _unusable(short, ort_libraries.why_not_loaded(short) or "its driver or device did not answer")
    if short in PLACES:
        check_placement(session, short)
    return session


def _unusable(short: str, why: str) -> MissingDependency:
    return MissingDependency(
        f"ONNX Runtime has the {short} provider but cannot use it: {why}.",
        fix=ort_libraries.fix(why, PROVIDERS[short][1].split()[-1]),
    )


def _session_options(options: RunOptions) -> Any:
    ort = _import()
    if options.threads < 0:
        raise UsageError(f"threads is {options.threads}: give 0 (all) or more.")
    if options.optimization not in OPTIMIZATION:
        raise UsageError(f"Unknown optimization '{options.optimization}': one of {', '.join(OPTIMIZATION)}.")
    made = ort.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = 1
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, OPTIMIZATION[options.optimization])
    made.log_severity_level = ort_libraries.SILENT
    return made


def _providers(options: RunOptions) -> tuple[str, list[Any]]:
    """The short name of the provider that must run, and the list for ONNX Runtime: it, then what may help out."""
    device, _, number = options.device.partition(":")
    short = options.provider or device
    for name in (short, device):
        if name not in PROVIDERS:
            near = get_close_matches(name, PROVIDERS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"One of {', '.join(PROVIDERS)}."
            raise UsageError(f"ONNX Runtime knows no device or provider '{name}'.", fix=hint)
    if short == "cpu" and device != "cpu":
        raise UsageError(f"The cpu provider cannot run on device '{options.device}'.")
    if number and (not number.isdigit() or device not in NUMBERED):
        raise UsageError(f"Device '{options.device}' is not a device name such as cpu, cuda or cuda:1.")
    full, fix = PROVIDERS[short]
    if full not in _import().get_available_providers():
        raise MissingDependency(f"This ONNX Runtime has no {short} provider.", fix=fix)
    settings = {str(key): str(value) for key, value in options.provider_options.items()}
    if number and short in NUMBERED:
        settings.setdefault("device_id", number)
    if short == "cuda":
        settings.setdefault("use_tf32", "0")  # fp32 that was asked for is fp32
    chain: list[Any] = [(full, settings)]
    if short == "tensorrt":
        _check_typed(settings)
        chain.append((PROVIDERS["cuda"][0], {"device_id": settings.get("device_id", "0"), "use_tf32": "0"}))
    if short != "cpu":
        chain.append(PROVIDERS["cpu"][0])
    return short, chain


def _check_typed(settings: Mapping[str, str]) -> None:
    """TensorRT keeps the graph's types as long as it is not told to choose."""
    for key in CHOOSES:
        if settings.get(key, "0").lower() not in ("0", "false"):
            raise UsageError(
                f"{key} lets TensorRT choose precisions, and ONNX Runtime does not tell which it chose.",
                fix="Leave it out: the graph's own types run. --fp16 puts fp16 into the graph.",
            )


def _read_census(model: Path, options: RunOptions, session: Any, *, unpack: bool) -> Census:
    import onnx

    from vitdeploy.backends.ort_census import TYPED, as_tf32, count, count_typed

    short, chain = _providers(options)
    if short in TYPED:
        return count_typed(onnx.load(str(model), load_external_data=False), session)
    with TemporaryDirectory(prefix="vitdeploy-") as name:
        path = Path(name) / "optimized.onnx"
        try:
            _open_native(model, options, path, unpack=unpack)
            graph = onnx.load(str(path), load_external_data=False)
        except BackendError as error:
            raise BackendError(f"The compiled graph cannot be read back: {error.message}") from error
    census = count(graph)
    return as_tf32(census) if short == "cuda" and chain[0][1]["use_tf32"] != "0" else census


def _is_unpacked(proto: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime is to leave Q/DQ as it is: where weights alone are quantised, or in fp8.

    Such weights it would dequantise in every run for convolutions, and quantise the activations of linear layers
    without being asked. Q of fp8 it would move before a Slice or a Transpose, which know no fp8 (seen in 1.31).
    """
    kinds = {node.op_type for node in proto.graph.node}
    weights_alone = "DequantizeLinear" in kinds and not kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}
    return weights_alone or any(tensor.data_type == tensor.FLOAT8E4M3FN for tensor in proto.graph.initializer)


def _spec(node: Any) -> TensorSpec:
    """An unnamed dynamic dimension gets a name of its own, so that no two are held to be equal."""
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    shape = tuple(n if isinstance(n, (int, str)) and n != "" else f"{node.name}_{i}" for i, n in enumerate(node.shape))
    return TensorSpec(node.name, DTYPES.get(kind, kind), shape)


def _native(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """C order, and this machine's bytes: ONNX Runtime looks at the type only, not at its byte order."""
    return {name: np.asarray(array, array.dtype.newbyteorder("="), order="C") for name, array in feeds.items()}


def _reason(error: BaseException) -> str:
    """The exception's text in one line, without ONNX Runtime's status prefix."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text).rstrip(". ")


def _on_cpu(options: RunOptions) -> bool:
    return (options.provider or options.device) == "cpu"


def _half_on_cpu() -> str:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return "fp16 compute where a kernel has it, else fp32" if arm else "fp32 compute"


def _devices(providers: list[str]) -> list[str]:
    """Usable devices, best first. A GPU provider in the wheel is no GPU in the machine."""
    found = []
    for short in providers:
        if short == "cuda":
            found += [f"cuda:{i}" for i in range(_nvidia_gpus())]
        elif short not in ("cpu", "azure", "tensorrt"):
            found.append(short)
    return [*found, "cpu"]


def _nvidia_gpus() -> int:
    if os.name == "nt":
        return 1
    return len([path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()])

"""OpenVINO: reads the ONNX file itself and compiles it for an Intel CPU, GPU or NPU when it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends import cpu
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
from vitdeploy.errors import BackendError, MissingDependency, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.quantize.schemes import Scheme

INSTALL = "pip install 'vitdeploy[openvino]'"
# Best first, each with what it needs beside the package. CPU comes before NPU, which runs no dynamic shapes.
DEVICES = {
    "gpu": "Install Intel's GPU compute runtime (OpenCL), or use --device cpu.",
    "cpu": INSTALL,
    "npu": "Install Intel's NPU driver, or use --device cpu.",
}
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    # Every tensor keeps the type that the graph gives it. Without this a CPU with bf16 units runs an fp32 graph in bf16
    # and quantises activations before int8 weights; INFERENCE_PRECISION_HINT=f16 would take fp32 islands along.
    "EXECUTION_MODE_HINT": "ACCURACY",
    # Two sessions measured in turn, or two processes, would be pinned to the same cores while others idle.
    "ENABLE_CPU_PINNING": "NO",
}
# Precision: OpenVINO's name of the device's capability, and of the next best that it falls back to.
PRECISIONS = {
    "fp32": ("FP32", "FP16"),
    "fp16": ("FP16", "FP32"),
    "bf16": ("BF16", ""),
    "int8": ("INT8", "FP32"),
    "int8+bf16": ("BF16", ""),
    "int8-dynamic": ("INT8", ""),
    "int8-weights": ("FP32", ""),
    "int4-weights": ("FP32", ""),
}
WORDS = {"int8+bf16": "int8 compute, the rest {} compute", "int8-dynamic": "{} compute in linear layers"}
WORDS |= {"int8-weights": "int8 storage, {} compute", "int4-weights": "int4 storage, {} compute"}
# What must be set for a file's own precision, since its graph cannot say it: OpenVINO reads bf16 off no fp32 tensor and
# dynamic quantisation off no ONNX node. The precision is in the file's metadata, so it holds however it is opened.
SET_BY_PRECISION = {
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8+bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8-dynamic": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
}


class OpenVinoBackend(Backend):
    """The artifact is the ONNX file. `provider_options` are OpenVINO properties, such as INFERENCE_PRECISION_HINT."""

    name = "openvino"
    embeds = EMBEDS

    def capabilities(self) -> Capabilities:
        try:
            openvino = _import()
            core = openvino.Core()
            found = {_short(device): device for device in core.available_devices}
            devices = [d for kind in DEVICES for d in sorted(found) if d.partition(":")[0] == kind]
            can = {device: core.get_property(found[device], "OPTIMIZATION_CAPABILITIES") for device in devices}
        except MissingDependency as error:
            return Capabilities(installed=False, reason=error.message, fix=error.fix or INSTALL)
        except Exception as error:
            return Capabilities(installed=False, reason=f"OpenVINO does not start: {_reason(error)}.", fix=INSTALL)
        return Capabilities(True, openvino.__version__.partition("-")[0], tuple(devices), _precisions(can))

    def _scheme(self, options: RunOptions, precision: str) -> Scheme:
        from vitdeploy.quantize import schemes

        if precision == "fp8":
            raise UnsupportedModel("OpenVINO does not compute in fp8.")
        return schemes.get("openvino-avx2" if cpu.saturates() else "openvino")

    def _compile(self, graph: ir.Model, folder: Path, options: RunOptions, precision: str) -> list[Path]:
        from vitdeploy.graph.save import save

        return save(graph, folder / "model.onnx")

    def _open(self, model: Path, options: RunOptions) -> Session:
        from vitdeploy.export.metadata import PRECISION
        from vitdeploy.graph.load import check_external_data

        _import()
        facts = {entry.key: entry.value for entry in check_external_data(model).metadata_props}
        return OpenVinoSession(model, options, facts.get(PRECISION, ""))


class OpenVinoSession(Session):
    """A model file compiled by OpenVINO. `native` is its CompiledModel, None once closed.

    Args:
        precision: that the file says it is to run in; empty where it says none.
    """

    def __init__(self, model: Path, options: RunOptions, precision: str = "") -> None:
        self._model = model
        self._options = options
        self._precision = precision
        self._census: Census | None = None
        self.native = _compile_native(model, options, precision)
        self._request = self.native.create_infer_request()
        self.inputs = [_spec(port) for port in self.native.inputs]
        self.outputs = [_spec(port) for port in self.native.outputs]
        self._checked: set[tuple[tuple[int, ...], ...]] = set()
        dynamic = any(isinstance(n, str) for spec in self.inputs for n in spec.shape)
        self._loses_errors = dynamic and _threads(self.native) == 1

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.native is None:
            raise closed_session_error("OpenVINO")
        if self._loses_errors:
            self._check_shapes(feeds)
        native = {}
        for index, spec in enumerate(self.inputs):
            array = feeds[spec.name]
            # OpenVINO looks at the type only, not at its byte order.
            native[index] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        try:
            # Inputs are read where they lie; outputs are copied, since the next run writes over OpenVINO's own.
            values = self._request.infer(native, share_inputs=True, share_outputs=False)
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {_reason(error)}.") from error
        return {spec.name: values[index] for index, spec in enumerate(self.outputs)}

    def _check_shapes(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Infer every shape in the model as it was read, once for each new set of input shapes.

        With a single thread OpenVINO 2025.4 to 2026.4 loses the error when shapes do not fit within a dynamic graph: it
        returns what the run before left, and may crash later.
        """
        shapes = tuple(feeds[spec.name].shape for spec in self.inputs)
        if shapes in self._checked:
            return
        openvino = _import()
        read = _read(openvino.Core(), self._model)
        try:
            read.reshape({index: openvino.PartialShape(list(shape)) for index, shape in enumerate(shapes)})
        except Exception as error:
            sizes = ", ".join(str(list(shape)) for shape in shapes)
            raise BackendError(f"OpenVINO cannot run inputs of shape {sizes}: {_reason(error)}.") from error
        self._checked.add(shapes)

    def op_seconds(self, feeds: Mapping[str, np.ndarray], runs: int = PROFILED) -> dict[str, float]:
        """From the counters of a compiled model of its own, which fuses as this one does."""
        self.check(feeds)
        compiled = _compile_native(self._model, self._options, self._precision, {"PERF_COUNT": "YES"})
        request = compiled.create_infer_request()
        native = {i: np.asarray(feeds[spec.name], order="C") for i, spec in enumerate(self.inputs)}
        found: dict[str, float] = {}
        try:
            request.infer(native)
            for _ in range(runs):
                request.infer(native)
                for one in request.profiling_info:
                    seconds = one.real_time.total_seconds() / runs
                    if seconds > 0:
                        found[one.node_type] = found.get(one.node_type, 0.0) + seconds
        except Exception as error:
            raise BackendError(f"OpenVINO failed: {_reason(error)}.") from error
        return found

    def census(self) -> Census:
        """Count the nodes of the compiled graph; the model file is read once more, for what was fused into them.

        Raises BackendError when the device does not tell what it compiled.
        """
        if self.native is None:
            raise closed_session_error("OpenVINO")
        if self._census is None:
            self._census = self._count()
        return self._census

    def _count(self) -> Census:
        from vitdeploy.backends.openvino_census import count
        from vitdeploy.backends.openvino_trial import trial

        core = _import().Core()
        try:
            executed = self.native.get_runtime_model()
        except Exception as error:
            raise BackendError(f"The compiled graph cannot be read back: {_reason(error)}.") from error
        device = _device(core, self._options)
        settings = _settings(core, device, self._options, self._precision)
        quantises = trial(core, device, settings) if _quantises_dynamically(self.native) else None
        return count(executed, _read(core, self._model), quantises)

    def close(self) -> None:
        self._request = None
        self.native = None


def _import() -> Any:
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise MissingDependency(f"OpenVINO cannot be imported: {_reason(error)}.", fix=INSTALL) from error
    return openvino


def _compile_native(model: Path, options: RunOptions, precision: str, more: Mapping[str, str] | None = None) -> Any:
    """A CompiledModel of the file, on the device and with the properties that the options and its precision ask for."""
    core = _import().Core()
    device = _device(core, options)
    settings = _settings(core, device, options, precision)
    read = _read(core, model)
    if any(op.get_type_name() == "FakeQuantize" for op in read.get_ops()):
        settings = _for_dialect(model) | settings
    try:
        return core.compile_model(read, device, settings | dict(more or {}))
    except Exception as error:
        raise BackendError(f"OpenVINO refuses {model}: {_reason(error)}.") from error


def _for_dialect(model: Path) -> dict[str, str]:
    """What a file with Q/DQ needs to be computed right. Raises UnsupportedModel where nothing helps."""
    import onnx_ir as ir

    from vitdeploy.graph.load import load
    from vitdeploy.quantize import schemes
    from vitdeploy.quantize.lint import check_garbage

    graph = load(model)
    check_garbage(graph, schemes.get("openvino"), f"OpenVINO computes garbage for {model}")
    scales = (node.inputs[1] for node in graph.graph if node.op_type == "QuantizeLinear")
    # Where int8 meets fp16, OpenVINO 2026.4 loses track of types and refuses its own graph, or gives no row at all.
    half = any(scale is not None and scale.dtype == ir.DataType.FLOAT16 for scale in scales)
    return {"INFERENCE_PRECISION_HINT": "f32"} if half else {}


def _read(core: Any, model: Path) -> Any:
    try:
        return core.read_model(str(model))
    except Exception as error:
        reason = _reason(error)
        if reason.startswith("Unable to read the model"):
            raise UsageError(f"{model} is not a model that OpenVINO can read.") from error
        raise BackendError(f"OpenVINO refuses {model}: {reason}.") from error


def _device(core: Any, options: RunOptions) -> str:
    """OpenVINO's own name of the device: 'CPU', 'GPU', 'GPU.1'."""
    kind, colon, number = options.device.partition(":")
    if kind not in DEVICES or (colon and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(f"OpenVINO knows no device '{options.device}'.", fix="One of cpu, gpu, gpu:1, npu.")
    if options.provider is not None:
        raise UsageError(f"OpenVINO has no provider '{options.provider}'.", fix="It has --device cpu, gpu or npu.")
    name = f"{kind.upper()}.{number}" if number else kind.upper()
    found = core.available_devices
    # A single GPU is listed as 'GPU' and answers to 'GPU.0' too; of several, 'GPU' is the first.
    if name not in {*found, *(device.partition(".")[0] for device in found), *(f"{device}.0" for device in found)}:
        have = ", ".join(_short(device) for device in found)
        raise MissingDependency(f"OpenVINO finds no {options.device} here, only {have}.", fix=DEVICES[kind])
    return name


def _settings(core: Any, device: str, options: RunOptions, precision: str = "") -> dict[str, str]:
    if options.threads < 0:
        raise UsageError(f"threads is {options.threads}: give 0 (all) or more.")
    if options.optimization != "all":
        raise UsageError(f"OpenVINO always optimises the whole graph: it has no '{options.optimization}'.")
    if "bf16" in precision and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        raise UnsupportedModel(f"This file is to run in bf16, which {_short(device)} has no instructions for.")
    wanted = SETTINGS | SET_BY_PRECISION.get(precision, {})
    wanted |= {"INFERENCE_NUM_THREADS": str(options.threads)} if options.threads else {}
    supported = core.get_property(device, "SUPPORTED_PROPERTIES")
    settings = {key: value for key, value in wanted.items() if key in supported}
    for key, value in options.provider_options.items():
        try:
            # Set by itself, so that a refusal is known to be about this property.
            core.set_property(device, {str(key): str(value)})
        except Exception as error:
            raise UsageError(f"OpenVINO does not take the option {key}={value}: {_reason(error)}.") from error
        settings[str(key)] = str(value)
    return settings


def _threads(native: Any) -> int:
    """Threads that it really uses; 0 on a device that does not tell."""
    try:
        return int(native.get_property("INFERENCE_NUM_THREADS"))
    except Exception:
        return 0


def _quantises_dynamically(native: Any) -> bool:
    """Whether float activations may become int8 on their way into a product with int8 weights."""
    try:
        return int(native.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) != 0
    except Exception:  # a device without such a property
        return False


def _spec(port: Any) -> TensorSpec:
    """OpenVINO keeps no names of dynamic dimensions: each gets one of its own, so that no two are held to be equal."""
    # A tensor that is several inputs or outputs has all their names; its node's name tells which one this is.
    name = re.sub(r"/sink_port_\d+$", "", port.get_node().get_friendly_name())
    if name not in port.get_names():
        name = port.get_any_name()
    shape: tuple[int | str, ...] = (f"{name}_shape",)
    if port.get_partial_shape().rank.is_static:
        dimensions = enumerate(port.get_partial_shape())
        shape = tuple(n.get_length() if n.is_static else f"{name}_{i}" for i, n in dimensions)
    return TensorSpec(name, _dtype(port.get_element_type().get_type_name()), shape)


def _dtype(kind: str) -> str:
    """numpy's name of an OpenVINO type: 'f32' is 'float32'."""
    words = {"boolean": "bool", "string": "object", "bf16": "bfloat16"}
    prefixes = {"f": "float", "i": "int", "u": "uint"}
    match = re.fullmatch(r"([fiu])(\d+)", kind)
    return prefixes[match[1]] + match[2] if match else words.get(kind, kind)


def _reason(error: BaseException) -> str:
    """The exception's text in one line, without the places in OpenVINO's source that it went through."""
    text = re.sub(r"Exception from \S+:\d+:", "", str(error))
    text = re.sub(r"Check '.*?' failed at \S+:\d+:", "", text)
    text = re.sub(r"FrontEnd API failed with \w+:", "", text)
    return " ".join(text.split()).rstrip(". ") or type(error).__name__


def _short(device: str) -> str:
    return device.lower().replace(".", ":")


def _precisions(can: Mapping[str, list[str]]) -> dict[str, str]:
    """How each precision runs, by what the devices say that they compute in."""
    found = {}
    for precision, (own, other) in PRECISIONS.items():
        words: dict[str, list[str]] = {}
        how = WORDS.get(precision, "{} compute")
        for device, capabilities in can.items():
            runs = next((kind for kind in (own, other) if kind in capabilities), "")
            if runs:
                words.setdefault(how.format(runs.lower()), []).append(device)
        if len(words) == 1:
            found[precision] = next(iter(words))
        elif words:
            found[precision] = ", ".join(f"{word} on {' and '.join(devices)}" for word, devices in words.items())
    return found

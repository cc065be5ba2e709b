"""A TensorRT that builds nothing: its plan is the ONNX file, which ONNX Runtime runs on a simulated device's memory.

It has as much of the API as an export asks for; whether the real one has that too is for test_tensorrt_api.py.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime as cuda

__version__ = "11.4.0.106"
MAGIC = b"ftrt"
NAMES = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half", onnx.TensorProto.INT8: "Int8"}


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 1


class ProfilingVerbosity(enum.IntEnum):
    DETAILED = 2


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerInformationFormat(enum.IntEnum):
    JSON = 1


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"

    def log(self, severity: Any, message: str) -> None: ...


class IProfiler: ...


class Network:
    num_inputs = 1
    path = ""

    def get_input(self, index: int) -> Any:
        entry = onnx.load(self.path).graph.input[index]
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in entry.type.tensor_type.shape.dim)
        return type("ITensor", (), {"name": entry.name, "shape": shape})


class Profile:
    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        self.shapes = (low, opt, high)


class Config:
    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def clear_flag(self, flag: Any) -> None: ...

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return type("Cache", (), {"combine": lambda *args: True, "serialize": lambda self: b"timings"})()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        shapes = json.dumps([profile.shapes for profile in config.profiles]).encode()
        return MAGIC + len(shapes).to_bytes(4, "little") + shapes + Path(network.path).read_bytes()


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.path = path
        return True


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        if data[:4] != MAGIC:
            self.logger.log(ILogger.ERROR, "Serialization assertion magicTag == rtMagicTag failed.")
            return None
        size = int.from_bytes(data[4:8], "little")
        return Engine(json.loads(data[8 : 8 + size]), data[8 + size :])


class Engine:
    num_io_tensors = 2

    def __init__(self, profiles: list[Any], model: bytes) -> None:
        self.model = onnx.load_from_string(model)
        self.profiles = profiles
        self.num_optimization_profiles = max(len(profiles), 1)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.entries = [self.session.get_inputs()[0], self.session.get_outputs()[0]]

    def get_tensor_name(self, index: int) -> str:
        return str(self.entries[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.entries[0].name else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        entry = next(entry for entry in self.entries if entry.name == name)
        return DataType.HALF if "16" in entry.type else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        entry = next(entry for entry in self.entries if entry.name == name)
        return tuple(n if isinstance(n, int) else -1 for n in entry.shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[index]]

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        return type(
            "Inspector", (), {"get_engine_information": lambda _, form: json.dumps({"Layers": self.layers()})}
        )()

    def layers(self) -> list[dict[str, Any]]:
        """One for each product, of the type of its weight or, behind a DequantizeLinear, of what is stored."""
        types = {tensor.name: NAMES.get(tensor.data_type, "Other") for tensor in self.model.graph.initializer}
        made = {node.output[0]: node for node in self.model.graph.node}
        found = []
        for node in self.model.graph.node:
            if node.op_type not in ("MatMul", "Gemm", "Conv"):
                continue
            source = made.get(node.input[1])
            weight = types.get(source.input[0]) if source is not None and source.op_type == "DequantizeLinear" else None
            kind = weight or types.get(node.input[1]) or next(k for k in types.values() if k in ("Half", "Float"))
            found.append(
                {
                    "Name": node.name,
                    "LayerType": "gemm",
                    "Inputs": [{"Format/Datatype": kind}],
                    "Constants": [{"Format/Datatype": kind}],
                    "Metadata": f"[ONNX Layer: {node.name}]",
                }
            )
        return found


class Context:
    profiler: Any = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = engine.get_tensor_shape(engine.entries[0].name)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.shape = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (
            self.shape
            if name == self.engine.entries[0].name
            else (self.shape[0], *self.engine.get_tensor_shape(name)[1:])
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        # What a real engine keeps in a CUDA graph: the shape and the addresses of the moment.
        shape, addresses = self.shape, dict(self.addresses)
        cuda.put(lambda: self.work(shape, addresses))
        return True

    def work(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        entry, result = self.engine.entries
        dtype = np.float16 if "16" in entry.type else np.float32
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        x = np.frombuffer(ctypes.string_at(addresses[entry.name], size), dtype).reshape(shape)
        y = np.ascontiguousarray(self.engine.session.run(None, {entry.name: x})[0])
        ctypes.memmove(addresses[result.name], y.ctypes.data, y.nbytes)
        if self.profiler is not None:
            for layer in self.engine.layers():
                self.profiler.report_layer_time(layer["Name"], 0.5)

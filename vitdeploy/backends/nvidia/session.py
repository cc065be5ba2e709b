"""A session on an engine: buffers on both sides, one stream, and the time that each part of a run takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitdeploy.backends.base import Census, Session, TensorSpec, closed_session_error
from vitdeploy.backends.nvidia import build, layers, nvml
from vitdeploy.backends.nvidia.cuda import Buffer, Lane
from vitdeploy.backends.nvidia.options import EngineOptions
from vitdeploy.errors import BackendError, UnsupportedModel, UsageError

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
DTYPES |= {"UINT8": "uint8"}
FEWEST = 10  # runs that a time is taken of, as trtexec does
Shapes = tuple[tuple[int, ...], ...]


class TensorRtSession(Session):
    """An open engine. `native` is its ICudaEngine, None once closed.

    Runs copy the inputs to the device, enqueue the engine, copy the outputs back and wait; with `cuda_graph` the
    engine's part is recorded once for each set of input shapes and launched as one CUDA graph.

    Args:
        products: the graph's nodes that multiply, for the census; see layers.count.
        open_lane: a new CUDA stream; `fork` takes another.
        lane: the stream that this session runs on; None takes a new one.
        device: number of the GPU.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        open_lane: Callable[[], Lane],
        options: EngineOptions,
        products: Mapping[str, str] | None = None,
        lane: Lane | None = None,
        device: int = 0,
    ) -> None:
        self.native = engine
        self._device = device
        self._trt = trt
        self._open_lane = open_lane
        self._lane = lane or open_lane()
        self._options = options
        self._products = dict(products or {})
        self._census: Census | None = None
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError("TensorRT cannot make an execution context: the GPU's memory may be full.")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        specs = {name: self._spec(name) for name in names}
        entries = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = [specs[name] for name in names if entries[name]]
        self.outputs = [specs[name] for name in names if not entries[name]]
        self._buffers: dict[str, Buffer] = {}
        self._shapes: Shapes | None = None
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._profile = 0
        self._graphs: dict[Shapes, Callable[[], None]] = {}
        self.copies = "copies to the GPU from pinned memory and back"
        self.launch = f"one stream, {'one CUDA graph a run' if options.cuda_graph else 'no CUDA graph'}"

    def fork(self) -> TensorRtSession:
        """Another session on the same engine, with its own memory and stream, to run at the same time as this one."""
        if self.native is None:
            raise closed_session_error("TensorRT")
        return TensorRtSession(
            self._trt, self.native, self._open_lane, self._options, self._products, device=self._device
        )

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        launch = self._prepare(feeds)
        for spec in self.inputs:
            self._lane.upload(self._buffers[spec.name], self._fill(spec, feeds[spec.name]))
        launch()
        for spec in self.outputs:
            self._lane.download(self._buffers[spec.name], self._bytes(spec))
        self._lane.synchronize()
        return {spec.name: self._result(spec) for spec in self.outputs}

    def _resident(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        launch = self._prepare(feeds)
        for spec in self.inputs:
            self._lane.upload(self._buffers[spec.name], self._fill(spec, feeds[spec.name]))

        def run() -> None:
            launch()
            self._lane.synchronize()

        return run

    def parts(self, feeds: Mapping[str, np.ndarray], seconds: float) -> dict[str, list[float]]:
        """As trtexec splits a run: 'h2d', 'compute' and 'd2h' by CUDA events, 'latency' their sum, 'enqueue' the
        host's time to launch. Runs do not overlap."""
        self.check(feeds)
        launch = self._prepare(feeds)
        taken: dict[str, list[float]] = {name: [] for name in ("h2d", "compute", "d2h", "latency", "enqueue")}
        uploads = [(self._buffers[spec.name], self._fill(spec, feeds[spec.name])) for spec in self.inputs]
        downloads = [(self._buffers[spec.name], self._bytes(spec)) for spec in self.outputs]
        events = [self._lane.event() for _ in range(4)]
        end = time.perf_counter() + seconds
        while len(taken["latency"]) < FEWEST or time.perf_counter() < end:
            self._lane.record(events[0])
            for buffer, size in uploads:
                self._lane.upload(buffer, size)
            self._lane.record(events[1])
            begin = time.perf_counter()
            launch()
            taken["enqueue"].append(time.perf_counter() - begin)
            self._lane.record(events[2])
            for buffer, size in downloads:
                self._lane.download(buffer, size)
            self._lane.record(events[3])
            self._lane.synchronize()
            for name, first, last in (("h2d", 0, 1), ("compute", 1, 2), ("d2h", 2, 3), ("latency", 0, 3)):
                taken[name].append(self._lane.seconds(events[first], events[last]))
        return taken

    def device_state(self) -> dict[str, float]:
        return nvml.state(self._device)

    def layer_seconds(self, feeds: Mapping[str, np.ndarray], runs: int = FEWEST) -> dict[str, float]:
        """Mean seconds of each layer on the GPU, by name, in the engine's order. The runs are slower than others."""
        self.check(feeds)
        self._prepare(feeds)
        heard = _profiler(self._trt)
        self._context.profiler = heard
        for _ in range(runs):
            self._enqueue()
            self._lane.synchronize()
        return {name: milliseconds / runs / 1e3 for name, milliseconds in heard.milliseconds.items()}

    def smallest(self) -> dict[str, np.ndarray]:
        """Normal noise in the smallest shapes of the first profile, to try the engine with."""
        noise = np.random.default_rng(0)
        shapes = [limits[0] for limits in self._ranges(0)]
        return {
            spec.name: noise.standard_normal(shape).astype(spec.dtype)
            for spec, shape in zip(self.inputs, shapes, strict=True)
        }

    def census(self) -> Census:
        """Raises BackendError where the engine does not tell: it was built with less than detailed verbosity."""
        if self.native is None:
            raise closed_session_error("TensorRT")
        if self._census is None:
            found = build.inspect(self._trt, self.native)
            if not any(layer.inputs or layer.outputs for layer in found):
                raise BackendError(
                    "The engine does not tell the precision of its layers.",
                    fix="Build it with --backend-option profiling_verbosity=detailed.",
                )
            self._census = layers.count(found, self._products, layers.INSPECTOR)
        return self._census

    def close(self) -> None:
        if self.native is not None:
            self._graphs.clear()
            self._context = None
            self.native = None
            self._lane.close()

    def _prepare(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Set shapes and addresses where they differ from the last run's; returns what launches the engine."""
        if self.native is None:
            raise closed_session_error("TensorRT")
        shapes: Shapes = tuple(feeds[spec.name].shape for spec in self.inputs)
        if shapes != self._shapes:
            self._shapes = None
            self._set_shapes(shapes)
            self._shapes = shapes
        if not self._options.cuda_graph:
            return self._enqueue
        if shapes not in self._graphs:
            self._enqueue()  # what a first run sets up cannot be recorded
            self._lane.synchronize()
            self._graphs[shapes] = self._lane.capture(self._enqueue)
        return self._graphs[shapes]

    def _set_shapes(self, shapes: Shapes) -> None:
        profile = self._profile_of(shapes)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self._lane.handle):
                raise BackendError(f"TensorRT cannot change to the optimization profile {profile}.")
            self._profile = profile
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not self._context.set_input_shape(spec.name, shape):
                raise UsageError(f"The engine does not take '{spec.name}' of shape {list(shape)}.")
        unset = self._context.infer_shapes()
        if unset:
            raise BackendError(f"TensorRT cannot tell the shapes that follow: {', '.join(unset)} are not set.")
        for spec in (*self.inputs, *self.outputs):
            self._sizes[spec.name] = tuple(self._context.get_tensor_shape(spec.name))
            size = self._bytes(spec)
            held = self._buffers.get(spec.name)
            if held is None or held.host.nbytes < size:
                self._graphs.clear()  # they hold the old addresses
                self._buffers[spec.name] = self._lane.buffer(max(size, 1))
            if not self._context.set_tensor_address(spec.name, self._buffers[spec.name].address):
                raise BackendError(f"TensorRT does not take the memory of '{spec.name}'.")

    def _profile_of(self, shapes: Shapes) -> int:
        """The first optimization profile that the shapes are in. Raises UsageError where there is none."""
        ranges = [self._ranges(index) for index in range(max(self.native.num_optimization_profiles, 1))]
        for index, limits in enumerate(ranges):
            if all(_within(shape, three) for shape, three in zip(shapes, limits, strict=True)):
                return index
        has = "; ".join(_range_text(limits) for limits in ranges)
        given = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise UsageError(f"The engine takes inputs of {has}, not of {given}.", fix="Export with a wider --batch.")

    def _ranges(self, profile: int) -> list[Sequence[tuple[int, ...]]]:
        """(min, opt, max) shape of each input in a profile."""
        found: list[Sequence[tuple[int, ...]]] = []
        for spec in self.inputs:
            if any(isinstance(n, str) for n in spec.shape):
                three = self.native.get_tensor_profile_shape(spec.name, profile)
                found.append([tuple(shape) for shape in three])
            else:
                fixed = tuple(int(n) for n in spec.shape)
                found.append([fixed, fixed, fixed])
        return found

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._lane.handle):
            raise BackendError("TensorRT cannot run the engine.")

    def _fill(self, spec: TensorSpec, array: np.ndarray) -> int:
        """Copy an input into its pinned buffer; returns its bytes."""
        native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        np.copyto(self._buffers[spec.name].host[: native.nbytes], native.reshape(-1).view(np.uint8))
        return native.nbytes

    def _bytes(self, spec: TensorSpec) -> int:
        return int(np.prod(self._sizes[spec.name], dtype=np.int64)) * np.dtype(spec.dtype).itemsize

    def _result(self, spec: TensorSpec) -> np.ndarray:
        """A copy for the caller, since the next run writes over the buffer."""
        view = self._buffers[spec.name].host[: self._bytes(spec)]
        return view.copy().view(spec.dtype).reshape(self._sizes[spec.name])

    def _spec(self, name: str) -> TensorSpec:
        """TensorRT keeps no names of dynamic dimensions: each gets one of its own."""
        kind = self.native.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise UnsupportedModel(f"The engine's '{name}' is of type {kind}, which numpy does not have.")
        shape = tuple(self.native.get_tensor_shape(name))
        return TensorSpec(name, DTYPES[kind], tuple(n if n >= 0 else f"{name}_{i}" for i, n in enumerate(shape)))


def _within(shape: tuple[int, ...], limits: Sequence[tuple[int, ...]]) -> bool:
    low, _, high = limits
    return len(shape) == len(low) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _range_text(limits: Sequence[Sequence[tuple[int, ...]]]) -> str:
    def text(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape))

    return ", ".join(text(low) if low == high else f"{text(low)} to {text(high)}" for low, _, high in limits)


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()
            self.milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

    return Profiler()

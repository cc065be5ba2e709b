"""The few calls of CUDA that a session makes: through cuda-bindings, or through PyTorch where that has CUDA."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from vitdeploy.backends.nvidia.install import exists
from vitdeploy.errors import BackendError, MissingDependency

INSTALL = "pip install cuda-bindings"


@dataclass(frozen=True)
class Buffer:
    """Memory of a tensor on both sides.

    Attributes:
        host: uint8, in pinned memory, from which transfers run beside the host's own work.
        address: on the device.
        owner: what holds the memory.
    """

    host: np.ndarray
    address: int
    owner: Any = None


class Lane(ABC):
    """A CUDA stream and its buffers. Work on it is in order; nothing waits for it but `synchronize`.

    Attributes:
        handle: of the stream, as TensorRT takes it.
    """

    handle: int

    @abstractmethod
    def buffer(self, size: int) -> Buffer:
        """So many bytes on the host and on the device."""

    @abstractmethod
    def upload(self, buffer: Buffer, size: int) -> None:
        """Begin to copy the first `size` bytes to the device."""

    @abstractmethod
    def download(self, buffer: Buffer, size: int) -> None:
        """Begin to copy the first `size` bytes to the host."""

    @abstractmethod
    def event(self) -> Any:
        """Something that can be recorded on the stream, again and again."""

    @abstractmethod
    def record(self, event: Any) -> None:
        """Note the time at which the stream has done what was put on it so far."""

    @abstractmethod
    def seconds(self, begin: Any, end: Any) -> float:
        """Between two recorded events that the stream has passed."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all is done. Raises BackendError when something went wrong meanwhile."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on the stream as a CUDA graph; returns what launches it."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class CudaLane(Lane):
    """Through NVIDIA's own bindings of the CUDA runtime: the package cuda-bindings, of cuda-python."""

    def __init__(self, device: int, api: Any) -> None:
        self._api = api
        self._pinned: list[int] = []
        self._device: list[int] = []
        self._events: list[Any] = []
        self._graphs: list[Any] = []
        self._call("cudaSetDevice", device)
        self._stream = self._call("cudaStreamCreateWithFlags", api.cudaStreamNonBlocking)
        self.handle = int(self._stream)

    def _call(self, name: str, *args: Any) -> Any:
        status, *values = getattr(self._api, name)(*args)
        if int(status) != 0:
            _, text = self._api.cudaGetErrorString(status)
            words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
            raise BackendError(f"CUDA fails in {name}: {words}.")
        return values[0] if values else None

    def buffer(self, size: int) -> Buffer:
        pinned = int(self._call("cudaHostAlloc", size, self._api.cudaHostAllocDefault))
        self._pinned.append(pinned)
        address = int(self._call("cudaMalloc", size))
        self._device.append(address)
        memory = (ctypes.c_uint8 * size).from_address(pinned)
        return Buffer(np.ctypeslib.as_array(memory), address)

    def upload(self, buffer: Buffer, size: int) -> None:
        self._copy(buffer.address, buffer.host.ctypes.data, size, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer, size: int) -> None:
        self._copy(buffer.host.ctypes.data, buffer.address, size, "cudaMemcpyDeviceToHost")

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", to, source, size, getattr(self._api.cudaMemcpyKind, kind), self._stream)

    def event(self) -> Any:
        event = self._call("cudaEventCreate")
        self._events.append(event)
        return event

    def record(self, event: Any) -> None:
        self._call("cudaEventRecord", event, self._stream)

    def seconds(self, begin: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", begin, end)) / 1e3

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self._stream)
        launchable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        self._graphs.append(launchable)
        return lambda: self._call("cudaGraphLaunch", launchable, self._stream)

    def close(self) -> None:
        for name, held in (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaEventDestroy", self._events),
            ("cudaFree", self._device),
            ("cudaFreeHost", self._pinned),
        ):
            while held:
                self._call(name, held.pop())
        if self.handle:
            self.handle = 0
            self._call("cudaStreamDestroy", self._stream)


class TorchLane(Lane):
    """Through PyTorch's allocator and streams."""

    def __init__(self, device: int, torch: Any) -> None:
        self._torch = torch
        self._device = torch.device("cuda", device)
        self._stream = torch.cuda.Stream(self._device)
        self.handle = int(self._stream.cuda_stream)

    def buffer(self, size: int) -> Buffer:
        host = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        there = self._torch.empty(size, dtype=self._torch.uint8, device=self._device)
        return Buffer(host.numpy(), there.data_ptr(), (host, there))

    def upload(self, buffer: Buffer, size: int) -> None:
        host, there = buffer.owner
        with self._torch.cuda.stream(self._stream):
            there[:size].copy_(host[:size], non_blocking=True)

    def download(self, buffer: Buffer, size: int) -> None:
        host, there = buffer.owner
        with self._torch.cuda.stream(self._stream):
            host[:size].copy_(there[:size], non_blocking=True)

    def event(self) -> Any:
        return self._torch.cuda.Event(enable_timing=True)

    def record(self, event: Any) -> None:
        event.record(self._stream)

    def seconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        try:
            self._stream.synchronize()
        except RuntimeError as error:
            raise BackendError(f"CUDA fails: {str(error).splitlines()[0]}.") from error

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream):
            work()

        def launch() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return launch

    def close(self) -> None:
        self.handle = 0


def available() -> bool:
    """Whether one of the two packages is here, as far as can be told without the first one's libraries."""
    return exists("cuda.bindings.runtime") or _torch_with_cuda() is not None


def _torch_with_cuda() -> Any:
    try:
        torch = import_module("torch")
        return torch if torch.cuda.is_available() else None
    except (ImportError, OSError, RuntimeError):
        return None


def lane(device: int) -> Lane:
    """A new stream on a GPU by its number. Raises MissingDependency where neither package is of use."""
    try:
        return CudaLane(device, import_module("cuda.bindings.runtime"))
    except (ImportError, OSError, RuntimeError):
        pass
    if (torch := _torch_with_cuda()) is not None:
        return TorchLane(device, torch)
    raise MissingDependency(
        "Running an engine takes cuda-bindings, or a PyTorch that has CUDA, and neither is here.", fix=INSTALL
    )

"""The stream that sessions run on, against the functions that NVIDIA's cuda-bindings have; no GPU is needed."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vitdeploy.backends.nvidia import cuda
from vitdeploy.backends.nvidia.cuda import CudaLane
from vitdeploy.errors import BackendError, MissingDependency

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


class Recorded:
    """cuda-bindings' names and no others; each call must have as many arguments as the real function takes."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.held: list[Any] = []
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        real = getattr(runtime, name)
        if not callable(real) or isinstance(real, type):
            return real
        head = str(real.__doc__).splitlines()[0]
        arity = len([part for part in head[head.index("(") + 1 : head.rindex(")")].split(",") if part.strip()])

        def call(*args: Any) -> tuple[Any, ...]:
            assert len(args) == arity, head
            self.log.append((name, *args))
            if name == "cudaGetErrorString":
                return runtime.cudaGetErrorString(*args)  # type: ignore[no-any-return]
            if name == self.fails:
                return (runtime.cudaError_t.cudaErrorMemoryAllocation, None)
            return (runtime.cudaError_t.cudaSuccess, self.answer(name, args))

        return call

    def answer(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "cudaHostAlloc":
            self.held.append(ctypes.create_string_buffer(args[0]))
            return ctypes.addressof(self.held[-1])
        return {"cudaMalloc": 4096, "cudaStreamCreateWithFlags": 77, "cudaEventElapsedTime": 2.5}.get(name, 5)

    def names(self) -> list[str]:
        return [name for name, *_ in self.log]


def test_lane_calls_cuda_as_its_bindings_want_it() -> None:
    api = Recorded()
    lane = CudaLane(1, api)
    assert api.log == [("cudaSetDevice", 1), ("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)]
    assert lane.handle == 77
    buffer = lane.buffer(16)
    assert (buffer.host.shape, buffer.host.dtype, buffer.address) == ((16,), np.uint8, 4096)
    buffer.host[:] = 3
    assert api.held[0].raw == b"\x03" * 16
    kinds = runtime.cudaMemcpyKind
    api.log.clear()
    lane.upload(buffer, 8)
    lane.download(buffer, 4)
    host = buffer.host.ctypes.data
    assert api.log == [
        ("cudaMemcpyAsync", 4096, host, 8, kinds.cudaMemcpyHostToDevice, 77),
        ("cudaMemcpyAsync", host, 4096, 4, kinds.cudaMemcpyDeviceToHost, 77),
    ]
    event = lane.event()
    lane.record(event)
    assert lane.seconds(event, event) == 0.0025
    lane.synchronize()
    launch = lane.capture(lambda: lane.upload(buffer, 8))
    begin = api.names().index("cudaStreamBeginCapture")
    steps = ["cudaStreamBeginCapture", "cudaMemcpyAsync", "cudaStreamEndCapture", "cudaGraphInstantiate"]
    assert api.names()[begin : begin + 4] == steps
    launch()
    assert api.names()[-1] == "cudaGraphLaunch"
    api.log.clear()
    lane.close()
    lane.close()
    freed = {"cudaGraphExecDestroy", "cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"}
    assert sorted(api.names()) == sorted(freed)


def test_lane_fails_in_cudas_words_when_a_call_fails() -> None:
    api = Recorded()
    lane = CudaLane(0, api)
    api.fails = "cudaMalloc"
    with pytest.raises(BackendError, match="CUDA fails in cudaMalloc: out of memory"):
        lane.buffer(16)


def test_capture_ends_when_the_work_fails() -> None:
    api = Recorded()
    lane = CudaLane(0, api)

    def work() -> None:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        lane.capture(work)
    assert api.names()[-1] == "cudaStreamEndCapture"


def test_lane_names_the_package_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    torch = ModuleType("torch")
    torch.cuda = type("cuda", (), {"is_available": staticmethod(lambda: False)})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(MissingDependency) as caught:
        cuda.lane(0)
    assert caught.value.fix == cuda.INSTALL
    assert not cuda.available()

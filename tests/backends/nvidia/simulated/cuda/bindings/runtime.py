"""A CUDA runtime whose device is the host: memory is the host's, a stream does at once what is put on it."""

from __future__ import annotations

import ctypes
import enum
import time
from collections.abc import Callable
from typing import Any

cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
_memory: dict[int, Any] = {}
_capturing: list[list[Callable[[], None]]] = []
_graphs: dict[int, list[Callable[[], None]]] = {}
_events: dict[int, float] = {}


def put(work: Callable[[], None]) -> None:
    """On the stream: done at once, or noted where the stream is being captured."""
    _capturing[-1].append(work) if _capturing else work()


def cudaSetDevice(device: int) -> tuple[Any]:
    return (OK,)


def cudaGetErrorString(error: int) -> tuple[Any, bytes]:
    return OK, b"simulated error"


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, int]:
    return OK, 1


def cudaMalloc(size: int) -> tuple[Any, int]:
    held = ctypes.create_string_buffer(size)
    _memory[ctypes.addressof(held)] = held
    return OK, ctypes.addressof(held)


def cudaHostAlloc(size: int, flags: int) -> tuple[Any, int]:
    return cudaMalloc(size)


def cudaMemcpyAsync(dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Any]:
    put(lambda: ctypes.memmove(dst, src, count))  # type: ignore[arg-type, return-value]
    return (OK,)


def cudaEventCreate() -> tuple[Any, int]:
    _events[len(_events) + 1] = 0.0
    return OK, len(_events)


def cudaEventRecord(event: int, stream: int) -> tuple[Any]:
    _events[event] = time.perf_counter()
    return (OK,)


def cudaEventElapsedTime(start: int, end: int) -> tuple[Any, float]:
    return OK, 1e3 * (_events[end] - _events[start])


def cudaStreamSynchronize(stream: int) -> tuple[Any]:
    return (OK,)


def cudaStreamBeginCapture(stream: int, mode: int) -> tuple[Any]:
    _capturing.append([])
    return (OK,)


def cudaStreamEndCapture(stream: int) -> tuple[Any, int]:
    _graphs[len(_graphs) + 1] = _capturing.pop()
    return OK, len(_graphs)


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[Any, int]:
    return OK, graph


def cudaGraphLaunch(graph: int, stream: int) -> tuple[Any]:
    for work in _graphs[graph]:
        work()
    return (OK,)


def cudaGraphDestroy(graph: int) -> tuple[Any]:
    return (OK,)


def cudaGraphExecDestroy(graph: int) -> tuple[Any]:
    return (OK,)


def cudaEventDestroy(event: int) -> tuple[Any]:
    return (OK,)


def cudaStreamDestroy(stream: int) -> tuple[Any]:
    return (OK,)


def cudaFree(address: int) -> tuple[Any]:
    del _memory[address]
    return (OK,)


def cudaFreeHost(address: int) -> tuple[Any]:
    return cudaFree(address)

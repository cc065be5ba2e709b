"""The NVIDIA driver and the GPUs of this machine, asked through libcuda in a child process; it needs no package."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vitdeploy.backends import isolate
from vitdeploy.errors import BackendError

TIMEOUT_S = 30
# cuDeviceGetAttribute
MAJOR, MINOR = 75, 76
# First compute capability, and the precisions that its tensor cores multiply in (NVIDIA, CUDA C++ Programming Guide).
FAST = (
    ((7, 0), "fp16"),
    ((7, 2), "fp16, int8"),
    ((8, 0), "fp16, bf16, tf32, int8"),
    ((8, 9), "fp16, bf16, tf32, int8, fp8"),
    ((10, 0), "fp16, bf16, tf32, int8, fp8, fp4"),
)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: 'NVIDIA L4'.
        compute_capability: (8, 9).
        memory: bytes.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int

    @property
    def sm(self) -> str:
        """'8.9'."""
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"

    @property
    def fast(self) -> str:
        """The precisions that it has tensor cores for; empty where it has none."""
        found = [words for first, words in FAST if self.compute_capability >= first]
        return found[-1] if found else ""

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "compute_capability": self.sm, "memory_bytes": self.memory, "fast": self.fast}


@dataclass(frozen=True)
class Driver:
    """The driver and what it drives.

    Attributes:
        cuda: the newest CUDA that it runs, '13.0'; empty where there is no driver.
        version: its own, '580.65.06'; empty where the system does not tell.
        gpus: in CUDA's order.
        reason: why there is no GPU; empty where there is one.
    """

    cuda: str = ""
    version: str = ""
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        gpus = [gpu.to_dict() for gpu in self.gpus]
        return {"driver": self.version, "cuda": self.cuda, "gpus": gpus, "reason": self.reason}


@cache
def driver() -> Driver:
    """What the driver says. Never raises; asked once a process."""
    try:
        return isolate.call(_ask, timeout=TIMEOUT_S, what="The NVIDIA driver")
    except BackendError as error:
        return Driver(reason=error.message.rstrip("."))


def _ask() -> Driver:
    """Made to run in a child process: a broken driver may crash or hang."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return Driver(reason=f"there is no NVIDIA driver ({name} cannot be loaded)")
    found = Driver(cuda=_version(cuda), version=_own_version())
    status = cuda.cuInit(0)
    if status:
        return Driver(found.cuda, found.version, reason=f"the NVIDIA driver does not start: {_text(cuda, status)}")
    count = ctypes.c_int()
    status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return Driver(found.cuda, found.version, reason="the NVIDIA driver finds no GPU")
    return Driver(found.cuda, found.version, tuple(_gpu(cuda, index) for index in range(count.value)))


def _gpu(cuda: Any, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)


def _version(cuda: Any) -> str:
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _text(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    known = not cuda.cuGetErrorString(status, ctypes.byref(text)) and text.value
    return f"{text.value.decode(errors='replace')} (CUDA error {status})" if known and text.value else f"error {status}"


def _own_version() -> str:
    """Linux tells it in a file, as in 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...'."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"Kernel Module\D*?\s(\d+(?:\.\d+)+)", text)
    return match[1] if match else ""

"""Clocks, temperature and power of a GPU, where NVIDIA's management library and the package nvidia-ml-py are there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def state(index: int) -> dict[str, float]:
    """What GPU `index` (in CUDA's order, as far as NVML follows it) says of itself now; empty where nothing tells.

    Keys: sm_clock_mhz, memory_clock_mhz, temperature_c, power_w; those that the GPU does not tell are left out.
    """
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, no library, no driver: the latency stands without
        return {}
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        asked: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        }
        return {key: value for key, ask in asked.items() if (value := _told(ask)) is not None}
    except Exception:
        return {}
    finally:
        nvml.nvmlShutdown()


def _told(ask: Callable[[], Any]) -> float | None:
    try:
        return float(ask())
    except Exception:  # each GPU tells some of it
        return None

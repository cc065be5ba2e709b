"""Clocks and temperatures, from a library that answers in the place of NVIDIA's."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from vitdeploy.backends.nvidia import nvml


class Library(ModuleType):
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.log: list[str] = []

    def nvmlInit(self) -> None:
        self.log.append("init")

    def nvmlShutdown(self) -> None:
        self.log.append("shutdown")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index > 0:
            raise ValueError("no such GPU")
        return "gpu"

    def nvmlDeviceGetClockInfo(self, gpu: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTemperature(self, gpu: str, kind: int) -> int:
        return 41

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> Any:
        raise RuntimeError("not supported")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_state_holds_what_the_gpu_tells(library: Library) -> None:
    assert nvml.state(0) == {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "temperature_c": 41.0}
    assert library.log == ["init", "shutdown"]


def test_state_is_empty_when_nothing_tells(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml.state(1) == {}
    assert library.log == ["init", "shutdown"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.state(0) == {}

"""What the driver tells, from a library that answers in its stead."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitdeploy.backends.nvidia import gpus
from vitdeploy.backends.nvidia.gpus import Driver, Gpu

LIBCUDA = """
#include <stddef.h>
#include <string.h>
#include <stdlib.h>
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuInit(unsigned f) { INIT }
int cuGetErrorString(int e, const char** s) { *s = "no CUDA-capable device is detected"; return 0; }
int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* n, int len, int d) { strncpy(n, d ? "NVIDIA H100" : "NVIDIA L4", len); return 0; }
int cuDeviceTotalMem_v2(size_t* m, int d) { *m = (size_t)(d ? 80 : 24) << 30; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? (d ? 9 : 8) : a == 76 ? (d ? 0 : 9) : -1; return 0; }
"""


@pytest.fixture
def libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a driver's library in the way of child processes."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver's library with")

    def make(init: str = "return 0;", count: int = 1) -> None:
        source = tmp_path / "cuda.c"
        source.write_text(LIBCUDA.replace("INIT", init).replace("COUNT", str(count)))
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", tmp_path / "libcuda.so.1"], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return make


@pytest.fixture(autouse=True)
def ask_anew() -> Iterator[None]:
    gpus.driver.cache_clear()
    yield
    gpus.driver.cache_clear()


def test_driver_tells_its_gpus_when_it_has_some(libcuda: Callable[..., None]) -> None:
    libcuda(count=2)
    found = gpus.driver()
    assert (found.cuda, found.reason) == ("13.0", "")
    assert found.gpus == (Gpu("NVIDIA L4", (8, 9), 24 << 30), Gpu("NVIDIA H100", (9, 0), 80 << 30))
    assert [gpu.sm for gpu in found.gpus] == ["8.9", "9.0"]


@pytest.mark.parametrize(
    ("init", "count", "reason"),
    [
        ("return 100;", 1, "does not start: no CUDA-capable device is detected (CUDA error 100)"),
        ("return 0;", 0, "finds no GPU"),
        ("abort();", 1, "crashed with SIGABRT"),
        ("exit(3);", 1, "exit status 3"),
    ],
)
def test_driver_gives_a_reason_when_it_is_of_no_use(
    init: str, count: int, reason: str, libcuda: Callable[..., None]
) -> None:
    libcuda(init, count)
    found = gpus.driver()
    assert found.gpus == ()
    assert reason in found.reason


def test_driver_is_asked_once(libcuda: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    libcuda()
    first = gpus.driver()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    assert gpus.driver() is first


@pytest.mark.parametrize(
    ("capability", "fast"),
    [
        ((6, 1), ""),
        ((7, 0), "fp16"),
        ((7, 5), "fp16, int8"),
        ((8, 6), "fp16, bf16, tf32, int8"),
        ((8, 7), "fp16, bf16, tf32, int8"),
        ((8, 9), "fp16, bf16, tf32, int8, fp8"),
        ((9, 0), "fp16, bf16, tf32, int8, fp8"),
        ((12, 1), "fp16, bf16, tf32, int8, fp8, fp4"),
    ],
)
def test_fast_precisions_follow_from_the_compute_capability(capability: tuple[int, int], fast: str) -> None:
    assert Gpu("", capability, 0).fast == fast


def test_driver_becomes_json_values() -> None:
    found = Driver("13.0", "580.65", (Gpu("NVIDIA L4", (8, 9), 24 << 30),)).to_dict()
    assert found["gpus"][0]["compute_capability"] == "8.9"

"""Nothing of TensorRT, a part of it, or something broken in its place: each is told, and none crashes a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitdeploy.backends.nvidia import backend, install
from vitdeploy.backends.nvidia.gpus import Driver, Gpu
from vitdeploy.backends.tensorrt import TensorRtBackend

HAS_RTX = find_spec("tensorrt_rtx") is not None
NO_LIBRARY = "raise ImportError('libnvinfer.so.11: cannot open shared object file: No such file or directory')"
CRASH = "import ctypes; ctypes.string_at(0)"
WHOLE = "__version__ = '11.4.0.106'\nclass Builder: pass\nclass OnnxParser: pass\nclass Runtime: pass\n"
# What is in the place of which module, and what is said of it.
CASES: dict[str, tuple[dict[str, str], str]] = {
    "bindings only": (
        {"tensorrt_bindings": NO_LIBRARY},
        "of TensorRT only the Python bindings are installed, without the libraries",
    ),
    "lean only": ({"tensorrt_lean": CRASH}, "only TensorRT's lean runtime is installed"),
    "dispatch only": ({"tensorrt_dispatch": CRASH}, "only TensorRT's dispatch runtime is installed"),
    "libraries missing": ({"tensorrt": NO_LIBRARY}, "cannot be loaded: libnvinfer.so.11 is missing"),
    "crashes": ({"tensorrt": CRASH}, "cannot be loaded: Loading TensorRT crashed with SIGSEGV"),
    "exits": ({"tensorrt": "raise SystemExit(0)"}, "cannot be loaded: Loading TensorRT failed: SystemExit"),
    "raises": ({"tensorrt": "raise RuntimeError('CUDA initialisation: 35')"}, "RuntimeError: CUDA initialisation: 35"),
    "is something else": ({"tensorrt": "__version__ = '1'"}, "cannot be loaded: it has no Builder"),
}


@pytest.fixture(autouse=True)
def look_anew() -> Iterator[None]:
    install.installation.cache_clear()
    yield
    install.installation.cache_clear()


def put(folder: Path, modules: dict[str, str]) -> Path:
    for name, source in modules.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_installation_tells_what_is_wrong_when(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, says = CASES[case]
    monkeypatch.syspath_prepend(put(tmp_path, modules))
    found = install.installation("tensorrt")
    assert not found
    assert says in found.reason
    assert found.version == ""


@pytest.mark.parametrize("runs", [True, False])
def test_doctor_tells_when_engines_could_be_built_and_not_run(runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA L4", (8, 9), 24 << 30)
    monkeypatch.setattr(backend, "installation", lambda module: install.Installation("11.4.0.106", ""))
    monkeypatch.setattr(backend, "driver", lambda: Driver("13.0", "580.65.06", (gpu,)))
    monkeypatch.setattr(backend.cuda, "available", lambda: runs)
    can = TensorRtBackend().capabilities()
    assert (can.installed, can.devices) == (True, ("cuda:0",))
    assert ("cuda-bindings" in can.reason, can.fix) == ((False, "") if runs else (True, "pip install cuda-bindings"))


def test_installation_is_good_when_it_has_what_a_build_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(put(tmp_path, {"tensorrt": WHOLE}))
    found = install.installation("tensorrt")
    assert found
    assert found.version == "11.4.0.106"


def vitdeploy(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": "/nowhere"}
    command = [sys.executable, "-m", "vitdeploy", *args]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is an NVIDIA driver")
@pytest.mark.parametrize("case", [*CASES, "nothing", "the whole, and no GPU"])
def test_export_exits_3_and_names_two_ways_on_when_there_is(case: str, tmp_path: Path) -> None:
    nothing = "TensorRT-RTX is installed, but not TensorRT itself" if HAS_RTX else "TensorRT is not installed"
    more = {"nothing": ({}, nothing), "the whole, and no GPU": ({"tensorrt": WHOLE}, "there is no NVIDIA driver")}
    modules, says = (CASES | more)[case]
    done = vitdeploy(put(tmp_path, modules), "export", "levit_128s", "--fp16", "--backend", "tensorrt")
    assert done.returncode == 3
    assert done.stdout == ""
    error, first, second = done.stderr.splitlines()
    assert error.startswith("error: The backend tensorrt cannot run here: ")
    assert says in error
    assert "there is no NVIDIA driver" in error
    assert "a machine with an NVIDIA GPU" in first
    assert "--backend tensorrt-rtx --backend-option compute_capability=8.9" in second
    assert not (tmp_path / "levit_128s-fp16").exists()


@pytest.mark.parametrize("case", CASES)
def test_doctor_lists_everything_when(case: str, tmp_path: Path) -> None:
    modules, says = CASES[case]
    done = vitdeploy(put(tmp_path, modules), "doctor")
    assert done.returncode == 0
    assert says in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed: pip install 'vitdeploy[tensorrt-rtx]'")
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is an NVIDIA driver")
def test_export_exits_3_when_no_gpu_is_named_for_tensorrt_rtx(tmp_path: Path) -> None:
    done = vitdeploy(tmp_path, "export", "levit_128s", "--fp16", "--backend", "tensorrt-rtx")
    assert done.returncode == 3
    assert "Name the GPU to compile for: --backend-option compute_capability=8.9" in done.stderr

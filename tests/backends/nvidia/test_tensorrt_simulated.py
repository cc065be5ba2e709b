"""The whole way of `--backend tensorrt` on a simulated device: what is around TensorRT, from command to report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_gpus import libcuda  # noqa: F401 -- a fixture

from vitdeploy.report.reading import TEXTS

SIMULATED = Path(__file__).with_name("simulated")
MODEL = ("vit_tiny_patch16_224", "--image-size", "64")
QUICK = ("--duration", "0.05", "--warmup", "0")
PRODUCTS = 50  # 12 blocks of q, k, v (one or three), two of attention, projection and MLP; the patches and the head


@pytest.fixture
def device(libcuda: Callable[..., None], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:  # noqa: F811
    """Runs vitdeploy in an empty folder, with a driver, a CUDA and a TensorRT that simulate an NVIDIA L4."""
    libcuda()
    folder = tmp_path / "work"
    folder.mkdir()
    paths = os.pathsep.join(filter(None, (str(SIMULATED), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "VITDEPLOY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vitdeploy", *args]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run


def facts(done: subprocess.CompletedProcess[str]) -> dict:  # type: ignore[type-arg]
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    "precision", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("fp32", "fp16")), "int8"]
)
def test_export_verifies_and_measures_what_runs_on_the_device(
    precision: str, device: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    images = ("--calib-random", "--calib-images", "4") if precision == "int8" else ()
    options = ("--precision", precision, *images, "--batch", "1:2:4", *QUICK, "--out", "made", "--json")
    found = facts(device("export", *MODEL, "--backend", "tensorrt", *options))
    assert found["verification"]["passed"]
    assert found["verification"]["stand_in"] == ""
    assert {case["batch"] for case in found["verification"]["cases"]} == {1, 2}
    compiled, census = found["applied"]["compiled"], found["applied"]["census"]
    assert (compiled["gpu"], compiled["compute_capabilities"]) == ("NVIDIA L4", ["8.9"])
    assert census["compute"][precision] >= PRODUCTS
    assert found["request"]["run"]["device"] == "cuda"
    assert set(found["bench"]["parts"]) == {"h2d", "compute", "d2h", "latency", "enqueue"}
    assert "no CUDA graph" in found["bench"]["includes"]
    assert sorted(found["files"]) == sorted(["engine.json", "model.plan", *TEXTS])
    assert list((tmp_path / "cache" / "timing").glob("tensorrt-11.4.0.106-NVIDIA-L4-8.9.cache"))


def test_every_verb_takes_the_artifact(device: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    facts(device("export", *MODEL, "--fp16", "--backend", "tensorrt", "--no-bench", "--out", "made", "--json"))
    done = device("verify", "made")
    assert (done.returncode, "PASS" in done.stdout) == (0, True), done.stderr
    measured = device("bench", "made", "--backend-option", "cuda_graph=1", *QUICK, "--json")
    assert measured.returncode == 0, measured.stderr
    (row,) = json.loads(measured.stdout)
    assert "one CUDA graph a run" in row["includes"]
    (row,) = json.loads(device("bench", "made", "--no-transfers", *QUICK, "--json").stdout)
    assert (row["transfers"], row["includes"][:9]) == (False, "no copies")
    shown = device("bench", "made", *QUICK)
    assert "GPU compute" in shown.stdout
    inspected = facts(device("inspect", "made", "--json"))
    assert inspected["runtime"] == "tensorrt"
    assert all(layer["ms"] == pytest.approx(0.5) for layer in inspected["layers"])
    assert " 0.5000 " in device("inspect", "made").stdout
    (tmp_path / "work" / "bare.plan").write_bytes((tmp_path / "work" / "made" / "model.plan").read_bytes())
    bare = facts(device("inspect", "bare.plan", "--json"))
    assert set(bare["census"]["compute"]) == {"fp16"}
    assert device("bench", "bare.plan", "--backend", "tensorrt", *QUICK).returncode == 0
    assert device("info", "made").returncode == 0


def test_plan_that_does_not_fit_is_refused_in_a_sentence(
    device: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    facts(device("export", *MODEL, "--fp16", "--backend", "tensorrt", "--no-bench", "--out", "made", "--json"))
    plan, about = (tmp_path / "work" / "made" / name for name in ("model.plan", "engine.json"))
    told, whole = json.loads(about.read_text()), plan.read_bytes()
    for changed, data, code, says in (
        ({"version": "10.3.0.26"}, whole, 6, "was built by TensorRT 10.3.0.26, and here is 11.4.0.106"),
        ({"compute_capabilities": ["8.6"]}, whole, 6, "is for GPUs of compute capability 8.6"),
        ({"runtime": "tensorrt_rtx"}, whole, 2, "was built by TensorRT-RTX"),
        ({}, b"no plan at all", 2, "is not a plan file that TensorRT can read"),
    ):
        about.write_text(json.dumps(told | changed))
        plan.write_bytes(data)
        done = device("bench", "made", *QUICK)
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--device", "cuda:1"), 2, "There is no cuda:1: this machine's last GPU is cuda:0"),
        (("--device", "cpu"), 2, "TensorRT has no device 'cpu'"),
        (("--backend-option", "compute_capability=8.9"), 2, "it takes no compute_capability"),
        (("--backend-option", "workspace=lots"), 2, "workspace=lots is not a size"),
        (("--backend-option", "timing_cache=/proc/none/x"), 2, "cannot be written"),
        (("--precision", "bf16"), 2, "tensorrt has no bf16 here"),
    ],
)
def test_export_refuses_in_a_sentence(
    arguments: tuple[str, ...],
    code: int,
    says: str,
    device: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    done = device("export", *MODEL, "--backend", "tensorrt", *arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "work").iterdir()) == []


def test_doctor_tells_the_gpu(device: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    out = device("doctor").stdout
    assert "tensorrt       11.4.0.106, cuda:0" in out
    assert "cuda:0  NVIDIA L4, compute capability 8.9, 25.77 GB, fast in fp16, bf16, tf32, int8, fp8" in out

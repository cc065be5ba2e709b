"""benchmarks/gpu.py without a GPU: what is a result, what is not, and that one contender's end is not everyone's."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with nothing in it but eager PyTorch in fp32."""
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_gpu", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CONTENDERS", {module.BASE: module.CONTENDERS[module.BASE]})
    monkeypatch.setattr(module, "PARITY_IMAGES", 2)
    return module


def run(gpu: ModuleType, folder: Path) -> dict[str, Any]:
    file = folder / "gpu.json"
    gpu.main(["--device", "cpu", "--quick", "--batches", "1", "--seconds", "0", "--json", str(file)])
    return dict(json.loads(file.read_text()))


def test_rows_are_results_when_there_is_parity_and_reasons_when_not(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = gpu.CONTENDERS[gpu.BASE]
    kept: list[np.ndarray] = []

    def dies(case: Any) -> Any:
        raise RuntimeError("no such\nlibrary")

    def dies_when_it_runs(case: Any) -> Any:
        return replace(eager(case), resident=lambda: 1 // 0)

    def wrong(case: Any) -> Any:
        base = eager(case)
        return replace(base, host=lambda image: 1.01 * base.host(image))

    def stale(case: Any) -> Any:
        base = eager(case)

        def host(image: np.ndarray) -> np.ndarray:
            kept.append(base.host(image))
            return kept[0]

        return replace(base, host=host)

    def broken(case: Any) -> Any:
        base = eager(case)
        return replace(base, host=lambda image: base.host(image) * np.nan)

    liars = {"dies": dies, "dies later": dies_when_it_runs, "wrong": wrong, "stale": stale, "NaN": broken}
    gpu.CONTENDERS.update(liars | {"eager again": eager})
    found = run(gpu, tmp_path)
    assert [row["contender"] for row in found["rows"]] == [gpu.BASE, "eager again"]
    assert len(found["refused"]) == len(liars)
    assert "deit_tiny_patch16_224, batch 1, dies: no such library" in found["refused"]
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("| deit_tiny")]
    assert len(table) == 2
    assert all(line.count("|") == len(gpu.HEADS) + 1 for line in table)
    assert out.count("- not measured: ") == len(liars)


def test_figures_follow_from_the_samples(gpu: ModuleType, tmp_path: Path) -> None:
    found = run(gpu, tmp_path)
    (row,) = found["rows"]
    samples = np.concatenate(row["resident_s"])
    assert row["resident_ms"]["p50"] == pytest.approx(1e3 * np.percentile(samples, 50))
    peak = 1e12 * found["facts"]["matmul_tflops"]
    macs = 1.2536832e9
    assert row["of_peak"] == pytest.approx(2 * macs / np.percentile(samples, 50) / peak)
    assert (row["relative_l2"], row["top1"], row["ratio_to_eager_fp32"]["median"]) == (0, 1, 1)
    assert row["ratio_to_torch_compile_fp16"] is None
    assert set(row["parts_ms"]) == {"h2d", "compute", "d2h"}


def test_everyone_goes_when_the_reference_itself_cannot_run(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(case: Any) -> Any:
        raise RuntimeError("out of memory")

    gpu.CONTENDERS[gpu.BASE] = full
    gpu.main(["--device", "cpu", "--quick", "--batches", "1", "2"])
    out = capsys.readouterr().out
    assert out.count("out of memory") == 2
    assert "| deit_tiny" not in out


def test_a_missing_gpu_is_said_in_a_sentence(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no GPU"):
        gpu.main([])

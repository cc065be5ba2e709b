"""CPUs whose int8 products overflow get weights of 7 bits."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from vitdeploy.backends import cpu
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.backends.openvino import OpenVinoBackend


@pytest.mark.parametrize(
    ("machine", "flags", "onnxruntime", "openvino"),
    [
        ("x86_64", "avx2 fma", "onnxruntime-avx2", "openvino-avx2"),
        ("x86_64", None, "onnxruntime-avx2", "openvino-avx2"),
        ("x86_64", "avx2 avx_vnni", "onnxruntime", "openvino"),
        ("AMD64", "avx512f avx512_vnni", "onnxruntime", "openvino"),
        ("aarch64", "asimd asimddp", "onnxruntime-arm", "openvino"),
    ],
)
def test_scheme_is_that_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, onnxruntime: str, openvino: str
) -> None:
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"model name : X\nflags : {flags}\n")
    assert OnnxRuntimeBackend().scheme(RunOptions(device="cpu")).name == onnxruntime
    assert OpenVinoBackend().scheme(RunOptions(device="cpu")).name == openvino

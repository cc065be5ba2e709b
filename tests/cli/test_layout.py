"""`--layout triton` through the command line: what it prints, and that every other command takes the artifact."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EXPORT = ("export", "tiny.py:make", "--layout", "triton")
FILE = "served/triton/served/1/model.onnx"


def test_every_command_takes_the_artifact_when_it_is_a_repository(cli: Callable[..., Any], work: Path) -> None:
    for label in ("0", "1"):
        (work / "photos" / label).mkdir(parents=True)
        pixels = np.random.default_rng(int(label)).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(work / "photos" / label / "a.png")
    run = cli(*EXPORT, "--batch", "1:2:4", "--duration", "0.1", "--out", "served")
    assert run.code == 0, run.err
    told = run.out.splitlines()
    assert told[-1] == f"       tritonserver --model-repository={shlex.quote(str(work / 'served' / 'triton'))}"
    assert any(line.startswith("served/   ") and "triton/served/1/model.onnx" in line for line in told)
    for args, words in (
        (("verify", "served", "--model", "tiny.py:make"), "PASS"),
        (("verify", FILE, "--model", "tiny.py:make"), "PASS"),
        (("bench", "served", FILE, "--duration", "0.1", "--warmup", "0"), FILE),
        (("predict", "served", "photos/0/a.png"), "photos/0/a.png"),
        (("predict", FILE, "photos/0/a.png"), "photos/0/a.png"),
        (("eval", "served", "--data", "photos"), "2 images"),
        (("inspect", "served"), "MatMul"),
        (("info", FILE), "triton/served/1/model.onnx"),
    ):
        run = cli(*args)
        assert run.code == 0, run.err
        assert words in run.out
        assert "changed" not in run.err


def test_layout_is_in_the_json_when_nothing_is_done_yet(cli: Callable[..., Any]) -> None:
    run = cli(*EXPORT, "--dry-run", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["layout"] == "triton"


def test_export_is_refused_when_triton_cannot_serve_it(refused: Callable[..., str]) -> None:
    assert "Unknown layout 'flat'" in refused("export", "tiny.py:make", "--layout", "flat")
    assert "Triton has no coreml provider" in refused(*EXPORT, "--provider", "coreml", code=7)


def test_failed_artifact_keeps_its_repository_when_verification_fails(cli: Callable[..., Any], work: Path) -> None:
    run = cli(*EXPORT, "--fp16", "--tolerance", "1e-9", "--no-bench", "--out", "out")
    assert run.code == 4, run.err
    assert (work / "out.failed" / "triton" / "out" / "1" / "model.onnx").is_file()
    found = json.loads((work / "out.failed" / "manifest.json").read_text())["verification"]
    assert found["departure"]
    assert "bisect_error" not in found

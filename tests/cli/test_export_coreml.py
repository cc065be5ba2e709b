"""--backend coreml from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
FLAGS = ("--image-size", "64", "--num-classes", "10", "--backend", "coreml", "--duration", "0.1")


@pytest.fixture(autouse=True)
def _package() -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")
def test_command_line_tells_that_the_file_has_not_run(cli: Cli, work: Path) -> None:
    done = cli("export", "levit_128s", "--precision", "int8-weights", *FLAGS)
    assert done.code == 0, done.err
    told = done.out + done.err
    assert "for iOS 16, macOS 13 and newer" in told
    assert "op by op in PyTorch, and not Core ML: the compiled file is for another machine and has not run." in told
    assert "Latency is not measured" in told
    folder = work / "levit_128s-int8-weights"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "int8 weight storage in" in " ".join(manifest["applied"]["notes"])
    assert "and not Core ML" in manifest["verification"]["stand_in"]
    assert manifest["bench"] is None
    for target in (folder, folder / "model.mlpackage"):
        assert json.loads(cli("inspect", target, "--json").out)["format"] == "Core ML ML program"
    done = cli("verify", folder)
    assert done.code == 0
    assert "and not Core ML: the file itself cannot run on this machine" in done.out + done.err
    done = cli("bench", folder)
    assert done.code == 3
    assert done.err.startswith("error: Core ML runs on macOS alone.")
    assert "MLModel('model.mlpackage')" in (folder / "model-card.md").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--batch", "1:4:8"), "fixed batch"),
        (("--int8", "--calib-random"), "has no int8"),
        (("--outputs", "logits,embeddings"), "logits alone"),
        (("--opset", "20"), "without ONNX"),
        (("--device", "cuda"), "does not run on 'cuda'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_export_is_refused(refused: Callable[..., str], work: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("export", "levit_128s", "--backend", "coreml", *flags)

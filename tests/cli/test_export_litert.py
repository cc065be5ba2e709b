"""--backend litert from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _packages() -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")


def test_command_line_goes_the_whole_way(cli: Cli, work: Path) -> None:
    from PIL import Image

    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (90, 70 + i, 3), np.uint8)
        place = work / "photos" / str(i % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    flags = ("--image-size", "64", "--num-classes", "10", "--backend", "litert", "--duration", "0.1", "--json")
    done = cli("export", "levit_128s", "--int8", "--calib", "photos", *flags)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["applied"]["int8"]["images"] == 12
    assert "int8 compute in" in " ".join(made["applied"]["notes"])
    assert json.loads(cli("inspect", "levit_128s-int8", "--json").out)["format"] == "LiteRT flatbuffer"
    assert cli("verify", "levit_128s-int8").code == 0
    assert cli("bench", "levit_128s-int8", "--duration", "0.1").code == 0
    assert cli("predict", "levit_128s-int8", "photos/3/3.png").code == 0
    assert cli("eval", "levit_128s-int8", "--data", "photos").code == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--batch", "1:4:8"), "fixed batch"),
        (("--int8", "--calib-random", "--calib-method", "mse"), "its own tools"),
        (("--int8", "--calib-random", "--sensitivity"), "its own tools"),
        (("--outputs", "logits,embeddings"), "logits alone"),
        (("--opset", "20"), "without ONNX"),
        (("--precision", "bf16"), "has no bf16"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_export_is_refused(refused: Callable[..., str], work: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("export", "levit_128s", "--backend", "litert", *flags)

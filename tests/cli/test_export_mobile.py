"""--backend onnxruntime-mobile from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Cli = Callable[..., Any]


def test_command_line_goes_the_whole_way(cli: Cli, work: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(pixels).save(work / "photo.png")
    flags = ("--backend", "onnxruntime-mobile", "--duration", "0.1", "--out", "made", "--json")
    done = cli("export", "tiny.py:wide", "--fp16", *flags)
    assert done.code == 0, done.err
    assert "fp16 storage, fp32 compute" in json.loads(done.out)["applied"]["notes"][0]
    assert json.loads(cli("inspect", "made", "--json").out)["format"] == "ONNX Runtime flatbuffer"
    assert cli("verify", "made", "--model", "tiny.py:wide").code == 0
    assert cli("bench", "made", "--duration", "0.1").code == 0
    assert cli("predict", "made", "photo.png").code == 0
    model = work / "made" / "model.ort"
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    for verb in (("verify", "made", "--model", "tiny.py:wide"), ("bench", "made"), ("inspect", "made")):
        done = cli(*verb)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err

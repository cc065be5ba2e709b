"""--backend executorch from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _package() -> None:
    pytest.importorskip("executorch", reason="executorch is not installed")


def test_command_line_goes_the_whole_way(cli: Cli, work: Path) -> None:
    from PIL import Image

    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30 + i, 3), np.uint8)
        place = work / "photos" / str(i % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    Image.fromarray(pixels).save(work / "tiny-int8-photo.jpg")
    flags = ("--backend", "executorch", "--duration", "0.1", "--out", "made", "--json")
    done = cli("export", "tiny.py:make", "--int8", "--calib", "photos", *flags)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["applied"]["int8"]["images"] == 12
    notes = " ".join(made["applied"]["notes"])
    assert "int8 compute in 3 of 5" in notes
    assert "XNNPACK runs all" in notes
    told = json.loads(cli("inspect", "made", "--json").out)
    assert told["format"] == "ExecuTorch program"
    assert told["portable"] == 0
    assert cli("verify", "made", "--model", "tiny.py:make").code == 0
    assert cli("predict", "made", "photos/3/3.png").code == 0
    card = (work / "made" / "model-card.md").read_text()
    assert 'library_name: "executorch"' in card
    script = card.partition("```python\n")[2].partition("```")[0]
    (work / "made" / "photo.jpg").write_bytes((work / "tiny-int8-photo.jpg").read_bytes())
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work / "made")
        exec(script, names)
    logits = names["logits"].numpy()
    assert logits.shape == (10,)
    assert np.ptp(logits) > 0


def test_file_takes_frames_and_gives_classes(cli: Cli, refused: Callable[..., str], work: Path) -> None:
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(coarse).resize((96, 64)).save(work / "photo.png")
    frames = ("--embed-preprocessing", "--frame-size", "64x96", "--embed-postprocessing", "--top-k", "3")
    flags = ("--backend", "executorch", "--no-bench", "--json")
    done = cli("export", "tiny.py:make", *frames, *flags, "--out", "frames")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["verification"]["passed"]
    assert made["applied"]["embed"]["products"] == 2
    said = json.loads(cli("predict", "frames", "photo.png", "--json").out)
    assert len({one["probability"] for one in said[0]["top"]}) >= 3
    says = refused("export", "tiny.py:make", "--fp16", *frames, *flags, code=7)
    assert "fp16 cannot have their preprocessing inside" in says


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--batch", "1:4:8"), "fixed batch"),
        (("--int8", "--calib-random", "--calib-method", "mse"), "its own tools"),
        (("--outputs", "logits,embeddings"), "logits alone"),
        (("--precision", "bf16"), "has no bf16"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_export_is_refused(refused: Callable[..., str], work: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("export", "levit_128s", "--backend", "executorch", *flags)

"""--backend ncnn from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]
SMALL = ("--image-size", "64", "--num-classes", "10", "--backend", "ncnn")


@pytest.fixture(autouse=True)
def _packages() -> None:
    pytest.importorskip("ncnn", reason="ncnn is not installed")


def test_command_line_goes_the_whole_way(cli: Cli, work: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    Image.fromarray(pixels).save(work / "photo.png")
    done = cli("export", "levit_128s", "--fp16", *SMALL, "--duration", "0.1", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert "fp16 storage, fp32 compute" in " ".join(made["applied"]["notes"])
    folder = work / "levit_128s-fp16"
    assert {"model.ncnn.param", "model.ncnn.bin"} <= {file.name for file in folder.iterdir()}
    assert json.loads(cli("inspect", "levit_128s-fp16", "--json").out)["format"] == "ncnn .param and .bin"
    assert cli("verify", "levit_128s-fp16").code == 0
    assert cli("bench", "levit_128s-fp16", "--duration", "0.1").code == 0
    assert cli("predict", "levit_128s-fp16", "photo.png").code == 0
    with (folder / "model.ncnn.bin").open("r+b") as file:
        file.truncate(1000)
    broken = cli("inspect", "levit_128s-fp16")
    assert broken.code == 2
    assert "model.ncnn.bin" in broken.err
    assert "Traceback" not in broken.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--int8", "--calib-random"), "ncnn has no int8 here"),
        (("--precision", "int8-weights", "--keep", "head*"), "--keep is not for it"),
        (("--device", "cuda"), "does not run on"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_export_is_refused(refused: Callable[..., str], work: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("export", "levit_128s", *SMALL, *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--embed-preprocessing",), "cannot have their preprocessing inside"),
        (("--layout", "triton"), "Triton has no backend for what ncnn compiles"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_its_files_cannot_have_is_refused(cli: Cli, work: Path, flags: tuple[str, ...], says: str) -> None:
    done = cli("export", "levit_128s", *SMALL, *flags)
    assert done.code == 7
    assert says in done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in work.iterdir()) == ["tiny.py"]

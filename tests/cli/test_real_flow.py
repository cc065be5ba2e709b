"""What the README shows, on really trained checkpoints: export, predict, bench, verify.

They come from the folder that VITDEPLOY_TEST_WEIGHTS names, or `shared/weights` beside the repository.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Artifact

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = Path(os.environ.get("VITDEPLOY_TEST_WEIGHTS", SHARED / "weights"))
IMAGES = WEIGHTS.parent / "data" / "fashion_mnist_test.npz"
pytestmark = pytest.mark.skipif(not WEIGHTS.is_dir() or not IMAGES.is_file(), reason=f"no checkpoints in {WEIGHTS}")

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SLOW = pytest.mark.slow


@pytest.fixture
def photos(work: Path) -> list[tuple[Path, str]]:
    """The first test images of eight classes as PNG files, with their labels; shirts and coats are hard to tell."""
    data = np.load(IMAGES)
    folder = work / "photos"
    folder.mkdir()
    found = []
    for index in (i for i in range(10) if CLASSES[i] not in ("Shirt", "Coat")):
        at = int(np.flatnonzero(data["labels"] == index)[0])
        path = folder / f"{at}.png"
        Image.fromarray(data["images"][at]).save(path)
        found.append((path, CLASSES[index]))
    return found


@pytest.mark.parametrize(
    "model",
    ["mobilevit_xxs", pytest.param("levit_128s", marks=SLOW), pytest.param("deit_tiny_patch16_224", marks=SLOW)],
)
def test_trained_checkpoint_goes_the_whole_way(
    cli: Callable[..., Any], work: Path, photos: list[tuple[Path, str]], model: str
) -> None:
    weights = WEIGHTS / f"{model}.fashion_mnist"
    for flags in ((), ("--fp16",)):
        run = cli("export", model, "--weights", weights, "--data", "photos", "--duration", "0.2", *flags)
        assert run.code == 0, run.err
        assert f"{weights}: " in run.err
        assert re.search(r"verify .* top-1 12/12   PASS", run.err), run.err
        assert f"next   vitdeploy predict {model}-fp{16 if flags else 32} photo.jpg" in run.out
    whole, half = (Artifact.load(work / f"{model}-{precision}") for precision in ("fp32", "fp16"))
    assert half.model_path.stat().st_size < 0.55 * whole.model_path.stat().st_size
    assert whole.manifest.model.weights.location == str(weights.resolve())
    assert whole.manifest.model.labels == CLASSES

    for artifact in (whole, half):
        run = cli("predict", artifact.folder, *(path for path, _ in photos), "--top", "2")
        assert run.code == 0, run.err
        assert run.err == ""
        told = run.out.splitlines()
        assert told[::3] == [str(path) for path, _ in photos]
        best = [re.fullmatch(r" +([\d.]+)%  (.+)  \((\d)\)", line) for line in told[1::3]]
        right = sum(match is not None and match[2] == label for match, (_, label) in zip(best, photos, strict=True))
        assert right >= 7, run.out
        assert all(match is not None and CLASSES[int(match[3])] == match[2] for match in best)

    run = cli("bench", whole.folder, half.folder, "--duration", "0.2", "--warmup", "0")
    assert run.code == 0, run.err
    head, first, second = run.out.splitlines()
    assert "ratio" in head
    assert first.split()[0] == whole.folder.name or first.startswith(str(whole.folder))
    assert re.search(r"  1  +\d+$", first)
    assert re.search(r"  \d+\.\d{3} \[\d+\.\d{3}, \d+\.\d{3}\]  +\d+$", second)
    found = json.loads(cli("bench", half.folder, whole.folder, "--duration", "0.1", "--warmup", "0", "--json").out)
    assert [row["batch"] for row in found] == [1, 1]
    assert all(len(row["samples_ms"]) == row["latency_ms"]["count"] for row in found)
    low, middle, high = (found[1]["ratio_to_first"][k] for k in ("low", "median", "high"))
    assert 0 < low <= middle <= high

    run = cli("verify", whole.folder, "--data", "photos")
    assert run.code == 0, run.err
    assert run.out.endswith("top-1 12/12   PASS\n")


@pytest.mark.slow
def test_verify_follows_weights_that_moved_and_refuses_others(
    cli: Callable[..., Any], refused: Callable[..., str], work: Path
) -> None:
    shutil.copy(WEIGHTS / "deit_tiny_patch16_224.fashion_mnist" / "model.safetensors", work / "here.safetensors")
    export = ("export", "deit_tiny_patch16_224", "--image-size", "64", "--no-bench", "--out", "out")
    run = cli(*export, "--weights", "here.safetensors")
    assert run.code == 0, run.err
    (work / "here.safetensors").rename(work / "there.safetensors")
    assert "There is no file" in refused("verify", "out")
    run = cli("verify", "out", "--weights", "there.safetensors")
    assert run.code == 0, run.err
    with (work / "there.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(0.5).tobytes())
    assert "has changed since the export" in refused("verify", "out", "--weights", "there.safetensors")

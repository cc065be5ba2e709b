"""`zoo:NAME` through every verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Cli = Callable[..., Any]
SMALL = ("dim=32", "depth=1", "heads=2", "mlp_dim=32", "image_size=[64, 64]", "patch_size=16", "num_classes=10")
ARGUMENTS = tuple(part for one in SMALL for part in ("--set", one))


def test_list_and_info_tell_what_there_is(cli: Cli) -> None:
    rows = json.loads(cli("list", "--zoo", "--json").out)
    assert {"name": "zoo:vit", "class": "vit:ViT"}.items() <= rows[0].items()
    assert "zoo:cct_14" in cli("list", "--zoo", "cct_*").out
    facts = json.loads(cli("info", "zoo:vit", "--json").out)
    assert facts["arguments"]["patch_size"] == 32
    assert facts["class"] == "vitdeploy.models.vit.ViT"
    assert cli("info", "zoo:cvx").code == 2


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_artifact_is_made_and_verified_again(precision: str, cli: Cli, work: Path) -> None:
    (work / "my.toml").write_text("dim = 64\npool = 'mean'\n")
    photos = ("--calib-random", "--calib-images", "8") if precision == "int8" else ()
    flags = ("--precision", precision, *photos, "--config", "my.toml", "--batch", "1:2:4", "--duration", "0.1")
    done = cli("export", "zoo:vit", *flags, *ARGUMENTS, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["model"]["config"]["dim"] == 32  # --set comes after the file
    assert made["model"]["config"]["pool"] == "mean"
    assert made["verification"]["passed"]
    folder = f"zoo-vit-{precision}"
    assert cli("verify", folder).code == 0
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(work / "photo.png")
    assert cli("predict", folder, "photo.png").code == 0


VIDEO = ("zoo:vit_3d", "--set", "dim=32", "--set", "depth=1", "--set", "mlp_dim=32", "--shape", "3x4x32x64")


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_model_of_videos_is_exported_and_verified_again(precision: str, cli: Cli, work: Path) -> None:
    np.save(work / "clips.npy", np.random.default_rng(0).standard_normal((8, 3, 4, 32, 64), np.float32))
    photos = ("--calib", "clips.npy") if precision == "int8" else ()
    done = cli("export", *VIDEO, "--precision", precision, *photos, "--no-bench", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["model"]["input"]["shape"] == [3, 4, 32, 64]
    assert made["model"]["config"]["frames"] == 4
    folder = f"zoo-vit_3d-{precision}"
    assert cli("verify", folder, "--data", "clips.npy").code == 0
    assert cli("bench", folder, "--duration", "0.1").code == 0
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(work / "photo.png")
    told = cli("predict", folder, "photo.png")
    assert told.code == 2
    assert "takes videos of 4 frames" in told.err


PACKED = ("--set", "length=24", "--set", "slots=3", *ARGUMENTS)


@pytest.mark.parametrize(
    ("precision", "more"),
    [
        ("fp32", ("--outputs", "logits,embeddings,attention")),
        pytest.param("fp16", (), marks=pytest.mark.slow),
        pytest.param("int8", (), marks=pytest.mark.slow),
    ],
)
def test_model_of_packed_images_goes_through_every_verb(
    precision: str, more: tuple[str, ...], cli: Cli, work: Path
) -> None:
    for i in range(16):
        image = np.random.default_rng(i).integers(0, 256, (100 + i, 90, 3), np.uint8)
        place = work / "photos" / str(i % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    photos = ("--calib", "photos") if precision == "int8" else ()
    flags = ("--precision", precision, *photos, "--batch", "1:2:4", "--duration", "0.1", *more)
    done = cli("export", "zoo:na_vit_packed", *PACKED, *flags, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["model"]["input"]["packing"] == {"patch_size": 16, "length": 24, "slots": 3}
    assert made["verification"]["passed"]
    folder = f"zoo-na_vit_packed-{precision}"
    names = [one["name"] for one in json.loads(cli("inspect", folder, "--json").out)["inputs"]]
    assert names == ["patches", "positions", "image_ids"]
    assert cli("verify", folder, "--data", "photos").code == 0
    assert cli("bench", folder, "--duration", "0.1", "--batch", "3").code == 0
    evaluated = json.loads(cli("eval", folder, "--data", "photos", "--eager", "--json").out)
    assert evaluated["images"] == 16
    told = json.loads(cli("predict", folder, "photos/3/3.png", "--top", "10", "--json").out)
    assert sum(row["probability"] for row in told[0]["top"]) == pytest.approx(1)


def test_weights_of_a_navit_are_those_of_a_packed_one(cli: Cli, work: Path) -> None:
    """A sequence begins with the whole photo, and `predict` tells of that."""
    import torch

    from vitdeploy import api

    arguments = {"dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32, "patch_size": 16, "num_classes": 10}
    plain = api.build("zoo:na_vit", image_size=(64, 64), arguments=arguments, seed=5)
    torch.save(plain.module.state_dict(), work / "navit.pt")
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(image).save(work / "photo.png")
    odds = []
    for name, more in (("zoo:na_vit", ()), ("zoo:na_vit_packed", ("--set", "length=24"))):
        done = cli("export", name, *ARGUMENTS, *more, "--weights", "navit.pt", "--no-bench", "--out", name[4:])
        assert done.code == 0, done.err
        told = json.loads(cli("predict", name[4:], "photo.png", "--json").out)
        odds.append([(row["index"], pytest.approx(row["probability"], rel=1e-4)) for row in told[0]["top"]])
    assert odds[0] == odds[1]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (("export", "zoo:na_vit_packed", "--set", "length=20"), 2, "length (20) must be at least 64"),
        (("export", "zoo:na_vit_packed", "--set", "slots=0"), 2, "slots = 0"),
        (("export", "zoo:na_vit_packed", *PACKED, "--backend", "inductor"), 7, "models of one input"),
        (("tune", "zoo:na_vit_packed", *PACKED, "--calib-random"), 2, "takes several at a time"),
    ],
    ids=["length", "slots", "inductor", "tune"],
)
def test_packing_is_refused(cli: Cli, command: tuple[str, ...], code: int, says: str) -> None:
    told = cli(*command)
    assert told.code == code
    assert says in told.err


def test_users_own_model_of_videos_is_exported(cli: Cli, work: Path) -> None:
    (work / "mine.py").write_text(
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(2, 5)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.mean(dim=(2, 3, 4)))\n"
    )
    done = cli("export", "mine.py:Mean", "--shape", "2x3x8x8", "--no-bench", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"]["input"]["shape"] == [2, 3, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("zoo:vit", "--set", "patch_size=48"), "patch_size (48) must divide image_size (256)"),
        (("zoo:vit", "--set", "dim"), "is not ARGUMENT=VALUE"),
        (("zoo:vit", "--set", "width=3"), "no argument 'width'"),
        (("zoo:vit", "--config", "nowhere.toml"), "nowhere.toml"),
        (("zoo:vit", "--config", "bad.toml"), "bad.toml is not a TOML file"),
        (("levit_128s", "--set", "dim=3"), "are for zoo: names"),
        (("levit_128s", "--shape", "3x4x224x224"), "takes images, not videos"),
        (("zoo:vit", "--shape", "3x4x224x224"), "takes images, not videos"),
        (("zoo:vit", "--shape", "3xx224"), "is not channels x height x width"),
        (("zoo:vit", "--shape", "3x64x64", "--image-size", "64"), "give one or the others"),
        (("zoo:vit_3d", "--shape", "3x0x64x64"), "frames"),
        (("zoo:", "--no-bench"), "Unknown architecture 'zoo:'"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_export_is_refused(refused: Callable[..., str], work: Path, arguments: tuple[str, ...], says: str) -> None:
    (work / "bad.toml").write_text("dim = ")
    assert says in refused("export", *arguments)

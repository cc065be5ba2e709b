"""`vitdeploy package --android` and `--ios` from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_both_apps_of_an_artifact(cli: Cli, exported: Path, work: Path) -> None:
    done = cli("package", exported / "artifact", "--android", "new/a", "--ios", "new/i")
    assert done.code == 0, done.err
    said = done.out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("new/a/   open it in Android Studio")
    assert said[1].startswith("new/i/   open Classify.xcodeproj in Xcode")
    assert all("it was not compiled here: see README.md" in line for line in said)
    assert (work / "new/a/app/src/main/assets/model.onnx").is_file()
    assert (work / "new/i/Classify/Model/model.onnx").is_file()
    assert not [path for path in (work / "new").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{artifact}",), "Where to?"),
        (("{artifact}", "--android", "a", "--ios", "./a"), "a folder of its own"),
        (("{artifact}", "{artifact}", "--android", "a"), "one artifact, not of 2"),
        (("{artifact}", "--android", "a", "--data", "photos"), "--data goes with --web"),
        (("{artifact}", "--ios", "a", "--weights", "w"), "--weights goes with --web"),
        (("none", "--android", "a"), "There is no none"),
        (("{artifact}", "--android", "."), "exists"),
        (("{artifact}/model.onnx", "--ios", "a/b/c"), "exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refused(refused: Callable[..., str], exported: Path, arguments: tuple[str, ...], says: str) -> None:
    given = [word.format(artifact=exported / "artifact") for word in arguments]
    if says == "exists" and given[-1] != ".":
        given[-1] = str(exported)
    assert says in refused("package", *given)


def test_a_model_that_takes_no_picture_is_told_apart(refused: Callable[..., str], cli: Cli, work: Path) -> None:
    flags = ("--shape", "3x2x16x16", "--no-bench", "--out", "video")
    (work / "video.py").write_text(
        "from torch import nn\n\n\n"
        "class Video(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, 10)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(x.mean((2, 3, 4)))\n\n\n"
        "def make():\n"
        "    return Video()\n"
    )
    made = cli("export", "video.py:make", *flags)
    assert made.code == 0, made.err
    assert "takes video, not a picture" in refused("package", "video", "--android", "app", code=7)

"""A backend that compiles from PyTorch, without ONNX: every verb on its artifact, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import TINY, run_cli

from vitdeploy.backends import inductor, inductor_package
from vitdeploy.report.reading import TEXTS

Cli = Callable[..., Any]
compiles = pytest.mark.skipif(inductor_package.compiler() is None, reason="no C++ compiler")
MADE = ("--model", "tiny.py:make")
FLAGS = ("--backend", "inductor", "--warmup", "0", "--duration", "0.1")


@pytest.fixture
def artifact(once: Callable[[str, Callable[[Path], object]], Path], work: Path) -> Path:
    """An fp16 artifact of tiny.py with a dynamic batch, and in it what the command said: an own copy."""
    if inductor_package.compiler() is None:
        pytest.skip("no C++ compiler")

    def make(folder: Path) -> None:
        (folder / "tiny.py").write_text(TINY)
        flags = (*FLAGS, "--fp16", "--batch", "1:2:4", "--json", "--out", "artifact")
        run = run_cli("export", "tiny.py:make", *flags, cwd=folder)
        assert run.code == 0, run.err
        (folder / "said").write_text(run.out)

    folder = once("cli-inductor", make)
    shutil.copy(folder / "said", work / "said")
    return Path(shutil.copytree(folder / "artifact", work / "artifact"))


@pytest.fixture
def data(work: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    np.savez(work / "data.npz", images=pixels, labels=np.arange(12) % 10)
    Image.fromarray(pixels[0]).save(work / "photo.png")
    return work / "data.npz"


def test_export_makes_a_verified_artifact_without_a_graph(artifact: Path, work: Path) -> None:
    said = json.loads((work / "said").read_text())
    assert sorted(path.name for path in artifact.iterdir()) == sorted(["manifest.json", "model.pt2", *TEXTS])
    assert said["verification"]["passed"] is True
    assert {case["batch"] for case in said["verification"]["cases"]} == {1, 2}
    width, tokens = 8, 16
    parameters = (3 * 16 + 1) * width + 2 * width + (width + 1) * width + (width + 1) * 10
    macs = tokens * 3 * 16 * width + 2 * tokens**2 * width + tokens * width**2 + width * 10
    assert said["graph"] == {"parameters": parameters, "macs": macs}
    assert said["passes"] == []
    assert said["applied"]["fp16"] == {"islands": [], "storage": "fp16"}
    assert sum(said["applied"]["census"]["compute"].values()) >= 4
    assert said["applied"]["notes"]
    assert said["bench"]["batch"] == 2
    report = (artifact / "report.md").read_text()
    assert "- model: 0.00 M parameters, 0.000 GMACs an image" in report
    assert "None" not in report


def test_every_verb_works_on_the_artifact(cli: Cli, artifact: Path, data: Path) -> None:
    done = cli("verify", "artifact", *MADE, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["passed"] is True
    done = cli("predict", "artifact", "photo.png", "--top", "2", "--json")
    assert len(json.loads(done.out)[0]["top"]) == 2, done.err
    done = cli("bench", "artifact", "--warmup", "0", "--duration", "0.1", "--batch", "4", "--json")
    assert json.loads(done.out)[0]["batch"] == 4, done.err
    done = cli("eval", "artifact", "--data", "data.npz", "--eager", *MADE, "--json")
    assert json.loads(done.out)["eager"]["agreement"]["hits"] == 12, done.err
    done = cli("info", "artifact", "--json")
    assert json.loads(done.out)["model_file"] == "model.pt2", done.err
    done = cli("inspect", "artifact", "--json")
    found = json.loads(done.out)
    assert (found["format"], found["precision"], found["batch"]) == ("AOTInductor package", "fp16", [1, 2, 4])
    assert sum(found["ops"].values()) >= 4
    for shown in (cli("inspect", "artifact"), cli("info", "artifact")):
        assert shown.code == 0, shown.err
        assert "inductor" in shown.out.lower()


def test_verify_fails_and_says_why_no_node_is_named(refused: Callable[..., str], artifact: Path) -> None:
    said = refused("verify", "artifact", *MADE, "--tolerance", "1e-9", code=4)
    assert "No node is named" in said


@pytest.mark.parametrize(
    "command",
    [("verify", "artifact", *MADE), ("predict", "artifact", "photo.png"), ("bench", "artifact")],
    ids=lambda command: command[0],
)
def test_machine_code_that_has_changed_is_not_run(
    refused: Callable[..., str], artifact: Path, data: Path, command: tuple[str, ...]
) -> None:
    with (artifact / "model.pt2").open("ab") as file:
        file.write(b"more")
    assert "has changed since it was exported" in refused(*command)


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "int8 is asked for": (("--int8", "--calib-random"), 2, "inductor has no int8"),
    "an opset is named": (("--opset", "20"), 2, "--opset has no place here"),
    "a provider is named": (("--provider", "cuda"), 2, "no provider 'cuda'"),
    "the option is unknown": (("--backend-option", "mode=fastest"), 2, "mode=max-autotune"),
}


@compiles
@pytest.mark.parametrize("case", REFUSED)
def test_export_is_refused_when(refused: Callable[..., str], case: str) -> None:
    flags, code, text = REFUSED[case]
    assert text in refused("export", "tiny.py:make", *FLAGS, *flags, code=code)


@pytest.mark.skipif(bool(inductor.gpus()), reason="there is a GPU here")
def test_export_for_a_gpu_is_a_missing_dependency_when_there_is_none(refused: Callable[..., str]) -> None:
    assert "no cuda here" in refused("export", "tiny.py:make", *FLAGS, "--device", "cuda", code=3)


def test_finished_graph_cannot_reach_the_backend(refused: Callable[..., str], exported: Path, work: Path) -> None:
    shutil.copy(exported / "artifact" / "model.onnx", work / "x.onnx")
    assert "no PyTorch model" in refused("export", "x.onnx", *FLAGS, code=7)
    assert "x.onnx" in refused("bench", "x.onnx", "--backend", "inductor")


def test_scheme_cannot_be_held_against_a_package(refused: Callable[..., str], artifact: Path) -> None:
    assert "model.pt2" in refused("inspect", "artifact", "--scheme", "tensorrt")


@compiles
@pytest.mark.slow
def test_export_keeps_the_artifact_apart_when_it_fails(cli: Cli, work: Path) -> None:
    done = cli("export", "tiny.py:make", *FLAGS, "--tolerance", "1e-12", "--out", "made")
    assert done.code == 4, done.err
    assert "No node is named" in done.err
    assert (work / "made.failed" / "model.pt2").is_file()
    assert not (work / "made").exists()

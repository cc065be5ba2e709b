"""Evaluation on labelled images: right counts, whatever the source, batch and order; bad input in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from vitdeploy.artifact import Artifact
from vitdeploy.data.images import preprocess_array

Cli = Callable[..., Any]
Refused = Callable[..., str]
MADE = ("--model", "tiny.py:make")
COUNT = 14


def logits_of(model: Path, pixels: np.ndarray) -> np.ndarray:
    """One image at a time, by ONNX Runtime itself; for a batch of 1 or any."""
    spec = Artifact.load(model.parent).manifest.model.input
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"image": image[None]})[0][0] for image in preprocess_array(pixels, spec)]
    return np.stack(rows)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Images of all colours, flat and noisy."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (COUNT, 1, 1, 3))
    return np.clip(colours + rng.integers(-60, 60, (COUNT, 20, 24, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def labels(exported: Path, pixels: np.ndarray) -> np.ndarray:
    """Ten that the model gets right, two that come second, one third, and one last."""
    order = np.argsort(-logits_of(exported / "artifact" / "model.onnx", pixels), axis=1)
    return np.concatenate([order[:10, 0], order[10:12, 1], order[12:13, 2], order[13:, 9]])


@pytest.fixture
def copy(exported: Path, work: Path) -> Path:
    return Path(shutil.copytree(exported / "artifact", work / "artifact"))


@pytest.fixture
def data(work: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    """data.npz; beside it the same as a folder with a subfolder per class number, and as a list."""
    np.savez(work / "data.npz", images=pixels, labels=labels)
    lines = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = work / "folder" / str(label) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        lines.append(f"folder/{label}/{i:02d}.png,{label}")
    (work / "list.csv").write_text("\n".join(["path,label", *lines]))
    return work / "data.npz"


def scored(run: Any) -> dict[str, Any]:
    assert run.code == 0, run.err
    assert run.err == ""
    found: dict[str, Any] = json.loads(run.out)
    return found


def biased(model: Path, by: float, index: int) -> None:
    """Make one class likelier by changing the head's bias."""
    graph = onnx.load(model)
    (tensor,) = [t for t in graph.graph.initializer if t.dims == [10]]
    bias = numpy_helper.to_array(tensor).copy()
    bias[index] += by
    tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    onnx.save(graph, model)


@pytest.mark.parametrize("source", ["data.npz", "folder", "list.csv"])
def test_score_is_the_counted_one_whatever_the_source(cli: Cli, copy: Path, data: Path, source: str) -> None:
    found = scored(cli("eval", "artifact", "--data", source, "--json"))
    assert (found["images"], found["classes"], found["label_rule"], found["batch"]) == (COUNT, 10, "numbers", 1)
    assert (found["top1"]["hits"], found["top5"]["hits"], found["top1"]["total"]) == (10, 13, COUNT)
    assert found["top1"]["low"] < 10 / COUNT == found["top1"]["value"] < found["top1"]["high"]
    assert found["skipped"] == []
    assert 0 < found["images_per_second"]["loop"] <= found["images_per_second"]["model"]


def test_table_and_steps_are_printed(cli: Cli, copy: Path, data: Path) -> None:
    run = cli("eval", "artifact/model.onnx", "--data", "data.npz")
    assert run.code == 0, run.err
    assert re.fullmatch(r"  eval +\d+\.\d s   14 images   top-1 71\.43 %\n", run.err)
    head, figures = run.out.splitlines()
    assert re.fullmatch(r"14 images, 10 classes +top-1 % +95 % +top-5 % +95 % +batch +images/s +model alone", head)
    assert figures.split()[:4] == ["artifact/model.onnx", "71.43", "[45.35,", "88.28]"]


def test_fixed_and_dynamic_batches_give_the_same_score(cli: Cli, data: Path) -> None:
    """A fixed batch that 14 images do not fill, and a dynamic one."""
    for batch, out in (("4", "four"), ("1:3:8", "any")):
        assert cli("export", "tiny.py:make", "--no-bench", "--batch", batch, "--out", out).code == 0
    for arguments, size in ((("any",), 3), (("any", "--batch", "99", "--against", "four"), 99)):
        found = scored(cli("eval", *arguments, "--data", "data.npz", "--json"))
        assert (found["batch"], found["top1"]["hits"], found["top5"]["hits"]) == (size, 10, 13)
    four = found["against"]
    assert (four["batch"], four["top1"]["hits"], four["top5"]["hits"], four["agreement"]["hits"]) == (4, 10, 13, COUNT)


def test_limit_scores_images_spread_over_the_data(cli: Cli, copy: Path, data: Path) -> None:
    found = scored(cli("eval", "artifact", "--data", "data.npz", "--limit", "7", "--json"))
    assert (found["images"], found["top1"]["hits"], found["top5"]["hits"]) == (7, 5, 7)


def test_unreadable_images_are_named_counted_and_left_out(cli: Cli, refused: Refused, copy: Path, data: Path) -> None:
    for i in range(8):
        (data.parent / "folder" / "3").mkdir(exist_ok=True)
        (data.parent / "folder" / "3" / f"bad{i}.png").write_text("no image")
    run = cli("eval", "artifact", "--data", "folder")
    assert run.code == 0
    named = re.findall(r"note       skipped: folder/3/bad\d\.png is not an image", run.err)
    assert len(named) == 5
    assert "skipped: 3 more images that cannot be read." in run.err
    assert run.out.splitlines()[-1] == "skipped 8 of 22 images, which cannot be read"
    assert run.out.splitlines()[1].split()[1] == "71.43"
    assert "bad0.png is not an image" in refused("eval", "artifact", "--data", "folder", "--strict")


def test_against_another_model_tells_agreement_and_difference(
    cli: Cli, copy: Path, data: Path, pixels: np.ndarray, labels: np.ndarray
) -> None:
    mine = logits_of(copy / "model.onnx", pixels)
    other = Path(shutil.copytree(copy, copy.parent / "other"))
    index = int(np.bincount(labels, minlength=10).argmin())
    biased(other / "model.onnx", float(np.median(mine.max(axis=1) - mine[:, index])), index)
    theirs = logits_of(other / "model.onnx", pixels)
    first, second = mine.argmax(axis=1), theirs.argmax(axis=1)
    gained, lost = ((first == labels) & (second != labels)).sum(), ((second == labels) & (first != labels)).sum()
    assert 0 < (first == second).sum() < COUNT

    run = cli("eval", "artifact", "--data", "data.npz", "--against", "other")
    assert run.code == 0, run.err
    assert "other/model.onnx has changed since it was exported." in run.err
    assert f"other: same class on {(first == second).sum()} of 14 images" in run.out
    found = json.loads(cli("eval", "artifact", "--data", "data.npz", "--against", "other", "--json").out)["against"]
    assert found["label"] == "other"
    assert found["top1"]["hits"] == (second == labels).sum()
    assert found["agreement"]["hits"] == (first == second).sum()
    points = found["top1_difference_pp"]
    assert (points["only_first_right"], points["only_second_right"]) == (gained, lost)
    assert points["value"] == pytest.approx(100 * (gained - lost) / COUNT)
    assert points["low"] < points["value"] < points["high"]


def test_against_a_file_that_vitdeploy_did_not_write(cli: Cli, refused: Refused, copy: Path, data: Path) -> None:
    model = onnx.load(copy / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, copy.parent / "foreign.onnx")
    run = cli("eval", "artifact", "--data", "data.npz", "--against", "foreign.onnx")
    assert run.code == 0, run.err
    assert "foreign.onnx does not say what it takes" in run.err
    assert "same class on 14 of 14" in run.out
    assert "vitdeploy did not write it" in refused("eval", "foreign.onnx", "--data", "data.npz")
    bias = next(t for t in model.graph.initializer if t.dims == [10])
    model.graph.initializer.append(numpy_helper.from_array(np.arange(4), "first"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["logits", "first"], ["few"], axis=1))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("few", bias.data_type, [1, 4]))
    onnx.save(model, copy.parent / "foreign.onnx")
    said = refused("eval", "artifact", "--data", "data.npz", "--against", "foreign.onnx")
    assert "foreign.onnx has 4 classes, not 10: they cannot be compared." in said


def test_eager_model_agrees_and_its_code_is_run_only_when_named(
    cli: Cli, refused: Refused, copy: Path, data: Path
) -> None:
    assert "--eager --data data.npz artifact --model tiny.py:make" in refused(
        "eval", "artifact", "--data", "data.npz", "--eager"
    )
    assert "Add --eager" in refused("eval", "artifact", "--data", "data.npz", *MADE)
    run = cli("eval", "artifact", "--data", "data.npz", "--eager", *MADE)
    assert run.code == 0, run.err
    assert "eager PyTorch: same class on 14 of 14 images, 100.00 %" in run.out
    assert "artifact less eager PyTorch: top-1 +0.00 points" in run.out


def test_images_that_give_nan_count_as_wrong(cli: Cli, copy: Path, data: Path) -> None:
    biased(copy / "model.onnx", np.nan, 2)
    run = cli("eval", "artifact", "--data", "data.npz", "--against", "artifact/model.onnx")
    assert run.code == 0
    assert "14 images gave NaN or Inf: they count as wrong." in run.err
    assert run.out.splitlines()[1].split()[1] == "0.00"
    assert "same class on 0 of 14 images" in run.out


def test_class_folders_are_matched_by_name_and_sorted_order_is_noted(cli: Cli, copy: Path, data: Path) -> None:
    work = data.parent
    names = ["red fox", "Arctic fox", "wolf", "T-shirt/top", "e", "f", "g", "h", "i", "j"]
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["labels"] = names
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for rule, called in (("names", [n.replace("/", "_").replace(" ", "_") for n in names]), ("order", "qrstuvwxyz")):
        folder = work / rule
        for index, name in enumerate(called):
            (work / "folder" / str(index)).mkdir(exist_ok=True)
            shutil.copytree(work / "folder" / str(index), folder / name)
            Image.new("RGB", (20, 20)).save(folder / name / "black.png")
        run = cli("eval", "artifact", "--data", folder)
        assert run.code == 0, run.err
        assert ("sorted order" in run.err) == (rule == "order")
        assert run.out.startswith(f"{COUNT + 10} images")
        assert run.out.splitlines()[1].split()[1] == f"{100 * 11 / 24:.2f}"  # the ten, and one of the ten black ones


def nan_tensors(folder: Path) -> None:
    np.save(folder / "x.npy", np.full((2, 3, 16, 16), np.nan, np.float32))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (None, ("--data", "nowhere"), "There is no nowhere."),
        (None, (), "Missing option '--data'"),
        (None, ("--data", "data.npz", "--batch", "0"), "'--batch'"),
        (None, ("--data", "data.npz", "--batch", "99999999"), "larger than"),
        (None, ("--data", "data.npz", "--batch", "4"), "artifact was exported for batch 1, not 4."),
        (None, ("--data", "data.npz", "--against", "nowhere"), "There is no nowhere."),
        (None, ("--data", "tiny.py"), "no labels"),
        (lambda w: (w / "x").mkdir(), ("--data", "x"), "No image in x"),
        (lambda w: (w / "x").mkdir(), ("--data", "data.npz", "--against", "x"), "has no manifest.json"),
        (lambda w: shutil.copytree(w / "folder", w / "x" / "val"), ("--data", "x"), "('val') fit none of"),
        (lambda w: Image.new("L", (9, 9)).save(w / "folder" / "a.png"), ("--data", "folder"), "belongs to no class"),
        (
            lambda w: np.savez(w / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[3, 10]),
            ("--data", "x.npz"),
            "The labels go from 3 to 10, and the model has the classes 0 to 9.",
        ),
        (lambda w: (w / "x.txt").write_text("gone.png 1\n"), ("--data", "x.txt"), "None of the 1 images can be read"),
        (nan_tensors, ("--data", "x.npy"), "x.npy"),
        (lambda w: (w / "x.npz").write_bytes(b"PK"), ("--data", "x.npz"), "not a readable .npz"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_in_one_sentence(
    refused: Refused, copy: Path, data: Path, make: Callable[[Path], object] | None, arguments: Any, message: str
) -> None:
    if make is not None:
        make(data.parent)
    assert message in refused("eval", "artifact", *arguments)


def test_arguments_are_checked_before_anything_heavy_is_imported(cli: Cli, copy: Path, data: Path) -> None:
    run = cli("eval", "artifact", "--data", "nowhere", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert run.code == 2
    assert not re.search(r"\| +(torch|onnx|onnxruntime|onnx_ir|PIL|rich)$", run.err, re.MULTILINE)


def test_python_call_gives_the_same(copy: Path, data: Path) -> None:
    import vitdeploy
    from vitdeploy.pipeline import Listener

    class Ears(Listener):
        heard: list[tuple[int, int]] = []  # noqa: RUF012

        def progress(self, done: int, total: int) -> None:
            self.heard.append((done, total))

    found = vitdeploy.evaluate(copy, data, against=copy, limit=12, threads=1, listener=Ears())
    assert found.score.top1.total == found.against[1].agreement.hits == 12
    assert Ears.heard == [(i, 12) for i in range(1, 13)] * 2
    with pytest.raises(vitdeploy.UsageError, match="Unknown option colour"):
        vitdeploy.evaluate(copy, data, colour="red")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_interrupted_evaluation_ends_with_its_code_and_leaves_nothing(
    work: Path, copy: Path, data: Path, launch: Callable[..., Any]
) -> None:
    first = next((work / "folder").rglob("*.png"))
    (work / "long.txt").write_text(f"{first} 1\n" * 150_000)

    def attend() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = launch("eval", "artifact", "--data", "long.txt", preexec_fn=attend)
    temporary = work.with_name(f"{work.name}-tmp")
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in temporary.glob("vitdeploy-*/progress")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["interrupted"]
    assert not list(temporary.glob("vitdeploy-*"))

"""model-card.md: what the Hub reads of it, and that its program does what vitdeploy does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Manifest
from vitdeploy.data.frames import as_input
from vitdeploy.data.images import decode, preprocess
from vitdeploy.report import snippet
from vitdeploy.report.card import card
from vitdeploy.spec import Frame, InputSpec, ModelSpec, Packing, WeightsSource

yaml = pytest.importorskip("yaml")


def front_matter(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_is_what_the_hub_reads(manifest: Manifest) -> None:
    found = front_matter(card(manifest))
    assert found["library_name"] == "onnx"
    assert found["pipeline_tag"] == "image-classification"
    assert found["license"] == "apache-2.0"
    assert {"vision", "onnxruntime", "int8"} <= set(found["tags"])


def test_front_matter_stays_whole_when_texts_are_hostile(hostile: Callable[[str], Manifest]) -> None:
    poison = '"\n---\nlicense: mine\n# <script>'
    found = front_matter(card(hostile(poison)))
    assert found["library_name"] == f"x{poison}"
    assert "license" not in found


def test_license_is_left_out_when_weights_are_random(manifest: Manifest) -> None:
    random = replace(manifest, model=replace(manifest.model, weights=WeightsSource("random", seed=0)))
    text = card(random)
    assert "license" not in front_matter(text)
    assert "RANDOM WEIGHTS" in text
    assert "RANDOM WEIGHTS" not in card(manifest)


def test_failure_is_said_when_verification_failed(failed: Manifest) -> None:
    assert "FAILED verification" in card(failed)


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(),
        InputSpec((3, 48, 64), crop_pct=0.875, interpolation="bilinear"),
        InputSpec((3, 40, 40), crop_pct=0.7, crop_mode="squash"),
        InputSpec((1, 28, 28), mean=(0.1,), std=(0.3,), crop_pct=1.0, interpolation="nearest"),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(301, 217), (90, 333), (64, 64)])
def test_program_prepares_images_as_vitdeploy_does(spec: InputSpec, size: tuple[int, int], tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(photo, exif=exif)
    names: dict[str, Any] = {}
    exec(snippet.prepare(spec), names)
    np.testing.assert_allclose(names["prepare"](photo)[0], preprocess(decode(photo), spec), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "frame", [Frame("rgb"), Frame("rgba"), Frame("bgra", (40, 30)), Frame("rgb", (64, 64))], ids=str
)
def test_program_makes_frames_as_vitdeploy_does(frame: Frame, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)).save(photo)
    spec, names = InputSpec(frame=frame), {}
    exec(snippet.prepare(spec), names)
    made = names["prepare"](photo)
    np.testing.assert_array_equal(made, as_input(decode(photo), spec))
    assert made.flags.c_contiguous


def test_program_gives_the_logits_when_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, save

    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3])
    model = helper.make_model(helper.make_graph(nodes, "g", [image], [logits]), ir_version=8)
    model.opset_import[0].version = 17
    save(model, tmp_path / "model.onnx")
    Image.new("RGB", (20, 30), (10, 20, 200)).save(tmp_path / "photo.jpg")
    spec = InputSpec((3, 8, 8))
    made = Manifest(ModelSpec("m", input=spec, num_classes=3), request={"batch": 2})
    found = re.search(r"```python\n(.*?)```", card(made), re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(found[1], names)
    assert capsys.readouterr().out == "2\n"
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    feed = preprocess(decode("photo.jpg"), spec)[None].repeat(2, 0)
    np.testing.assert_allclose(names["logits"], session.run(None, {"image": feed})[0][0], atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [InputSpec((3, 4, 32, 32)), InputSpec((3, 32, 32), packing=Packing(8, 16, 2)), InputSpec(frame=Frame("nv21"))],
)
def test_card_shows_no_program_when_no_image_file_is_an_input(spec: InputSpec) -> None:
    assert "```" not in card(Manifest(ModelSpec("m", input=spec)))

"""Preprocessing, answers and labels in the file, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.export.options import EmbedOptions, around
from vitdeploy.spec import InputSpec, ModelSpec

Cli = Callable[..., Any]
QUICK = ("--no-bench", "--json")
EMBED = ("--embed-preprocessing", "--embed-postprocessing", "--top-k", "3")
NAMES = [f"thing {i}" for i in range(10)]


def save_photo(path: Path, height: int, width: int) -> None:
    coarse = np.random.default_rng(height).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def labels(work: Path) -> str:
    (work / "names.txt").write_text("\n".join(NAMES) + "\n")
    return "names.txt"


def test_file_takes_photos_and_gives_labels(cli: Cli, work: Path, labels: str) -> None:
    """What it says of photos is what the file without all that says of them."""
    import onnxruntime

    for i, size in enumerate([(90, 71), (33, 200)]):
        save_photo(work / f"{i}.png", *size)
    done = cli("export", "tiny.py:wide", *EMBED, "--labels", labels, "--out", "whole", *QUICK)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["verification"]["passed"]
    assert {case["frame"][2] for case in told["verification"]["cases"]} == {3}
    assert told["applied"]["embed"]["products"] == 2
    assert cli("export", "tiny.py:wide", "--labels", labels, "--out", "bare", *QUICK).code == 0
    said = [json.loads(cli("predict", name, "0.png", "1.png", "--json").out) for name in ("whole", "bare")]
    for whole, bare in zip(*said, strict=True):
        assert [one["label"] for one in whole["top"]] == [one["label"] for one in bare["top"]]
        np.testing.assert_allclose(*([one["probability"] for one in of["top"]] for of in (whole, bare)), rtol=1e-4)
    # What an app does, with nothing but ONNX Runtime.
    session = onnxruntime.InferenceSession(work / "whole" / "model.onnx")
    names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    pixels = np.asarray(Image.open(work / "0.png"))
    scores, indices = session.run(["scores", "indices"], {"image": pixels})
    assert [names[i] for i in indices[0]] == [one["label"] for one in said[0][0]["top"][:3]]
    np.testing.assert_allclose(scores[0], [one["probability"] for one in said[0][0]["top"][:3]], rtol=1e-4)


def test_every_verb_takes_such_an_artifact(cli: Cli, work: Path, labels: str) -> None:
    made = cli("export", "tiny.py:wide", *EMBED, "--labels", labels, "--frame-format", "nv21", "--out", "made", *QUICK)
    assert made.code == 0, made.err
    done = cli("verify", "made", "--model", "tiny.py:wide")
    assert done.code == 0, done.err
    rows = json.loads(cli("bench", "made", "--duration", "0.1", "--json").out)
    assert rows[0]["batch"] == 1
    assert "preprocessing of a frame of 720x640" in rows[0]["includes"]
    assert json.loads(cli("inspect", "made", "--json").out)["outputs"][1]["name"] == "scores"
    for i, name in enumerate(["thing 1", "thing 7"]):
        (work / "data" / name).mkdir(parents=True)
        save_photo(work / "data" / name / "a.png", 60 + i, 50)
    done = cli("eval", "made", "--data", "data", "--eager", "--model", "tiny.py:wide", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["images"] == 2
    assert found["eager"]["agreement"]["value"] == 1.0
    assert cli("bench", "made", "--batch", "2").code == 2


def test_verify_fails_when_preprocessing_in_the_file_is_another(cli: Cli, work: Path) -> None:
    """A mean in the file that is not the training code's."""
    assert cli("export", "tiny.py:wide", "--embed-preprocessing", "--out", "made", *QUICK).code == 0
    file = work / "made" / "model.onnx"
    model = onnx.load(file)
    means = [
        one for one in model.graph.initializer if one.name.startswith("preprocess/") and list(one.dims) == [3, 1, 1]
    ]
    assert means
    for one in means:
        one.raw_data = (np.frombuffer(one.raw_data, np.float32) * np.float32(1.05)).tobytes()
    onnx.save(model, file)
    done = cli("verify", "made", "--model", "tiny.py:wide")
    assert done.code == 4
    assert "preprocess/" in done.err
    assert "Traceback" not in done.err


def test_verify_fails_when_answers_are_not_those_of_the_logits(cli: Cli, work: Path) -> None:
    assert cli("export", "tiny.py:wide", "--embed-postprocessing", "--out", "made", *QUICK).code == 0
    file = work / "made" / "model.onnx"
    model = onnx.load(file)
    next(node for node in model.graph.node if node.op_type == "TopK").attribute.append(
        onnx.helper.make_attribute("largest", 0)
    )
    onnx.save(model, file)
    done = cli("verify", "made", "--model", "tiny.py:wide")
    assert done.code == 4
    assert "not those of the file's own logits" in done.err


def test_what_cannot_be_is_told_in_a_sentence(cli: Cli, work: Path) -> None:
    for flags, code, says in (
        (("--embed-preprocessing", "--frame-size", "a4"), 2, "Frame size"),
        (("--labels", "nothing.txt"), 2, "nothing.txt"),
        (("--embed-preprocessing", "--interpolation", "box"), 7, "box"),
    ):
        done = cli("export", "tiny.py:wide", *flags, "--no-bench", "--out", "made")
        assert done.code == code, done.err
        assert says in done.err
        assert "Traceback" not in done.err
        assert not (work / "made").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"frame_format": "rgba"}, "--embed-preprocessing"),
        ({"frame_size": (64, 64)}, "--embed-preprocessing"),
        ({"top_k": 2}, "--embed-postprocessing"),
        ({"embed_postprocessing": True, "top_k": 0}, "none"),
        ({"embed_preprocessing": True, "frame_format": "yuv"}, "rgb, rgba, bgra, nv21"),
        ({"embed_preprocessing": True, "frame_format": "nv21", "frame_size": (3, 5)}, "even"),
        ({"embed_preprocessing": True, "batch": 2}, "one frame at a time"),
        ({"embed_preprocessing": True, "batch": (1, 2, 4)}, "one frame at a time"),
        ({"embed_preprocessing": True, "precision": "fp16", "io_precision": "fp16"}, "fp32"),
        ({"embed_postprocessing": True, "layout": "triton"}, "triton"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_together_are_refused(options: dict[str, Any], says: str) -> None:
    from vitdeploy.api import export_request
    from vitdeploy.pipeline import check_request

    with pytest.raises(UsageError, match=says):
        check_request(export_request("mobilevit_xxs", options))


@pytest.mark.parametrize(
    ("options", "spec", "error"),
    [
        ({"embed_postprocessing": True, "top_k": 11}, ModelSpec("m", num_classes=10), UsageError),
        ({"embed_postprocessing": True}, ModelSpec("m", num_classes=0), UnsupportedModel),
        ({"labels": "imagenet"}, ModelSpec("m", num_classes=10), UsageError),
        ({"embed_preprocessing": True}, ModelSpec("m", input=InputSpec((3, 8, 16, 16))), UnsupportedModel),
        ({"embed_preprocessing": True}, ModelSpec("m", input=InputSpec((4, 16, 16), (0.5,), (0.5,))), UnsupportedModel),
        ({"embed_preprocessing": True}, ModelSpec("m", input=InputSpec(channel_order="BGR")), UnsupportedModel),
    ],
    ids=["top-k", "no classes", "labels", "video", "four channels", "BGR"],
)
def test_model_that_does_not_fit_is_refused(options: dict[str, Any], spec: ModelSpec, error: type[Exception]) -> None:
    with pytest.raises(error):
        around(spec, EmbedOptions(**options), any_size=True)


def test_frames_get_the_usual_size_where_a_file_needs_one_and_few_classes_are_all_told() -> None:
    options = EmbedOptions(embed_preprocessing=True, embed_postprocessing=True)
    spec = around(ModelSpec("m", num_classes=3), options, any_size=False)
    assert spec.input.tensors[0].shape == (480, 640, 3)
    assert spec.top == 3
    assert around(ModelSpec("m"), options, any_size=True).input.tensors[0].shape == ("height", "width", 3)
    assert spec.bare == ModelSpec("m", num_classes=3)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("name", "text", "fits"),
    [
        ("l.json", json.dumps(NAMES), True),
        ("l.json", json.dumps({"id2label": {str(i): name for i, name in enumerate(NAMES)}}), True),
        ("l.json", json.dumps({str(i + 1): name for i, name in enumerate(NAMES)}), False),
        ("l.json", "[1, 2]", False),
        ("l.json", "{", False),
        ("l.txt", "\ufeff" + "\r\n".join(NAMES), True),
        ("l.txt", "\n".join(NAMES[:9]), False),
    ],
    ids=["list", "id2label", "from one", "numbers", "broken", "windows", "too few"],
)
def test_labels_are_read_from_texts_and_json(tmp_path: Path, name: str, text: str, fits: bool) -> None:
    from vitdeploy.data.labels import read_labels

    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    if fits:
        assert read_labels(str(file), 10) == tuple(NAMES)
    else:
        with pytest.raises(UsageError):
            read_labels(str(file), 10)

"""`export --int8` from the command line: calibrated on the user's images, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(work: Path) -> Path:
    folder = work / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = np.clip(rng.integers(0, 256, (1, 1, 3)) + rng.integers(-60, 60, (20, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    return folder


def test_int8_export_is_verified_applied_and_recorded(cli: Cli, work: Path, photos: Path) -> None:
    Image.new("L", (30, 20), 90).save(photos / "grey.png")
    Image.new("CMYK", (30, 20), (9, 80, 200, 3)).save(photos / "print.jpg")
    (photos / "broken.jpg").write_bytes((photos / "print.jpg").read_bytes()[:80])
    done = cli("export", "tiny.py:make", "--int8", "--calib", "photos", "--no-bench", "--json", "--out", "made")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["verification"]["passed"]
    assert made["verification"]["precision"] == "int8"
    int8 = made["applied"]["int8"]
    assert int8["images"] == 14
    assert int8["source"] == "folder"
    assert len(int8["skipped"]) == 1
    assert "broken.jpg" in int8["skipped"][0]
    assert {op["label"] for op in int8["ops"] if op["precision"] == "int8"} >= {"stem", "mix", "head"}
    assert made["applied"]["census"]["compute"]["int8"] == sum(op["precision"] == "int8" for op in int8["ops"])
    again = cli("verify", "made", "--model", "tiny.py:make")
    assert again.code == 0, again.err
    for photo in photos.iterdir():
        photo.unlink()
    photos.rmdir()
    lost = cli("verify", "made", "--model", "tiny.py:make")
    assert lost.code == 2
    assert "--data" in lost.err


def test_int8_on_synthetic_images_says_what_it_is_for(cli: Cli, work: Path) -> None:
    done = cli("export", "tiny.py:make", "--int8", "--calib-random", "--no-bench", "--out", "made")
    assert done.code == 0, done.err
    assert "its accuracy is not" in done.err
    assert json.loads((work / "made" / "manifest.json").read_text())["request"]["calib_random"] is True


def save_npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def one_with_infinity(count: int) -> np.ndarray:
    array = images(count)
    array[2, 0, 0, 0] = np.inf
    return array


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no images are given": (lambda work: None, ("--int8",), "--calib"),
    "the folder is not there": (lambda work: None, ("--int8", "--calib", "nowhere"), "nowhere"),
    "the folder is empty": (lambda work: (work / "empty").mkdir(), ("--int8", "--calib", "empty"), "No image in empty"),
    "both kinds are asked for": (lambda work: None, ("--int8", "--calib", ".", "--calib-random"), "contradict"),
    "two precisions are asked for": (lambda work: None, ("--int8", "--fp16"), "fp16, int8"),
    "images are given for fp16": (lambda work: None, ("--fp16", "--calib", "."), "--int8"),
    "rounding is asked for with fp16": (lambda work: None, ("--fp16", "--rounding", "learned"), "is for --int8"),
    "the method is unknown": (lambda work: None, ("--int8", "--calib-random", "--calib-method", "best"), "'best'"),
    "no layer matches": (lambda work: None, ("--int8", "--calib-random", "--keep", "neck"), "'neck'"),
    "tensors have another size": (
        lambda work: save_npy(work / "x.npy", np.zeros((4, 3, 8, 8), np.float32)),
        ("--int8", "--calib", "x.npy"),
        "[3, 8, 8]",
    ),
    "a tensor has NaN": (
        lambda work: save_npy(work / "x.npy", np.full((4, 3, 16, 16), np.nan, np.float32)),
        ("--int8", "--calib", "x.npy"),
        "NaN",
    ),
    "one tensor of many has infinity": (
        lambda work: save_npy(work / "x.npy", one_with_infinity(4)),
        ("--int8", "--calib", "x.npy"),
        "Image 2",
    ),
    "tensors have another number of channels": (
        lambda work: save_npy(work / "x.npy", np.zeros((4, 1, 16, 16), np.float32)),
        ("--int8", "--calib", "x.npy"),
        "[1, 16, 16]",
    ),
    "tensors are float64": (
        lambda work: save_npy(work / "x.npy", np.zeros((4, 3, 16, 16))),
        ("--int8", "--calib", "x.npy"),
        "float64",
    ),
    "an .npz holds tensors": (
        lambda work: np.savez(work / "x.npz", images=images(4)),
        ("--int8", "--calib", "x.npz"),
        "must be uint8",
    ),
    "an .npz has no images": (
        lambda work: np.savez(work / "x.npz", photos=images(4)),
        ("--int8", "--calib", "x.npz"),
        "no array named 'images'",
    ),
    "an .npz is cut short": (
        lambda work: [(work / "x.npz").write_bytes(b"PK\3\4")],
        ("--int8", "--calib", "x.npz"),
        "not a readable .npz",
    ),
    "no image can be read": (
        lambda work: [(work / name).write_bytes(b"\xff\xd8\xff") for name in ("a.jpg", "b.jpg")],
        ("--int8", "--calib", "."),
        "None of the 2 images can be read",
    ),
    "the scheme is unknown": (lambda work: None, ("--int8", "--calib-random", "--scheme", "tensort"), "tensorrt"),
    "fp8 has no images": (lambda work: None, ("--fp8",), "fp8 needs images"),
    "fp8 and int8 are asked for": (lambda work: None, ("--fp8", "--int8", "--calib-random"), "fp8, int8"),
    "fp8 is to be rounded by learning": (
        lambda work: None,
        ("--fp8", "--calib-random", "--rounding", "learned"),
        "even steps of int8",
    ),
    "fp8 is to find ranges by entropy": (
        lambda work: None,
        ("--fp8", "--calib-random", "--calib-method", "entropy"),
        "even steps of int8",
    ),
    "an int8 scheme is given for fp8": (
        lambda work: None,
        ("--fp8", "--calib-random", "--scheme", "tensorrt"),
        "fp8 has tensorrt-fp8",
    ),
    "an fp8 scheme is given for int8": (
        lambda work: None,
        ("--int8", "--calib-random", "--scheme", "tensorrt-fp8"),
        "is for fp8",
    ),
    "the opset is too old for fp8": (lambda work: None, ("--fp8", "--calib-random", "--opset", "18"), "opset 19"),
    "a scheme is given for fp16": (lambda work: None, ("--fp16", "--scheme", "tensorrt"), "--int8"),
    "the opset is too old for the scheme": (
        lambda work: None,
        ("--int8", "--calib-random", "--scheme", "tensorrt", "--opset", "18"),
        "opset 19",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_int8_is_refused_in_one_sentence_when(case: str, cli: Cli, work: Path) -> None:
    prepare, flags, text = BAD[case]
    prepare(work)
    done = cli("export", "tiny.py:make", *flags, "--no-bench", "--out", "made")
    assert done.code == 2, done.err
    assert text in done.err
    assert "Traceback" not in done.err
    assert not (work / "made").exists()


def test_unreadable_image_ends_a_strict_export(cli: Cli, work: Path, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = cli("export", "tiny.py:make", "--int8", "--calib", "photos", "--strict", "--no-bench", "--out", "made")
    assert done.code == 2
    assert "broken.jpg" in done.err


def test_other_runtimes_dialect_is_written_verified_and_recorded_when_it_is_named(
    cli: Cli, work: Path, photos: Path
) -> None:
    done = cli("export", "tiny.py:wide", "--int8", "--calib", "photos", "--duration", "0.1", "--scheme", "tensorrt")
    assert done.code == 0, done.err
    folder = work / "tiny-wide-int8-tensorrt"
    made = json.loads((folder / "manifest.json").read_text())
    assert made["request"]["scheme"] == made["applied"]["int8"]["scheme"] == "tensorrt"
    assert made["applied"]["notes"] == ["written for tensorrt, verified on onnxruntime"]
    assert made["applied"]["fp16"]["converted"] > 0
    assert made["verification"]["passed"]
    assert made["bench"] is None
    assert "Latency is not measured" in done.err
    assert cli("verify", folder, "--model", "tiny.py:wide").code == 0
    clean = cli("inspect", folder, "--scheme", "tensorrt")
    assert clean.code == 0, clean.out
    assert cli("inspect", folder, "--scheme", "onnxruntime").code == 7


def test_fp8_is_written_for_tensorrt_and_verified_here_when_no_scheme_is_named(
    cli: Cli, work: Path, photos: Path
) -> None:
    done = cli("export", "tiny.py:wide", "--fp8", "--calib", "photos", "--duration", "0.1", "--sensitivity")
    assert done.code == 0, done.err
    folder = work / "tiny-wide-fp8"
    made = json.loads((folder / "manifest.json").read_text())
    fp8 = made["applied"]["fp8"]
    assert (fp8["scheme"], fp8["native"], made["request"]["scheme"]) == ("tensorrt-fp8", False, None)
    assert {op["label"]: op["precision"] for op in fp8["ops"] if op["op_type"] == "Gemm"} == {
        "mix": "fp8",
        "head": "float",  # 10 classes
    }
    assert made["applied"]["notes"] == ["written for tensorrt-fp8, verified on onnxruntime"]
    assert made["applied"]["fp16"]["converted"] > 0
    assert made["verification"]["passed"]
    assert made["verification"]["precision"] == "fp8"
    assert made["bench"] is None
    assert "written for tensorrt-fp8" in done.err
    assert [one["label"] for one in fp8["sensitivity"]] == ["mix"]
    assert "## Sensitivity" in (folder / "report.md").read_text()
    assert (folder / "sensitivity.svg").exists()
    assert cli("verify", folder, "--model", "tiny.py:wide").code == 0
    assert cli("inspect", folder, "--scheme", "tensorrt-fp8").code == 0
    assert cli("inspect", folder, "--scheme", "tensorrt").code == 7
    same = cli(
        "export", "tiny.py:wide", "--fp8", "--calib", "photos", "--scheme", "tensorrt-fp8", "--dry-run", "--json"
    )
    assert json.loads(same.out)["folder"] == "tiny-wide-fp8-tensorrt"


def test_fp8_is_refused_by_a_backend_that_has_none(cli: Cli, work: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    done = cli("export", "tiny.py:wide", "--fp8", "--calib-random", "--backend", "openvino")
    assert done.code == 2
    assert "openvino has no fp8" in done.err
    assert "--backend onnxruntime" in done.err


VIT = """from vitdeploy.models.vision_transformer import VisionTransformer

def make():
    return VisionTransformer(patch_size=16, embed_dim=64, depth=2, num_heads=1, num_classes=10)
"""


def test_openvino_takes_int8_products_of_tokens_in_a_dynamic_batch(cli: Cli, work: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    (work / "vit.py").write_text(VIT)
    flags = ("--int8", "--calib-random", "--backend", "openvino", "--image-size", "224", "--no-bench", "--json")
    done = cli("export", "vit.py:make", "--batch", "1:2:4", *flags)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["verification"]["passed"]
    assert made["applied"]["census"]["compute"]["int8"] >= 12


def test_backends_own_dialect_is_held_to_its_plan_when_it_is_named(cli: Cli, work: Path) -> None:
    own = OnnxRuntimeBackend().scheme(RunOptions()).name
    done = cli("export", "tiny.py:make", "--int8", "--calib-random", "--scheme", own, "--duration", "0.1", "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert made["applied"]["int8"]["native"] is True
    assert made["applied"]["notes"][0].startswith("applied: int8 compute")
    assert made["bench"] is not None


def test_sensitivity_of_each_op_lands_in_the_report(cli: Cli, work: Path, photos: Path) -> None:
    asked = ("export", "tiny.py:make", "--int8", "--calib", "photos", "--sensitivity", "--no-bench", "--json")
    done = cli(*asked, "--out", "made")
    assert done.code == 0, done.err
    found = json.loads(done.out)["applied"]["int8"]["sensitivity"]
    assert {one["label"] for one in found} == {"stem", "mix", "head"}
    assert all(0 < one["error"] < 0.2 and 20 < one["weight_sqnr"] < 80 for one in found)
    assert [one["error"] for one in found] == sorted((one["error"] for one in found), reverse=True)
    assert "## Sensitivity" in (work / "made" / "report.md").read_text()
    assert "head" in (work / "made" / "sensitivity.svg").read_text()


def test_sensitivity_is_refused_where_nothing_is_quantised(cli: Cli, work: Path) -> None:
    done = cli("export", "tiny.py:make", "--fp16", "--sensitivity")
    assert done.code == 2
    assert "--int8" in done.err

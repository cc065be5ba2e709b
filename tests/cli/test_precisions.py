"""`export --precision` beside fp32, fp16 and int8: made, told, verified again, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

NOTES = {
    "int8-dynamic": "int8 compute in 2 of 5 ops",
    "int8-weights": "int8 weight storage in 3 of 3 layers, fp32 compute",
    "int4-weights": "int4 weight storage in 2 of 3 layers, fp32 compute",
}


@pytest.mark.parametrize("precision", NOTES)
def test_export_is_applied_verified_and_smaller(precision: str, cli: Cli, work: Path) -> None:
    done = cli("export", "tiny.py:wide", "--precision", precision, "--no-bench", "--json", "--out", "made")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert NOTES[precision] in made["applied"]["notes"][0]
    assert made["verification"]["passed"]
    assert made["verification"]["precision"] == precision
    report = made["applied"][precision]
    assert report["weight_bytes_after"] < 0.4 * report["weight_bytes_before"]
    assert made["request"]["opset"] == {"int4-weights": 21, "int8-dynamic": 23}.get(precision, 20)
    assert made["files"]["model.onnx"]["bytes"] < 0.4 * 4 * made["graph"]["parameters"]
    again = cli("verify", "made", "--model", "tiny.py:wide")
    assert again.code == 0, again.err
    alone = cli("verify", "made/model.onnx", "--model", "tiny.py:wide")
    assert alone.code == 0, alone.err


def test_kept_layers_are_named_in_the_manifest(cli: Cli, work: Path) -> None:
    flags = ("--precision", "int8-weights", "--keep", "head", "--no-bench", "--json", "--out", "made")
    done = cli("export", "tiny.py:make", *flags)
    assert done.code == 0, done.err
    ops = json.loads(done.out)["applied"]["int8-weights"]["ops"]
    assert {op["label"]: op["reason"] for op in ops if op["precision"] == "float"} == {"head": "asked for"}


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "the backend has no bf16": (("--precision", "bf16"), 2, "onnxruntime has no bf16"),
    "the precision is unknown": (("--precision", "int4"), 2, "int4-weights"),
    "two are asked for": (("--precision", "int8-dynamic", "--int8"), 2, "int8, int8-dynamic"),
    "images are given for no calibration": (("--precision", "int8-dynamic", "--calib", "."), 2, "are for --int8"),
    "layers are kept out of fp16": (("--fp16", "--keep", "head"), 2, "--keep"),
    "no layer matches": (("--precision", "int4-weights", "--keep", "neck"), 2, "'neck'"),
    "nothing is left": (("--precision", "int8-dynamic", "--keep", "*"), 7, "Nothing is left"),
    "inputs are to be int8": (("--precision", "int8-dynamic", "--io-precision", "int8-weights"), 2, "fp32 or fp16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_export_is_refused_in_one_sentence_when(case: str, cli: Cli, work: Path) -> None:
    flags, code, text = REFUSED[case]
    done = cli("export", "tiny.py:make", *flags, "--no-bench", "--out", "made")
    assert done.code == code, done.err
    assert text in done.err
    assert "Traceback" not in done.err
    assert not (work / "made").exists()

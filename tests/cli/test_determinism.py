"""The same command writes the same bytes, whatever the hash seed, the threads, the folder and the day."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdeploy.report.reading import TEXTS

DEIT = ("deit_tiny_patch16_224", "--image-size", "64", "--batch", "1:2:8")
SLOW = [
    DEIT,
    ("mobilevit_xxs", "--image-size", "64"),
    ("mobilevitv2_050", "--image-size", "64"),
    ("levit_192", "--batch", "2"),
]


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (("tiny.py:make",), "fp32"),
        (DEIT, "fp16"),
        *(
            pytest.param(m, p, marks=pytest.mark.slow)
            for m in SLOW
            for p in ("fp32", "fp16")
            if (m, p) != (DEIT, "fp16")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_model_file_is_the_same_bytes_in_another_process(
    work: Path, launch: Callable[..., subprocess.Popen[str]], model: tuple[str, ...], precision: str
) -> None:
    export = ("export", *model, "--precision", precision, "--no-bench")
    (work / "deep").mkdir()
    runs = [
        launch(*export, "--out", "one", env={"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "TZ": "UTC"}),
        launch(*export, "--out", "deep/two", env={"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo"}),
    ]
    for run in runs:
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err
    one, two = work / "one", work / "deep" / "two"
    assert (one / "model.onnx").read_bytes() == (two / "model.onnx").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, two)]
    for manifest in manifests:  # where and how long
        for volatile in ("steps", "environment", "request", "verification"):
            manifest.pop(volatile)
        for text in TEXTS:  # they tell it
            manifest["files"].pop(text)
    assert manifests[0] == manifests[1]

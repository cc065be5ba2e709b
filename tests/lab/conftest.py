"""A small artifact, the page's runtime, and a lab that serves them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., str]


@pytest.fixture(scope="session")
def ort_web() -> None:
    """onnxruntime-web's files, or no test."""
    pytest.importorskip("starlette", reason="the extra lab is not installed")
    pytest.importorskip("uvicorn", reason="the extra lab is not installed")
    from vitdeploy.errors import MissingDependency
    from vitdeploy.lab import runtime

    try:
        runtime.files()
    except MissingDependency:
        pytest.skip("onnxruntime-web is not here: vitdeploy lab --fetch")


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(artifact, ..., options)` gives the address of a lab of its own."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> str:
        command = [sys.executable, "-m", "vitdeploy", "lab", *map(str, arguments)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        running.append(process)
        told = []
        assert process.stderr is not None
        for line in process.stderr:
            told.append(line)
            if found := re.match(r"Open (\S+)", line):
                return found[1]
        raise AssertionError("".join(told))

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small LeViT, in fp32."""
    from vitdeploy import api

    folder = tmp_path_factory.mktemp("lab") / "tiny"
    api.export("zoo:levit", arguments=CONFIG, out=folder, bench=False)
    return folder


CONFIG = {"image_size": 32, "num_classes": 7, "stages": 1, "dim": 16, "depth": 1, "heads": 2, "mlp_mult": 2}

"""A small artifact, the page's runtime, and a lab that serves them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., str]
QUIET = ("background-networking", "component-update", "sync", "quic")


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


@pytest.fixture
def tiny_config() -> dict[str, Any]:
    return CONFIG


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = os.environ.get("VITDEPLOY_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", *(f"--disable-{name}" for name in QUIET)]
        found = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A phone's page; an error on its console fails the test."""
    found = browser.new_page(viewport={"width": 390, "height": 844})
    errors: list[str] = []
    found.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: errors.append(str(error)))
    yield found
    found.close()
    assert not errors


CONFIG = {"image_size": 32, "num_classes": 7, "stages": 1, "dim": 16, "depth": 1, "heads": 2, "mlp_mult": 2}

"""Small artifacts, and the compilers where there are some."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from compilers import succeed

CONFIG = {"image_size": 32, "num_classes": 7, "stages": 1, "dim": 16, "depth": 1, "heads": 2, "mlp_mult": 2}
Export = Callable[..., Path]
Compile = Callable[[Sequence[Path], Path], list[str]]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(name, **options)` makes an artifact of a small LeViT; the same name gives the same one again."""
    from vitdeploy import api

    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str, **options: Any) -> Path:
        if not (folder / name).exists():
            api.export("zoo:levit", arguments=CONFIG, out=folder / name, bench=False, **options)
        return folder / name

    return make


@pytest.fixture(scope="session")
def plain(export: Export) -> Path:
    """Given tensors, with a preprocessing that no default has."""
    return export(
        "plain", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.25,), crop_pct=0.87, interpolation="lanczos"
    )


@pytest.fixture(scope="session")
def frames(export: Export) -> Path:
    """Given camera frames, with the best classes told."""
    return export(
        "frames", embed_preprocessing=True, frame_format="nv21", frame_size=(48, 64), embed_postprocessing=True
    )


@pytest.fixture(scope="session")
def kotlin() -> Compile:
    """`kotlin(sources, jar, options)` compiles; gives the command that runs `main` of Check.kt."""
    home = os.environ.get("VITDEPLOY_KOTLIN")
    if shutil.which("java") is None or not (home or shutil.which("kotlinc")):
        pytest.skip("there is no Kotlin compiler")
    compiler = ["kotlinc"]
    if home:
        compiler = ["java", "-cp", f"{home}/lib/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-kotlin-home", home]

    def compile_(sources: Sequence[Path], jar: Path, *options: str) -> list[str]:
        command = [*compiler, "-no-reflect", "-Werror", "-include-runtime", *options, *sources, "-d", jar]
        succeed(command)
        return ["java", "-cp", str(jar), "org.vitdeploy.classify.CheckKt"]

    return compile_


@pytest.fixture(scope="session")
def swiftc() -> list[str]:
    """The command of Swift's compiler."""
    compiler = shlex.split(os.environ.get("VITDEPLOY_SWIFTC", "")) or [shutil.which("swiftc") or ""]
    if not compiler[0]:
        pytest.skip("there is no Swift compiler")
    return compiler


@pytest.fixture(scope="session")
def swift(swiftc: list[str]) -> Compile:
    """`swift(sources, program, options)` compiles; gives the command that runs the program."""

    def compile_(sources: Sequence[Path], program: Path, *options: str) -> list[str]:
        succeed([*swiftc, "-O", "-swift-version", "5", "-warnings-as-errors", *options, *sources, "-o", program])
        return [str(program)]

    return compile_

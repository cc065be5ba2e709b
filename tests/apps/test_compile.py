"""Written projects, given to compilers: all of the Kotlin, and the Swift that is not about Apple's screens.

What they call of Android, ONNX Runtime and LiteRT is declared in stubs/.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compilers import succeed
from PIL import Image

import vitdeploy
from vitdeploy.apps.contents import TEMPLATES
from vitdeploy.pipeline import package_app

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # compilers take their time
KOTLIN = "app/src/main/kotlin/org/vitdeploy/classify"
ASSETS = "app/src/main/assets"
SCREENS = ("ClassifyApp", "ContentView", "Camera", "Work")


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled declarations of Android, ONNX Runtime and LiteRT."""
    if shutil.which("javac") is None:
        pytest.skip("there is no Java compiler")
    folder = tmp_path_factory.mktemp("stubs")
    files = []
    for block in (HERE / "stubs" / "java.txt").read_text().split("== ")[1:]:
        name, _, text = block.partition("\n")
        files.append(folder / "source" / name)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_text(text)
    succeed(["javac", "-nowarn", "-d", folder / "classes", *files])
    return folder / "classes"


@pytest.mark.parametrize("which", ["plain", "frames"])
@pytest.mark.parametrize("library", ["onnxruntime", "litert"])
def test_kotlin_compiles(
    which: str, library: str, stubs: Path, kotlin: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = package_app(request.getfixturevalue(which), tmp_path / "app", "android")
    shutil.copyfile(TEMPLATES / "android" / f"Classifier.{library}.kt", folder / KOTLIN / "Classifier.kt")
    kotlin(sorted((folder / KOTLIN).glob("*.kt")), tmp_path / "app.jar", "-cp", str(stubs))


@pytest.mark.parametrize("which", ["plain", "frames"])
def test_swift_compiles(which: str, swift: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = package_app(request.getfixturevalue(which), tmp_path / "app", "ios")
    module = [
        "-parse-as-library",
        "-emit-module",
        "-emit-module-path",
        str(tmp_path / "OnnxRuntimeBindings.swiftmodule"),
    ]
    library = tmp_path / "libOnnxRuntimeBindings.a"
    stub = HERE / "stubs" / "OnnxRuntimeBindings.swift"
    swift([stub], library, *module, "-emit-library", "-static", "-module-name", "OnnxRuntimeBindings")
    sources = sorted((folder / "Classify").glob("*.swift"))
    pure = [file for file in sources if file.stem not in SCREENS]
    swift(pure, tmp_path / "app.o", "-I", str(tmp_path), "-parse-as-library", "-c", "-wmo")


def test_all_of_the_swift_is_swift(swiftc: list[str]) -> None:
    """Screens and Core ML, whose frameworks only Apple has."""
    files = sorted((TEMPLATES / "ios").glob("*.swift"))
    assert len(files) > 10
    for file in files:
        succeed([*swiftc, "-parse", "-swift-version", "5", file])


@pytest.mark.parametrize("which", ["plain", "frames"])
@pytest.mark.parametrize("platform", ["android", "ios"])
def test_a_projects_own_constants_give_what_it_expects(
    which: str, platform: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    compiler = request.getfixturevalue("kotlin" if platform == "android" else "swift")
    artifact = request.getfixturevalue(which)
    folder = package_app(artifact, tmp_path / "app", platform)
    kind, sources, data = ("kt", KOTLIN, ASSETS) if platform == "android" else ("swift", "Classify", "Classify/Model")
    names = ("Pixels", "Resize", "Spec", "Tensor" if which == "plain" else "Frame")
    files = [*(folder / sources / f"{name}.{kind}" for name in names), HERE / f"Given.{kind}"]
    command = compiler(files, tmp_path / "given.jar")
    command[-1] = command[-1].replace("CheckKt", "GivenKt")
    picture = Image.open(folder / data / "selftest.png")
    (tmp_path / "rgba").write_bytes(picture.convert("RGBA").tobytes())
    sizes = map(str, picture.size)
    done = subprocess.run(
        [*command, str(tmp_path / "rgba"), *sizes, str(tmp_path / "given")], capture_output=True, text=True
    )
    outputs = "[logits, scores, indices] 5\n" if which == "frames" else "[logits] 0\n"
    assert (done.returncode, done.stdout) == (0, outputs), done.stderr
    with vitdeploy.load(artifact) as session:
        spec = session.inputs[0]
        given = np.fromfile(tmp_path / "given", spec.dtype).reshape(spec.example)
        logits = session.run({"image": given})["logits"].ravel()
    expected = np.fromfile(folder / data / "selftest.bin", "<f4")
    bound = 5e-4 if which == "frames" else 1e-6
    assert np.abs(logits - expected).max() <= bound * np.abs(expected).max()

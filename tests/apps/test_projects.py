"""What `package --android` and `--ios` write, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import vitdeploy
from vitdeploy.apps import android, contents, ios
from vitdeploy.artifact import Artifact
from vitdeploy.data.images import decode, preprocess
from vitdeploy.errors import UnsupportedModel, UsageError, VitdeployError
from vitdeploy.pipeline import package_app
from vitdeploy.spec import InputSpec

PLATFORMS = ("android", "ios")
ASSETS = {"android": Path("app/src/main/assets"), "ios": Path("Classify/Model")}
NAMESPACE = "{http://schemas.android.com/apk/res/android}"
HOSTILE = (
    'a "quoted" $name ${x}',
    "two\nlines\r\nand \u2028 more",
    "</string>&<",
    "\\(x) \\",
    "",
    "@RUNTIME@",
    "ünï 漢",
)


def sources(folder: Path) -> dict[str, str]:
    """Every text of a project."""
    kinds = {".kt", ".kts", ".swift", ".xml", ".pbxproj", ".properties", ".md"}
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.suffix in kinds}


def changed(artifact: Path, folder: Path, **changes: Any) -> Path:
    """A copy of an artifact whose manifest tells something else of the model or the request."""
    shutil.copytree(artifact, folder)
    data = json.loads((folder / "manifest.json").read_text())
    for key, value in changes.items():
        part = data["request"] if key in ("backend", "batch", "io_precision") else data["model"]
        (data if key == "files" else part)[key] = value
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("which", ["plain", "frames"])
def test_project_has_the_model_and_what_it_must_give(
    platform: str, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    artifact = request.getfixturevalue(which)
    assert package_app(artifact, tmp_path / "made" / "app", platform) == tmp_path / "made" / "app"
    assets = tmp_path / "made" / "app" / ASSETS[platform]
    assert (assets / "model.onnx").read_bytes() == (artifact / "model.onnx").read_bytes()
    image = decode(assets / "selftest.png")
    expected = np.fromfile(assets / "selftest.bin", "<f4")
    assert expected.shape == (7,)
    if which == "plain":
        given = preprocess(image, Artifact.load(artifact).manifest.model.input, across_first=True)[None]
        with vitdeploy.load(artifact) as session:
            assert np.abs(session.run({"image": given})["logits"][0] - expected).max() < 1e-6 * np.abs(expected).max()
    texts = sources(tmp_path / "made" / "app")
    assert not [name for name, text in texts.items() if re.search(r"@[A-Z_]+@", text)]
    assert "random weights" in texts["README.md"]
    assert "not compiled" in texts["README.md"]


def test_every_package_file_is_written_or_chosen_from(plain: Path, frames: Path, tmp_path: Path) -> None:
    for platform in PLATFORMS:
        made = set()
        for artifact in (plain, frames):
            folder = package_app(artifact, tmp_path / platform / artifact.name, platform)
            made |= {file.name for file in folder.rglob("*")}
        for file in (contents.TEMPLATES / platform).iterdir():
            name = re.sub(r"^(Classifier)\.\w+|^app\.(build)|^(gitignore)$", r"\1\2\3", file.name).replace(
                "git", ".git"
            )
            assert name in made or file.name == "package.pbxproj", file.name


def test_android_names_what_is_there(plain: Path, tmp_path: Path) -> None:
    texts = sources(package_app(plain, tmp_path / "app", "android"))
    manifest = ElementTree.fromstring(texts["app/src/main/AndroidManifest.xml"])
    classes = {name.rsplit("/")[-1].removesuffix(".kt") for name in texts}
    named = [found.get(f"{NAMESPACE}name", "") for kind in ("activity", "provider") for found in manifest.iter(kind)]
    assert named
    assert {name.removeprefix(".") for name in named} <= classes
    provider = next(manifest.iter("provider"))
    assert provider.get(f"{NAMESPACE}exported") == "false"
    authority = str(provider.get(f"{NAMESPACE}authorities")).replace("${applicationId}", "")
    assert f"content://${{context.packageName}}{authority}/" in texts[f"{android.SOURCES}/PhotoProvider.kt"]
    strings = {found.get("name") for found in ElementTree.fromstring(texts[f"{android.VALUES}/strings.xml"])}
    asked = set(re.findall(r"R\.string\.(\w+)", texts[f"{android.SOURCES}/MainActivity.kt"]))
    assert asked
    assert strings == asked | {"app_name"}
    assert not list(manifest.iter("uses-permission"))
    assert f'implementation("{android.RUNTIMES["onnxruntime"]}")' in texts["app/build.gradle.kts"]


def project_of(text: str) -> list[str]:
    """The kinds of the objects of a project.pbxproj: each identifier is an object's, and nothing is left open."""
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    objects = re.findall(r"^\t\t(A1[0-9A-F]{22})[^\n]* = \{", text, re.M)
    kinds = re.findall(r"isa = (\w+);", text)
    assert len(objects) == len(kinds) == len(set(objects))
    assert set(re.findall(r"\bA1[0-9A-F]{22}\b", text)) == set(objects)
    return kinds


def test_xcodes_project_is_whole(plain: Path, tmp_path: Path) -> None:
    folder = package_app(plain, tmp_path / "app", "ios")
    text = (folder / "Classify.xcodeproj" / "project.pbxproj").read_text()
    kinds = project_of(text)
    assert "PBXFileSystemSynchronizedRootGroup" in kinds
    assert "XCRemoteSwiftPackageReference" in kinds
    assert "minimumVersion = 1.24.1;" in text
    assert (folder / "Classify" / "ClassifyApp.swift").is_file()


def test_core_ml_needs_no_package(plain: Path) -> None:
    """As the backend coreml lays an artifact out."""
    artifact = Artifact.load(plain)
    file = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
    names = (file, "model.mlpackage/Manifest.json", "report.md")
    files = {name: {"bytes": 1, "sha256": "0" * 64} for name in names}
    manifest = replace(artifact.manifest, model_file=file, files=files)
    subject = contents.Subject(replace(artifact, manifest=manifest), "coreml", b"", np.zeros(7, np.float32))
    written = ios.project(subject)
    project = written["Classify.xcodeproj/project.pbxproj"]
    assert isinstance(project, bytes)
    assert b"onnxruntime" not in project.lower()
    project_of(project.decode())
    for name in names[:2]:
        assert written[f"Classify/Model/{name}"] == plain / name
    assert "Classify/Model/report.md" not in written
    swift, spec = written["Classify/Classifier.swift"], written["Classify/Spec.swift"]
    assert isinstance(swift, bytes)
    assert isinstance(spec, bytes)
    assert b"import CoreML" in swift
    assert b'"model.mlmodelc"' in spec


@pytest.mark.parametrize("platform", PLATFORMS)
def test_labels_and_names_are_data_and_never_source(plain: Path, tmp_path: Path, platform: str) -> None:
    name = 'x"; </string>${evil}\n@RUNTIME@.py:make'
    artifact = changed(plain, tmp_path / "hostile", labels=list(HOSTILE), name=name, tag=None)
    folder = package_app(artifact, tmp_path / "app", platform)
    lines = (folder / ASSETS[platform] / "labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines == ['a "quoted" $name ${x}', "two lines and   more", *HOSTILE[2:], ""]
    reference = sources(package_app(plain, tmp_path / "reference", platform))
    texts = sources(folder)
    assert texts.keys() == reference.keys()
    for file, text in texts.items():
        assert text.replace("x-string-evil-RUNTIME-.py-make", "zoo-levit") == reference[file], file
    if platform == "android":
        ElementTree.fromstring(texts[f"{android.VALUES}/strings.xml"])


def test_ort_files_keep_their_name(export: Callable[..., Path], tmp_path: Path) -> None:
    artifact = export("mobile", backend="onnxruntime-mobile")
    for platform in PLATFORMS:
        folder = package_app(artifact, tmp_path / platform, platform)
        assert (folder / ASSETS[platform] / "model.ort").read_bytes() == (artifact / "model.ort").read_bytes()
        assert not (folder / ASSETS[platform] / "model.onnx").exists()
    assert re.search(
        r'UNPACKED = "[0-9a-f]{16}\.model\.ort"', sources(tmp_path / "android")[f"{android.SOURCES}/Spec.kt"]
    )


@pytest.mark.slow
def test_litert_on_android(export: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    pytest.importorskip("litert_torch", reason="litert-torch is not installed")
    artifact = export(
        "lite", backend="litert", embed_preprocessing=True, frame_size=(48, 64), embed_postprocessing=True
    )
    texts = sources(package_app(artifact, tmp_path / "app", "android"))
    assert android.RUNTIMES["litert"] in texts["app/build.gradle.kts"]
    assert "org.tensorflow.lite.Interpreter" in texts[f"{android.SOURCES}/Classifier.kt"]
    assert "FrameSpec(Format.RGB, 48, 64)" in texts[f"{android.SOURCES}/Spec.kt"]
    with vitdeploy.load(artifact) as session:
        assert [spec.name for spec in session.inputs] == ["image"]
        assert {spec.name for spec in session.outputs} == {"logits", "scores", "indices"}


def test_constants_are_the_specs() -> None:
    spec = InputSpec((3, 96, 128), (0.1, 0.2, 0.3), (1e-7, 0.5, 1.0), 0.95, "hamming", "border")
    kotlin, swift = android.input_spec(spec), ios.input_spec(spec)
    for word in ("height = 96", "width = 128", "resizedHeight = 101", "resizedWidth = 134", "Crop.BORDER"):
        assert word in kotlin
        assert word.replace(" =", ":").replace("Crop.BORDER", "crop: .border") in swift
    assert "floatArrayOf(1e-07f, 0.5f, 1.0f)" in kotlin
    assert "std: [1e-07, 0.5, 1.0]" in swift
    assert "intArrayOf(26, 51, 76)" in kotlin
    assert "Filter.HAMMING" in kotlin


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"backend": "tensorrt"}, UsageError, "is for tensorrt"),
        ({"batch": 4}, UsageError, "--batch 1"),
        ({"batch": [2, 4, 8]}, UsageError, "no single picture"),
        ({"io_precision": "fp16"}, UsageError, "inputs of fp16"),
        ({"outputs": ["embeddings"]}, UnsupportedModel, "classifies nothing"),
        ({"input": InputSpec((3, 8, 32, 32)).to_dict()}, UnsupportedModel, "takes video"),
        ({"input": InputSpec((2, 32, 32), (0.5,), (0.5,)).to_dict()}, UnsupportedModel, "not 2 in RGB"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_is_no_use_in_an_app_is_refused(
    plain: Path, tmp_path: Path, platform: str, changes: dict[str, Any], kind: type[VitdeployError], says: str
) -> None:
    artifact = changed(plain, tmp_path / "changed", **changes)
    with pytest.raises(kind, match=re.escape(says)):
        package_app(artifact, tmp_path / "made" / "app", platform)
    assert not (tmp_path / "made").exists()


def test_ios_has_no_litert(plain: Path, tmp_path: Path) -> None:
    artifact = changed(plain, tmp_path / "lite", backend="litert")
    with pytest.raises(UsageError, match="iOS apps are made of artifacts for onnxruntime, onnxruntime-mobile, coreml"):
        package_app(artifact, tmp_path / "app", "ios")


def test_a_changed_file_and_weights_beside_it_are_refused(plain: Path, tmp_path: Path) -> None:
    other = shutil.copytree(plain, tmp_path / "other")
    (other / "model.onnx").write_bytes(b"other")
    with pytest.raises(UsageError, match=re.escape("model.onnx")):
        package_app(other, tmp_path / "app", "android")
    manifest = Artifact.load(plain).manifest
    files = {**manifest.files, "model.onnx.data": {"bytes": 1, "sha256": "0" * 64}}
    big = replace(Artifact.load(plain), manifest=replace(manifest, files=files))
    with pytest.raises(UsageError, match="too large for an app"):
        contents.check_model(big, plain)


def test_a_folder_that_is_there_stays_as_it_is(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        package_app(plain, tmp_path / "app", "android")
    assert [file.name for file in tmp_path.rglob("*")] == ["app", "mine.txt"]


def test_what_is_no_artifact_is_refused(plain: Path, tmp_path: Path) -> None:
    shutil.copyfile(plain / "model.onnx", tmp_path / "model.onnx")
    for path, says in ((tmp_path / "none", "There is no"), (tmp_path / "model.onnx", "is no artifact")):
        with pytest.raises(UsageError, match=says):
            package_app(path, tmp_path / "app", "ios")
    with pytest.raises(UsageError, match="Unknown platform 'symbian'"):
        package_app(plain, tmp_path / "app", "symbian")


def test_the_known_picture_is_the_same_everywhere() -> None:
    (one, png), (two, again) = contents.known_picture(), contents.known_picture()
    assert png == again
    assert np.array_equal(one, two)
    assert one.shape == (335, 503, 3)


def test_a_project_of_the_same_artifact_is_the_same(plain: Path, tmp_path: Path, monkeypatch: Any) -> None:
    made: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        folder = package_app(plain, tmp_path / name, "android")
        made.append({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    assert made[0] == made[1]

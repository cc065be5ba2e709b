"""An Xcode project around an artifact."""

from __future__ import annotations

from vitdeploy.apps.contents import EXPECTED, LABELS, PICTURE, Files, Subject, decimal, fill, resized, template
from vitdeploy.spec import InputSpec

# Backends whose files such an app opens, each with the least version of the Swift package that does.
RUNTIMES = {"onnxruntime": "1.24.1", "onnxruntime-mobile": "1.24.1", "coreml": ""}
SOURCES, MODEL = "Classify", "Classify/Model"
PLACES = ("BUILD_FILE", "FRAMEWORK", "PRODUCT", "REFERENCE", "PACKAGE")  # where project.pbxproj tells of that package


def project(subject: Subject) -> Files:
    """Every file of the project by its path."""
    version = RUNTIMES[subject.backend]
    reader, runtime = ("onnxruntime", f"ONNX Runtime {version} or later") if version else ("coreml", "Core ML")
    prepare = "Tensor" if subject.spec.input.frame is None else "Frame"
    fetch = " It fetches ONNX Runtime's Swift package." if version else ""
    about = {"MODEL": subject.model_name, "RUNTIME": runtime, "PREPARE": f"{prepare}.swift", "FETCH": fetch}
    made = {
        "README.md": template("ios", "README.md", **subject.words, **about),
        ".gitignore": template("ios", "gitignore"),
        "Classify.xcodeproj/project.pbxproj": template("ios", "project.pbxproj", NAME=subject.name, **places(version)),
        f"{SOURCES}/Spec.swift": constants(subject).encode(),
        f"{SOURCES}/Classifier.swift": template("ios", f"Classifier.{reader}.swift"),
    }
    for name in ("ClassifyApp", "ContentView", "Camera", "Work", "Pixels", "Answers", "Resize", prepare):
        made[f"{SOURCES}/{name}.swift"] = template("ios", f"{name}.swift")
    return {**made, **{f"{MODEL}/{name}": content for name, content in subject.files().items()}}


def places(version: str) -> dict[str, str]:
    """What project.pbxproj says of the Swift package, by place: nothing where none is needed."""
    if not version:
        return dict.fromkeys(PLACES, "")
    parts = template("ios", "package.pbxproj", ORT=version).decode().split("@@\n")
    return dict(zip(PLACES, parts, strict=True))


def constants(subject: Subject) -> str:
    """Spec.swift: numbers and names of this project's own, no text of the artifact's."""
    names = ", ".join(f'"{name}"' for name in subject.outputs)
    return f"""/// The model's constants, as vitdeploy wrote them out of its artifact.
enum Spec {{
    static let input = {input_spec(subject.spec.input)}
    static let outputs = [{names}]
    /// Classes that the model itself tells.
    static let top = {subject.spec.top}
    static let model = "{bundled(subject)}"
    static let labels = "{LABELS}"
    static let picture = "{PICTURE}"
    static let expected = "{EXPECTED}"
    /// Error of the outputs, relative to the largest.
    static let allowed = {subject.allowed!r}
}}
"""


def bundled(subject: Subject) -> str:
    """The model's name in the app's bundle: Xcode compiles a package."""
    return subject.model_name.replace(".mlpackage", ".mlmodelc")


def input_spec(spec: InputSpec) -> str:
    """A Swift expression: a FrameSpec or a TensorSpec."""
    if spec.frame is not None:
        height, width = spec.frame.size or (0, 0)
        return f"FrameSpec(format: .{spec.frame.format}, height: {height}, width: {width})"
    height, width = resized(spec)
    return f"""TensorSpec(
        height: {spec.size[0]},
        width: {spec.size[1]},
        resizedHeight: {height},
        resizedWidth: {width},
        crop: .{spec.crop_mode},
        filter: .{spec.interpolation},
        fill: [{", ".join(map(str, fill(spec)))}],
        mean: [{", ".join(map(decimal, spec.mean))}],
        std: [{", ".join(map(decimal, spec.std))}])"""

"""An Android Studio project around an artifact."""

from __future__ import annotations

from vitdeploy.apps.contents import EXPECTED, LABELS, PICTURE, Files, Subject, decimal, fill, resized, template
from vitdeploy.spec import InputSpec

# Backends whose files such an app opens, each with the library that does.
RUNTIMES = {
    "onnxruntime": "com.microsoft.onnxruntime:onnxruntime-android:1.30.0",
    "onnxruntime-mobile": "com.microsoft.onnxruntime:onnxruntime-android:1.30.0",
    "litert": "com.google.ai.edge.litert:litert:2.1.6",
}
PLUGIN, GRADLE = "9.2.1", "9.4.1"  # Android's Gradle plugin, and the Gradle that it needs
SOURCES = "app/src/main/kotlin/org/vitdeploy/classify"
ASSETS, VALUES = "app/src/main/assets", "app/src/main/res/values"


def project(subject: Subject) -> Files:
    """Every file of the project by its path."""
    runtime = RUNTIMES[subject.backend]
    reader = "litert" if subject.backend == "litert" else "onnxruntime"
    prepare = "Tensor.kt" if subject.spec.input.frame is None else "Frame.kt"
    about = {
        "MODEL": subject.model_name,
        "RUNTIME": f"`{runtime}`",
        "PREPARE": prepare,
        "AGP": PLUGIN,
        "GRADLE": GRADLE,
    }
    made = {
        "README.md": template("android", "README.md", **subject.words, **about),
        "settings.gradle.kts": template("android", "settings.gradle.kts"),
        "build.gradle.kts": template("android", "build.gradle.kts", AGP=PLUGIN),
        "gradle.properties": template("android", "gradle.properties"),
        "gradle/wrapper/gradle-wrapper.properties": template("android", "gradle-wrapper.properties", GRADLE=GRADLE),
        ".gitignore": template("android", "gitignore"),
        "app/build.gradle.kts": template("android", "app.build.gradle.kts", RUNTIME=runtime),
        "app/src/main/AndroidManifest.xml": template("android", "AndroidManifest.xml"),
        f"{VALUES}/strings.xml": template("android", "strings.xml", NAME=subject.name),
        f"{SOURCES}/Spec.kt": constants(subject).encode(),
        f"{SOURCES}/Classifier.kt": template("android", f"Classifier.{reader}.kt"),
    }
    for name in ("MainActivity.kt", "PhotoProvider.kt", "Pixels.kt", "Answers.kt", "Resize.kt", prepare):
        made[f"{SOURCES}/{name}"] = template("android", name)
    return {**made, **{f"{ASSETS}/{name}": content for name, content in subject.files().items()}}


def constants(subject: Subject) -> str:
    """Spec.kt: numbers and names of this project's own, no text of the artifact's."""
    names = ", ".join(f'"{name}"' for name in subject.outputs)
    return f"""package org.vitdeploy.classify

/** The model's constants, as vitdeploy wrote them out of its artifact. */
object Spec {{
    val INPUT = {input_spec(subject.spec.input)}
    val OUTPUTS = setOf({names})
    const val TOP = {subject.spec.top} // classes that the model itself tells
    const val MODEL = "{subject.model_name}"
    const val UNPACKED = "{subject.digest}.{subject.model_name}"
    const val LABELS = "{LABELS}"
    const val PICTURE = "{PICTURE}"
    const val EXPECTED = "{EXPECTED}"
    const val ALLOWED = {subject.allowed!r} // error of the outputs, relative to the largest
}}
"""


def input_spec(spec: InputSpec) -> str:
    """A Kotlin expression: a FrameSpec or a TensorSpec."""
    if spec.frame is not None:
        height, width = spec.frame.size or (0, 0)
        return f"FrameSpec(Format.{spec.frame.format.upper()}, {height}, {width})"
    height, width = resized(spec)
    return f"""TensorSpec(
        height = {spec.size[0]},
        width = {spec.size[1]},
        resizedHeight = {height},
        resizedWidth = {width},
        crop = Crop.{spec.crop_mode.upper()},
        filter = Filter.{spec.interpolation.upper()},
        fill = intArrayOf({", ".join(map(str, fill(spec)))}),
        mean = floatArrayOf({", ".join(f"{decimal(value)}f" for value in spec.mean)}),
        std = floatArrayOf({", ".join(f"{decimal(value)}f" for value in spec.std)}),
    )"""

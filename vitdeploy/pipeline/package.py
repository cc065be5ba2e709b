"""Artifacts as what an app's author opens: the lab's page for any web host, an Android app's project, an iOS app's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.errors import UsageError
from vitdeploy.pipeline.lab import LabRequest, check_artifacts, subject_of
from vitdeploy.pipeline.request import Listener, Steps
from vitdeploy.staging import new_folder

# As Netlify, Cloudflare Pages and others read them.
HOST_HEADERS = """/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""
ABOUT = """# A page that runs {names}

Made by vitdeploy. These files are all that it needs: put them on any web host, and open `index.html` there. To try
it here:

    python3 -m http.server --directory . 8000        # then open http://localhost:8000

It classifies images in the visitor's browser, with the model's own preprocessing, and nothing leaves the device.
"Prove and measure" holds the outputs against those of eager PyTorch, which are in `models/`.

WebAssembly's threads need two headers, which `_headers` has for the hosts that read such a file:

    Cross-Origin-Opener-Policy: same-origin
    Cross-Origin-Embedder-Policy: require-corp

Without them the page runs on one thread. The camera needs https. onnxruntime-web {ort} in `ort/` is Microsoft's, under
the MIT licence.
"""


def package_web(
    artifacts: Sequence[Path],
    folder: Path,
    *,
    data: Path | None = None,
    model: str | None = None,
    weights: str | None = None,
    listener: Listener | None = None,
) -> Path:
    """Write the lab's page with these artifacts into a new folder, whole or not at all; returns it.

    Args:
        data, model, weights: as of `verify_artifact`.

    Raises:
        UsageError: the folder exists or cannot be written; browsers cannot open an artifact.
        MissingDependency: onnxruntime-web's files are not here.
    """
    from vitdeploy.lab import runtime
    from vitdeploy.lab.site import site

    check_artifacts(artifacts)
    runtime.files()
    steps = Steps(listener or Listener())
    request = LabRequest(artifacts, data, model, weights)
    with new_folder(folder) as stage:
        subjects = []
        for path in artifacts:
            with steps.step("eager") as detail:
                subjects.append(subject_of(path, request))
                detail.append(f"{path}: {len(subjects[-1].cases)} inputs")
        write(site(subjects, post=None), stage)
        names = ", ".join(Artifact.load(path).manifest.model.full_name for path in artifacts)
        (stage / "README.md").write_text(ABOUT.format(names=names, ort=runtime.VERSION), encoding="utf-8")
        (stage / "_headers").write_text(HOST_HEADERS, encoding="utf-8")
    return folder


def package_app(artifact: Path, folder: Path, platform: str, *, listener: Listener | None = None) -> Path:
    """Write an app's project around an artifact into a new folder, whole or not at all; returns it.

    Args:
        platform: 'android' or 'ios'.

    Raises:
        UsageError: the folder exists or cannot be written; such an app cannot open the artifact.
        UnsupportedModel: the model is no classifier of pictures.
        MissingDependency: the artifact's runtime is not here: it tells what the app has to come to.
    """
    from vitdeploy.apps import android, ios
    from vitdeploy.apps.contents import subject_of

    platforms = {"android": (android, "Android"), "ios": (ios, "iOS")}
    if platform not in platforms:
        raise UsageError(f"Unknown platform '{platform}': one of {', '.join(platforms)}.")
    project, name = platforms[platform]
    steps = Steps(listener or Listener())
    with new_folder(folder) as stage:
        with steps.step("outputs") as detail:
            files = project.project(subject_of(artifact, project.RUNTIMES, name))
            detail.append(f"{artifact}: of a known picture")
        write(files, stage)
    return folder


def write(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Files by their paths in the folder: what is in them, or what they are copies of."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            shutil.copyfile(content, file)

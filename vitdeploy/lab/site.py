"""What a page serves: its own files, the runtime, the models, and inputs with the outputs that they must give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vitdeploy import __version__
from vitdeploy.artifact import Artifact
from vitdeploy.graph.feeds import feeds
from vitdeploy.lab import runtime
from vitdeploy.spec import IMAGE
from vitdeploy.verify.collect import Case
from vitdeploy.verify.metrics import bounds_for

Site: TypeAlias = "dict[str, Path | bytes]"
PAGE = Path(__file__).with_name("page")
PAGES = ("index.html", "style.css", "app.js", "worker.js", "preprocess.js")


@dataclass(frozen=True)
class Subject:
    """An artifact, inputs to run it on, and what eager PyTorch made of each."""

    artifact: Artifact
    cases: Sequence[Case]
    reference: Sequence[Mapping[str, np.ndarray]]

    @property
    def frames(self) -> bool:
        """Whether it is given camera frames."""
        return self.artifact.manifest.model.input.frame is not None

    @property
    def precision(self) -> str:
        return str(self.artifact.manifest.request.get("precision", "fp32"))


def site(subjects: Sequence[Subject], *, post: str | None) -> Site:
    """Every file of the page by its path; `post` is where it sends results, None where nobody listens."""
    files: Site = {name: PAGE / name for name in PAGES}
    files |= {f"ort/{name}": path for name, path in runtime.files().items()}
    models = [add(files, f"models/{i}", subject) for i, subject in enumerate(subjects)]
    files["config.json"] = encode({"vitdeploy": __version__, "post": post, "ort": runtime.VERSION, "models": models})
    return files


def add(files: Site, folder: str, subject: Subject) -> dict[str, Any]:
    """Put one artifact's files on the site; returns what the page must know of them."""
    artifact, spec = subject.artifact, subject.artifact.manifest.model
    model = artifact.manifest.model_file
    own = {name: artifact.folder / name for name in artifact.manifest.files if name.startswith(model)}
    files |= {f"{folder}/{name}": path for name, path in own.items()}
    if spec.labels:
        files[f"{folder}/labels.json"] = encode(list(spec.labels))
    cases = []
    for k, (case, outputs) in enumerate(zip(subject.cases, subject.reference, strict=True)):
        cases.append(
            {
                "source": case.source,
                "inputs": [put(files, f"{folder}/{k}", *pair) for pair in feeds(case.image, IMAGE).items()],
                "outputs": [put(files, f"{folder}/{k}", *pair) for pair in outputs.items()],
            }
        )
    return {
        "name": artifact.folder.resolve().name,
        "model": spec.full_name,
        "precision": subject.precision,
        "bytes": sum(path.stat().st_size for path in own.values()),
        "file": f"{folder}/{model}",
        "external": [{"path": name, "file": f"{folder}/{name}"} for name in own if name != model],
        "labels": f"{folder}/labels.json" if spec.labels else None,
        "random": spec.weights.kind == "random",
        "input": spec.input.to_dict(),
        "kind": spec.input.kind,
        "bounds": bounds_for(subject.precision, frames=subject.frames).to_dict(),
        "cases": cases,
    }


def put(files: Site, folder: str, name: str, array: np.ndarray) -> dict[str, Any]:
    """Add a tensor as raw little-endian bytes."""
    path = f"{folder}/{name}.bin"
    files[path] = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": path}


def encode(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode()

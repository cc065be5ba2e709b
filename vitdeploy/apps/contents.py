"""What an app around an artifact consists of, for any platform: the model, labels, constants, a known picture."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from vitdeploy import __version__
from vitdeploy.artifact import PACKED, Artifact
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.pipeline.files import backend_of, model_file
from vitdeploy.spec import INDICES, SCORES, Frame, InputSpec, ModelSpec
from vitdeploy.verify.metrics import bounds_for

Files: TypeAlias = "dict[str, Path | bytes]"
TEMPLATES = Path(__file__).with_name("templates")
PICTURE, EXPECTED, LABELS = "selftest.png", "selftest.bin", "labels.txt"
PICTURE_SIZE = (335, 503)  # odd, and lying
LOGITS = "logits"
LINE_ENDS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


@dataclass(frozen=True)
class Subject:
    """An artifact that an app can be made of.

    Attributes:
        artifact: of one file, whose input is a picture and whose first output are the logits of one.
        backend: the runtime that it is for.
        picture: PNG of the picture that the app proves itself on.
        expected: float32 (classes,), what the artifact makes of it.
        stand_in: whether that was made by what stands in for a runtime that is not to be had here.
    """

    artifact: Artifact
    backend: str
    picture: bytes
    expected: np.ndarray
    stand_in: bool = False

    @property
    def spec(self) -> ModelSpec:
        return self.artifact.manifest.model

    @property
    def precision(self) -> str:
        return str(self.artifact.manifest.request.get("precision", "fp32"))

    @property
    def allowed(self) -> float:
        """The largest error on a device, relative to the largest logit."""
        return bounds_for(self.precision, frames=self.spec.input.frame is not None).rel_max

    @property
    def outputs(self) -> tuple[str, ...]:
        return (LOGITS, SCORES, INDICES) if self.spec.top else (LOGITS,)

    @property
    def model(self) -> PurePosixPath:
        """In the artifact: the model's file, or the folder that is one (a .mlpackage)."""
        file = PurePosixPath(self.artifact.manifest.model_file)
        return next((folder for folder in file.parents if folder.suffix == PACKED), file)

    @property
    def model_name(self) -> str:
        """Of that in the app."""
        return f"model{self.model.suffix}"

    @property
    def words(self) -> dict[str, str]:
        """What README.md tells."""
        about = f"an artifact in {self.precision} for {self.backend}"
        if self.spec.weights.kind == "random":
            about += ", of **random weights: its answers mean nothing**"
        origin = "what stands in for that runtime where it is not to be had" if self.stand_in else "that runtime"
        words = {"NAME": self.name, "VERSION": __version__, "ABOUT": about, "ORIGIN": origin}
        return {**words, "ALLOWED": f"{self.allowed:g}"}

    @property
    def digest(self) -> str:
        """The first digits of the model file's sha256."""
        manifest = self.artifact.manifest
        return str(manifest.files[manifest.model_file]["sha256"])[:16]

    @property
    def name(self) -> str:
        """The model's, of characters that mean nothing anywhere."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", self.spec.full_name).strip("-.") or "model"

    def files(self) -> Files:
        """By their names in the app: all that is not source text."""
        found: Files = {PICTURE: self.picture, EXPECTED: self.expected.astype("<f4").tobytes()}
        for name in map(PurePosixPath, self.artifact.manifest.files):
            if self.model in (name, *name.parents):
                found[str(self.model_name / name.relative_to(self.model))] = self.artifact.folder / name
        if self.spec.labels:
            found[LABELS] = "".join(f"{on_one_line(label)}\n" for label in self.spec.labels).encode(errors="replace")
        return found


def subject_of(path: Path, backends: Mapping[str, str], platform: str) -> Subject:
    """The artifact at `path` with a known picture's outputs, which are computed here.

    Args:
        backends: of the platform's apps, with their runtimes.
        platform: its name, for messages.

    Raises:
        UsageError: no artifact, one that has changed, or one that such an app cannot open.
        UnsupportedModel: a model that is no classifier of pictures.
        MissingDependency: its runtime is not here.
    """
    from vitdeploy.backends import registry

    _, artifact = model_file(path)
    if artifact is None:
        raise UsageError(f"{path} is no artifact of vitdeploy's.", fix="vitdeploy export makes one.")
    backend = backend_of(artifact)
    if backend not in backends:
        known = ", ".join(backends)
        raise UsageError(f"{path} is for {backend}: {platform} apps are made of artifacts for {known}.")
    artifact.check_files()
    check_model(artifact, path)
    picture, png = known_picture()
    stand_in = bool(registry.get(backend).stands_in(RunOptions()))
    return Subject(artifact, backend, png, outputs_of(artifact, backend, picture, stand_in=stand_in), stand_in)


def check_model(artifact: Artifact, path: Path) -> None:
    """Raises where an app has no use for the artifact."""
    manifest, spec = artifact.manifest, artifact.manifest.model
    if any(name.startswith(f"{manifest.model_file}.data") for name in manifest.files):
        raise UsageError(f"{path} has its weights in a second file, above 1 GiB, which is too large for an app.")
    if manifest.request.get("io_precision", "fp32") != "fp32":
        raise UsageError(f"{path} has inputs of fp16.", fix="Export without --io-precision fp16.")
    batch = manifest.request.get("batch", 1)
    if (batch if isinstance(batch, int) else batch[0]) != 1:
        raise UsageError(f"{path} takes no single picture: its batch is {batch}.", fix="Export with --batch 1.")
    if spec.input.kind != "image":
        raise UnsupportedModel(f"{path} takes {spec.input.kind}, not a picture.")
    if spec.outputs[0] != LOGITS or not spec.num_classes:
        raise UnsupportedModel(f"{path} classifies nothing: its outputs are {', '.join(spec.outputs)}.")
    channels = spec.input.shape[0]
    if spec.input.frame is None and (channels not in (1, 3) or spec.input.channel_order != "RGB"):
        order = spec.input.channel_order
        raise UnsupportedModel(f"Pictures give 1 or 3 channels in RGB order, not {channels} in {order}.")


def known_picture() -> tuple[np.ndarray, bytes]:
    """uint8 (height, width, 3) like a photo, and its PNG. The same everywhere."""
    from PIL import Image

    from vitdeploy.data.synthetic import synthetic_frame

    pixels = synthetic_frame(Frame("rgb", PICTURE_SIZE), seed=0)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return pixels, png.getvalue()


def outputs_of(artifact: Artifact, backend: str, picture: np.ndarray, *, stand_in: bool) -> np.ndarray:
    """float32 (classes,): the logits of a picture, with the roundings of the app's resize."""
    from vitdeploy.backends import isolate
    from vitdeploy.data.frames import to_frame
    from vitdeploy.data.images import image_of, preprocess
    from vitdeploy.verify.collect import collect

    spec, image = artifact.manifest.model.input, image_of(picture)
    if spec.frame is None:
        given = preprocess(image, spec, across_first=True)
    else:
        given = to_frame(image, spec.frame)
    work = (collect, backend, artifact.model_path, RunOptions(), [given[None]])
    found = isolate.call(*work, census=False, stand_in=stand_in, what=backend)
    return np.asarray(found.outputs[0][LOGITS], np.float32).reshape(-1)


def on_one_line(label: str) -> str:
    """A label with spaces for what ends a line."""
    return LINE_ENDS.sub(" ", label)


def resized(spec: InputSpec) -> tuple[int, int]:
    """(height, width) that the centre is cropped from, or that a picture is resized to as a whole."""
    height, width = (math.floor(side / spec.crop_pct) for side in spec.size)
    return height, width


def fill(spec: InputSpec) -> list[int]:
    """The levels around a picture that is smaller than the input."""
    return [round(255 * mean) if spec.crop_mode == "border" else 0 for mean in spec.mean]


def decimal(value: float) -> str:
    """The shortest decimal that is this number in float32."""
    return repr(float(str(np.float32(value))))


def template(platform: str, name: str, **values: str) -> bytes:
    """A source file, with each @NAME@ that is given filled in."""
    text = (TEMPLATES / platform / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text.encode()

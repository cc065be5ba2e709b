"""Prove a finished artifact against eager PyTorch again, on this machine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.models.build import BuildOptions
from vitdeploy.pipeline.checks import check_tolerance
from vitdeploy.pipeline.export import judged, verdict, verification_cases
from vitdeploy.pipeline.files import backend_of, model_file, spec_of
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps
from vitdeploy.pipeline.sources import run_candidate, source_of
from vitdeploy.spec import CALIBRATED, ModelSpec

if TYPE_CHECKING:
    from vitdeploy.verify.compare import Verification


def verify_artifact(
    path: Path,
    options: RunOptions | None = None,
    *,
    model: str | None = None,
    weights: str | None = None,
    data: Path | None = None,
    tolerance: float | None = None,
    listener: Listener | None = None,
) -> Verification:
    """Build the model that the artifact came from, run both, and compare.

    Args:
        path: an artifact, or an .onnx file that vitdeploy wrote.
        model: the user's code that made the model, which is run again: no artifact may name code to run by itself.
        weights: where the checkpoint is now, if it has moved; its digest must be the recorded one.
        data: images to verify on, beside the synthetic ones.

    Raises:
        VerificationFailed: outputs differ; the message names the first node that departs.
        UsageError: the file is not ours, its weights are gone or have changed, or it was made by code not named here.
    """
    from vitdeploy.backends import registry
    from vitdeploy.models.build import rebuild
    from vitdeploy.verify.collect import eager_outputs

    check_tolerance(tolerance)
    steps = Steps(listener or Listener())
    file, artifact = model_file(path)
    if artifact is not None:
        warn_of_changes(artifact, steps)
    source = source_of(backend_of(artifact))
    if artifact is None:
        source.check(file)
    spec = relocated(trusted(spec_of(path), model, path), weights)
    request = request_of(artifact, file, options or RunOptions(), spec, data, tolerance)
    cases = verification_cases(request, spec)
    with steps.step("build") as detail:
        built = rebuild(spec)
        detail.append(spec.full_name)
    with steps.step("eager"):
        reference = eager_outputs(built.module, cases, spec.input)
    del built
    with steps.step("verify") as detail:
        stand_in = registry.get(request.backend).stands_in(request.run)
        collected = run_candidate(request, file, cases, stand_in=bool(stand_in))
        verification = judged(request, spec, cases, reference, collected, stand_in, detail)
    if stand_in:
        steps.note(f"What was verified is {stand_in}: the file itself cannot run on this machine.")
    if not verification:
        departure, unknown = None, [*filter(None, (source.unnamed,))]
        try:
            with steps.step("bisect"):
                departure = source.find_departure(request, spec, file, cases[0], verification)
        except VitdeployError as error:  # the verdict must not be lost to the search for its cause
            unknown = [f"The node at fault was not found: {error.message}"]
        raise verdict(verification, departure, *unknown)
    return verification


def warn_of_changes(artifact: Artifact, steps: Steps) -> None:
    """A changed file is worth a word, and then the proof decides."""
    try:
        artifact.check_files()
    except UsageError as error:
        steps.note(error.message)


def trusted(spec: ModelSpec, model: str | None, path: Path, again: str = "vitdeploy verify") -> ModelSpec:
    """The spec, made by the code that the user names where it was made by code; `again` is the command to mend it."""
    from vitdeploy.models.build import is_code

    if not is_code(spec.name):
        if model not in (None, spec.name, spec.full_name):
            raise UsageError(f"{path} is of {spec.full_name}, not of {model}.")
        return spec
    if model is None:
        raise UsageError(
            f"{path} was made by the code {spec.name}, which would be run again: name it.",
            fix=f"{again} {shlex.quote(str(path))} --model {shlex.quote(spec.name)}",
        )
    return replace(spec, name=model)


def relocated(spec: ModelSpec, weights: str | None) -> ModelSpec:
    """The spec with its checkpoint where the user says that it is now."""
    if weights is None:
        return spec
    if spec.weights.kind == "random":
        raise UsageError("This model has random weights: --weights has no place here.")
    path = Path(weights).expanduser()
    kind = "hub" if weights.startswith("hf-hub:") else "folder" if path.is_dir() else "file"
    where = weights if kind == "hub" else str(path.resolve())
    return replace(spec, weights=replace(spec.weights, kind=kind, location=where))


def request_of(
    artifact: Artifact | None,
    file: Path,
    options: RunOptions,
    spec: ModelSpec,
    data: Path | None,
    tolerance: float | None,
) -> ExportRequest:
    """The request that made the artifact, as far as a verification needs it."""
    record: dict[str, Any] = dict(artifact.manifest.request) if artifact is not None else read_request(file)
    batch = record.get("batch", 1)
    build = record.get("build") or {}
    calib = Path(record["calib"]) if record.get("calib") else None
    photos = record.get("precision") in CALIBRATED and not record.get("calib_random")
    if photos and data is None and (calib is None or not calib.exists()):
        precision = record["precision"]
        raise UsageError(
            f"The images that {file} was calibrated on are not here, and {precision} is proven on their kind.",
            fix="Give some with --data.",
        )
    return ExportRequest(
        model=spec.name,
        build=BuildOptions(seed=build.get("seed", 0)),
        precision=record.get("precision", "fp32"),
        io_precision=record.get("io_precision", "fp32"),
        backend=backend_of(artifact),
        batch=batch if isinstance(batch, int) else (batch[0], batch[1], batch[2]),
        opset=record.get("opset", 20),
        run=options,
        data=data,
        calib=calib if data is None else None,
        tolerance=tolerance,
        out=file.parent,
    )


def read_request(file: Path) -> dict[str, Any]:
    """What an .onnx file alone tells about how it was made."""
    from vitdeploy.export.metadata import PRECISION, read_batch
    from vitdeploy.graph.load import load

    model = load(file)
    batch = model.graph.inputs[0].shape[0] if model.graph.inputs and model.graph.inputs[0].shape else 1
    opset = model.graph.opset_imports.get("", 20)
    precision = model.metadata_props.get(PRECISION, "fp32")
    dynamic = list(read_batch(model.metadata_props) or (1, 2, 8))
    return {"precision": precision, "opset": opset, "batch": batch if isinstance(batch, int) else dynamic}

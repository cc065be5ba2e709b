"""The Python API: the command line's verbs, with the same names and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import pipeline
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import RunOptions, Session
from vitdeploy.errors import UsageError
from vitdeploy.export.options import EmbedOptions
from vitdeploy.models.build import BuildOptions, Built
from vitdeploy.models.build import build as build_model
from vitdeploy.pipeline import Comparison, EvalRequest, ExportRequest, Listener, TuneRequest
from vitdeploy.quantize.options import Int8Options
from vitdeploy.tune.budget import Budget

if TYPE_CHECKING:
    from vitdeploy.bench.sessions import Measured
    from vitdeploy.pipeline.evaluate import Evaluation
    from vitdeploy.pipeline.tune import Tuned
    from vitdeploy.verify.compare import Verification

PathLike = str | Path


def models(pattern: str | None = None) -> list[str]:
    """Catalog names, or those that match a part of a name or a glob."""
    from vitdeploy.models import catalog

    return catalog.names(pattern)


def build(model: str, **options: Any) -> Built:
    """A module in eval mode with its ModelSpec.

    Args:
        model: catalog name, 'timm:NAME', 'hf-hub:ORG/NAME', 'package.module:factory' or 'file.py:factory'.
        options: fields of models.build.BuildOptions: weights, pretrained, num_classes, image_size, in_chans, seed,
            mean, std, crop_pct, interpolation.
    """
    return build_model(model, BuildOptions(**known(options, BuildOptions)))


def export(model: str, *, listener: Listener | None = None, **options: Any) -> Artifact:
    """The whole way from a model to a verified artifact.

    Args:
        model: as for `build`.
        listener: hears about steps and notes.
        options: fields of ExportRequest (precision, io_precision, backend, batch, opset, data, tolerance, bench,
            warmup, duration, layout, out, force; for int8: calib, calib_random, calib_images, strict, scheme), of
            Int8Options (method, correct_bias, rounding, attention, keep, equalize), of EmbedOptions
            (embed_preprocessing, frame_format, frame_size, embed_postprocessing, top_k, labels), of BuildOptions (see
            `build`) and of RunOptions (device, threads, optimization, provider, provider_options), all flat.

    Raises:
        UsageError, MissingDependency, VerificationFailed, PrecisionNotApplied, BackendError, UnsupportedModel.
    """
    return pipeline.export(export_request(model, options), listener)


def export_request(model: str, options: dict[str, Any]) -> ExportRequest:
    """The request that flat options mean."""
    about_model, about_run, about_int8 = names_of(BuildOptions), names_of(RunOptions), names_of(Int8Options)
    about_file = names_of(EmbedOptions)
    own = {k: v for k, v in options.items() if k not in {*about_model, *about_run, *about_int8, *about_file}}
    if options.get("labels") is not None:
        options = {**options, "labels": str(options["labels"])}
    for name in ("data", "calib", "out"):
        if own.get(name) is not None:
            own[name] = Path(own[name])
    return ExportRequest(
        model=model,
        build=BuildOptions(**{k: v for k, v in options.items() if k in about_model}),
        run=RunOptions(**{k: v for k, v in options.items() if k in about_run}),
        int8=Int8Options(**{k: v for k, v in options.items() if k in about_int8}),
        embed=EmbedOptions(**{k: v for k, v in options.items() if k in about_file}),
        **known(own, ExportRequest),
    )


def tune(
    model: str,
    *,
    data: PathLike | None = None,
    listener: Listener | None = None,
    backends: Sequence[str] = (),
    search_images: int = 1000,
    time_budget: float = 600.0,
    split_seed: int = 0,
    **options: Any,
) -> Tuned:
    """The fastest plan within a budget, measured on this device.

    Args:
        model: as for `build`.
        data: labelled images; one half searches, the other confirms.
        backends, search_images, time_budget, split_seed: see pipeline.tune.TuneRequest.
        options: fields of Budget (max_drop, max_error, max_latency, max_size), and those of `export`, all flat.

    Raises:
        UsageError, MissingDependency, UnsupportedModel, VerificationFailed.
    """
    limits = {k: v for k, v in options.items() if k in names_of(Budget)}
    request = TuneRequest(
        export=export_request(model, {k: v for k, v in options.items() if k not in limits}),
        budget=Budget(**limits),
        data=None if data is None else Path(data),
        backends=tuple(backends),
        search_images=search_images,
        time_budget=time_budget,
        split_seed=split_seed,
    )
    return pipeline.tune(request, listener)


def load(artifact: PathLike, **options: Any) -> Session:
    """Open an artifact (or an .onnx file) as a Session; options are RunOptions' fields."""
    from vitdeploy.backends import registry

    file, found = pipeline.model_file(Path(artifact))
    return registry.get(pipeline.backend_of(found)).open(file, RunOptions(**known(options, RunOptions)))


def verify(
    artifact: PathLike,
    *,
    model: str | None = None,
    weights: str | None = None,
    data: PathLike | None = None,
    tolerance: float | None = None,
    **options: Any,
) -> Verification:
    """Prove an artifact against eager PyTorch again; raises VerificationFailed with the first node that departs.

    An artifact that your own code made needs `model`, the name of that code.
    """
    run = RunOptions(**known(options, RunOptions))
    images = None if data is None else Path(data)
    return pipeline.verify_artifact(Path(artifact), run, model=model, weights=weights, data=images, tolerance=tolerance)


def evaluate(artifact: PathLike, data: PathLike, *, listener: Listener | None = None, **options: Any) -> Evaluation:
    """Top-1 and top-5 of an artifact on labelled images, by its own preprocessing.

    Args:
        data: a folder with a subfolder per class, a list of paths and labels, or an .npz of images and labels.
        listener: hears about steps, progress and notes.
        options: fields of EvalRequest (batch, limit, strict, against, eager, model, weights) and of RunOptions, flat.
    """
    about_run = names_of(RunOptions)
    own = {k: v for k, v in options.items() if k not in about_run}
    if own.get("against") is not None:
        own["against"] = Path(own["against"])
    run = RunOptions(**{k: v for k, v in options.items() if k in about_run})
    return pipeline.evaluate(EvalRequest(Path(artifact), Path(data), run, **known(own, EvalRequest)), listener)


def bench(
    *artifacts: PathLike, batch: int | None = None, warmup: float = 0.5, duration: float = 3.0, **options: Any
) -> list[Measured]:
    """Latency of artifacts, interleaved; options are RunOptions' fields."""
    run = RunOptions(**known(options, RunOptions))
    paths = [Path(a) for a in artifacts]
    return pipeline.bench_files(paths, options=run, batch=batch, warmup=warmup, duration=duration)[0]


def compare(
    *artifacts: PathLike,
    bench: bool = True,
    batch: int | None = None,
    warmup: float = 0.5,
    duration: float = 3.0,
    listener: Listener | None = None,
    **options: Any,
) -> Comparison:
    """Artifacts side by side, of any backends; options are RunOptions' fields. See pipeline.compare."""
    run = RunOptions(**known(options, RunOptions))
    timing: dict[str, Any] = {"batch": batch, "warmup": warmup, "duration": duration}
    return pipeline.compare([Path(a) for a in artifacts], run, bench=bench, listener=listener, **timing)


def inspect(model: PathLike) -> dict[str, Any]:
    """Ops, dtypes, parameters and MACs of an artifact or an .onnx file."""
    return pipeline.inspect_file(Path(model))


def predict(artifact: PathLike, images: Sequence[PathLike], *, top: int = 5, **options: Any) -> list[dict[str, Any]]:
    """The best classes of image files, with the artifact's own preprocessing."""
    run = RunOptions(**known(options, RunOptions))
    return pipeline.predict_images(Path(artifact), [Path(image) for image in images], run, top=top)


def names_of(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}


def known(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """The options, if `kind` has fields of these names."""
    names = names_of(kind)
    if unknown := sorted(set(options) - names):
        raise UsageError(f"Unknown option {', '.join(unknown)}.", fix=f"There are: {', '.join(sorted(names))}.")
    return options

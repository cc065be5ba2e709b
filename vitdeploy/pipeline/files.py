"""What can be done with finished files: artifacts, and .onnx files of any origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import MANIFEST, PACKED, Artifact, folder_of
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UsageError
from vitdeploy.spec import ModelSpec

if TYPE_CHECKING:
    from vitdeploy.bench.sessions import Measured
    from vitdeploy.bench.stats import Ratio
    from vitdeploy.quantize.lint import Finding


def model_file(path: Path) -> tuple[Path, Artifact | None]:
    """The model file that a path means, and its artifact where it belongs to one.

    Raises UsageError when there is none, or when it is machine code and is not what was exported.
    """
    from vitdeploy.backends import registry
    from vitdeploy.backends.coreml_file import root

    if not path.exists():
        raise UsageError(f"There is no {path}.")
    if path.suffix == PACKED:
        path = root(path)
    if not path.is_dir() and not (folder_of(path) / MANIFEST).is_file():
        return path, None
    artifact = Artifact.load(path)
    backend = registry.backends().get(backend_of(artifact))
    if backend is not None and backend.runs_code:
        artifact.check_files()
    file = artifact.model_path if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"There is no {file}.", fix="Export the artifact again.")
    return file, artifact


def backend_of(artifact: Artifact | None, default: str = "onnxruntime") -> str:
    """The name of the backend that an artifact was made for; the default's for a file of no artifact."""
    return artifact.manifest.request.get("backend", default) if artifact is not None else default


def spec_of(path: Path) -> ModelSpec:
    """The ModelSpec of an artifact, or the one inside an .onnx file that vitdeploy wrote."""
    from vitdeploy.export.metadata import read_spec
    from vitdeploy.graph.load import load

    file, artifact = model_file(path)
    spec = artifact.manifest.model if artifact is not None else read_spec(load(file))
    if spec is None:
        raise UsageError(f"{path} does not say what model it is: vitdeploy did not write it.")
    return spec


def bench_files(
    paths: Sequence[Path],
    backend: str = "onnxruntime",
    options: RunOptions | None = None,
    *,
    batch: int | None = None,
    warmup: float = 0.5,
    duration: float = 3.0,
    transfers: bool = True,
) -> tuple[list[Measured], list[Ratio]]:
    """Latency of artifacts and .onnx files, interleaved in one run; ratios are to the first, above 1 for faster.

    Without `transfers` inputs and outputs stay on the device.
    """
    from vitdeploy.bench.sessions import Candidate, bench_sessions, ratios

    candidates = []
    for path in paths:
        file, artifact = model_file(path)
        candidates.append(Candidate(backend_of(artifact, backend), file, str(path)))
    timing: dict[str, Any] = {"warmup": warmup, "duration": duration, "transfers": transfers}
    measured = bench_sessions(candidates, options or RunOptions(), batch=batch, **timing)
    return measured, ratios(measured)


def inspect_file(path: Path) -> dict[str, Any]:
    """Ops, dtypes, parameters, MACs, inputs and outputs of an ONNX file, as JSON values.

    Of a compiled file, which has another suffix, what its backend tells: layers, precisions, where it runs.
    """
    from vitdeploy.graph.load import load
    from vitdeploy.graph.ops import summarize

    file, artifact = model_file(path)
    about = {"file": str(file), "bytes": file.stat().st_size}
    described = describe(file, artifact, timed=True)
    return {**about, **(summarize(load(file)) if described is None else described)}


def describe(file: Path, artifact: Artifact | None, *, timed: bool = False) -> dict[str, Any] | None:
    """What a compiled file's backend tells of it: the one that made it, or whichever knows the look of it.

    None for an ONNX file. With `timed` also the time of each layer, where the device that runs it is here.
    """
    from vitdeploy.backends import registry

    known = registry.backends()
    # An ONNX file can be read whoever it was made for.
    maker = known.get(backend_of(artifact)) if artifact is not None else None
    maker = maker or next((one for one in known.values() if one.made(file)), None)
    described = maker.describe(file) if maker is not None else None
    if maker is None or described is None or not timed:
        return described
    times = maker.layer_seconds(file)
    layers = [{**one, "ms": 1e3 * times.get(one["name"], 0.0)} for one in described.get("layers", [])]
    return described | {"layers": layers} if times else described


def mobile_file(path: Path) -> list[dict[str, Any]]:
    """What the execution providers of phones take of an ONNX file; see graph.mobile.

    Raises UsageError on what is compiled or no model.
    """
    from vitdeploy.backends import isolate
    from vitdeploy.graph import mobile

    file, artifact = model_file(path)
    if describe(file, artifact) is not None:
        raise UsageError(
            f"{file} is compiled: providers take nodes of an ONNX file.", fix="Export with --backend onnxruntime."
        )
    return isolate.call(mobile.providers, file, what="ONNX Runtime's tools")


def lint_file(path: Path, scheme: str) -> list[Finding]:
    """What a scheme forbids in the Q/DQ of an ONNX file, whoever made it.

    Raises UsageError on an unknown scheme or a file that is not a model.
    """
    from vitdeploy.graph.load import load
    from vitdeploy.quantize import schemes
    from vitdeploy.quantize.lint import lint

    wanted = schemes.get(scheme)
    file, artifact = model_file(path)
    if describe(file, artifact) is not None:
        raise UsageError(f"{file} is compiled: a scheme is about the Q/DQ of an ONNX file.")
    return lint(load(file), wanted)


def predict_images(
    path: Path, images: Sequence[Path], options: RunOptions | None = None, *, top: int = 5
) -> list[dict[str, Any]]:
    """The best classes of image files, by the artifact's own preprocessing.

    Returns:
        One dict an image: 'image', and 'top': [{'index', 'label' (None where unknown), 'probability'}], best first.
    """
    import numpy as np

    from vitdeploy.backends import isolate
    from vitdeploy.data.frames import as_input
    from vitdeploy.data.images import decode
    from vitdeploy.data.packed import item
    from vitdeploy.pipeline.evaluate import of_the_image
    from vitdeploy.verify.collect import collect

    file, artifact = model_file(path)
    spec = spec_of(path)
    backend = backend_of(artifact)
    tensors = [item(as_input(decode(image), spec.input), spec.input)[None] for image in images]
    size = fixed_batch(artifact)
    batches = [np.repeat(tensor, size, axis=0) for tensor in tensors]
    outputs = isolate.call(collect, backend, file, options or RunOptions(), batches, census=False, what=backend).outputs
    results = []
    for image, out in zip(images, outputs, strict=True):
        logits = of_the_image(next(iter(out.values())), spec)[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        best = np.argsort(-odds, kind="stable")[:top]
        labels = spec.labels
        rows = [{"index": int(i), "label": labels[i] if labels else None, "probability": float(odds[i])} for i in best]
        results.append({"image": str(image), "top": rows})
    return results


def fixed_batch(artifact: Artifact | None) -> int:
    """The batch that an artifact insists on; 1 where it is dynamic."""
    batch = artifact.manifest.request.get("batch", 1) if artifact is not None else 1
    return batch if isinstance(batch, int) else 1

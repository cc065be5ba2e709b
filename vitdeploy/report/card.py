"""`model-card.md`: a model card in the shape that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from vitdeploy.artifact import Manifest
from vitdeploy.errors import VitdeployError
from vitdeploy.report import snippet
from vitdeploy.report.markdown import graph_lines, table, weights_line
from vitdeploy.report.reading import at, figure, listed, mapping, number, size_of, threads, verdict, words, worst
from vitdeploy.spec import ModelSpec

LIBRARIES = {
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "litert": "tflite",
    "executorch": "executorch",
    "ncnn": "ncnn",
    "coreml": "coreml",
}
VERDICTS = {
    "verified": "The outputs are proven equal to PyTorch's within the bound below.",
    "stand-in": "What was held against PyTorch ran in the compiled file's stead: that one has not run yet.",
    "failed": "**This file FAILED verification: its outputs differ from PyTorch's. Do not use it.**",
    "none": "**This file was not verified.**",
}


def card(manifest: Manifest) -> str:
    """The manifest as a model card. The same manifest gives the same text."""
    model, request = manifest.model, manifest.request
    lines = [
        "---",
        *front_matter(manifest),
        "---",
        "",
        f"# {plain(model.full_name)}, {plain(request.get('precision', 'fp32'))}",
        "",
    ]
    if model.weights.kind == "random":
        lines += [
            f"> **RANDOM WEIGHTS, seed {model.weights.seed}: it has learnt nothing, and its answers mean nothing.**",
            "> It shows an architecture's size and latency. To ship, export with `--pretrained` or `--weights FILE`.",
            "",
        ]
    lines += [VERDICTS[verdict(manifest.verification)], ""]
    lines += ["## Intended use", "", *purpose(model), ""]
    lines += ["## How it was made", "", *making(manifest), ""]
    lines += ["## How to run it", "", *snippet.usage(manifest), ""]
    lines += ["## Verification", "", *verification(manifest.verification), ""]
    lines += ["## Latency", "", *latency(manifest), ""]
    lines += ["## Limitations", "", *(f"- {one}" for one in limitations(manifest))]
    return "\n".join(lines) + "\n"


def front_matter(manifest: Manifest) -> list[str]:
    """YAML; every text in it is written as JSON, which YAML reads."""
    model, request = manifest.model, manifest.request
    backend = words(request.get("backend", "onnxruntime"))
    tags = ["vision", "vision-transformer", "vitdeploy", backend, words(request.get("precision", "fp32"))]
    lines = [f"library_name: {quoted(LIBRARIES.get(backend, backend))}"]
    if task(model):
        lines.append(f"pipeline_tag: {task(model)}")
    licensed = license_of(model)
    lines += [f"license: {quoted(licensed)}"] if licensed else []
    return [*lines, "tags:", *(f"  - {quoted(tag)}" for tag in dict.fromkeys(tags))]


def task(model: ModelSpec) -> str:
    if "logits" not in model.outputs or model.num_classes < 1:
        return "image-feature-extraction"
    return "video-classification" if model.input.frames is not None else "image-classification"


def license_of(model: ModelSpec) -> str:
    """Of published weights, where the catalog knows it."""
    from vitdeploy.models import catalog

    if model.tag is None or model.weights.kind == "random":
        return ""
    with suppress(VitdeployError):
        _, chosen = catalog.find(model.full_name)
        return (chosen.license if chosen else None) or ""
    return ""


def purpose(model: ModelSpec) -> list[str]:
    kind = "videos" if model.input.frames is not None else "images"
    if task(model) == "image-feature-extraction":
        said = f"It turns {kind} into features: {words(model.outputs)}."
    else:
        said = f"It classifies {kind} into {model.num_classes} classes."
    labels = (
        "The classes' names are in `manifest.json`." if model.labels else "The classes have numbers and no names here."
    )
    return [f"{said} {labels} It is for inference; it cannot be trained further."]


def making(manifest: Manifest) -> list[str]:
    request, applied = manifest.request, manifest.applied
    calibrated = words(request.get("calib")) or ("synthetic images" if request.get("calib_random") else "")
    size = size_of(manifest.files)
    facts = [
        ("weights", weights_line(manifest)),
        (
            "precision",
            f"{words(request.get('precision', 'fp32'))} was asked for, {words(applied.get('precision'))} applied",
        ),
        ("notes", "; ".join(words(note) for note in listed(applied.get("notes")))),
        ("calibrated on", calibrated),
        ("backend", words(request.get("backend", "onnxruntime"))),
        ("size", f"{size / 1e6:.1f} MB" if size else ""),
        (
            "written by",
            f"vitdeploy {words(manifest.vitdeploy)}, PyTorch {words(at(manifest.environment, 'versions', 'torch'))}",
        ),
    ]
    return [*graph_lines(manifest.graph), *(f"- {name}: {plain(value)}" for name, value in facts if value)]


def verification(found: Any) -> list[str]:
    found = mapping(found)
    if not found:
        return ["None was run."]
    rows = []
    for name, one in mapping(found, "outputs").items():
        logits = mapping(one, "logits")
        same = f"{words(logits.get('top1_matches'))} of {words(logits.get('samples'))}" if logits else ""
        rows.append(
            (plain(name), *(figure(at(one, k)) for k in ("rel_max", "rel_l2")), figure(at(one, "cosine"), 8), same)
        )
    bound = number(found, "bounds", "rel_max")
    lines = [f"Against eager {plain(found.get('reference'))}, on {len(listed(found.get('cases')))} inputs."]
    lines += [f"A relative error of {figure(bound)} is allowed."] if bound is not None else []
    lines += ["", *table(("output", "relative error", "relative L2", "cosine", "same top-1"), rows)]
    return [*lines, "", *(f"- **{plain(reason)}**" for reason in listed(found.get("reasons")))]


def latency(manifest: Manifest) -> list[str]:
    bench = mapping(manifest.bench)
    stats = mapping(bench, "latency_ms")
    if not stats:
        return ["Not measured."]
    machine = manifest.environment
    keys = ("min", "mean", "p50", "p90", "p95", "p99", "max")
    where = f"{plain(machine.get('cpu')) or 'an unknown processor'}, {plain(machine.get('os'))}"
    device = f"device {plain(bench.get('device'))}, batch {words(bench.get('batch'))}, {threads(bench)}"
    return [
        f"On {where}: {device}. Includes {plain(bench.get('includes'))}.",
        "",
        *table(
            (*(f"{key} ms" for key in keys), "runs"),
            [(*(figure(stats.get(k)) for k in keys), words(stats.get("count")))],
        ),
        *devices(manifest),
    ]


def devices(manifest: Manifest) -> Sequence[str]:
    """What other devices reported."""
    from vitdeploy.report.markdown import device_rows

    rows = device_rows(manifest.devices)
    return ["", *table(*rows)] if rows else []


def limitations(manifest: Manifest) -> list[str]:
    model, request = manifest.model, manifest.request
    found = []
    if model.weights.kind == "random":
        found.append("**The weights are random.** Only size and latency mean anything.")
    if request.get("calib_random"):
        found.append("**Its ranges were calibrated on synthetic images.** Expect a loss of accuracy; measure it.")
    error = worst(manifest.verification)
    if error:
        found.append(
            "Verification shows that it computes what PyTorch computes, on the inputs that were tried. "
            "It says nothing about how good the model is: `vitdeploy eval` does, on labelled images."
        )
    found.append("Another resize, crop or normalisation than the one above gives other, worse answers.")
    found.append("Latency is that of the machine named above; measure yours with `vitdeploy bench`.")
    if not license_of(model):
        found.append("The licence of the weights is not known to vitdeploy: ask whoever trained them.")
    return found


def plain(value: Any) -> str:
    """A text that stays a text in Markdown: no markup, links or HTML."""
    from vitdeploy.report.markdown import inert

    return inert(words(value))


def quoted(value: str) -> str:
    return json.dumps(value)

"""`report.html`: all that an artifact's manifest tells, as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.artifact import Manifest
from vitdeploy.report import charts, page, proof, speed
from vitdeploy.report.markdown import weights_line
from vitdeploy.report.reading import (
    at,
    figure,
    listed,
    mapping,
    number,
    records,
    size_of,
    threads,
    verdict,
    words,
    worst,
)
from vitdeploy.report.tables import amount

VERDICTS = {
    "verified": ("good", "✓ Verified"),
    "stand-in": ("warn", "Verified in its stead"),
    "failed": ("bad", "✗ Failed verification"),
    "none": ("warn", "Not verified"),
}


def report(manifest: Manifest) -> str:
    """The manifest as a page. The same manifest gives the same text."""
    applied = manifest.applied
    body = [
        head(manifest),
        asked(manifest),
        proof.verification(manifest.verification),
        speed.latency(manifest.bench),
        speed.ops(manifest.bench),
        speed.devices(manifest.devices, manifest.bench),
        speed.plans(applied),
        proof.quantised(applied),
        ops(mapping(applied, "census")),
        making(manifest),
        environment(manifest.environment),
        f"<footer>Written by vitdeploy {page.text(manifest.vitdeploy)}; manifest.json has every figure.</footer>",
    ]
    title = f"{manifest.model.full_name}, {words(manifest.request.get('precision', 'fp32'))}"
    return page.document(title, "\n".join(part for part in body if part))


def head(manifest: Manifest) -> str:
    """The name, the verdict and the few figures that matter most."""
    model, request = manifest.model, manifest.request
    kind, said = VERDICTS[verdict(manifest.verification)]
    banner = f'<div class="verdict {kind}"><strong>{page.text(said)}</strong>{page.paragraph(proven(manifest))}</div>'
    size = "x".join(map(str, model.input.shape))
    lead = f"{words(request.get('precision', 'fp32'))}, {words(request.get('backend', 'onnxruntime'))}, {size}"
    random = (
        page.paragraph(
            f"Random weights, seed {words(model.weights.seed)}: this file shows the architecture and its latency. "
            "It has learnt nothing, and its answers mean nothing.",
            "warn",
        )
        if model.weights.kind == "random"
        else ""
    )
    return (
        f'<header>\n<p class="eyebrow">vitdeploy report</p>\n<h1>{page.text(model.full_name)}</h1>\n'
        f'<p class="lead">{page.text(lead)}</p>\n</header>\n{banner}\n{random}\n{page.tiles(key_figures(manifest))}'
    )


def proven(manifest: Manifest) -> str:
    """The verdict's reason in a sentence or two."""
    found = mapping(manifest.verification)
    if not found:
        return "Its outputs were held against nothing."
    if found.get("passed") is not True:
        return " ".join(words(reason) for reason in listed(found.get("reasons")))
    error, bound = worst(found), number(found, "bounds", "rel_max")
    allowed = f"; {figure(bound)} is allowed" if bound is not None else ""
    said = f"Largest error {figure(error.get('rel_max'))} of the largest output{allowed}. "
    said += f"Held against eager {words(found.get('reference'))}."
    if "matches" in error:
        said += f" Same top-1 class on {error['matches']} of {error['samples']} inputs."
    return f"{said} What ran is {words(found['stand_in'])}." if found.get("stand_in") else said


def key_figures(manifest: Manifest) -> list[tuple[str, str, str]]:
    bench, graph = mapping(manifest.bench), manifest.graph
    size, parameters, macs = size_of(manifest.files), number(graph, "parameters"), number(graph, "macs")
    return [
        (
            "p50 latency",
            figure(at(bench, "latency_ms", "p50"), 3, "ms"),
            f"batch {words(bench.get('batch'))}, {threads(bench)}",
        ),
        (
            "p99 latency",
            figure(at(bench, "latency_ms", "p99"), 3, "ms"),
            f"of {words(at(bench, 'latency_ms', 'count'))} runs",
        ),
        ("throughput", figure(bench.get("throughput"), 4), "images a second"),
        ("size", f"{size / 1e6:.1f} MB" if size else "", "of the model's files"),
        ("parameters", f"{parameters / 1e6:.2f} M" if parameters else "", ""),
        ("work", f"{amount(macs)}MACs" if macs else "", "an image"),
    ]


def asked(manifest: Manifest) -> str:
    """What was asked for, and what was applied."""
    model, request, applied = manifest.model, manifest.request, manifest.applied
    census = mapping(applied, "census")
    compute = ", ".join(f"{words(count)} in {kind}" for kind, count in sorted(mapping(census, "compute").items()))
    compiled = {key: value for key, value in mapping(applied, "compiled").items() if value}
    run = {key: value for key, value in mapping(request, "run").items() if value not in (None, "", {})}
    return page.section(
        "Asked and applied",
        page.facts(
            [
                ("asked", words(request.get("precision", "fp32"))),
                ("input and output", words(request.get("io_precision", "fp32"))),
                ("applied", applied.get("precision")),
                ("notes", "; ".join(words(note) for note in listed(applied.get("notes")))),
                ("ops that compute", compute),
                ("casts that run", census.get("casts")),
                ("weights", weights_line(manifest)),
                ("input", str(model.input)),
                ("batch", request.get("batch")),
                ("gives", f"{words(model.outputs)}, {model.num_classes} classes"),
                ("runs with", run),
                ("compiled", compiled),
                ("opset", request.get("opset")),
                ("calibrated on", request.get("calib") or ("synthetic images" if request.get("calib_random") else "")),
                ("file", manifest.model_file),
            ]
        ),
        proof.islands(applied),
    )


def ops(census: Mapping[str, Any]) -> str:
    """Which ops run in which precision."""
    counted = {
        words(op): {words(kind): n for kind, count in mapping(by).items() if (n := number(count)) and n > 0}
        for op, by in mapping(census, "ops").items()
    }
    kinds = sorted({kind for by in counted.values() for kind in by})
    ranked = sorted(counted.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    if not kinds:
        return ""
    title = f"Ops by type and precision, from {words(census.get('source'))}"
    picture = charts.stacked(title, [(op, by, f"{sum(by.values()):.0f}") for op, by in ranked], kinds)
    rows = [(op, *(f"{by.get(kind, 0):.0f}" for kind in kinds), f"{sum(by.values()):.0f}") for op, by in ranked]
    table = page.table("The plot's numbers", ("op", *kinds, "all"), rows, right=range(1, len(kinds) + 2), shut=True)
    return page.section("Ops that run", page.figure(title, charts.key(kinds) + picture, table))


def making(manifest: Manifest) -> str:
    """Steps with their seconds, and the passes over the graph."""
    steps = [
        (words(at(s, "name")), number(s, "seconds") or 0.0, words(at(s, "detail"))) for s in records(manifest.steps)
    ]
    title = "Seconds of each step"
    picture = charts.bars(title, [(name, seconds, f"{seconds:.1f} s") for name, seconds, _ in steps])
    rows = [(name, f"{seconds:.1f}", detail) for name, seconds, detail in steps]
    passes = [(words(at(one, "name")), words(at(one, "rewrites"))) for one in records(manifest.passes)]
    return page.section(
        "How it was made",
        page.figure(title, picture, page.table("What each step did", ("step", "seconds", ""), rows, right=(1,))),
        page.table(
            f"{len(passes)} passes over the graph, in order", ("pass", "rewrites"), passes, right=(1,), shut=True
        ),
    )


def environment(found: Mapping[str, Any]) -> str:
    """The machine and the versions."""
    memory = number(found, "memory_bytes")
    shown = {key: value for key, value in found.items() if key not in ("versions", "memory_bytes")}
    versions = [(words(name), words(version)) for name, version in mapping(found, "versions").items() if version]
    return page.section(
        "Environment",
        page.facts(
            [(words(key).replace("_", " "), value) for key, value in shown.items()]
            + [("memory", f"{memory / 1e9:.1f} GB" if memory else "")]
        ),
        page.table("Versions", ("package", "version"), versions, shut=True),
    )

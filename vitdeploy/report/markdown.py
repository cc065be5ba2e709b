"""`report.md`: what an export did and found, for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any

from vitdeploy.artifact import REPOSITORY, Manifest
from vitdeploy.report.reading import at, cases_told, figure, records, verdict, words, worst


def report(manifest: Manifest) -> str:
    """The manifest as Markdown."""
    model, request = manifest.model, manifest.request
    passed = (manifest.verification or {}).get("passed")
    verdict = {True: "verified", False: "**FAILED verification**", None: "not verified"}[passed]
    lines = [f"# {model.full_name}, {request.get('precision', 'fp32')}: {verdict}", ""]
    lines += [
        f"- {model.input.kind}: {model.input}",
        f"- classes: {model.num_classes}",
        f"- weights: {weights_line(manifest)}",
    ]
    lines += graph_lines(manifest.graph)
    if request.get("layout") == "triton":
        lines.append(
            f"- layout: Triton model repository {REPOSITORY}/, model {PurePosixPath(manifest.model_file).parts[1]}"
        )
    lines += [f"- note: {note}" for note in manifest.applied.get("notes", [])]
    compiled = manifest.applied.get("compiled") or {}
    if compiled:
        lines.append(f"- compiled: {plain({key: value for key, value in compiled.items() if value})}")
    if (manifest.verification or {}).get("stand_in"):
        lines.append(f"- **not run**: what was verified is {(manifest.verification or {})['stand_in']}")
    lines += [
        "",
        "## Steps",
        "",
        *table(("step", "seconds", ""), [(s["name"], f"{s['seconds']:.1f}", s["detail"]) for s in manifest.steps]),
    ]
    lines += verification_lines(manifest.verification) + island_lines(manifest.applied) + bench_lines(manifest.bench)
    lines += device_lines(manifest.devices) + tune_lines(manifest.applied) + sensitivity_lines(manifest.applied)
    lines += ["", "## Environment", ""]
    lines += [f"- {key}: {plain(value)}" for key, value in manifest.environment.items() if value is not None]
    return "\n".join(lines) + "\n"


def graph_lines(graph: Mapping[str, Any]) -> list[str]:
    """What is known of it: a model that went to its runtime without a graph has no nodes."""
    facts = [f"{graph['nodes']} nodes"] if graph.get("nodes") is not None else []
    facts += [f"{graph['parameters'] / 1e6:.2f} M parameters"] if graph.get("parameters") is not None else []
    facts += [f"{graph['macs'] / 1e9:.3f} GMACs an image"] if graph.get("macs") is not None else []
    return [f"- {'graph' if 'nodes' in graph else 'model'}: {', '.join(facts)}"] if facts else []


def weights_line(manifest: Manifest) -> str:
    """Where the weights came from, in a few words."""
    source = manifest.model.weights
    if source.kind == "random":
        return f"random, seed {source.seed}: for architecture and latency only"
    digest = f", sha256 {source.sha256[:16]}" if source.sha256 else ""
    revision = f", revision {source.revision[:12]}" if source.revision else ""
    return f"{source.kind} {source.location}{digest}{revision}"


def verification_lines(verification: Mapping[str, Any] | None) -> list[str]:
    if not verification:
        return []
    lines = ["", "## Verification against eager PyTorch", ""]
    rows = []
    for name, found in verification["outputs"].items():
        logits = found.get("logits") or {}
        top1 = f"{logits.get('top1_matches')}/{logits.get('samples')}" if logits else ""
        rows.append(
            (name, *(number(found.get(k)) for k in ("max_abs", "reference_max", "rel_max", "rel_l2", "cosine")), top1)
        )
    heads = ("output", "max abs error", "of", "relative", "relative L2", "cosine", "top-1")
    lines += table(heads, rows)
    lines += ["", f"Bounds: {plain(verification.get('bounds'))}", ""]
    lines += [f"- {case}" for case in cases_told(verification)]
    lines += [f"- **{reason}**" for reason in verification.get("reasons", [])]
    departure = verification.get("departure")
    if departure:
        lines += ["", "### First node that departs", "", "```", plain(departure), "```"]
    return lines


def sensitivity_lines(applied: Mapping[str, Any]) -> list[str]:
    report = applied.get("int8") or applied.get("fp8") or {}
    found = report.get("sensitivity") or []
    if not found:
        return []
    rows = [
        (one["label"], percent(one["error"], 3), decibel(one["input_sqnr"]), decibel(one["weight_sqnr"]))
        for one in found
    ]
    heads = ("op, alone quantised", "relative L2 of the logits", "SQNR of its input, dB", "of its weight")
    return ["", "## Sensitivity", "", *table(heads, rows)]


def percent(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}%}"


def decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def tune_lines(applied: Mapping[str, Any]) -> list[str]:
    found = applied.get("tune") or {}
    if not found:
        return []
    rows = [
        (
            trial["name"],
            f"{trial['ratio']:.2f}x",
            f"{trial['p50']:.2f}",
            f"{trial['bytes'] / 1e6:.1f}",
            percent(trial["answers"]["error"], 2),
            f"{trial['answers']['change_percent']:.2f}",
            number(trial["answers"]["drop_pp"]),
            "chosen" if trial["name"] == found["chosen"] else trial["out"],
        )
        for trial in found["trials"]
        if not trial["failed"]
    ]
    heads = ("plan", "faster", "p50 ms", "MB", "relative L2", "class changes %", "top-1 drop pp", "")
    lines = ["", "## Plans that were tried", "", *table(heads, rows), ""]
    lines += [f"- not possible: {trial['name']}: {trial['failed']}" for trial in found["trials"] if trial["failed"]]
    return lines + [f"- not taken: {name}: {why}" for name, why in found["reasons"].items()]


def island_lines(applied: Mapping[str, Any]) -> list[str]:
    islands = (applied.get("fp16") or {}).get("islands") or []
    if not islands:
        return []
    rows = [(i.get("op_type", ""), i.get("output", i.get("node", "")), i.get("reason", "")) for i in islands]
    return ["", "## Kept in fp32", "", *table(("op", "output", "reason"), rows)]


def bench_lines(bench: Mapping[str, Any] | None) -> list[str]:
    if not bench:
        return []
    keys = ("min", "mean", "p50", "p90", "p95", "p99", "max")
    lines = [
        "",
        "## Latency",
        "",
        *table(("batch", "threads", *(f"{k} ms" for k in keys), "images/s", "runs"), [bench_row(bench, keys)]),
    ]
    lines += ["", f"Includes {bench.get('includes')}. Warm-up {bench.get('warmup_s')} s; every sample counted."]
    parts = bench.get("parts") or {}
    if parts:
        rows = [(name, *(f"{part[k]:.3f}" for k in keys), str(part["count"])) for name, part in parts.items()]
        lines += ["", *table(("part", *(f"{k} ms" for k in keys), "runs"), rows), ""]
    if bench.get("device_state"):
        lines.append(f"The device, right after its runs: {plain(bench['device_state'])}.")
    if bench.get("peak_rss_bytes"):
        lines.append(f"Peak memory of a process that only runs it: {bench['peak_rss_bytes'] / 1e6:.0f} MB.")
    lines += [f"- {warning}" for warning in bench.get("warnings", [])]
    return lines


def device_lines(devices: Any) -> list[str]:
    rows = device_rows(devices)
    return ["", "## Other devices", "", *table(*rows)] if rows else []


def device_rows(devices: Any) -> tuple[Sequence[str], list[Sequence[str]]] | None:
    """Heads and rows of what other devices reported, which comes from strangers; None where there is nothing."""
    rows: list[Sequence[str]] = []
    for one in records(devices):
        error = worst(one.get("verification"))
        same = f"{error['matches']}/{error['samples']}" if "matches" in error else ""
        runtime = " ".join(words(one.get(key)) for key in ("runtime", "provider") if one.get(key))
        latency = (figure(at(one, "latency", key), 4) for key in ("p50", "p95", "p99"))
        facts = (words(one.get("device")), runtime, words(one.get("threads")), verdict(one.get("verification")))
        rows.append([inert(f) for f in (*facts, figure(error.get("rel_max")), same, *latency, words(one.get("when")))])
    heads = ("device", "runtime", "threads", "verification", "relative error", "top-1", "p50 ms", "p95", "p99", "when")
    return (heads, rows) if rows else None


def inert(text: str) -> str:
    """A text without markup, links or HTML."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", escape(text, quote=False)).replace("\n", " ")


def bench_row(bench: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    stats = bench["latency_ms"]
    figures = tuple(f"{stats[k]:.2f}" for k in keys)
    return (
        str(bench["batch"]),
        str(bench.get("threads", "")),
        *figures,
        f"{bench['throughput']:.1f}",
        str(stats["count"]),
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    return [
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


def number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> str:
    """JSON values without braces."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(plain(v) for v in value)
    return number(value)

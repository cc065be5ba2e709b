"""Results on stdout, as tables for people and JSON for programs. Imports no torch, onnx or onnxruntime."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import VitdeployError
from vitdeploy.spec import InputSpec

if TYPE_CHECKING:
    from vitdeploy.backends.base import Backend
    from vitdeploy.quantize.lint import Finding


def model_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """What `list` shows of catalog models."""
    from vitdeploy.models import catalog

    rows = []
    for name in names:
        entry, _ = catalog.find(name)
        best = max((p for p in entry.pretrained if p.top1 is not None), key=lambda p: p.top1 or 0.0, default=None)
        rows.append(
            {
                "name": name,
                "family": entry.family,
                "params": entry.params,
                "macs": entry.macs,
                "input": list(entry.input.shape),
                "top1": best.top1 if best else None,
                "tag": best.tag if best else entry.default_tag,
                "tags": [p.tag for p in entry.pretrained],
            }
        )
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    heads = ("name", "params M", "GMACs", "input", "top-1 %", "of weights")
    lines = [
        (
            row["name"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.2f}",
            "x".join(map(str, row["input"])),
            f"{row['top1']:.2f}" if row["top1"] is not None else "",
            row["tag"] or "(none published)",
        )
        for row in rows
    ]
    print_table(heads, lines, right=(1, 2, 4))


def zoo_rows(names: Sequence[str]) -> list[dict[str, Any]]:
    """What `list --zoo` shows."""
    from vitdeploy.models import zoo

    found = [zoo.find(name) for name in names]
    return [{"name": zoo.PREFIX + one.name, "class": one.target, "paper": one.paper} for one in found]


def print_zoo(rows: Sequence[Mapping[str, Any]]) -> None:
    print_table(("name", "class", "paper"), [(row["name"], row["class"], row["paper"]) for row in rows])


def zoo_facts(name: str) -> dict[str, Any]:
    """What `info` shows of an architecture of the zoo."""
    from vitdeploy.models import build_zoo, zoo

    entry = zoo.find(name)
    takes = InputSpec(entry.shape(entry.arguments), packing=entry.packing(entry.arguments))
    return {
        "name": zoo.PREFIX + entry.name,
        "paper": entry.paper,
        "class": f"vitdeploy.models.{entry.target.replace(':', '.')}",
        "input": ", ".join(map(str, takes.tensors)),
        "weights": "none published; a state dict of vit-pytorch's class loads with --weights FILE",
        "arguments": build_zoo.defaults(entry),
    }


def model_facts(name: str) -> dict[str, Any]:
    """What `info` shows of a model by name."""
    from vitdeploy.models import catalog, zoo

    if name.startswith(zoo.PREFIX):
        return zoo_facts(name)

    entry, chosen = catalog.find(name)
    weights = [chosen] if chosen else list(entry.pretrained)
    return {
        "name": entry.name,
        "family": entry.family,
        "parameters": entry.params,
        "macs": entry.macs,
        "classes": entry.num_classes,
        "input": str(entry.input),
        "class": entry.target,
        "config": dict(entry.config),
        "weights": [
            {
                "tag": p.tag,
                "hub": p.hub_id,
                "input": str(p.input),
                "classes": p.num_classes,
                "top1": p.top1,
                "top5": p.top5,
                "license": p.license,
            }
            for p in weights
        ],
    }


def artifact_facts(path: Path) -> dict[str, Any]:
    """What `info` shows of an artifact: its manifest, without the raw samples."""
    from vitdeploy.artifact import Artifact

    artifact = Artifact.load(path)
    facts = {"folder": str(artifact.folder), **artifact.manifest.to_dict()}
    if facts.get("bench"):
        facts["bench"] = {k: v for k, v in facts["bench"].items() if k != "samples_ms"}
    return facts


def print_facts(facts: Mapping[str, Any], indent: int = 0) -> None:
    """Nested JSON values as indented lines."""
    pad = "  " * indent
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            print(f"{pad}{key}")
            print_facts(value, indent + 1)
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            print(f"{pad}{key}")
            for item in value:
                print(f"{pad}  - " + ", ".join(f"{k} {short(v)}" for k, v in item.items() if v is not None))
        elif value is not None and value not in ({}, [], (), ""):
            print(f"{pad}{key:<14} {short(value)}")


def short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(short(v) for v in value)
        return text if len(text) < 200 else f"{text[:200]} ..."
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def backend_facts(backend: Backend) -> dict[str, Any]:
    can = backend.capabilities()
    return {
        "name": backend.name,
        "installed": can.installed,
        "version": can.version,
        "devices": list(can.devices),
        "precisions": dict(can.precisions),
        "reason": can.reason or None,
        "fix": can.fix or None,
    }


def print_doctor(facts: Mapping[str, Any]) -> None:
    for found in facts["backends"]:
        where = ", ".join(found["devices"]) or f"nowhere to run: {found['reason']}"
        state = f"{found['version']}, {where}" if found["installed"] else f"no: {found['reason']}"
        print(f"{found['name']:<14} {state}")
        for precision, how in found["precisions"].items():
            print(f"{'':14} {precision:<12} {how}")
        if found["installed"] and found["devices"] and found["reason"]:
            print(f"{'':14} but: {found['reason']}")
        for i, line in enumerate((found["fix"] or "").splitlines()):
            print(f"{'':14} {'fix: ' if i == 0 else '     '}{line}")
    print()
    print_nvidia(facts["nvidia"])
    print_facts(facts["environment"])


def print_nvidia(found: Mapping[str, Any]) -> None:
    """The driver and its GPUs, with the precisions that they have tensor cores for."""
    if not found["gpus"]:
        print(f"{'nvidia':<14} no GPU: {found['reason']}")
    else:
        print(f"{'nvidia':<14} driver {found['driver'] or 'of unknown version'}, CUDA {found['cuda']}")
    for i, gpu in enumerate(found["gpus"]):
        fast = gpu["fast"] or "nothing: it has no tensor cores"
        about = f"{gpu['name']}, compute capability {gpu['compute_capability']}, {mb(gpu['memory_bytes'])}"
        print(f"{'':14} cuda:{i}  {about}, fast in {fast}")


def print_summary(summary: Mapping[str, Any]) -> None:
    """A model file's ops, dtypes, parameters and MACs, as far as it tells."""
    ops = summary.get("ops", {})
    shown = {k: v for k, v in summary.items() if k not in ("ops", "metadata_props", "metadata")}
    if "opset" in summary:
        shown["opset"] = ", ".join(f"{domain} {n}".strip() for domain, n in summary["opset"].items())
    for tensors in ("inputs", "outputs"):
        shown[tensors] = [f"{t['name']} {t['dtype']} {'x'.join(map(str, t['shape']))}" for t in summary[tensors]]
    print_facts(shown)
    print()
    rows = [(op, str(n)) for op, n in sorted(ops.items(), key=lambda item: (-item[1], item[0]))]
    print_table(("op", "nodes"), rows, right=(1,))


def print_mobile(found: Sequence[Mapping[str, Any]]) -> None:
    """What the execution providers of phones take, and why they leave the rest."""
    rows = [
        (
            one["provider"],
            f"{one['taken']} of {one['nodes']}",
            str(len(one["partitions"])),
            str(max(one["partitions"], default=0)),
        )
        for one in found
    ]
    print()
    print_table(("provider", "nodes taken", "partitions", "largest"), rows, right=(1, 2, 3))
    left = [(one["provider"], part["op"], str(part["nodes"]), part["reason"]) for one in found for part in one["left"]]
    if left:
        print()
        print_table(("left by", "op", "nodes", "why"), left, right=(2,))
    unchecked = [(one["provider"], note) for one in found for note in one["unchecked"]]
    if unchecked:
        print()
        print_table(("not checked", "note"), unchecked)


def print_compiled(described: Mapping[str, Any]) -> None:
    """What a compiled file is made of: facts, then its layers where they are known."""
    layers = described.get("layers") or []
    census = described.get("census") or {}
    print_facts({k: v for k, v in described.items() if k not in ("layers", "census", "products")})
    if census:
        print_facts({"compute ops": dict(sorted(census["compute"].items())), "casts": census["casts"]})
    if not layers:
        return
    print()
    whole = sum(layer.get("ms", 0.0) for layer in layers)
    heads = ("layer", "kind", "precision", "inputs", *(("ms", "%") if whole else ()), "ONNX nodes")
    rows = [
        (
            clipped(layer["name"], 40),
            layer["kind"],
            layer.get("precision", ""),
            " ".join(layer["inputs"]),
            *((f"{layer['ms']:.4f}", f"{100 * layer['ms'] / whole:.1f}") if whole else ()),
            clipped(", ".join(layer["nodes"]), 60),
        )
        for layer in layers
    ]
    print_table(heads, rows, right=(4, 5) if whole else ())


def clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def print_tuned(found: Mapping[str, Any]) -> None:
    """What a tune measured, fastest first, and what it chose. `found` is the manifest's applied.tune."""
    heads = ("plan", "faster", "p50 ms", "MB", "rel. L2 %", "class changes %", "top-1 pp", "")
    alive = [trial for trial in found["trials"] if not trial["failed"]]
    rows = []
    for trial in sorted(alive, key=lambda trial: -trial["ratio"]):
        name, answers = trial["name"], trial["answers"]
        drop = answers.get("drop_pp")
        rows.append(
            (
                name,
                f"{trial['ratio']:.2f}x",
                f"{trial['p50']:.2f}",
                f"{trial['bytes'] / 1e6:.1f}",
                "not finite" if answers["error"] is None else f"{100 * answers['error']:.2f}",
                f"{answers['change_percent']:.2f}",
                "" if drop is None else f"{0.0 - drop:+.2f}",
                ("chosen" if name == found["chosen"] else trial["out"])
                + (" *" if name in found["front"] and name != found["chosen"] else ""),
            )
        )
    print_table(heads, rows, right=range(1, 7))
    print("* on the Pareto front of latency and error; ratios are to fp32 on the first backend")
    for trial in found["trials"]:
        if trial["failed"]:
            print(f"not possible: {trial['name']}: {trial['failed']}")
    for name, why in found["reasons"].items():
        print(f"not taken: {name}: {why}")
    if not any(trial["plan"]["precision"].startswith("int8") for trial in found["trials"]):
        print("Nothing quantised was tried.")
    elif not found["pays"]:
        print("Quantising does not pay here: no plan within the budget is faster than float beyond doubt.")
    print()


def print_findings(scheme: str, findings: Sequence[Finding]) -> None:
    """What a scheme forbids, a line a node, and each reason once."""
    print()
    if not findings:
        print(f"Its Q/DQ keeps to the scheme {scheme}.")
        return
    print_table(("rule", "node", "what is wrong"), [(f.rule, f.node, f.message) for f in findings])
    reasons = dict.fromkeys((f.rule, f.reason) for f in findings if f.reason)
    if reasons:
        print()
    for rule, reason in reasons:
        print(f"{rule}: {reason}.")


def print_predictions(results: Sequence[Mapping[str, Any]]) -> None:
    for result in results:
        print(result["image"])
        for row in result["top"]:
            print(f"  {row['probability']:7.2%}  {row['label'] or 'class'}  ({row['index']})")


def print_scores(found: Mapping[str, Any]) -> None:
    """A line of accuracy and speed a model, then how the artifact compares with the others."""
    others = [found[name] for name in ("against", "eager") if found[name]]
    heads = [f"{found['images']} images, {found['classes']} classes", "top-1 %", "95 %"]
    if found["top5"]:
        heads += ["top-5 %", "95 %"]
    heads += ["batch", "images/s", "model alone"]
    lines = []
    for row in (found, *others):
        line = [row["label"]]
        for rate in filter(None, (row["top1"], row["top5"])):
            line += [f"{100 * rate['value']:.2f}", between(100 * rate["low"], 100 * rate["high"])]
        speeds = (row["images_per_second"][key] for key in ("loop", "model"))
        lines.append([*line, str(row["batch"]), *("" if s is None else f"{s:.1f}" for s in speeds)])
    print_table(heads, lines, right=range(1, len(heads)))
    for row in others:
        same, apart = row["agreement"], row["top1_difference_pp"]
        rate = f"{100 * same['value']:.2f} % {between(100 * same['low'], 100 * same['high'])}"
        print(f"{row['label']}: same class on {same['hits']} of {same['total']} images, {rate}")
        signed = f"{apart['value']:+.2f} points [{apart['low']:+.2f}, {apart['high']:+.2f}]"
        print(f"{found['label']} less {row['label']}: top-1 {signed}")
    if found["skipped"]:
        count = len(found["skipped"])
        print(f"skipped {count} of {found['images'] + count} images, which cannot be read")


def between(low: float, high: float) -> str:
    return f"[{low:.2f}, {high:.2f}]"


def mb(size: float) -> str:
    """Bytes in decimal units."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.{2 if unit == 1e9 else 1}f} {name}"
    return f"{size:.0f} B"


def amount(number: float) -> str:
    """A count in thousands, millions or milliards: 2.3 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.{2 if unit == 1e9 else 1}f}{name}"
    return f"{number:.0f}"


def print_latency(rows: Sequence[Mapping[str, Any]], ratios: Sequence[Any] = ()) -> None:
    """One line of figures an artifact; with several, the ratios of the interleaved run."""
    keys = ("min", "mean", "p50", "p90", "p95", "p99", "max")
    several = len(rows) > 1
    heads = ["ms a run", "batch", "threads", *keys, "images/s", *(["ratio"] if several else []), "peak MB"]
    lines = []
    for i, row in enumerate(rows):
        stats = row["latency_ms"]
        line = [row["label"], str(row["batch"]), str(row["threads"]), *(f"{stats[k]:.2f}" for k in keys)]
        line.append(f"{row['throughput']:.1f}")
        if several:
            line.append(f"{ratios[i].median:.3f} [{ratios[i].low:.3f}, {ratios[i].high:.3f}]" if i else "1")
        line.append(f"{row['peak_rss_bytes'] / 1e6:.0f}" if row.get("peak_rss_bytes") else "")
        lines.append(line)
    print_table(heads, lines, right=range(1, len(heads)))
    for row in rows:
        if row.get("parts"):
            print(f"{row['label']}   p50 in ms: {parts_line(row['parts'])}")
        for warning in row["warnings"]:
            print(f"{row['label']}: {warning}", file=sys.stderr)


def parts_line(parts: Mapping[str, Mapping[str, float]]) -> str:
    """The medians of a run's parts in one line."""
    from vitdeploy.bench.parts import WORDS

    return "   ".join(f"{word} {parts[name]['p50']:.3g}" for name, word in WORDS.items() if name in parts)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Container[int] = ()) -> None:
    """A table on stdout, as wide as it needs to be; columns of these numbers are set to the right."""
    lines = [heads, *rows]
    width = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, width, strict=True))]
        print("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """JSON alone on stdout."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_error(error: VitdeployError) -> None:
    """What happened, and how to mend it."""
    lines = [*error.message.splitlines(), *(error.fix or "").splitlines()]
    for i, line in enumerate(lines):
        print(f"       {line}" if i else f"error: {line}", file=sys.stderr)

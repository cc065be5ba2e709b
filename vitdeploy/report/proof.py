"""What a page says of verification: outputs against their bounds, the first node that departs, single ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.report import charts, page
from vitdeploy.report.reading import at, cases_told, figure, listed, mapping, number, records, words


def verification(found: Any) -> str:
    """The section on verification; empty where none was run."""
    found = mapping(found)
    if not found:
        return ""
    reference = words(found.get("reference")) or "PyTorch"
    return page.section(
        "Verification",
        page.paragraph(f"Every output was held against eager {reference}, on the same inputs."),
        page.bullets([words(one) for one in listed(found.get("reasons"))], "bad"),
        outputs(found),
        layers(records(found.get("layers"))),
        page.facts([("inputs", "; ".join(cases_told(found))), ("why this bound", at(found, "bounds", "reason"))]),
        departure(mapping(found, "departure")),
        page.paragraph(
            f"The search for the cause failed: {found['bisect_error']}" if found.get("bisect_error") else ""
        ),
    )


def outputs(found: Mapping[str, Any]) -> str:
    """Each output's error beside its bound, and all figures."""
    bound = number(found, "bounds", "rel_max")
    named = mapping(found, "outputs")
    errors = [(str(name), number(one, "rel_max"), bound) for name, one in named.items()]
    keys = ("rel_max", "max_abs", "reference_max", "rel_l2", "cosine", "psnr")
    rows = []
    for name, one in named.items():
        logits = mapping(one, "logits")
        same = f"{words(logits.get('top1_matches'))} of {words(logits.get('samples'))}" if logits else ""
        faults = "; ".join(
            f"{words(at(one, kind))} {word}"
            for kind, word in (("nan_count", "NaN"), ("inf_count", "Inf"))
            if at(one, kind)
        )
        rows.append((name, *(figure(at(one, k), 8 if k == "cosine" else 4) for k in keys), same, faults))
    heads = ("output", "relative error", "largest error", "largest value", "relative L2", "cosine", "PSNR dB")
    title = "Largest error of each output, relative to its largest value"
    numbers = page.table("Figures by output", (*heads, "same top-1", "not finite"), rows, right=range(1, 8))
    return page.figure(title, charts.against_bound(title, errors), numbers)


def layers(found: Sequence[Mapping[str, Any]]) -> str:
    """The error of each layer, in the order in which they run: where it comes in, and where it heals."""
    known = [(words(one.get("layer")), words(one.get("op_type")), number(one, "rel_l2")) for one in found]
    if not known:
        return ""
    title = "Relative L2 of each layer's output against the same layer in fp32, in the order in which they run"
    drawn = [(name, error) for name, _, error in known if error is not None]
    picture = charts.course(title, drawn, "layers", "relative L2")
    rows = [(name, op, figure(error) or "not finite") for name, op, error in known]
    heads = ("layer", "op", "relative L2")
    numbers = page.table(f"All {len(rows)} layers that were compared", heads, rows, right=(2,), shut=True)
    return page.figure(title, picture, numbers)


def departure(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    place = page.facts(
        [
            ("node", f"{words(found.get('op_type'))} {words(found.get('node'))}".strip()),
            ("place", f"{words(found.get('position'))} of {words(found.get('nodes'))} nodes"),
            ("value", found.get("output")),
            ("there", f"{figure(found.get('candidate'), 6)} instead of {figure(found.get('reference'), 6)}"),
            ("relative error", figure(at(found, "metrics", "rel_max"))),
            ("cause", found.get("cause")),
            ("suspects", found.get("suspects")),
        ]
    )
    return f"<h3>First node that departs</h3>{place}"


def quantised(applied: Mapping[str, Any]) -> str:
    """The section on quantised layers: errors of single ops, and which precision each has."""
    found = mapping(applied, "int8") or mapping(applied, "fp8")
    if not found:
        return ""
    ops = records(found.get("ops"))
    whole, share = number(found, "macs"), number(found, "quantised_macs")
    before, after = number(found, "weight_bytes_before"), number(found, "weight_bytes_after")
    rows = [(at(op, "label"), at(op, "op_type"), at(op, "precision"), at(op, "macs"), at(op, "reason")) for op in ops]
    heads = ("layer", "op", "precision", "MACs", "why it stays")
    return page.section(
        "Quantised layers",
        page.facts(
            [
                ("of the MACs", f"{share / whole:.1%}" if whole and share is not None else ""),
                ("weights", f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after" if before and after else ""),
                ("calibrated on", f"{words(found.get('images'))} images, {words(found.get('source'))}"),
                ("scheme", found.get("scheme")),
            ]
        ),
        sensitivity([{"label": at(one, "label"), **one} for one in records(found.get("sensitivity"))]),
        page.table(f"Precision of each of {len(rows)} layers", heads, rows, right=(3,), shut=True),
    )


def sensitivity(found: list[dict[str, Any]]) -> str:
    """Errors of single ops, worst first."""
    known = [(words(one["label"]), number(one, "error"), one) for one in found]
    ranked = sorted(((name, error, one) for name, error, one in known if error is not None), key=lambda row: -row[1])
    rows = [
        (name, f"{100 * error:.3f}", figure(one.get("input_sqnr")), figure(one.get("weight_sqnr")))
        for name, error, one in ranked
    ]
    title = "Relative L2 of the logits with this layer alone quantised, the worst first"
    picture = charts.bars(title, [(name, error, f"{error:.3%}") for name, error, _ in ranked[:15]])
    heads = ("layer", "error %", "SQNR of its input, dB", "of its weight, dB")
    numbers = page.table(f"All {len(rows)} layers that were measured", heads, rows, right=(1, 2, 3), shut=True)
    return page.figure(title, picture, numbers)


def islands(applied: Mapping[str, Any]) -> str:
    """Which ops fp16 leaves in fp32."""
    found = records(at(applied, "fp16", "islands"))
    rows = [(words(at(i, "output") or at(i, "node")), at(i, "op_type"), at(i, "reason")) for i in found]
    return page.table(f"{len(rows)} ops kept in fp32", ("value", "op", "reason"), rows, shut=True)

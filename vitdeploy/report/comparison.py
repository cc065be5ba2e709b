"""A comparison of artifacts: as a table on stdout, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitdeploy.report import charts, page
from vitdeploy.report.charts import Point
from vitdeploy.report.reading import figure, words
from vitdeploy.report.tables import print_table

if TYPE_CHECKING:
    from vitdeploy.bench.stats import Ratio
    from vitdeploy.pipeline.compare import Comparison, Row

HEADS = (
    *("artifact", "model", "backend", "precision", "MB", "parity", "error", "top-1", "top-1 pp"),
    *("batch", "p50 ms", "p95", "p99", "latency of", "ratio"),
)
RIGHT = (4, 6, 7, 8, 9, 10, 11, 12, 14)
PARITY = {"verified": "PASS", "stand-in": "stand-in", "failed": "FAIL", "none": "none"}


def print_comparison(found: Comparison) -> None:
    """The table, what it leaves open, and which artifact wins."""
    cells = [line(row, ratio, i == 0) for i, (row, ratio) in enumerate(zip(found.rows, found.ratios, strict=True))]
    shown = [i for i in range(len(HEADS)) if any(row[i] for row in cells)]
    right = [place for place, i in enumerate(shown) if i in RIGHT]
    print_table([HEADS[i] for i in shown], [[row[i] for i in shown] for row in cells], right=right)
    print()
    for row in found.rows:
        if row.why_not:
            print(f"{row.folder} does not run here, so its latency is the recorded one: {row.why_not}")
    print(found.verdict)


def line(row: Row, ratio: Ratio | None, first: bool) -> list[str]:
    """The cells of one artifact."""
    source = "this run" if row.measured else "record" if row.latency else ""
    told = "" if ratio is None else "1" if first else f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return [
        row.folder,
        row.model,
        row.backend,
        row.precision,
        "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        PARITY[row.verified],
        figure(row.error, 3),
        "" if row.top1 is None else f"{row.top1[0]}/{row.top1[1]}",
        "" if row.drop_pp is None else f"{0.0 - row.drop_pp:+.2f}",
        words(row.latency.get("batch")),
        *(figure(row.latency.get(key), 4) for key in ("p50", "p95", "p99")),
        source,
        told,
    ]


def comparison_page(found: Comparison) -> str:
    """The comparison as a page that needs nothing else."""
    models = sorted({row.model for row in found.rows})
    cells = [line(row, ratio, i == 0) for i, (row, ratio) in enumerate(zip(found.rows, found.ratios, strict=True))]
    numbered = [[str(i + 1), *row] for i, row in enumerate(cells)]
    measured = any(row.measured for row in found.rows)
    source = "measured in one run, the artifacts taking turns" if measured else "as the records tell, of runs apart"
    table = page.table(
        "All figures; ratios are to the first, above 1 for faster",
        ("", *HEADS),
        numbered,
        right=(0, *(i + 1 for i in RIGHT)),
    )
    kind = "warn" if found.verdict.startswith("No winner") else "good"
    winner = f'<div class="verdict {kind}"><strong>Which is fastest</strong>{page.paragraph(found.verdict)}</div>'
    body = [
        f'<header>\n<p class="eyebrow">vitdeploy comparison</p>\n<h1>{page.text(", ".join(models))}</h1>\n'
        f'<p class="lead">{len(found.rows)} artifacts, {source}</p>\n</header>\n{winner}',
        page.section("Side by side", table),
        page.section("Latency", latency(found.rows)),
        page.section("Latency and error", pareto(found.rows, "error")),
        page.section("Latency and accuracy", pareto(found.rows, "drop")),
        page.section(
            "Not run here",
            page.bullets([f"{row.folder}: {row.why_not}" for row in found.rows if row.why_not]),
        ),
    ]
    return page.document(f"Comparison: {', '.join(models)}", "\n".join(part for part in body if part))


def latency(rows: Sequence[Row]) -> str:
    known = [(row, row.p50) for row in rows if row.p50 is not None]
    said = [(row, p50, f"{figure(p50, 4, 'ms')}{'' if row.measured else ', record'}") for row, p50 in known]
    title = "p50 of a run, ms"
    table = page.table(
        "The plot's numbers",
        ("artifact", "p50 ms", "latency of"),
        [(row.name, figure(p50, 4), "this run" if row.measured else "record") for row, p50, _ in said],
        right=(1,),
        shut=True,
    )
    return page.figure(title, charts.bars(title, [(row.name, p50, told) for row, p50, told in said]), table)


def pareto(rows: Sequence[Row], kind: str) -> str:
    """Latency against error, or against points of top-1 lost; one kind of latency at a time."""
    measured = any(row.measured for row in rows)
    label = {"error": "largest error, relative", "drop": "points of top-1 lost"}[kind]
    places: list[tuple[Row, Point]] = []
    for i, row in enumerate(rows):
        y = row.error if kind == "error" else None if row.drop_pp is None else max(row.drop_pp, 0.0)
        if row.p50 is None or y is None or row.measured != measured:
            continue
        places.append((row, Point(row.p50, y, str(i + 1), row.name, float(row.bytes or 0))))
    if not places:
        return ""
    points = [point for _, point in places]
    title = f"Latency and {label}; the area is the files' size, the line joins what nothing beats in both"
    table = page.table(
        "The plot's numbers",
        ("", "artifact", "p50 ms", label, "MB"),
        [
            (point.label, row.name, figure(point.x, 4), figure(point.y), f"{point.weight / 1e6:.1f}")
            for row, point in places
        ],
        right=(0, 2, 3, 4),
    )
    return page.figure(title, charts.scatter(title, points, front(points), "p50, ms", label), table)


def front(points: Sequence[Point]) -> list[int]:
    """The points that no other beats in one figure and equals in the other."""
    return [
        i
        for i, one in enumerate(points)
        if not any((p.x <= one.x and p.y <= one.y) and (p.x < one.x or p.y < one.y) for p in points)
    ]

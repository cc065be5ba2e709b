"""What a page says of speed: latency here, on other devices, and of the plans that a tune tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitdeploy.report import charts, page
from vitdeploy.report.charts import Point
from vitdeploy.report.reading import at, figure, listed, mapping, number, numbers, records, verdict, words, worst

KEYS = ("min", "mean", "p50", "p90", "p95", "p99", "max")
MARKED = ("p50", "p95", "p99")
WORDS = {"verified": "PASS", "stand-in": "of a stand-in", "failed": "FAIL", "none": ""}


def latency(bench: Any) -> str:
    """The section on latency; empty where none was measured."""
    bench = mapping(bench)
    stats = mapping(bench, "latency_ms")
    if not stats:
        return ""
    rows = [("whole run", stats)] + [(words(name), mapping(part)) for name, part in mapping(bench, "parts").items()]
    shown = [(name, words(at(one, "count")), *(figure(at(one, key), 4) for key in KEYS)) for name, one in rows]
    heads = ("ms", "runs", *KEYS)
    memory = number(bench, "peak_rss_bytes")
    return page.section(
        "Latency",
        page.bullets([words(one) for one in listed(bench.get("warnings"))], "warn"),
        distribution(numbers(bench.get("samples_ms")), stats),
        page.table("Milliseconds a run; every run counts", heads, shown, right=range(1, len(heads))),
        page.facts(
            [
                ("images a run", bench.get("batch")),
                ("threads", "the runtime's choice" if bench.get("threads") == 0 else bench.get("threads")),
                ("device", bench.get("device")),
                ("throughput", figure(bench.get("throughput"), 4, "images/s")),
                ("includes", bench.get("includes")),
                ("warm-up", figure(bench.get("warmup_s"), 3, "s")),
                ("peak memory", f"{memory / 1e6:.0f} MB of a process that only runs it" if memory else ""),
                ("the device after", bench.get("device_state")),
            ]
        ),
    )


def distribution(samples: Sequence[float], stats: Mapping[str, Any]) -> str:
    if not samples:
        return ""
    edges, counts = charts.bins(samples)
    marks = [(key, value) for key in MARKED if (value := number(stats, key)) is not None]
    title = f"How long each of {len(samples)} runs took, ms"
    rows = [(f"{low:.4g} to {high:.4g}", str(n)) for low, high, n in zip(edges, edges[1:], counts, strict=False)]
    table = page.table("The plot's numbers", ("ms", "runs"), rows, right=(0, 1), shut=True)
    return page.figure(title, charts.histogram(title, edges, counts, marks), table)


def ops(bench: Any) -> str:
    """The section on where the time goes by type of op; empty where no profiler told."""
    took = {words(op): t for op in mapping(bench, "ops_ms") if (t := number(bench, "ops_ms", op)) is not None and t > 0}
    whole = sum(took.values())
    if not whole:
        return ""
    ranked = sorted(took.items(), key=lambda one: -one[1])
    title = "Milliseconds of a run by type of op, by the runtime's own profiler"
    picture = charts.bars(title, [(op, t, f"{figure(t, 3)} ms, {t / whole:.0%}") for op, t in ranked])
    rows = [(op, figure(t, 4), f"{t / whole:.1%}") for op, t in ranked]
    table = page.table("The plot's numbers", ("op", "ms", "share"), rows, right=(1, 2), shut=True)
    told = "The profiler slows what it times: shares mean more than sums."
    return page.section("Ops by time", page.paragraph(told), page.figure(title, picture, table))


def devices(found: Any, bench: Any) -> str:
    """The section on what other devices reported. It comes from strangers: nothing in it is trusted."""
    found = records(found)
    if not found:
        return ""
    rows, drawn = [], []
    here = number(bench, "latency_ms", "p50")
    if here is not None:
        drawn.append(("the machine of the export", here, figure(here, 3, "ms")))
    for one in found:
        error, stats = worst(one.get("verification")), mapping(one, "latency")
        same = f"{error['matches']} of {error['samples']}" if "matches" in error else ""
        runtime = " ".join(words(one.get(key)) for key in ("runtime", "provider") if one.get(key))
        figures = (figure(stats.get(key), 4) for key in ("p50", "p95", "p99", "max", "count"))
        name = words(one.get("device")) or "a device without a name"
        verified = WORDS[verdict(one.get("verification"))] or "not verified"
        error_, seen = figure(error.get("rel_max")), (words(one.get("when")), words(one.get("agent")))
        rows.append((name, runtime, words(one.get("threads")), verified, error_, same, *figures, *seen))
        p50 = number(stats, "p50")
        if p50 is not None and p50 >= 0:
            drawn.append((f"{name}, {words(one.get('provider'))}".rstrip(", "), p50, figure(p50, 3, "ms")))
    heads = ("device", "runtime", "threads", "verified", "relative error", "same top-1", "p50 ms", "p95", "p99", "max")
    table = page.table(
        "As the devices reported it", (*heads, "runs", "when", "agent"), rows, right=(2, 4, *range(6, 11))
    )
    title = "p50 of a run on each device, ms"
    return page.section("Other devices", page.figure(title, charts.bars(title, drawn), table))


def plans(applied: Mapping[str, Any]) -> str:
    """The section on the plans that a tune tried; empty where the artifact comes from no tune."""
    found = mapping(applied, "tune")
    trials = [one for one in records(found.get("trials")) if not one.get("failed") and mapping(one, "answers")]
    if not trials:
        return ""
    chosen, front = found.get("chosen"), listed(found.get("front"))
    rows: list[tuple[str, ...]] = []
    points: list[Point] = []
    on_front = []
    for one in sorted(trials, key=lambda one: number(one, "p50") or 0.0):
        rows.append((str(len(rows) + 1), *plan_row(one, chosen)))
        p50, error = number(one, "p50"), number(one, "answers", "error")
        if p50 is not None and error is not None:
            if one.get("name") in front:
                on_front.append(len(points))
            size, name = number(one, "bytes") or 0.0, words(one.get("name"))
            points.append(Point(p50, 100 * error, str(len(rows)), name, size, one.get("name") == chosen))
    title = "Latency and error of every plan; the area is the file's size, the line the Pareto front"
    picture = charts.scatter(title, points, on_front, "p50, ms", "relative L2 of the logits, %")
    heads = ("", "plan", "p50 ms", "times as fast", "MB", "rel. L2 %", "class changes %", "top-1 pp", "")
    table = page.table("The plot's numbers", heads, rows, right=(0, *range(2, 8)))
    refused = [
        f"{words(one.get('name'))}: {one['failed']}" for one in records(found.get("trials")) if one.get("failed")
    ]
    return page.section(
        "Plans that were tried",
        page.figure(title, picture, table),
        page.bullets([f"Not possible: {one}" for one in refused]),
        page.bullets([f"Not taken: {name}: {words(why)}" for name, why in mapping(found, "reasons").items()]),
    )


def plan_row(one: Mapping[str, Any], chosen: Any) -> tuple[str, ...]:
    """Name, p50, times as fast, megabytes, error, class changes, top-1 and the outcome of one trial."""
    answers, size, ratio = mapping(one, "answers"), number(one, "bytes"), number(one, "ratio")
    error, drop = number(answers, "error"), number(answers, "drop_pp")
    return (
        words(one.get("name")),
        figure(one.get("p50"), 4),
        "" if ratio is None else f"{ratio:.2f}",
        f"{size / 1e6:.1f}" if size else "",
        "" if error is None else figure(100 * error),
        figure(answers.get("change_percent")),
        "" if drop is None else f"{0.0 - drop:+.2f}",
        "chosen" if one.get("name") == chosen else words(one.get("out")) or "within the budget",
    )

"""Artifacts side by side: size, parity and latency, measured in turn where they run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.pipeline.files import backend_of, model_file
from vitdeploy.pipeline.request import Listener, Steps
from vitdeploy.report.reading import at, mapping, number, records, size_of, verdict, words, worst

if TYPE_CHECKING:
    from vitdeploy.bench.sessions import Candidate, Measured
    from vitdeploy.bench.stats import Ratio


@dataclass(frozen=True)
class Row:
    """One artifact in a comparison.

    Attributes:
        folder: as it was given.
        model, backend, precision: of its manifest.
        bytes: of its model files; None where the manifest does not tell.
        verified: 'verified', 'stand-in', 'failed' or 'none'.
        error: largest error of an output, relative to its largest value, as recorded.
        top1: inputs of the verification with the same top-1 class, and all of them; None where there are no logits.
        drop_pp: points of top-1 lost on labelled images, where a tune measured it.
        latency: 'p50', 'p95', 'p99' in ms, 'batch', 'threads', 'device'; empty where there is none.
        measured: whether that is of this run; else it is what the manifest recorded.
        why_not: why it did not run here.
        cpu: of the machine that the record is of.
    """

    folder: str
    model: str
    backend: str
    precision: str
    bytes: int | None
    verified: str
    error: float | None
    top1: tuple[int, int] | None
    drop_pp: float | None
    latency: dict[str, Any] = field(default_factory=dict)
    measured: bool = False
    why_not: str = ""
    cpu: str = ""

    @property
    def p50(self) -> float | None:
        return number(self.latency, "p50")

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision} ({self.folder})"

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"top1": self.top1 and [*self.top1]}


@dataclass(frozen=True)
class Comparison:
    """Artifacts side by side.

    Attributes:
        rows: in the order given.
        ratios: how much faster each is than the first; None where the two were not measured in one run.
        verdict: which wins, in a sentence.
    """

    rows: Sequence[Row]
    ratios: Sequence[Ratio | None]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        pairs = zip(self.rows, self.ratios, strict=True)
        rows = [row.to_dict() | {"ratio_to_first": ratio and ratio.to_dict()} for row, ratio in pairs]
        return {"artifacts": rows, "verdict": self.verdict}


def compare(
    folders: Sequence[Path],
    options: RunOptions | None = None,
    *,
    bench: bool = True,
    batch: int | None = None,
    warmup: float = 0.5,
    duration: float = 3.0,
    listener: Listener | None = None,
) -> Comparison:
    """Put artifacts side by side. Those that run here take turns in one run; the others keep their records.

    Raises UsageError when a folder is no artifact, or when fewer than two are given.
    """
    if len(folders) < 2:
        raise UsageError("One artifact has nothing to be compared with: name two or more.")
    artifacts = [Artifact.load(folder) for folder in folders]
    rows = [recorded(folder, artifact) for folder, artifact in zip(folders, artifacts, strict=True)]
    if not bench:
        return Comparison(rows, [None] * len(rows), by_records(rows))
    steps = Steps(listener or Listener())
    options = options or RunOptions()
    candidates, rows = ready(folders, rows, options, batch, steps)
    if not candidates:
        return Comparison(rows, [None] * len(rows), by_records(rows))
    from vitdeploy.bench.sessions import bench_sessions

    with steps.step("bench") as detail:
        entrants = list(candidates.values())
        found = bench_sessions(entrants, options, batch=batch, warmup=warmup, duration=duration)
        detail.append(f"{len(found)} of {len(rows)} artifacts, in turn")
    measured = dict(zip(candidates, found, strict=True))
    rows = [with_latency(row, measured[i]) if i in measured else row for i, row in enumerate(rows)]
    return Comparison(rows, ratios_to_first(len(rows), measured), by_measure(rows, measured))


def recorded(folder: Path, artifact: Artifact) -> Row:
    """What the manifest tells. It may come from anywhere: what is of the wrong kind reads as nothing."""
    manifest = artifact.manifest
    bench = mapping(manifest.bench)
    latency = {key: number(bench, "latency_ms", key) for key in ("p50", "p95", "p99")}
    facts = {key: at(bench, key) for key in ("batch", "threads", "device")}
    error = worst(manifest.verification)
    tuned = mapping(manifest.applied, "tune")
    chosen = [one for one in records(tuned.get("trials")) if one.get("name") == tuned.get("chosen")]
    return Row(
        folder=str(folder),
        model=manifest.model.full_name,
        backend=backend_of(artifact),
        precision=words(manifest.request.get("precision", "fp32")),
        bytes=size_of(manifest.files),
        verified=verdict(manifest.verification),
        error=error.get("rel_max"),
        top1=(error["matches"], error["samples"]) if "matches" in error else None,
        drop_pp=number(chosen[0], "answers", "drop_pp") if chosen else None,
        latency=latency | facts if latency["p50"] is not None else {},
        cpu=words(at(manifest.environment, "cpu")),
    )


def ready(
    folders: Sequence[Path], rows: Sequence[Row], options: RunOptions, batch: int | None, steps: Steps
) -> tuple[dict[int, Candidate], list[Row]]:
    """Those that run here, by their place; the others' rows say why they do not."""
    found: dict[int, Candidate] = {}
    said = list(rows)
    for i, (folder, row) in enumerate(zip(folders, rows, strict=True)):
        tried = try_out(folder, row, options, batch)
        if isinstance(tried, VitdeployError):
            said[i] = replace(row, why_not=tried.message)
            steps.note(f"{row.folder} does not run here: {tried.message}")
        else:
            found[i] = tried
    return found, said


def try_out(folder: Path, row: Row, options: RunOptions, batch: int | None) -> Candidate | VitdeployError:
    """The artifact as something to measure, after a few runs alone; or what became of these."""
    from vitdeploy.backends import isolate
    from vitdeploy.bench.sessions import Candidate, time_runs

    try:
        candidate = Candidate(row.backend, model_file(folder)[0], row.folder)
        isolate.call(time_runs, [candidate], options, batch, 0.0, 0.0, what=row.backend)
    except VitdeployError as error:
        return error
    return candidate


def with_latency(row: Row, measured: Measured) -> Row:
    facts = {key: measured.options.get(key) for key in ("threads", "device")}
    figures = {key: getattr(measured.stats, key) for key in ("p50", "p95", "p99")}
    return replace(row, latency={**figures, "batch": measured.batch, **facts}, measured=True)


def ratios_to_first(count: int, measured: dict[int, Measured]) -> list[Ratio | None]:
    """Ratios of those that ran in one run with the first, on as many images."""
    from vitdeploy.bench.stats import ratio_of_interleaved

    first = measured.get(0)
    return [
        ratio_of_interleaved(first.turns, other.turns)
        if first is not None and (other := measured.get(i)) is not None and other.batch == first.batch
        else None
        for i in range(count)
    ]


def by_measure(rows: Sequence[Row], measured: dict[int, Measured]) -> str:
    """Which of the measured wins, with the interval of its ratio to the next; what failed its verification cannot."""
    from vitdeploy.bench.stats import ratio_of_interleaved

    fit = [i for i in measured if rows[i].verified != "failed"]
    batches = {measured[i].batch for i in fit}
    if len(batches) > 1:
        return f"No winner: they run batches of {' and '.join(map(str, sorted(batches)))}. Name one with --batch."
    if len(fit) < 2:
        return "No winner: fewer than two artifacts run here and have not failed verification."
    ranked = sorted(fit, key=lambda i: measured[i].stats.p50)
    best, second = ranked[:2]
    ratio = ratio_of_interleaved(measured[second].turns, measured[best].turns)
    interval = f"95 % interval [{ratio.low:.3f}, {ratio.high:.3f}]"
    if ratio.low <= 1 <= ratio.high:
        return f"No winner: {rows[best].name} and {rows[second].name} are within each other's noise, {interval}."
    if ratio.median < 1:
        best, second, turned = second, best, (1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
    else:
        turned = (ratio.median, ratio.low, ratio.high)
    interval = f"95 % interval [{turned[1]:.3f}, {turned[2]:.3f}]"
    return f"{rows[best].name} wins here: {turned[0]:.3f} times as fast as {rows[second].name}, {interval}."


def by_records(rows: Sequence[Row]) -> str:
    """What the records allow to be said."""
    fit = [row for row in rows if row.p50 is not None and row.verified != "failed"]
    if len(fit) < 2:
        return "No winner: fewer than two artifacts have a recorded latency and have not failed verification."
    same = {(row.cpu, *(words(row.latency.get(key)) for key in ("batch", "threads", "device"))) for row in fit}
    if len(same) > 1:
        return "No winner: the records are of several machines, batches or threads."
    best = min(fit, key=lambda row: row.p50 or 0.0)
    return f"By the records {best.name} has the lowest p50, {best.p50:.3g} ms; runs apart give no interval."

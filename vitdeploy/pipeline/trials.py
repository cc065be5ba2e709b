"""Make and measure one plan of a tune: its files, its latency beside fp32's, its answers beside fp32's."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends.base import Census, RunOptions
from vitdeploy.bench.stats import LatencyStats, ratio_of_interleaved
from vitdeploy.errors import BackendError, MissingDependency, PrecisionNotApplied, UnsupportedModel, UsageError
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps
from vitdeploy.spec import CALIBRATED, InputSpec, ModelSpec
from vitdeploy.tune.plans import Answers, Plan, Trial
from vitdeploy.verify.score import NO_ANSWER, best_classes

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.bench.sessions import Candidate
    from vitdeploy.bench.timer import Turns
    from vitdeploy.data.image_set import ImageSet
    from vitdeploy.quantize.ptq import Prepared

SAMPLES = 4  # images for fp16's ranges
Logits = tuple["np.ndarray", "np.ndarray | None"]  # float32 (N, classes), and labels (N,)
WARMUP_S, DURATION_S = 0.3, 1.5  # of a trial's race, at most; the last one takes the user's


@dataclass(frozen=True)
class Images:
    """Some of the user's images.

    Attributes:
        path: what data.image_set.open_images reads; None for so many synthetic ones.
        chosen: int64, which of them.
        labelled: their labels count.
        labels, classes: the model's class names, and how many there are.
    """

    path: Path | None
    chosen: np.ndarray
    labelled: bool
    labels: tuple[str, ...] | None
    classes: int
    strict: bool = False

    def open(self, spec: InputSpec) -> ImageSet:
        from vitdeploy.data.image_set import open_images, synthetic_set

        if self.path is None:
            whole = synthetic_set(spec, int(self.chosen.max()) + 1, seed=1)
        else:
            whole = open_images(
                self.path,
                spec,
                strict=self.strict,
                classes=self.labels,
                num_classes=self.classes,
                labelled=self.labelled,
            )
        labels = None if whole.labels is None or not self.labelled else whole.labels[self.chosen]
        return replace(whole, chosen=whole.chosen[self.chosen], labels=labels)


@dataclass(frozen=True)
class Query:
    """What a child process needs to run a model over images."""

    backend: str
    model: Path
    run: RunOptions
    images: Images
    spec: InputSpec
    batch: int


def logits_of(query: Query, progress: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray | None]:
    """The logits, float32 (N, classes), and the labels. Made to run in a child process (backends.isolate)."""
    from vitdeploy.backends import registry
    from vitdeploy.verify.collect import run_batch

    images = query.images.open(query.spec)
    found, labels = [], []
    with registry.get(query.backend).open(query.model, query.run) as session:
        fixed, name = session.inputs[0].shape[0], session.outputs[0].name
        size = fixed if isinstance(fixed, int) else query.batch
        for batch, truth in images.batches(size):
            whole = batch[np.arange(size) % len(batch)]  # the last batch starts over
            found.append(run_batch(session, whole)[name][: len(batch)])
            labels.append(truth)
            progress(len(images.kept), len(images))
    known = [truth for truth in labels if truth is not None]
    return np.concatenate(found).astype(np.float32), np.concatenate(known) if known else None


def compare(wanted: np.ndarray, got: np.ndarray, labels: np.ndarray | None) -> Answers:
    """Hold a plan's logits, (N, classes), against fp32's on the same images."""
    first, second = best_classes(wanted, 1)[:, 0], best_classes(got, 1)[:, 0]
    off = np.linalg.norm((got - wanted).astype(np.float64)) / max(np.linalg.norm(wanted.astype(np.float64)), 1e-300)
    changed = int(((first != second) | (second == NO_ANSWER)).sum())
    if labels is None:
        return Answers(len(wanted), changed, float(off))
    right, other = first == labels, second == labels
    return Answers(len(wanted), changed, float(off), int((other & ~right).sum()), int((right & ~other).sum()))


@dataclass
class Workshop:
    """Makes and measures plans of one model.

    Attributes:
        request: the export that every plan varies.
        facts: about the fp32 graph, for the manifest.
        spec: of the model.
        folder: where the plans' files are kept.
        calib, search, held_out: images to calibrate on, to search with, and to confirm with.
        steps: who hears.
        float_plan: what all ratios are to.
        applied: by plan key, what the conversion did.
    """

    request: ExportRequest
    facts: dict[str, Any]
    spec: ModelSpec
    folder: Path
    calib: Images
    search: Images
    held_out: Images
    steps: Steps
    float_plan: Plan
    applied: dict[str, dict[str, Any]] = field(default_factory=dict)
    _logits: dict[str, Logits] = field(default_factory=dict)
    _prepared: Prepared | None = None

    def graph(self) -> ir.Model:
        """The fp32 graph, traced and optimised; a fresh one each time, with its weights on the disk."""
        from vitdeploy.graph.load import load

        return load(self.folder / "graph.onnx")

    def request_for(self, plan: Plan) -> ExportRequest:
        """The export that makes this plan."""
        keep = tuple(glob.escape(label) for label in plan.keep)
        int8 = replace(self.request.int8, keep=(*self.request.int8.keep, *keep), attention=plan.attention)
        return replace(self.request, backend=plan.backend, precision=plan.precision, int8=int8)

    def files(self, plan: Plan) -> list[Path]:
        """The plan's files, the model file first; made where they are not there yet, or not by this process.

        Raises what the conversion and the runtime raise.
        """
        place = self.folder / plan.key
        if plan.key in self.applied:
            return [place / name for name in self.applied[plan.key]["files"]]
        from vitdeploy.backends import registry
        from vitdeploy.pipeline.precision import Job, convert

        request = self.request_for(plan)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        prepared = self._prepare(plan) if plan.precision in CALIBRATED else None
        graph = self.graph() if prepared is None else prepared.model.clone()
        calib = self.calib.open(self.spec.input)
        quiet = Steps(Quiet(self.steps.listener))
        applied = convert(Job(graph, self.spec, request, quiet, self._samples(), calib, prepared))
        backend = registry.get(plan.backend)
        files = backend.compile(graph, place, request.run, plan.precision)
        applied |= backend.compile_report(files[0])
        self.applied[plan.key] = applied | {"files": [file.name for file in files]}
        return files

    def what_runs(self, plan: Plan, census: Census | None = None) -> dict[str, Any]:
        """What was applied, for the manifest. Raises PrecisionNotApplied when something else runs."""
        from vitdeploy.backends import isolate
        from vitdeploy.pipeline.precision import precision_notes

        files = self.files(plan)
        applied, request = self.applied[plan.key], self.request_for(plan)
        if "census" not in applied:
            census = census or isolate.call(take_census, plan.backend, files[0], request.run, what=plan.backend)
            applied["notes"] = precision_notes(request, applied, census)
            applied["census"] = census.to_dict()
        return {name: value for name, value in applied.items() if name != "files"}

    def _samples(self) -> list[np.ndarray]:
        """What fp16 measures ranges on."""
        size = self.request.batches[0]
        some = replace(self.calib, chosen=self.calib.chosen[: max(SAMPLES, size)]).open(self.spec.input)
        return [batch[np.arange(size) % len(batch)] for batch, _ in some.batches(size)]

    def sensitivities(self, plan: Plan) -> dict[str, float]:
        """Relative L2 error of the logits by layer, each alone in the plan's int8."""
        from vitdeploy.quantize.ptq import measure_sensitivity

        return {one.label: one.error for one in measure_sensitivity(self._prepare(plan))}

    def _prepare(self, plan: Plan) -> Prepared:
        """The calibration that serves every mixture of a scheme; only the latest one is held."""
        from vitdeploy.pipeline.calibration import as_images, dialect
        from vitdeploy.quantize.ptq import prepare

        request = self.request_for(replace(plan, keep=()))
        scheme, _ = dialect(request)
        known = self._prepared
        if known is None or (known.scheme, known.options) != (scheme, request.int8):
            images = as_images(self.calib.open(self.spec.input))
            hear = self.steps.listener.progress
            known = self._prepared = prepare(
                self.graph(), images, scheme, request.int8, progress=lambda done: hear(done, images.count)
            )
        return known

    def attempt(self, plan: Plan) -> Trial:
        """Make it and measure it; a plan that cannot be made is a trial that failed."""
        from vitdeploy.backends import isolate

        alone = plan == self.float_plan
        try:
            files = self.files(plan)
            known = None if alone else self._logits_of(self.float_plan, self.search)
            entrants = [self._entrant(each) for each in ([plan] if alone else [self.float_plan, plan])]
            query = self._query(plan, self.search)
            census, found, (base, *others) = isolate.call(
                examine,
                query,
                entrants,
                self._batch,
                min(WARMUP_S, self.request.warmup),
                min(DURATION_S, self.request.duration),
                what=plan.backend,
                progress=self.steps.listener.progress,
            )
            self.what_runs(plan, census)
        except (BackendError, MissingDependency, PrecisionNotApplied, UnsupportedModel) as error:
            return Trial(plan, failed=error.message)
        if known is None:
            known = self._logits[self._name(plan, self.search)] = found
        turns = others[0] if others else base
        ratio = ratio_of_interleaved(base, turns)
        report = self.applied[plan.key].get("int8")
        return Trial(
            plan,
            ratio=ratio.median,
            low=ratio.low,
            high=ratio.high,
            p50=LatencyStats.from_seconds([s for turn in turns for s in turn]).p50,
            bytes=sum(path.stat().st_size for path in files),
            search=compare(known[0], *found),
            int8_share=report["quantised_macs"] / max(report["macs"], 1) if report else 0.0,
        )

    def race(self, plans: Sequence[Plan], warmup: float, duration: float) -> list[Turns]:
        """Seconds of the plans' runs, by turn, all in one process."""
        from vitdeploy.backends import isolate
        from vitdeploy.bench.sessions import time_runs

        entrants = [self._entrant(plan) for plan in plans]
        timed = isolate.call(time_runs, entrants, self.request.run, self._batch, warmup, duration, what="the race")
        return [turns for _, turns in timed]

    def answers(self, plan: Plan, images: Images) -> Answers:
        """How the plan answers, beside fp32."""
        wanted, labels = self._logits_of(self.float_plan, images)
        got, _ = self._logits_of(plan, images)
        if len(got) != len(wanted):
            raise UsageError("The images changed while they were read.")
        return compare(wanted, got, labels)

    @property
    def _batch(self) -> int | None:
        return None if isinstance(self.request.batch, int) else self.request.batch[1]

    def _entrant(self, plan: Plan) -> Candidate:
        from vitdeploy.bench.sessions import Candidate

        return Candidate(plan.backend, self.files(plan)[0], plan.name, self.request_for(plan).run)

    def _query(self, plan: Plan, images: Images) -> Query:
        run = self.request_for(plan).run
        return Query(plan.backend, self.files(plan)[0], run, images, self.spec.input, self.request.batches[-1])

    def _name(self, plan: Plan, images: Images) -> str:
        return f"{plan.key} {'search' if images is self.search else 'held out'}"

    def _logits_of(self, plan: Plan, images: Images) -> Logits:
        """Kept for the fp32 plan, which all others are compared with."""
        from vitdeploy.backends import isolate

        name = self._name(plan, images)
        if name not in self._logits:
            query = self._query(plan, images)
            found = isolate.call(logits_of, query, what=plan.backend, progress=self.steps.listener.progress)
            if plan != self.float_plan:
                return found
            self._logits[name] = found
        return self._logits[name]


def examine(
    query: Query,
    entrants: Sequence[Candidate],
    batch: int | None,
    warmup_s: float,
    duration_s: float,
    progress: Callable[[int, int], None],
) -> tuple[Census, Logits, list[Turns]]:
    """Census, logits, labels and turns in one go, since a process takes seconds to start. Made to run in a child."""
    from vitdeploy.bench.sessions import time_runs

    census = take_census(query.backend, query.model, query.run)
    found = logits_of(query, progress)
    timed = time_runs(entrants, query.run, batch, warmup_s, duration_s)
    return census, found, [turns for _, turns in timed]


class Quiet(Listener):
    """Passes on progress alone: a trial is one step for the user, whatever it takes."""

    def __init__(self, other: Listener) -> None:
        self.other = other

    def progress(self, done: int, total: int) -> None:
        self.other.progress(done, total)


def take_census(backend: str, model: Path, run: RunOptions) -> Census:
    """Made to run in a child process."""
    from vitdeploy.backends import registry

    with registry.get(backend).open(model, run) as session:
        return session.census()

"""The fastest plan within a budget: try plans on this device, confirm the best on images that none was chosen by."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.artifact import Artifact, Manifest, Stage, staged
from vitdeploy.bench.sessions import Measured
from vitdeploy.bench.stats import LatencyStats, Ratio, ratio_of_interleaved
from vitdeploy.errors import MissingDependency, UnsupportedModel, UsageError
from vitdeploy.export.trace import ATTENTION_OPSET
from vitdeploy.pipeline.checks import check_common
from vitdeploy.pipeline.export import (
    finish,
    judged,
    machine,
    verdict,
    verification_cases,
)
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps, request_record
from vitdeploy.pipeline.sources import run_candidate, trace_and_optimise
from vitdeploy.pipeline.trials import Images, Workshop
from vitdeploy.report.plot import bars, scatter
from vitdeploy.spec import CALIBRATED, ModelSpec
from vitdeploy.staging import lock_folder
from vitdeploy.tune.budget import Budget
from vitdeploy.tune.choice import no_plan, p50, pick, unconfirmed
from vitdeploy.tune.plans import Plan, Trial, front
from vitdeploy.tune.search import MIN_GAIN, Op, contenders, rung, where_it_pays
from vitdeploy.tune.state import State, describe

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.bench.timer import Turns
    from vitdeploy.models.build import Built

FIRST = ("int8", "bf16", "int8+bf16", "int8-dynamic", "fp32", "fp16")  # what promises most, should the time run out
SYNTHETIC = 64  # images, where the user has none
FINALISTS = 2  # quantised plans in the last race
EXPLORE = 0.8  # of the time budget; the rest is for confirming
FEWEST = 20  # images in each half: on fewer nothing can be told


@dataclass(frozen=True)
class TuneRequest:
    """What a tune is asked to do.

    Attributes:
        export: the export that the plans vary: model, weights, batch, threads, calibration images, out, force, ...
        budget: what a plan may cost.
        data: labelled images, one half to search with and the other to confirm with.
        backends: to try; all that are installed where none is named.
        search_images: of the first half, at most, in each trial.
        time_budget: seconds. Building, the last race and what is under way come on top.
        split_seed: of the halves.
    """

    export: ExportRequest
    budget: Budget = field(default_factory=Budget)
    data: Path | None = None
    backends: tuple[str, ...] = ()
    search_images: int = 1000
    time_budget: float = 600.0
    split_seed: int = 0

    @property
    def folder(self) -> Path:
        """Where the artifact goes."""
        return replace(self.export, precision="tuned").folder


@dataclass(frozen=True)
class Tuned:
    """The end of a tune.

    Attributes:
        artifact: the chosen plan's.
        chosen: its trial.
        trials: all, in the order in which they were measured.
        pays: whether it is quantised.
        reasons: by plan name, why a plan that looked faster was not taken.
        last_race: by plan name, fp32's latency over the plan's, in the last race.
    """

    artifact: Artifact
    chosen: Trial
    trials: Sequence[Trial]
    pays: bool
    reasons: Mapping[str, str]
    last_race: Mapping[str, Ratio]


def tune(request: TuneRequest, listener: Listener | None = None) -> Tuned:
    """Find, confirm and write the fastest plan within the budget.

    What was measured is kept in `<out>.tune/` until the end: the same command goes on where it was cut off.

    Raises:
        UsageError: options or images that do not fit; another tune at work on the same folder.
        MissingDependency: a backend that was named is not installed.
        UnsupportedModel: no plan keeps to the budget.
        VerificationFailed: the chosen plan departs from eager PyTorch.
    """
    check_tune(request)
    request = replace(request, export=replace(request.export, opset=request.export.opset or ATTENTION_OPSET))
    backends = usable(request.backends)
    steps = Steps(listener or Listener())
    with staged(request.folder, force=request.export.force) as stage, workplace(request.folder) as folder:
        from vitdeploy.models.build import build

        built = build(request.export.model, request.export.build)
        steps.listener.model(built)
        if built.spec.input.packing is not None:
            raise UsageError(f"tune judges by the classes of images, and {built.spec.name} takes several at a time.")
        shop = make_shop(request, built, folder, Plan(backends[0], "fp32"), steps)
        state = State.open(folder / "state.json", digest(request, shop, backends))
        if state.resumed:
            steps.note(f"Goes on after {state.resumed} trials of an earlier run.")
        explore(request, shop, state, starts(backends))
        found = decide(request, shop, state)
        tuned = write(stage, request, built, shop, state, found)
        shutil.rmtree(folder, ignore_errors=True)
    return tuned


def check_tune(request: TuneRequest) -> None:
    """Refuse what cannot work before anything heavy is imported."""
    request.budget.check()
    export = request.export
    if request.data is None and export.calib is None and not export.calib_random:
        raise UsageError(
            "tune needs images.",
            fix="Give --data with labelled images, or --calib with photos, or --calib-random where latency is all that "
            "counts.",
        )
    if export.calib_random and (request.data is not None or export.calib is not None):
        raise UsageError("--calib-random contradicts images that are given.")
    if request.search_images < FEWEST or request.time_budget < 0:
        raise UsageError(f"A search needs {FEWEST} images at least, and no negative time.")
    if request.data is not None and not request.data.exists():
        raise UsageError(f"There is no {request.data}.")
    if export.layout != "plain":
        raise UsageError("tune writes the plain layout only.")
    check_common(export)


def usable(names: Sequence[str]) -> list[str]:
    """The backends to try, ONNX Runtime first. Raises MissingDependency for one that was named and is not here."""
    from vitdeploy.backends import registry

    found = []
    for name in names or registry.backends():
        backend = registry.get(name)
        if backend.form_of and not names:
            continue
        can = backend.capabilities()
        if can.installed and can.devices and backend.source == "graph":
            found.append(name)
        elif names:
            if backend.source != "graph":
                raise UnsupportedModel(f"tune tries plans of ONNX graphs, from which {name} does not compile.")
            raise MissingDependency(f"The backend {name} cannot run here: {can.reason}.", fix=can.fix or None)
    return sorted(dict.fromkeys(found), key=lambda name: (name != "onnxruntime", name))


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """The folder beside the artifact's where trials are kept, locked. It stays when the body fails."""
    folder = out.with_name(f"{out.name}.tune")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = lock_folder(folder)
    except BlockingIOError:
        raise UsageError(f"Another tune is at work in {folder}.") from None
    try:
        yield folder.resolve()
    finally:
        if held is not None:
            os.close(held)


def make_shop(request: TuneRequest, built: Built, folder: Path, float_plan: Plan, steps: Steps) -> Workshop:
    from vitdeploy.graph.save import save

    spec = built.spec
    graph, passes = trace_and_optimise(request.export, built, steps)
    save(graph, folder / "graph.onnx")
    calib, search, held_out = share_out(request, spec)
    labelled = "labelled" if search.labelled else "unlabelled"
    steps.note(f"{len(search.chosen)} {labelled} images to search with, {len(held_out.chosen)} to confirm with.")
    export = replace(request.export, data=request.data)
    facts = describe_graph(graph, passes)
    return Workshop(export, facts, spec, folder, calib, search, held_out, steps, float_plan)


def describe_graph(graph: ir.Model, passes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of the fp32 graph."""
    from vitdeploy.graph.ops import macs, parameters

    size = {"nodes": graph.graph.num_nodes(), "parameters": parameters(graph)[0], "macs": macs(graph).total}
    return {"passes": passes, "graph": size}


def share_out(request: TuneRequest, spec: ModelSpec) -> tuple[Images, Images, Images]:
    """Images to calibrate on, to search with and to confirm with; no image of the last is among the others.

    The user's images are parted by chance. Where there are none to calibrate on, it is done on those of the search.
    """
    from vitdeploy.data.image_set import open_images

    export = request.export
    path = request.data or export.calib
    facts: dict[str, Any] = {"labels": spec.labels, "classes": spec.num_classes, "strict": export.strict}
    labelled = request.data is not None
    if path is None:
        count = 2 * SYNTHETIC
    else:
        names = spec.labels if labelled else None
        whole = open_images(path, spec.input, classes=names, num_classes=spec.num_classes, labelled=labelled)
        count = len(whole)
    if count < 2 * FEWEST:
        raise UsageError(f"{count} images are too few: {FEWEST} to search with and as many to confirm with are needed.")
    order = np.random.Generator(np.random.PCG64(request.split_seed)).permutation(count)
    first, second = order[: count // 2], np.sort(order[count // 2 :])
    search = Images(path, np.sort(first[: request.search_images]), labelled, **facts)
    held_out = Images(path, second, labelled, **facts)
    if request.data is not None and export.calib is not None:
        total = len(open_images(export.calib, spec.input))
        wanted = min(export.calib_images, total)
        calib = Images(export.calib, np.arange(wanted) * total // wanted, False, **facts)
    else:
        calib = Images(path, np.sort(first[: export.calib_images]), False, **facts)
    return calib, search, held_out


def digest(request: TuneRequest, shop: Workshop, backends: Sequence[str]) -> str:
    """Of everything that the figures depend on, the budget left out."""
    from vitdeploy.backends import registry
    from vitdeploy.quantize.calibrate import digest_of

    versions = {name: registry.get(name).capabilities().version for name in backends}
    own = machine()
    images = [(part.open(shop.spec.input).digest(), part.chosen.tolist()) for part in (shop.calib, shop.search)]
    run = request_record(request.export)
    facts = {
        "graph": digest_of(shop.graph()),
        "images": images,
        "held_out": shop.held_out.chosen.tolist(),
        "run": {name: run[name] for name in ("run", "int8", "batch")},
        "versions": [__version__, versions],
        "machine": own.get("cpu"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def starts(backends: Sequence[str]) -> list[Plan]:
    """The plans that are always tried: the base, then what each backend can run as a whole."""
    from vitdeploy.backends import registry

    able = {name: registry.get(name).capabilities().precisions for name in backends}
    found = [Plan(name, precision) for precision in FIRST for name in backends if precision in able[name]]
    return [Plan(backends[0], "fp32"), *(plan for plan in found if plan != Plan(backends[0], "fp32"))]


def explore(request: TuneRequest, shop: Workshop, state: State, first: Sequence[Plan]) -> None:
    """Measure plans until nothing promises more or the time is up."""
    end = time.monotonic() + EXPLORE * request.time_budget
    for done, plan in enumerate(first):
        if done and time.monotonic() > end:
            untried = [one.name for one in first[done:] if one.key not in state.trials]
            if untried:
                shop.steps.note(f"The time is up; not tried: {', '.join(untried)}.")
            return
        attempt(request, shop, state, plan)
    for plan in [trial.plan for trial in state.trials.values() if trial.plan.precision in CALIBRATED]:
        if time.monotonic() > end:
            return
        better = None if plan.keep else where_it_pays(plan, ops_of(request, shop, state, plan, errors=False))
        if better is not None:
            attempt(request, shop, state, better)
    for plan in promising(request, state):
        while time.monotonic() <= end:
            after = rung(plan, ops_of(request, shop, state, plan, errors=True), state.trials, request.budget)
            if after is None:
                break
            attempt(request, shop, state, after)


def promising(request: TuneRequest, state: State) -> list[Plan]:
    """int8 plans that are faster than the best that keeps to the budget, and not accurate enough; fastest first."""
    good = contenders(list(state.trials.values()), request.budget)
    best = good[0].ratio if good else 0.0
    found = [
        trial
        for trial in state.trials.values()
        if trial.plan.precision in CALIBRATED
        and trial.search is not None
        and request.budget.inaccurate(trial.search)
        and trial.ratio > best * MIN_GAIN
        and not trial.plan.is_rung
    ]
    return [trial.plan for trial in sorted(found, key=lambda trial: -trial.ratio)][:FINALISTS]


def attempt(request: TuneRequest, shop: Workshop, state: State, plan: Plan) -> None:
    """One trial, unless an earlier run made it."""
    if plan.key in state.trials:
        return
    with shop.steps.step(f"trial {len(state.trials) + 1}") as detail:
        trial = shop.attempt(plan)
        state.add(trial)
        detail += [plan.name, *said(trial, request.budget)]


def said(trial: Trial, budget: Budget) -> list[str]:
    """A trial in a few words."""
    if trial.failed:
        return [f"not possible: {trial.failed}"]
    assert trial.search is not None
    answers = trial.search
    drop = f"{answers.change:.2f} % change class"
    drop += "" if answers.drop is None else f", top-1 {0.0 - answers.drop:+.2f} pp"
    out = budget.why_not(trial)
    size = f"{trial.bytes / 1e6:.1f} MB"
    return [f"{trial.ratio:.2f}x", f"p50 {trial.p50:.2f} ms", size, drop, *(["out"] if out else [])]


def ops_of(request: TuneRequest, shop: Workshop, state: State, plan: Plan, *, errors: bool) -> list[Op]:
    """What is known of the plan's ops: predicted savings, and the errors of single ops where they are wanted."""
    from vitdeploy.backends import registry

    scheme = registry.get(plan.backend).scheme(shop.request_for(plan).run)
    key = f"{plan.backend} {plan.precision}"
    if key not in state.savings:
        with shop.steps.step("costs") as detail:
            state.savings[key] = savings(shop, plan, scheme)
            detail.append(f"{plan.backend}: int8 saves time in {sum(s > 0 for s in state.savings[key].values())} ops")
        state.save()
    if errors and not state.errors:
        with shop.steps.step("sensitivity") as detail:
            state.errors = shop.sensitivities(plan)
            detail.append(f"{len(state.errors)} ops, each alone in int8")
        state.save()
    return [Op(label, saving, state.errors.get(label, 0.0)) for label, saving in state.savings[key].items()]


def savings(shop: Workshop, plan: Plan, scheme: Any) -> dict[str, float]:
    """Predicted seconds that int8 saves at each op that the plan has in int8, by label."""
    from vitdeploy.backends import isolate
    from vitdeploy.quantize.int8 import default_plan
    from vitdeploy.quantize.targets import find_targets, to_gemm
    from vitdeploy.tune.cost import CostModel, measure_ops, op_shapes, worth_measuring

    graph = shop.graph()
    if scheme.linear == "Gemm":
        to_gemm(graph)
    targets = find_targets(graph, scheme)
    chosen = [target for target in targets if default_plan(targets)[target.name] == "int8"]
    shapes = op_shapes(graph, chosen, shop.request.batches[-1])
    several = worth_measuring([shape for shape in shapes.values() if shape is not None])
    run = shop.request_for(plan).run
    asked = (several, plan.backend, run, scheme.name, plan.precision)
    measured = isolate.call(measure_ops, *asked, progress=shop.steps.listener.progress)
    model = CostModel.fit(measured)
    return {label: model.saving(shape) for label, shape in shapes.items()}


@dataclass(frozen=True)
class Decision:
    """What the last race says: the chosen trial, the race's entrants and turns, and why others were not taken."""

    chosen: Trial
    entrants: Sequence[Plan]
    turns: Sequence[Turns]
    reasons: Mapping[str, str]


def decide(request: TuneRequest, shop: Workshop, state: State) -> Decision:
    """Confirm the fastest plans on the images that the search has not seen, and race them against float."""
    reasons: dict[str, str] = {}
    finalists = []
    trials = list(state.trials.values())

    def asked(trial: Trial) -> Trial:
        """With its answers to the images held out; fp32 has no need of them."""
        if trial.held_out is None and trial.plan.precision != "fp32":
            trial = replace(trial, held_out=shop.answers(trial.plan, shop.held_out))
            state.add(trial)
        return trial

    with shop.steps.step("confirm") as detail:
        for trial in map(asked, contenders(trials, request.budget)):
            why = unconfirmed(trial, request.budget)
            if why:
                reasons[trial.plan.name] = f"on the images held out, {why}"
                continue
            finalists.append(trial)
            if sum(not each.plan.is_float for each in finalists) == FINALISTS:
                break
        detail.append(f"{len(shop.held_out.chosen)} images held out, {len(finalists)} plans confirmed")
    floats = [trial for trial in state.trials.values() if trial.plan.is_float and not trial.failed]
    quantised = [trial for trial in finalists if not trial.plan.is_float]
    with shop.steps.step("last race") as detail:
        entrants = [trial.plan for trial in (*floats, *quantised)]
        turns = shop.race(entrants, request.export.warmup, request.export.duration)
        detail.append(", ".join(f"{plan.name} {p50(t):.2f} ms" for plan, t in zip(entrants, turns, strict=True)))
    by_plan = dict(zip((plan.key for plan in entrants), turns, strict=True))
    chosen = pick(request.budget, floats, quantised, by_plan, reasons, asked)
    if chosen is None:
        raise UnsupportedModel(no_plan(request.budget, trials, reasons))
    return Decision(chosen, entrants, turns, reasons)


def write(stage: Stage, request: TuneRequest, built: Built, shop: Workshop, state: State, found: Decision) -> Tuned:
    """The chosen plan as a verified artifact, with everything that was measured."""
    from vitdeploy.verify.collect import eager_outputs

    plan = found.chosen.plan
    export = shop.request_for(plan)
    steps = shop.steps
    files = [Path(shutil.copy2(file, stage.folder / file.name)) for file in shop.files(plan)]
    cases = verification_cases(export, shop.spec)
    with steps.step("verify") as detail:
        reference = eager_outputs(built.module, cases)
        collected = run_candidate(export, files[0], cases)
        verification = judged(export, shop.spec, cases, reference, collected, "", detail)
    base = found.turns[[p.key for p in found.entrants].index(shop.float_plan.key)]
    race = {
        each.name: ratio_of_interleaved(base, turns) for each, turns in zip(found.entrants, found.turns, strict=True)
    }
    trials = list(state.trials.values())
    record = {
        "budget": request.budget.to_dict(),
        "chosen": plan.name,
        "pays": not plan.is_float,
        "trials": [describe(trial, request.budget) for trial in trials],
        "front": [trial.plan.name for trial in front(trials)],
        "reasons": dict(found.reasons),
        "last_race": {name: ratio.to_dict() for name, ratio in race.items()},
        "errors": state.errors,
        "savings_s": state.savings,
    }
    applied = shop.what_runs(plan)
    manifest = Manifest(
        model=shop.spec,
        request=request_record(export),
        applied={**applied, "tune": record},
        model_file=files[0].name,
        passes=shop.facts["passes"],
        graph=shop.facts["graph"],
        environment=machine(),
        lineage=[shop.spec.weights.sha256] if shop.spec.weights.sha256 else [],
        verification=verification.to_dict(),
        bench=measured(request, shop, found).to_dict(),
        steps=steps.done,
    )
    draw(stage.folder, trials, state.errors, found.chosen)
    if not verification:
        finish(stage, manifest, failed=True)
        raise verdict(verification, None, f"The artifact is kept apart in {request.folder}.failed/.")
    artifact = finish(stage, manifest)
    return Tuned(artifact, found.chosen, trials, not plan.is_float, found.reasons, race)


def measured(request: TuneRequest, shop: Workshop, found: Decision) -> Measured:
    """The chosen plan's latency in the last race."""
    from vitdeploy.backends import registry

    plan = found.chosen.plan
    turns = found.turns[[p.key for p in found.entrants].index(plan.key)]
    batch = shop.request.batch if isinstance(shop.request.batch, int) else shop.request.batch[1]
    stats = LatencyStats.from_seconds([s for turn in turns for s in turn], batch)
    facts = {
        "threads": request.export.run.threads,
        "device": registry.get(plan.backend).settled(request.export.run).device,
        "includes": "input and output copies between host arrays and the runtime; no preprocessing",
        "warmup_s": request.export.warmup,
        "duration_s": request.export.duration,
    }
    return Measured(plan.name, batch, stats, turns, None, facts)


def draw(folder: Path, trials: Sequence[Trial], errors: Mapping[str, float], chosen: Trial) -> None:
    """`pareto.svg`, and `sensitivity.svg` where single ops were measured."""
    alive = [trial for trial in trials if trial.search is not None and not trial.failed]
    points = [(t.p50, 100 * t.search.error, t.plan.name, t is chosen) for t in alive if t.search is not None]
    line = [(t.p50, 100 * t.search.error) for t in front(trials) if t.search is not None]
    picture = scatter(points, line, "p50, ms", "relative L2 of the logits, %", "Plans, and the Pareto front")
    (folder / "pareto.svg").write_text(picture, encoding="utf-8")
    if errors:
        rows = sorted(((100 * error, label) for label, error in errors.items()), reverse=True)
        picture = bars(rows, "relative L2 of the logits, %, with this op alone in int8")
        (folder / "sensitivity.svg").write_text(picture, encoding="utf-8")

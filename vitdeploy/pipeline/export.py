"""The whole way: build, trace, optimise, convert, compile, verify, bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import Artifact, Manifest, Stage, staged
from vitdeploy.backends.base import ANY_SIZE, POSTPROCESSING, PREPROCESSING
from vitdeploy.errors import MissingDependency, UnsupportedModel, UsageError, VerificationFailed, VitdeployError
from vitdeploy.export.options import around
from vitdeploy.export.trace import OPSET
from vitdeploy.pipeline.checks import check_request
from vitdeploy.pipeline.precision import lowest_opset, own_report, precision_notes
from vitdeploy.pipeline.request import ExportRequest, Listener, Steps, request_record
from vitdeploy.pipeline.sources import run_candidate, source_of
from vitdeploy.pipeline.triton import caveats, lay_out
from vitdeploy.quantize.options import Int8Options
from vitdeploy.report.tables import mb
from vitdeploy.spec import CALIBRATED, OUTPUTS, ModelSpec
from vitdeploy.staging import files_in

if TYPE_CHECKING:
    from vitdeploy.bench.sessions import Measured
    from vitdeploy.verify.bisect import Departure
    from vitdeploy.verify.collect import Case, Collected
    from vitdeploy.verify.compare import Verification

STAND_IN = "the graph that was compiled, on ONNX Runtime's CPU provider"
# Of a compiled file: in its own record.
LISTS = ("layers", "products", "census", "ops", "inputs", "outputs")
CLOSE = 5  # times the bound: beyond, it is no matter of rounding


def export(request: ExportRequest, listener: Listener | None = None) -> Artifact:
    """The whole way from a model's name to a verified artifact.

    Raises:
        UsageError, MissingDependency, UnsupportedModel, BackendError: see the steps.
        VerificationFailed: the artifact is kept as `<folder>.failed`, with the reasons in its manifest.
        PrecisionNotApplied: the compiled graph does not run what was asked for.
    """
    check_request(request)
    request = settled(request)
    steps = Steps(listener or Listener())
    with staged(request.folder, force=request.force) as stage:
        try:
            return export_into(stage, request, steps, check_backend(request))
        except VitdeployError as error:  # the stage is gone when the user reads this
            error.message = error.message.replace(str(stage.folder), str(request.folder))
            error.args = (error.message,)
            raise


def settled(request: ExportRequest) -> ExportRequest:
    """The request with what it leaves to the backend: the device and the opset."""
    from vitdeploy.backends import registry

    backend = registry.get(request.backend)
    if backend.source != "graph" and request.build.outputs != OUTPUTS[:1]:
        raise UsageError(f"{request.backend} gives logits alone: --outputs is not for it.")
    own = request.scheme is None and request.int8 == Int8Options() and not request.sensitivity
    if backend.source != "graph" and not own:
        raise UsageError(f"{request.backend} quantises with its own tools: options of ours for int8 are not for it.")
    if not isinstance(request.batch, int) and not backend.dynamic_batch:
        raise UsageError(f"Files of {request.backend} have a fixed batch.", fix=f"Use --batch {request.batch[1]}.")
    inside = {PREPROCESSING: request.embed.embed_preprocessing, POSTPROCESSING: request.embed.embed_postprocessing}
    for what in (what for what, wanted in inside.items() if wanted and what not in backend.embeds):
        raise UnsupportedModel(f"Files of {request.backend} cannot have their {what} inside.")
    request = replace(request, run=backend.settled(request.run))
    return replace(request, opset=settled_opset(request))


def settled_opset(request: ExportRequest) -> int:
    """The one that was asked for, or else what the backend wants; in any case one that can express the precision."""
    from vitdeploy.backends import registry

    wanted = request.opset
    if wanted is not None and registry.get(request.backend).source != "graph":
        raise UsageError(f"{request.backend} compiles from PyTorch, without ONNX: --opset has no place here.")
    if wanted is None:
        foreign = request.scheme is not None
        wanted = OPSET if foreign else registry.get(request.backend).opset(request.run, request.precision)
    return max(wanted, lowest_opset(request.precision))


def check_backend(request: ExportRequest) -> str:
    """The runtime's version; MissingDependency or UsageError when it cannot do what is asked."""
    from vitdeploy.backends import registry

    backend = registry.get(request.backend)
    can = backend.capabilities()
    if not can.installed:
        raise MissingDependency(f"The backend {request.backend} cannot run here: {can.reason}.", fix=can.fix or None)
    if not can.devices and not backend.compiles_ahead(request.run):
        raise MissingDependency(f"The backend {request.backend} cannot run here: {can.reason}.", fix=can.fix or None)
    if request.precision not in can.precisions:
        raise UsageError(
            f"{request.backend} has no {request.precision} here: it has {', '.join(can.precisions)}.",
            fix=others_with(request.precision),
        )
    backend.check(request.run)
    return can.version or ""


def others_with(precision: str) -> str:
    """Which backend runs a precision on this machine."""
    from vitdeploy.backends import registry

    found = {name: backend.capabilities() for name, backend in registry.backends().items()}
    able = [name for name, can in found.items() if precision in can.precisions]
    if able:
        return f"Use --backend {' or '.join(able)}."
    absent = [f"{name} may have it: {can.fix}." for name, can in found.items() if not can.installed and can.fix]
    return " ".join(["No backend that runs here has it.", *absent])


def export_into(stage: Stage, request: ExportRequest, steps: Steps, version: str) -> Artifact:
    """`export` within its stage. The weights are let go as soon as the model is compiled."""
    from vitdeploy.backends import registry
    from vitdeploy.models.build import build
    from vitdeploy.verify.collect import eager_outputs

    backend = registry.get(request.backend)
    built = build(request.model, request.build)
    spec = around(built.spec, request.embed, any_size=ANY_SIZE in backend.embeds)
    built = replace(built, spec=spec)
    steps.listener.model(built)
    cases = verification_cases(request, spec)
    reference = eager_outputs(built.module, cases, spec.input)
    ahead = backend.compiles_ahead(request.run)
    tensors = cases if spec.input.frame is None else verification_cases(request, spec.bare)
    source = source_of(request.backend)(request, built, steps, tensors)
    del built
    with steps.step("compile") as detail:
        files = source.compile(backend, stage.folder)
        files = lay_out(request, spec, files, stage.folder, reference[0])
        collected = source.stand_in(backend, files[0], cases) if ahead else None
        source.close()
        collected = collected or run_candidate(request, files[0], cases)
        applied = source.applied
        notes = precision_notes(request, applied, collected.census)
        described = backend.describe(files[0]) or {}
        size = sum(path.stat().st_size for path in files)
        detail += [f"{request.backend} {version}, {where(request, described)}", mb(size), *notes]
    own = own_report(request.precision, applied)
    draw_sensitivity(stage.folder, own)
    for caveat in caveats(request):
        steps.note(caveat)
        notes.append(caveat)
    applied |= {"notes": notes, "census": collected.census.to_dict() if collected.census else None}
    if described:
        applied["compiled"] = {key: value for key, value in described.items() if key not in LISTS}
    manifest = Manifest(
        model=spec,
        request=request_record(request),
        applied=applied,
        model_file=files[0].relative_to(stage.folder).as_posix(),
        passes=source.passes,
        graph=source.facts,
        environment=machine(),
        lineage=[spec.weights.sha256] if spec.weights.sha256 else [],
    )
    stand_in = (backend.stand_in or STAND_IN) if ahead else ""
    with steps.step("verify") as detail:
        verification = judged(request, spec, cases, reference, collected, stand_in, detail)
    if ahead:
        steps.note(f"What was verified is {stand_in}: the compiled file is for another machine and has not run.")
    layers = [one.to_dict() for one in source.layers]
    manifest = replace(manifest, verification={**verification.to_dict(), "layers": layers}, steps=steps.done)
    if not verification:
        raise failed(request, stage, manifest, verification, cases)
    if request.bench and ahead:
        steps.note("Latency is not measured: the compiled file is for another machine.")
    elif request.bench and not own.get("native", True):
        steps.note(f"Latency is not measured: the file is written for {own['scheme']}, not for {request.backend}.")
    elif request.bench:
        manifest = replace(manifest, bench=bench(request, files[0], steps), steps=steps.done)
    return finish(stage, manifest)


def where(request: ExportRequest, described: Mapping[str, Any]) -> str:
    """The device that a file was compiled for."""
    if "runs_on" in described:
        return f"for {described['runs_on']}"
    named = described.get("compute_capabilities")
    here = request.run.provider or request.run.device
    return f"for compute capability {', '.join(named)}" if named else here


def draw_sensitivity(folder: Path, report: Mapping[str, Any]) -> None:
    """`sensitivity.svg`, where the errors of single ops were measured."""
    from vitdeploy.report.plot import bars

    found = report.get("sensitivity")
    if found:
        rows = [(100 * one["error"], one["label"]) for one in found]
        picture = bars(rows, "relative L2 of the logits, %, with this op alone quantised")
        (folder / "sensitivity.svg").write_text(picture, encoding="utf-8")


def verification_cases(request: ExportRequest, spec: ModelSpec) -> list[Case]:
    """Synthetic images and the user's; for int8 and fp8 the user's alone, of the kind that it was calibrated on."""
    from vitdeploy.verify.collect import SEEDS, make_cases

    own = request.data or request.calib
    seeds = 0 if request.precision in CALIBRATED and own is not None else SEEDS
    return make_cases(spec.input, request.batches, own, seeds, strict=request.data is not None)


def judge(
    request: ExportRequest, cases: Sequence[Case], reference: list[dict[str, Any]], got: Collected
) -> Verification:
    from vitdeploy.verify.answers import part_answers
    from vitdeploy.verify.compare import verify_outputs

    described = [case.describe() for case in cases]
    logits = {"logits"} & set(reference[0]) or None
    plain, reasons = part_answers(got.outputs)
    frames = any("frame" in case for case in described)
    found = verify_outputs(reference, plain, request.precision, request.tolerance, described, logits, frames=frames)
    return replace(found, reasons=(*found.reasons, *reasons))


def judged(
    request: ExportRequest,
    spec: ModelSpec,
    cases: Sequence[Case],
    reference: list[dict[str, Any]],
    collected: Collected,
    stand_in: str,
    detail: list[str],
) -> Verification:
    """The verdict on what was collected, of a file or of what stands in for it, and a word on it for the reader."""
    verification = settle(request, spec, cases, collected, judge(request, cases, reference, collected))
    detail += [verification.summary(), "PASS" if verification else "FAIL"]
    return replace(verification, stand_in=stand_in)


def settle(
    request: ExportRequest, spec: ModelSpec, cases: Sequence[Case], collected: Collected, verification: Verification
) -> Verification:
    """Where file and PyTorch differ by hardly more than fp32's bound, let the model in float64 decide.

    Both round, and each in its own way; a file that is within the bound of the exact function is right.
    """
    worst = max(metrics.rel_max for metrics in verification.outputs.values())
    if verification or request.precision != "fp32" or not worst <= CLOSE * verification.bounds.rel_max:
        return verification
    from vitdeploy.models.build import rebuild
    from vitdeploy.verify.collect import eager_outputs

    try:
        exact = eager_outputs(rebuild(spec).module.double(), cases, spec.input, double=True)
    except Exception:  # a user's module may insist on float32: then the first verdict stands
        return verification
    again = judge(request, cases, exact, collected)
    return replace(again, reference="PyTorch in float64") if again else verification


def failed(
    request: ExportRequest, stage: Stage, manifest: Manifest, verification: Verification, cases: Sequence[Case]
) -> VerificationFailed:
    """Keep the artifact apart, look for the culprit, and say both."""
    departure, source = None, source_of(request.backend)
    try:
        file = stage.folder / manifest.model_file
        departure = source.find_departure(request, manifest.model, file, cases[0], verification)
    except Exception as error:  # the verdict must not be lost to the search for its cause
        manifest = replace(manifest, verification={**(manifest.verification or {}), "bisect_error": str(error)})
    if departure is not None:
        manifest = replace(manifest, verification={**(manifest.verification or {}), "departure": departure.to_dict()})
    artifact = finish(stage, manifest, failed=True)
    kept = f"The artifact is kept apart in {artifact.folder}/ with its report."
    return verdict(verification, departure, *filter(None, (source.unnamed, kept)))


def verdict(verification: Verification, departure: Departure | None, *more: str) -> VerificationFailed:
    """The reasons, then the first node that departs."""
    lines = ([str(departure)] if departure is not None else []) + list(more)
    return VerificationFailed(" ".join(verification.reasons), fix="\n".join(lines) or None)


def bench(request: ExportRequest, model: Path, steps: Steps) -> dict[str, Any]:
    """Latency for the manifest, and milliseconds of each type of op where the runtime's profiler tells."""
    from vitdeploy.backends import isolate
    from vitdeploy.bench.sessions import Candidate, bench_sessions, op_milliseconds

    batch = None if isinstance(request.batch, int) else request.batch[1]
    candidate = Candidate(request.backend, model, request.folder.name)
    timing: dict[str, Any] = {"batch": batch, "warmup": request.warmup, "duration": request.duration}
    with steps.step("bench") as detail:
        (measured,) = bench_sessions([candidate], request.run, **timing)
        detail.append(bench_line(measured))
    try:
        ops = isolate.call(op_milliseconds, candidate, request.run, batch)
    except VitdeployError as error:  # a proven and measured file must not be lost to its profile
        steps.note(f"Ops were not timed one by one: {error.message.splitlines()[0]}")
        ops = {}
    return {**measured.to_dict(), "ops_ms": ops}


def bench_line(measured: Measured) -> str:
    stats = measured.stats
    threads = measured.options["threads"]
    return (
        f"{threads} thread{'s' if threads != 1 else ''}, batch {measured.batch}, {stats.count} runs   "
        f"p50 {stats.p50:.3g} ms   p95 {stats.p95:.3g}   p99 {stats.p99:.3g}"
    )


def finish(stage: Stage, manifest: Manifest, *, failed: bool = False) -> Artifact:
    """Write the texts about the artifact and move it to its place."""
    from vitdeploy.report.texts import texts

    # The digests come with the commit; the texts tell sizes alone.
    files = {file.relative_to(stage.folder).as_posix(): file.stat().st_size for file in files_in(stage.folder)}
    sized = replace(manifest, files={name: {"bytes": size, "sha256": ""} for name, size in files.items()})
    for name, text in texts(sized).items():
        (stage.folder / name).write_text(text, encoding="utf-8", newline="\n")
    return stage.commit(manifest, failed=failed)


def machine() -> dict[str, Any]:
    from vitdeploy.bench.environment import environment

    return environment()

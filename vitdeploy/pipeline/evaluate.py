"""Accuracy of a finished file on the user's labelled images, alone or against another model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends.base import RunOptions, Session
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.pipeline.checks import check_batch
from vitdeploy.pipeline.files import backend_of, model_file, spec_of
from vitdeploy.pipeline.request import Listener, Steps
from vitdeploy.pipeline.verify import relocated, trusted, warn_of_changes
from vitdeploy.spec import ModelSpec
from vitdeploy.verify.score import NO_ANSWER, Paired, Rate, best_classes, compare_answers, top_k

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.data.image_set import ImageSet

TOP = 5
NAMED = 5  # unreadable images that are named one by one
EAGER_BATCH = 16
EAGER = "eager PyTorch"


@dataclass(frozen=True)
class EvalRequest:
    """What an evaluation is asked to do.

    Attributes:
        artifact: an artifact, or an .onnx file that vitdeploy wrote.
        data: labelled images: a folder with a subfolder per class, a list or an .npz (see data.image_set.open_images).
        run: device, threads and the like.
        batch: images a run, where the batch is dynamic; None takes the one that the export was optimised for.
        limit: score that many images, evenly spread; None takes all.
        strict: an image that cannot be read is an error; otherwise it is skipped and counted.
        against: another artifact or .onnx file, to compare with.
        eager: compare with the eager PyTorch model too, built again.
        model, weights: for eager, as for `verify_artifact`.
    """

    artifact: Path
    data: Path
    run: RunOptions = field(default_factory=RunOptions)
    batch: int | None = None
    limit: int | None = None
    strict: bool = False
    against: Path | None = None
    eager: bool = False
    model: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Answers:
    """What one model said about the images.

    Attributes:
        best: int64 (N, up to 5) class indices, best first; see verify.score.
        labels: int64 (N,).
        kept: int64 (N,): which of the candidates these are.
        candidates: images that were to be read.
        skipped: one sentence for each that could not be.
        classes: width of the logits.
        batch: images a run.
        label_rule: see data.image_set.ImageSet.
        seconds, model_seconds: of the whole loop (reading, preprocessing, inference), and of the inference alone.
    """

    best: np.ndarray
    labels: np.ndarray
    kept: np.ndarray
    candidates: int
    skipped: list[str]
    classes: int
    batch: int
    label_rule: str
    seconds: float
    model_seconds: float


@dataclass(frozen=True)
class Score:
    """How one model did.

    Attributes:
        label: the file, or 'eager PyTorch'.
        top1, top5: top5 is None with five classes or fewer, where it would say nothing.
        not_finite: images on which the logits held NaN or Inf; they count as wrong.
        batch: images a run.
        images_per_second, model_images_per_second: of the whole loop, and of the inference alone; None for eager.
    """

    label: str
    top1: Rate
    top5: Rate | None
    not_finite: int
    batch: int
    images_per_second: float | None
    model_images_per_second: float | None

    def to_dict(self) -> dict[str, Any]:
        rates = {"top1": self.top1.to_dict(), "top5": self.top5.to_dict() if self.top5 else None}
        speed = {"loop": self.images_per_second, "model": self.model_images_per_second}
        return {
            "label": self.label,
            **rates,
            "not_finite": self.not_finite,
            "batch": self.batch,
            "images_per_second": speed,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores on one data set.

    Attributes:
        data: as it was given.
        score: of the artifact.
        images, classes: how many.
        label_rule: how the data's labels became the model's classes: 'names', 'numbers' or 'order'.
        skipped: one sentence for each image that could not be read.
        against, eager: another model's score, and the artifact paired with it; None where not asked for.
        options: threads and device.
    """

    data: str
    score: Score
    images: int
    classes: int
    label_rule: str
    skipped: list[str]
    options: dict[str, Any]
    against: tuple[Score, Paired] | None = None
    eager: tuple[Score, Paired] | None = None

    def to_dict(self) -> dict[str, Any]:
        def pair(found: tuple[Score, Paired] | None) -> dict[str, Any] | None:
            return None if found is None else {**found[0].to_dict(), **found[1].to_dict()}

        return {
            "data": self.data,
            "images": self.images,
            "classes": self.classes,
            "label_rule": self.label_rule,
            **self.score.to_dict(),
            "against": pair(self.against),
            "eager": pair(self.eager),
            "skipped": self.skipped,
            **self.options,
        }


@dataclass(frozen=True)
class Job:
    """What a child process needs to answer. `classes` is the expected width of the logits, or None."""

    request: EvalRequest
    path: Path
    model: Path
    backend: str
    batch: int
    spec: ModelSpec
    labels: tuple[str, ...] | None
    classes: int | None = None


def evaluate(request: EvalRequest, listener: Listener | None = None) -> Evaluation:
    """Top-1 and top-5 of an artifact on labelled images, by its own preprocessing; the images are streamed.

    Raises:
        UsageError: files, images or labels that are not there or do not fit.
        BackendError: the runtime failed.
        VerificationFailed: eager PyTorch gives NaN or Inf.
    """
    from vitdeploy.backends import registry

    steps = Steps(listener or Listener())
    check_eval(request)
    job = make_job(request, request.artifact, spec_of(request.artifact), steps)
    other = None if request.against is None else job_against(job, request.against, steps)
    module = build_eager(job, steps) if request.eager else None
    with steps.step("eval") as detail:
        answers = ask(job, steps.listener)
        score = score_of(str(request.artifact), answers)
        detail.append(summary(score))
    tell_of(answers, score, steps)
    run = registry.get(job.backend).settled(request.run)
    found = Evaluation(
        data=str(request.data),
        score=score,
        images=len(answers.labels),
        classes=answers.classes,
        label_rule=answers.label_rule,
        skipped=answers.skipped,
        options={"threads": run.threads, "device": run.provider or run.device},
    )
    if other is not None:
        with steps.step("against") as detail:
            theirs = ask(replace(other, classes=answers.classes), steps.listener)
            found = replace(found, against=paired(str(request.against), answers, theirs))
            detail.append(summary(score_of("", theirs)))
    if module is not None:
        with steps.step("eager") as detail:
            theirs = ask_eager(module, job, answers, steps.listener)
            torch_score, compared = paired(EAGER, answers, theirs)
            # Neither its threads nor its batch are the artifact's.
            torch_score = replace(torch_score, images_per_second=None, model_images_per_second=None)
            found = replace(found, eager=(torch_score, compared))
            detail.append(summary(torch_score))
    return found


def check_eval(request: EvalRequest) -> None:
    """Refuse what cannot work before anything heavy is imported."""
    if request.batch is not None:
        check_batch(request.batch)
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"A limit of {request.limit} images leaves none.")
    if not request.eager and (request.model is not None or request.weights is not None):
        raise UsageError("--model and --weights are for the comparison with eager PyTorch.", fix="Add --eager.")
    for path in (request.artifact, request.against, request.data):
        if path is not None and not path.exists():
            raise UsageError(f"There is no {path}.")


def make_job(request: EvalRequest, path: Path, spec: ModelSpec, steps: Steps) -> Job:
    file, artifact = model_file(path)
    if artifact is not None:
        warn_of_changes(artifact, steps)
    record = artifact.manifest.request if artifact is not None else {}
    batch = record.get("batch", 1)
    usual = batch if isinstance(batch, int) else batch[1]
    return Job(request, path, file, backend_of(artifact), usual, spec, spec.labels)


def job_against(job: Job, path: Path, steps: Steps) -> Job:
    """The other file's job. Without a word on its preprocessing it gets the first one's; labels are the first one's."""
    from vitdeploy.export.metadata import read_spec
    from vitdeploy.graph.load import load

    file, artifact = model_file(path)
    spec = artifact.manifest.model if artifact is not None else read_spec(load(file))
    if spec is None:
        steps.note(f"{path} does not say what it takes: it is given the images as {job.path} takes them.")
        spec = job.spec
    elif spec.num_classes != job.spec.num_classes:
        raise other_classes(path, spec.num_classes, job.spec.num_classes)
    elif spec.labels and job.labels and spec.labels != job.labels:
        steps.note(f"{path} and {job.path} name their classes differently: agreement is by class number.")
    return replace(make_job(job.request, path, spec, steps), labels=job.labels)


def other_classes(path: Path, theirs: int, ours: int | None) -> UsageError:
    return UsageError(f"{path} has {theirs} classes, not {ours}: they cannot be compared.")


def ask(job: Job, listener: Listener) -> Answers:
    from vitdeploy.backends import isolate

    return isolate.call(answer, job, what=job.backend, progress=listener.progress)


def answer(job: Job, progress: Callable[[int, int], None]) -> Answers:
    """Open the model and run it on every image. Made to run in a child process (backends.isolate)."""
    from vitdeploy.backends import registry
    from vitdeploy.data.packed import item_type
    from vitdeploy.verify.collect import run_batch

    with registry.get(job.backend).open(job.model, job.request.run) as session:
        name = session.outputs[0].name
        size = batch_size(session, job)

        def run(images: np.ndarray) -> np.ndarray:
            return of_the_image(run_batch(session, images)[name], job.spec)

        # Also warms up: what a runtime prepares in its first run is no part of its speed.
        shape = run(np.zeros(size, item_type(job.spec.input))).shape
        if len(shape) != 2 or shape[0] != size:
            raise UsageError(f"{job.path} gives an output of shape {list(shape)}, not logits (batch, classes).")
        if job.classes not in (None, shape[1]):
            raise other_classes(job.path, shape[1], job.classes)
        return stream(run, images_of(job, shape[1]), size, shape[1], progress)


def of_the_image(logits: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Logits (batch, classes) of the image that an item was made of: in a sequence it is the first."""
    return logits[:, 0] if spec.input.packing is not None and logits.ndim == 3 else logits


def batch_size(session: Session, job: Job) -> int:
    """Images a run: the model's own number, or where it takes any, the one asked for or its usual one.

    The one asked for is the artifact's; another model, to compare with, may have its own.
    """
    fixed, asked = session.inputs[0].shape[0], job.request.batch
    if job.spec.input.frame is not None:
        fixed = 1
    if isinstance(fixed, str):
        return asked or job.batch
    if asked not in (None, fixed) and job.path == job.request.artifact:
        raise UsageError(
            f"{job.path} was exported for batch {fixed}, not {asked}.", fix="Export it with --batch 1:8:32."
        )
    return fixed


def images_of(job: Job, classes: int) -> ImageSet:
    from vitdeploy.data.image_set import open_images

    request = job.request
    names = job.labels if job.labels and len(job.labels) == classes else None
    return open_images(
        request.data,
        job.spec.input,
        limit=request.limit,
        strict=request.strict,
        classes=names,
        num_classes=classes,
        labelled=True,
    )


def stream(
    run: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    size: int,
    classes: int,
    progress: Callable[[int, int], None],
) -> Answers:
    """The model's answers, a batch at a time. The last batch is filled up with its last image."""
    best, labels = [], []
    model_seconds, begin = 0.0, time.perf_counter()
    for batch, truth in images.batches(size):
        count = len(batch)
        if count < size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
        start = time.perf_counter()
        logits = run(batch)
        model_seconds += time.perf_counter() - start
        best.append(best_classes(logits[:count], min(TOP, classes)))
        labels.append(truth)
        progress(len(images.kept) + len(images.skipped), len(images))
    return Answers(
        best=np.concatenate(best),
        labels=np.concatenate([truth for truth in labels if truth is not None]),
        kept=np.array(images.kept, np.int64),
        candidates=len(images),
        skipped=images.skipped,
        classes=classes,
        batch=size,
        label_rule=images.label_rule,
        seconds=time.perf_counter() - begin,
        model_seconds=model_seconds,
    )


def build_eager(job: Job, steps: Steps) -> nn.Module:
    """The model in PyTorch; it is built first, so that what is missing is told before a long run."""
    from vitdeploy.models.build import rebuild

    request = job.request
    again = f"vitdeploy eval --eager --data {shlex.quote(str(request.data))}"
    spec = relocated(trusted(job.spec, request.model, request.artifact, again), request.weights)
    with steps.step("build") as detail:
        module = rebuild(spec).module
        detail.append(spec.full_name)
    return module


def ask_eager(module: nn.Module, job: Job, answers: Answers, listener: Listener) -> Answers:
    """The PyTorch model's answers to the same images, in this process."""
    from vitdeploy.verify.collect import Case, eager_outputs

    def run(images: np.ndarray) -> np.ndarray:
        (out,) = eager_outputs(module, [Case(images, "the data")], job.spec.input)
        return of_the_image(out["logits"], job.spec)

    size = 1 if job.spec.input.frame is not None else max(answers.batch, EAGER_BATCH)
    return stream(run, images_of(job, answers.classes), size, answers.classes, listener.progress)


def score_of(label: str, answers: Answers) -> Score:
    count = len(answers.labels)
    return Score(
        label=label,
        top1=top_k(answers.best, answers.labels, 1),
        top5=top_k(answers.best, answers.labels, TOP) if answers.classes > TOP else None,
        not_finite=int((answers.best[:, 0] == NO_ANSWER).sum()),
        batch=answers.batch,
        images_per_second=count / answers.seconds,
        model_images_per_second=count / answers.model_seconds,
    )


def paired(label: str, ours: Answers, theirs: Answers) -> tuple[Score, Paired]:
    """The other model's score, and both compared on the images that both could read."""
    both, mine, other = np.intersect1d(ours.kept, theirs.kept, return_indices=True)
    if len(both) == 0:
        raise BackendError(f"{label} could read none of the images that the first could.")
    return score_of(label, theirs), compare_answers(ours.best[mine, 0], theirs.best[other, 0], ours.labels[mine])


def summary(score: Score) -> str:
    return f"{score.top1.total} images   top-1 {100 * score.top1.value:.2f} %"


def tell_of(answers: Answers, score: Score, steps: Steps) -> None:
    """What a figure alone would hide."""
    for sentence in answers.skipped[:NAMED]:
        steps.note(f"skipped: {sentence}")
    if len(answers.skipped) > NAMED:
        steps.note(f"skipped: {len(answers.skipped) - NAMED} more images that cannot be read.")
    if answers.label_rule == "order":
        steps.note(
            "The data's class names are not the model's: their sorted order is taken for the order of its classes."
        )
    if score.not_finite:
        steps.note(f"{score.not_finite} images gave NaN or Inf: they count as wrong.")

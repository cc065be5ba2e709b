"""How an export is told while it runs: progress and notes on stderr, the finished artifact on stdout."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack, redirect_stdout
from typing import TYPE_CHECKING

from vitdeploy.artifact import REPOSITORY
from vitdeploy.exits import stop_if_asked
from vitdeploy.pipeline import Listener
from vitdeploy.report.tables import amount, mb, print_latency
from vitdeploy.spec import IMAGE

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.status import Status

    from vitdeploy.artifact import Artifact
    from vitdeploy.models.build import Built

LABEL = 14  # columns of the head's first word


class ConsoleListener(Listener):
    """Prints steps as they end; on a terminal also a spinner or a bar while they run.

    A context manager: within it whatever user code or a library prints goes to stderr, so that stdout is the result's.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.spinner: Status | None = None
        self.bar: Progress | None = None
        self.stack = ExitStack()

    def __enter__(self) -> ConsoleListener:
        self.stack.enter_context(redirect_stdout(sys.stderr))
        self.stack.callback(self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def say(self, text: str = "") -> None:
        if not self.quiet:
            # Not print, which writes the end of the line by itself: an interruption would come between them.
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def model(self, built: Built) -> None:
        spec = built.spec
        size = f"{amount(built.parameters)} parameters"
        self.say(f"{spec.full_name:<{LABEL}} {size}   {spec.input.kind} {spec.input}")
        for i, note in enumerate(built.notes):
            self.say(f"{'weights' if i == 0 else '':<{LABEL}} {note}")
        self.say()

    def started(self, name: str) -> None:
        stop_if_asked()
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console

        self.spinner = Console(file=sys.stderr).status(f"{name} ...")
        self.spinner.start()

    def step(self, name: str, detail: str, seconds: float) -> None:
        stop_if_asked()
        self.stop()
        self.say(f"  {name:<10} {seconds:5.1f} s   {detail}".rstrip())

    def note(self, text: str) -> None:
        self.say(f"  note       {text}")

    def progress(self, done: int, total: int) -> None:
        stop_if_asked()
        if self.quiet or not sys.stderr.isatty():
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            self.stop()
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
            self.bar.add_task("", total=total)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=done)

    def stop(self) -> None:
        for shown in (self.spinner, self.bar):
            if shown is not None:
                shown.stop()
        self.spinner = self.bar = None


def print_artifact(artifact: Artifact) -> None:
    """The end of an export: latency, the files, and what to do next."""
    manifest = artifact.manifest
    if manifest.bench:
        print_latency([manifest.bench])
        print()
    files = ", ".join(f"{name} {mb(entry['bytes'])}" for name, entry in manifest.files.items())
    print(f"{artifact.folder}/   {files}, manifest.json")
    folder = shlex.quote(str(artifact.folder))
    if (manifest.verification or {}).get("stand_in"):
        print(f"next   vitdeploy inspect {folder}")
        print(f"       vitdeploy verify {folder}   and   vitdeploy bench {folder}   on the machine that it is for")
        return
    if manifest.model.input.kind == IMAGE:
        print(f"next   vitdeploy predict {folder} photo.jpg")
        print(f"       vitdeploy bench {folder} --threads 2")
    else:
        print(f"next   vitdeploy bench {folder} --threads 2")
    print(f"       vitdeploy inspect {folder}")
    if manifest.request.get("layout") == "triton":
        print(f"       tritonserver --model-repository={shlex.quote(str(artifact.folder.absolute() / REPOSITORY))}")

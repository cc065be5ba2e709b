"""How an export is told while it runs: progress and notes on stderr, the finished artifact on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vitdeploy.pipeline import Listener
from vitdeploy.report.tables import mb, print_latency

if TYPE_CHECKING:
    from rich.status import Status

    from vitdeploy.artifact import Artifact
    from vitdeploy.models.build import Built


class ConsoleListener(Listener):
    """Prints steps as they end; on a terminal also a spinner while they run."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.spinner: Status | None = None
        self.shown_model = False

    def say(self, text: str = "") -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def model(self, built: Built) -> None:
        spec = built.spec
        self.say(f"{spec.full_name}   {built.parameters / 1e6:.1f} M parameters   image {spec.input}")
        for i, note in enumerate(built.notes):
            self.say(f"{'weights' if i == 0 else '':14} {note}")
        self.say()

    def started(self, name: str) -> None:
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console

        self.spinner = Console(stderr=True).status(f"{name} ...")
        self.spinner.start()

    def step(self, name: str, detail: str, seconds: float) -> None:
        self.stop()
        self.say(f"  {name:<10} {seconds:5.1f} s   {detail}")

    def note(self, text: str) -> None:
        self.say(f"  note       {text}")

    def stop(self) -> None:
        if self.spinner is not None:
            self.spinner.stop()
            self.spinner = None


def print_artifact(artifact: Artifact) -> None:
    """The end of an export: latency, the files, and what to do next."""
    manifest = artifact.manifest
    print()
    if manifest.bench:
        print_latency([manifest.bench])
    sizes = {name: entry["bytes"] for name, entry in manifest.files.items()}
    files = ", ".join(f"{name} {mb(size)}" if size > 1e5 else name for name, size in sizes.items())
    print(f"{artifact.folder}/   {files}, manifest.json")
    print(f"next   vitdeploy predict {artifact.folder} photo.jpg")
    print(f"       vitdeploy bench {artifact.folder} --threads 2")
    print(f"       vitdeploy inspect {artifact.folder}")

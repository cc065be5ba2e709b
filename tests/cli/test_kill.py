"""Exports that are killed at any moment, or that race for one destination, leave whole artifacts or none."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.report.reading import TEXTS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

EXPORT = ("export", "tiny.py:make", "--out", "box/out")
BENCH = ("--warmup", "0", "--duration", "0.2")


def whole(place: Path) -> bool:
    """Whether there is an artifact, after holding each of its files against the manifest; False where there is none."""
    if not place.exists():
        return False
    artifact = Artifact.load(place)
    artifact.check_files()
    assert set(artifact.manifest.files) == {"model.onnx", *TEXTS}
    assert {path.name for path in place.iterdir()} == {"model.onnx", *TEXTS, "manifest.json"}
    return True


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_export_leaves_a_whole_artifact_or_none_and_a_rerun_cleans_up(
    work: Path, cli: Callable[..., Any], launch: Callable[..., subprocess.Popen[str]], kills: int
) -> None:
    box, out = work / "box", work / "box" / "out"
    box.mkdir()
    arguments = (*EXPORT, *(BENCH if kills > 6 else ("--no-bench",)), "--force")
    began = time.monotonic()
    run = cli(*arguments)
    lasts = time.monotonic() - began
    assert run.code == 0, run.err
    draw = random.Random(20261122)
    killed = runs = 0
    while killed < kills:
        assert runs < 4 * kills, "the exports end before they can be killed"
        was = whole(out)
        process = launch(*arguments)
        began = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=draw.uniform(0, lasts))
            lasts = min(lasts, time.monotonic() - began)  # it was done before: the machine is faster than it was
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        runs += 1
        now = whole(out)
        assert now or not was, "an artifact that was there has vanished"
        if now and killed % 2:  # half of the runs find the place empty
            out.rename(work / f"moved{runs}")
    run = cli(*arguments)
    assert run.code == 0, run.err
    assert whole(out)
    assert [path.name for path in box.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
def test_one_whole_artifact_stays_when_two_exports_race_for_it(
    work: Path, launch: Callable[..., subprocess.Popen[str]], force: tuple[str, ...]
) -> None:
    both = [launch(*EXPORT, "--no-bench", *force) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    if force:
        assert [code for _, code in ends] == [0, 0], ends
    else:
        (loser,) = (err for err, code in ends if code)
        assert sorted(code for _, code in ends) == [0, 2]
        assert "error: box/out exists.\n       Use --force to replace it" in loser
    assert whole(work / "box" / "out")
    assert [path.name for path in (work / "box").iterdir()] == ["out"]

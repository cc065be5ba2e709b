"""`tune` from the command line: the fastest plan within a budget, or one sentence on why not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import xml.dom.minidom
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]
QUICK = ("--backend", "onnxruntime", "--warmup", "0", "--duration", "0.1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images(work: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.integers(0, 256, (80, 1, 1, 3)) + rng.integers(-60, 60, (80, 16, 16, 3)), 0, 255)
    np.savez(work / "images.npz", images=pixels.astype(np.uint8), labels=rng.integers(0, 10, 80))
    return work / "images.npz"


def test_tune_writes_a_verified_artifact_that_keeps_to_the_budget(cli: Cli, work: Path, images: Path) -> None:
    done = cli("tune", "tiny.py:make", "--data", "images.npz", "--max-error", "0.2", *QUICK, "--json", "--out", "made")
    assert done.code == 0, done.err
    made = json.loads(done.out)
    found = made["applied"]["tune"]
    assert made["verification"]["passed"]
    names = [trial["name"] for trial in found["trials"]]
    assert names[:4] == [f"onnxruntime {p}" for p in ("fp32", "int8", "int8-dynamic", "fp16")]
    assert found["chosen"] in names
    chosen = next(trial for trial in found["trials"] if trial["name"] == found["chosen"])
    assert chosen["answers"]["error"] <= 0.2
    # A model of microseconds: float or not, what is chosen is no slower than float in the last race.
    race = found["last_race"]
    assert found["pays"] == (not chosen["plan"]["precision"].startswith("fp"))
    if found["pays"]:
        assert all(race[found["chosen"]]["median"] >= ratio["median"] for n, ratio in race.items() if " fp" in n)
    assert not (work / "made.tune").exists()
    xml.dom.minidom.parse(str(work / "made" / "pareto.svg"))
    assert cli("verify", "made", "--model", "tiny.py:make").code == 0
    assert cli("eval", "made", "--data", "images.npz").code == 0


def test_tune_returns_float_when_no_loss_is_allowed(cli: Cli, work: Path, images: Path) -> None:
    done = cli("tune", "tiny.py:make", "--calib", "images.npz", "--max-error", "0", *QUICK, "--out", "made")
    assert done.code == 0, done.err
    assert "Quantising does not pay here" in done.out
    manifest = json.loads((work / "made" / "manifest.json").read_text())
    assert manifest["request"]["precision"] == "fp32"


def trials_of(state: Path) -> int:
    return len(json.loads(state.read_text())["trials"]) if state.exists() else 0


def test_tune_says_what_was_not_tried_when_the_time_was_up(cli: Cli, work: Path, images: Path) -> None:
    done = cli("tune", "tiny.py:make", "--calib", "images.npz", *QUICK, "--time-budget", "0", "--out", "made")
    assert done.code == 0, done.err
    assert "not tried: onnxruntime int8" in done.err
    assert "Nothing quantised was tried" in done.out


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_tune_goes_on_when_an_earlier_run_was_killed_or_found_no_plan(
    cli: Cli, launch: Callable[..., subprocess.Popen[str]], work: Path, images: Path
) -> None:
    asked = ("tune", "tiny.py:make", "--calib", "images.npz", *QUICK, "--out", "made")
    state = work / "made.tune" / "state.json"
    process = launch(*asked)
    deadline = time.monotonic() + 120
    while trials_of(state) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = trials_of(state)
    assert found >= 2
    assert not (work / "made").exists()
    impossible = cli(*asked, "--max-latency", "0")
    assert impossible.code == 7
    assert f"Goes on after {found} trials" in impossible.err
    assert "No plan keeps to the budget" in impossible.err
    assert not (work / "made").exists()
    found = trials_of(state)
    again = cli(*asked)
    assert again.code == 0, again.err
    assert f"Goes on after {found} trials" in again.err
    assert {path.name for path in work.iterdir() if path.name.startswith("made")} == {"made"}


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ((), 2, "needs images"),
        (("--calib-random", "--data", "images.npz"), 2, "contradicts"),
        (("--calib-random", "--max-drop", "-1"), 2, "--max-drop"),
        (("--data", "nowhere"), 2, "nowhere"),
        (("--data", "images.npz", "--backend", "warp"), 2, "warp"),
        (("--data", "few.npz"), 2, "too few"),
        (("--data", "unlabelled.npz"), 2, "labels"),
        (("--data", "images.npz", "--keep", "nothing"), 2, "nothing"),
    ],
)
def test_tune_refuses_in_one_sentence_when_it_cannot_work(
    cli: Cli, work: Path, images: Path, options: tuple[str, ...], code: int, word: str
) -> None:
    pixels = np.zeros((60, 16, 16), np.uint8)
    np.savez(work / "few.npz", images=pixels[:30], labels=np.zeros(30, np.int64))
    np.savez(work / "unlabelled.npz", images=pixels)
    done = cli("tune", "tiny.py:make", *QUICK, *options, "--out", "made")
    assert done.code == code, done.err
    assert word in done.err
    assert "Traceback" not in done.err
    assert not (work / "made").exists()

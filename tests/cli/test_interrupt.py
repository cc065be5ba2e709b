"""Ctrl-C and SIGTERM during an export: the documented exit code, a word, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

Launch = Callable[..., "subprocess.Popen[str]"]
MARK = "VITDEPLOY_TEST_MARK"


def kin(mark: str) -> list[int]:
    """Processes that carry the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in content.split(b"\0"):
            found.append(int(path.parent.name))
    return found


def start(work: Path, mark: str, launch: Launch, *arguments: str) -> subprocess.Popen[str]:
    def attend() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever runs the tests may ignore it

    return launch("export", "tiny.py:make", "--out", "out", *arguments, env={MARK: mark}, preexec_fn=attend)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stderr is not None
    text = ""
    while word not in text:
        line = process.stderr.readline()
        assert line, f"the export ended before it said {word!r}: {text}"
        text += line
    return text


@pytest.mark.parametrize(
    ("number", "after", "pause"),
    [
        (signal.SIGINT, None, 1.0),  # while torch is imported
        (signal.SIGINT, "parameters", 0.0),  # while the trace begins
        (signal.SIGINT, "parameters", 2.0),  # in the trace
        (signal.SIGINT, "optimise", 0.5),  # while a child process runs the model
        (signal.SIGINT, "verify", 0.5),  # while a child process measures
        (signal.SIGTERM, "optimise", 0.5),
        (signal.SIGHUP, "parameters", 1.0),
    ],
)
def test_interrupted_export_ends_with_its_code_and_leaves_nothing(
    work: Path,
    launch: Launch,
    tree: Callable[[Path], dict[str, str]],
    number: signal.Signals,
    after: str | None,
    pause: float,
) -> None:
    before = tree(work)
    process = start(work, str(work), launch, "--duration", "60")
    said = read_until(process, after) if after is not None else ""
    time.sleep(pause)
    os.killpg(process.pid, number)  # as a terminal does
    out, err = process.communicate(timeout=60)
    said += err
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1] in ("interrupted", "terminated", "hung up")
    assert "Traceback" not in said
    assert "ignored" not in said
    assert "error:" not in said
    assert out == ""
    assert tree(work) == before
    assert not list(work.with_name(f"{work.name}-tmp").glob("vitdeploy-*"))
    deadline = time.monotonic() + 10
    while kin(str(work)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kin(str(work)) == []


def test_impatient_ctrl_c_does_not_stop_the_tidying_up(
    work: Path, launch: Launch, tree: Callable[[Path], dict[str, str]]
) -> None:
    before = tree(work)
    process = start(work, str(work), launch)
    read_until(process, "parameters")
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.003)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert tree(work) == before

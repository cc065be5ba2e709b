"""The command line in processes of its own: what they print, what they leave behind, how they end."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, Run, command, environment, run_cli


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working folder with the tiny model's file in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY)
    return folder


@pytest.fixture
def cli(work: Path) -> Callable[..., Run]:
    """`cli(*args)` runs vitdeploy in the working folder."""

    def call(*args: object, cwd: Path = work, **options: Any) -> Run:
        return run_cli(*args, cwd=cwd, **options)

    return call


@pytest.fixture
def launch(work: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`launch(*args)` starts vitdeploy in the working folder, in a process group of its own; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*args: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(*args),
            cwd=work,
            env=environment(work, **(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    """Every path below a folder with its content's digest; what Python compiles for itself is left out."""

    def look(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
                found[str(path.relative_to(folder))] = content
        return found

    return look


@pytest.fixture
def refused(work: Path, tree: Callable[[Path], dict[str, str]]) -> Callable[..., str]:
    """Run a command that must be refused: one sentence on stderr, nothing on stdout, nothing left behind."""

    def call(*args: object, code: int = 2, cwd: Path = work, **options: Any) -> str:
        before = tree(work)
        run = run_cli(*args, cwd=cwd, **options)
        assert "Traceback" not in run.err, run.err
        assert run.code == code, run.err
        assert run.out == ""
        lines = run.err.splitlines()
        at = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
        assert at is not None, f"no error line in {run.err!r}"
        assert all(line.startswith("       ") for line in lines[at + 1 :]), (
            f"more than the error and its fix: {run.err}"
        )
        assert tree(work) == before
        left = [path.name for path in work.with_name(f"{work.name}-tmp").glob("vitdeploy-*")]
        assert not left, f"temporary folders stay: {left}"
        return "\n".join(lines[at:])

    return call


@pytest.fixture(scope="session")
def exported(session_folder: Path) -> Path:
    """A folder with tiny.py and a finished artifact of it, `artifact`. Not to be changed."""
    folder = session_folder / "exported"
    folder.mkdir()
    (folder / "tiny.py").write_text(TINY)
    run = run_cli("export", "tiny.py:make", "--no-bench", "--out", "artifact", cwd=folder)
    assert run.code == 0, run.err
    return folder

"""Exports that are killed, refused by the disk or run side by side."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitdeploy import staging
from vitdeploy.artifact import Artifact, Manifest, staged
from vitdeploy.errors import UsageError
from vitdeploy.spec import ModelSpec

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, locks and signals of POSIX")

MANIFEST = Manifest(model=ModelSpec("m"))
FIRST, SECOND = b"first" * 1000, b"second" * 1000

# Runs an export again and again; in run n, what it does to the disk for the n-th time kills it or fails.
DRIVER = """
import ctypes, itertools, os, signal, sys
from pathlib import Path
from vitdeploy import staging
from vitdeploy.artifact import Manifest, staged
from vitdeploy.errors import UsageError
from vitdeploy.spec import ModelSpec

root, scenario, blow = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if "renames" in scenario:
    staging._exchange = lambda one, other: False

def export(place, content, **how):
    failed = how.pop("failed", False)
    with staged(place, **how) as stage:
        (stage.folder / "model.onnx").write_bytes(content)
        (stage.folder / "parts").mkdir()
        (stage.folder / "parts" / "w.bin").write_bytes(content)
        stage.commit(Manifest(model=ModelSpec("m")), failed=failed)

def work(place):
    if scenario == "fresh":
        export(place, b"second" * 1000)
    else:
        export(place, b"second" * 1000, force=True, failed="failed" in scenario)

def watch(n):
    seen, fired = itertools.count(), []
    def hook(event, args):
        ours = args and isinstance(args[0], (str, Path)) and str(args[0]).startswith(str(root))
        if (event == "open" or event.startswith(("os.", "shutil."))) and ours and event != "os.listdir":
            if next(seen) == n:
                fired.append(event)
                if blow == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(blow, os.strerror(blow), str(args[0]))
    sys.addaudithook(hook)
    return fired

for n in itertools.count():
    box = root / str(n) / "box"
    box.mkdir(parents=True)
    if scenario != "fresh":
        export(box / "out", b"first" * 1000)
    if "failed" in scenario:
        export(box / "out", b"first" * 1000, force=True, failed=True)
    child = os.fork()
    if child == 0:
        fired = watch(n)
        try:
            work(box / "out")
            os._exit(0 if fired else 100)
        except UsageError as error:
            os._exit(2 if "Cannot write" in error.message or "Cannot read" in error.message else 3)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(n, code, flush=True)
    if code == 100:
        break
"""


def drive(root: Path, scenario: str, blow: int = 0) -> dict[int, int]:
    command = [sys.executable, "-c", DRIVER, str(root), scenario, str(blow)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    codes = {int(n): int(code) for n, code in (line.split() for line in result.stdout.splitlines())}
    assert codes.popitem()[1] == 100, "the last run must be left in peace"
    return codes


def content(place: Path) -> bytes | None:
    """What the artifact holds, after checking that it is whole; None where there is none."""
    if not os.path.lexists(place):
        return None
    artifact = Artifact.load(place)
    assert set(artifact.manifest.files) >= {"model.onnx"}
    artifact.check_files()
    return artifact.model_path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def export(place: Path, data: bytes, *, force: bool = False) -> None:
    with staged(place, force=force) as stage:
        (stage.folder / "model.onnx").write_bytes(data)
        stage.commit(MANIFEST)


@pytest.mark.parametrize("scenario", ["fresh", "replace", "replace renames", "failed", "failed renames"])
def test_artifact_is_whole_and_the_next_run_cleans_when_killed_anywhere(tmp_path: Path, scenario: str) -> None:
    codes = drive(tmp_path, scenario)
    assert len(codes) > 8, "the export was killed at too few points"
    assert set(codes.values()) == {-signal.SIGKILL}
    seen = set()
    for n in codes:
        box = tmp_path / str(n) / "box"
        place = box / ("out.failed" if "failed" in scenario else "out")
        before = content(place)
        missing = before is None and scenario != "fresh"
        if missing:
            assert "renames" in scenario
            assert content(next(box.glob(f".{place.name}.old-*"))) == FIRST
        with staged(box / "out", force=True):
            pass
        assert (
            names(box)
            == {
                "fresh": ["out"] if before else [],
                "replace": ["out"],
                "failed": ["out", "out.failed"],
            }[scenario.split()[0]]
        )
        assert content(place) == (FIRST if missing else before)
        if "failed" in scenario:
            assert content(box / "out") == FIRST
        seen.add((before, missing))
    old = (None, False) if scenario == "fresh" else (FIRST, False)
    assert seen == {old, (SECOND, False)} | ({(None, True)} if "renames" in scenario else set())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("scenario", ["fresh", "replace", "replace renames"])
def test_one_sentence_and_no_litter_when_the_disk_refuses_anywhere(tmp_path: Path, scenario: str, code: int) -> None:
    codes = drive(tmp_path, scenario, code)
    assert set(codes.values()) == {0, 2}
    assert sum(value == 2 for value in codes.values()) > 6
    for n, outcome in codes.items():
        box = tmp_path / str(n) / "box"
        old = None if scenario == "fresh" else FIRST
        assert content(box / "out") in ((SECOND,) if outcome == 0 else (old, SECOND))
        if outcome == 2:
            assert names(box) in ([], ["out"])
        else:  # the refusal hit the removal of the old one, which the next run makes good
            with staged(box / "out", force=True):
                pass
            assert names(box) == ["out"]


SLEEPER = """
import sys, time
from pathlib import Path
from vitdeploy.artifact import staged
with staged(Path(sys.argv[1])) as stage:
    (stage.folder / "model.onnx").write_bytes(b"live")
    print(stage.folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process inside `with staged(tmp_path / 'out')`, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()


def test_stage_of_a_live_process_stays_and_goes_when_it_is_killed(
    tmp_path: Path, sleeper: tuple[subprocess.Popen[str], Path]
) -> None:
    process, folder = sleeper
    export(tmp_path / "out", FIRST)
    assert names(tmp_path) == sorted([folder.name, "out"])
    assert (folder / "model.onnx").read_bytes() == b"live"
    process.kill()
    process.wait()
    assert folder.exists()
    with pytest.raises(UsageError, match="exists"):
        export(tmp_path / "out", SECOND)
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == FIRST


def test_stage_of_another_destination_stays_when_its_process_is_dead(tmp_path: Path) -> None:
    for name in (
        ".out.int8.tmp-1-ab",
        ".outtmp-1-ab",
        ".out.tmp-x-ab",
        "xout.tmp-1-ab",
        ".outx.tmp-1-ab",
        ".out.tmp-1-",
    ):
        (tmp_path / name).mkdir()
    before = names(tmp_path)
    (tmp_path / ".out.tmp-1-ab").mkdir()
    export(tmp_path / "out", FIRST)
    assert names(tmp_path) == sorted([*before, "out"])


def test_name_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".oxt.tmp-1-ab").mkdir()
    export(tmp_path / "o.t[1]*", FIRST)
    (tmp_path / ".o.t[1]*.tmp-1-ab").mkdir()
    export(tmp_path / "o.t[1]*", SECOND, force=True)
    assert names(tmp_path) == sorted([".oxt.tmp-1-ab", "o.t[1]*"])


def test_old_artifact_comes_back_only_when_the_place_is_empty(tmp_path: Path) -> None:
    export(tmp_path / "out", FIRST)
    (tmp_path / "out").rename(tmp_path / ".out.old-1-ab")
    with pytest.raises(UsageError, match="exists"):
        export(tmp_path / "out", SECOND)
    assert names(tmp_path) == ["out"]
    shutil.copytree(tmp_path / "out", tmp_path / ".out.old-1-ab")
    export(tmp_path / "out", SECOND, force=True)
    assert names(tmp_path) == ["out"]
    assert content(tmp_path / "out") == SECOND


@pytest.mark.parametrize(
    ("pid", "age", "goes"),
    [(2**22 + 1, 0, False), (2**22 + 1, 1e6, True), (os.getpid(), 1e6, False)],
    ids=["new", "old", "running"],
)
def test_stage_goes_without_locks_only_when_it_is_old_and_its_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int, age: float, goes: bool
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(staging.fcntl, "flock", no_locks)
    left = tmp_path / f".out.tmp-{pid}-ab"
    left.mkdir()
    os.utime(left, (time.time() - age,) * 2)
    export(tmp_path / "out", FIRST)
    export(tmp_path / "out", SECOND, force=True)
    assert names(tmp_path) == ([] if goes else [left.name]) + ["out"]
    assert content(tmp_path / "out") == SECOND


@pytest.mark.parametrize("error", [BlockingIOError, FileNotFoundError])
def test_export_succeeds_when_a_tidying_run_takes_the_newborn_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    lock = staging.lock_folder
    taken: list[Path] = []

    def steal_first(folder: Path) -> int | None:
        if not taken:
            taken.append(folder)
            shutil.rmtree(folder)
            raise error
        return lock(folder)

    monkeypatch.setattr(staging, "lock_folder", steal_first)
    export(tmp_path / "out", FIRST)
    assert taken
    assert names(tmp_path) == ["out"]


def test_commit_retries_when_the_place_changes_between_look_and_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process fills the place just before a rename of three, then empties it just before an exchange."""
    export(tmp_path / "spare", FIRST)
    export(tmp_path / "out", FIRST)
    rename, exchange, calls = os.rename, staging._exchange, []

    def fill_before(one: Path, other: Path) -> None:
        calls.append("rename")
        if len(calls) == 2:
            shutil.copytree(tmp_path / "spare", tmp_path / "out")
        rename(one, other)

    def empty_before(one: Path, other: Path) -> bool:
        if not calls:
            return False
        if len(calls) == 3:
            calls.append("exchange")
            shutil.rmtree(other)
        return exchange(one, other)

    with staged(tmp_path / "out", force=True) as stage:
        (stage.folder / "model.onnx").write_bytes(SECOND)
        monkeypatch.setattr(staging, "_exchange", empty_before)
        monkeypatch.setattr(os, "rename", fill_before)
        stage.commit(MANIFEST)
    assert calls == ["rename", "rename", "rename", "exchange", "rename"]
    assert names(tmp_path) == ["out", "spare"]
    assert content(tmp_path / "out") == SECOND


CROWD = """
import sys
from pathlib import Path
from vitdeploy import staging
from vitdeploy.artifact import Manifest, staged
from vitdeploy.spec import ModelSpec
if sys.argv[2] == "renames":
    staging._exchange = lambda one, other: False
for i in range(15):
    with staged(Path(sys.argv[1]), force=True) as stage:
        (stage.folder / "model.onnx").write_bytes(bytes(1000 + i))
        stage.commit(Manifest(model=ModelSpec("m")))
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_every_run_commits_and_one_whole_artifact_stays_when_many_replace_it(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", CROWD, str(tmp_path / "deep" / "out"), how]
    crowd = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in crowd:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert content(tmp_path / "deep" / "out") is not None
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_a_usage_error_when_the_body_hits_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, staged(tmp_path / "made" / "out") as stage:  # noqa: PT012
        (stage.folder / "model.onnx").symlink_to("/dev/full")
        (stage.folder / "model.onnx").write_bytes(bytes(100_000))
    assert caught.value.message == f"Cannot write {tmp_path / 'made' / 'out'}: No space left on device."
    assert names(tmp_path) == []


def test_full_disk_is_a_usage_error_when_flushing_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"Cannot write .*out: No space left") as caught:
        export(tmp_path / "made" / "out", FIRST)
    assert "Free some space" in str(caught.value)
    assert names(tmp_path) == []


def test_other_errors_of_the_body_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), staged(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out") as stage:
        (stage.folder / "forgotten").read_bytes()
    with pytest.raises(PermissionError), staged(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "photo.jpg"))


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_staged_refuses_when_the_parent_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for place in (tmp_path / "closed" / "out", tmp_path / "closed" / "deep" / "out"):
        with pytest.raises(UsageError, match=f"Cannot write {place}: Permission denied"), staged(place):
            pytest.fail("the body must not run")


def test_staged_refuses_when_the_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"), staged(tmp_path / "made" / ("x" * 250)):
        pytest.fail("the body must not run")
    assert names(tmp_path) == []

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.backends.isolate import call, call_measured
from vitdeploy.errors import BackendError, MissingDependency, UsageError

HERE = str(Path(__file__).parent)


def double(array: np.ndarray, *, plus: int = 0) -> np.ndarray:
    print("noise on stdout")
    print("noise on stderr", file=sys.stderr)
    os.write(1, b"raw noise")
    return array * 2 + plus


def raise_expected() -> None:
    raise MissingDependency("no such thing here.", fix="pip install thing")


def raise_unexpected() -> None:
    raise RuntimeError("the shape was odd")


def segfault() -> None:
    print("about to fall", file=sys.stderr, flush=True)
    ctypes.string_at(0)


def leave(how: str) -> None:
    if how == "os":
        os._exit(7)
    if how == "sys":
        sys.exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def sleep_and_tell(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def loaded_modules() -> list[str]:
    return sorted(sys.modules)


def allocate(size: int) -> int:
    return int(np.ones(size, np.uint8).sum())


def unpicklable() -> object:
    return lambda: 0


def count(numbers: int, *, progress: Callable[..., None], then: str = "") -> str:
    for i in range(numbers):
        progress(i, {"of": numbers})
    if then == "sleep":
        time.sleep(60)
    if then == "raise":
        raise UsageError("no more.")
    return "done"


def process_id() -> int:
    return os.getpid()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    for _ in range(int(seconds * 20)):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_call_gives_the_result_when_the_function_prints(capfd: pytest.CaptureFixture[str]) -> None:
    array = np.arange(2_000_000, dtype=np.float32)
    np.testing.assert_array_equal(call(double, array, plus=1), array * 2 + 1)
    assert capfd.readouterr() == ("", "")


def test_call_runs_in_another_process() -> None:
    assert call(process_id) != os.getpid()


def test_call_raises_the_same_error_when_the_function_raises_an_expected_one() -> None:
    with pytest.raises(MissingDependency) as caught:
        call(raise_expected)
    assert (caught.value.message, caught.value.fix) == ("no such thing here.", "pip install thing")


def test_call_raises_backend_error_when_the_function_raises_another() -> None:
    with pytest.raises(BackendError, match="ONNX Runtime failed: RuntimeError: the shape was odd"):
        call(raise_unexpected, what="ONNX Runtime")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_call_names_the_signal_and_last_words_when_the_child_crashes() -> None:
    with pytest.raises(BackendError, match=r"ONNX Runtime crashed with SIGSEGV\. .*about to fall"):
        call(segfault, what="ONNX Runtime")


@pytest.mark.parametrize(("how", "says"), [("os", "exit status 7"), ("sys", "SystemExit: 7"), ("kill", "memory")])
def test_call_raises_backend_error_when_the_child_leaves_early(how: str, says: str) -> None:
    with pytest.raises(BackendError, match=says):
        call(leave, how)


def test_call_raises_backend_error_when_time_is_up() -> None:
    with pytest.raises(BackendError, match=r"longer than 0\.5 seconds"):
        call(sleep, 60, timeout=0.5)


def test_call_raises_backend_error_when_the_result_cannot_be_sent() -> None:
    with pytest.raises(BackendError, match="cannot be sent"):
        call(unpicklable)


def test_progress_is_passed_on_in_order_and_in_full() -> None:
    heard: list[tuple[object, ...]] = []
    assert call(count, 5000, progress=lambda *values: heard.append(values)) == "done"
    assert heard == [(i, {"of": 5000}) for i in range(5000)]


def test_progress_is_heard_while_the_child_runs_and_when_it_fails() -> None:
    heard: list[int] = []
    with pytest.raises(BackendError, match=r"longer than 3 seconds"):
        call(count, 2, progress=lambda i, _: heard.append(i), then="sleep", timeout=3)
    with pytest.raises(UsageError, match="no more"):
        call(count, 2, progress=lambda i, _: heard.append(i), then="raise")
    assert heard == [0, 1, 0, 1]


def test_child_ends_when_the_one_who_hears_of_its_progress_raises() -> None:
    def stop(i: int, _: object) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call(count, 2, progress=stop, then="sleep")
    assert time.monotonic() - began < 30


def test_call_refuses_when_the_function_has_no_importable_name() -> None:
    with pytest.raises(ValueError, match="top level"):
        call(lambda: 0)


def test_child_imports_no_heavy_module_when_the_function_needs_none() -> None:
    modules = call(loaded_modules)
    assert not {"torch", "onnx", "onnxruntime", "onnx_ir"} & set(modules)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_call_measured_sees_the_childs_memory_and_not_the_parents() -> None:
    ballast = np.ones(400 << 20, np.uint8)
    small = call_measured(allocate, 1)[1]
    count, large = call_measured(allocate, 128 << 20)
    assert count == 128 << 20
    assert ballast.nbytes > small
    assert 100 << 20 < large - small < 160 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_child_ends_when_the_parent_is_killed_or_interrupted(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        f"import sys; sys.path.insert(0, {HERE!r}); import test_isolate as t\n"
        f"from vitdeploy.backends.isolate import call\ncall(t.sleep_and_tell, {str(tmp_path / 'pid')!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    parent.send_signal(how)
    _, errors = parent.communicate(timeout=20)
    assert gone_within(pid, 10)
    if how == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors


def test_import_of_usage_error_keeps_its_class_through_pickle() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(UsageError("a", fix="b")))
    assert (type(again), again.message, again.fix) == (UsageError, "a", "b")

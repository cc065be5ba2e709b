"""Run a function in a child interpreter, so that a native crash or a leak in a runtime cannot take the caller down.

Not multiprocessing: its spawn imports the user's __main__ again. The child gets the function by name and the arguments
as a pickle in a private folder; its stdin is a lifeline whose end means that the parent is gone.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar

from vitdeploy.errors import BackendError, VitdeployError

Result = TypeVar("Result")

# -I keeps the current folder and PYTHON* variables from shadowing modules; sys.path comes from the parent.
BOOT = """
import json, sys
folder = sys.argv[1]
with open(folder + "/path.json", encoding="utf-8") as file:
    sys.path[:] = json.load(file)
from vitdeploy.backends.isolate import _child
_child(folder)
"""
LOG_LINES = 5
PROGRESS = "progress"
POLL_S = 0.1


def call(
    function: Callable[..., Result],
    *args: Any,
    timeout: float | None = None,
    what: str = "The runtime",
    progress: Callable[..., None] | None = None,
    **kwargs: Any,
) -> Result:
    """`function(*args, **kwargs)`, run in a fresh Python process.

    Args:
        function: of a module's top level; the child imports that module and nothing else of the caller's.
        args, kwargs: picklable.
        timeout: seconds; None waits for ever.
        what: names the thing that runs, for messages ('ONNX Runtime').
        progress: the function is given a `progress` of its own; what it calls that with (JSON values) is passed on to
            this one, in order, within a tenth of a second.

    Raises:
        VitdeployError: the one that the function raised, of the same class.
        BackendError: the function raised anything else, crashed, exited, or ran out of time.
    """
    return call_measured(function, *args, timeout=timeout, what=what, progress=progress, **kwargs)[0]


def call_measured(
    function: Callable[..., Result],
    *args: Any,
    timeout: float | None = None,
    what: str = "The runtime",
    progress: Callable[..., None] | None = None,
    **kwargs: Any,
) -> tuple[Result, int]:
    """As `call`; returns (result, the child's peak resident memory in bytes, Python itself included)."""
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} must be at the top level of an importable module.")
    with TemporaryDirectory(prefix="vitdeploy-") as name:
        folder = Path(name)
        # Imports that came through the working folder must still work: '' becomes that folder.
        (folder / "path.json").write_text(json.dumps([str(entry) or str(Path.cwd()) for entry in sys.path]), "utf-8")
        with (folder / "call.pickle").open("wb") as file:
            pickle.dump((function, args, kwargs), file, protocol=5)
        if progress is not None:
            (folder / PROGRESS).touch()
        code = _run(folder, timeout, what, progress)
        return _result(folder, code, what)


def _run(folder: Path, timeout: float | None, what: str, progress: Callable[..., None] | None) -> int:
    """Start the child, wait for it, and return its exit status (negative: a signal)."""
    own_group: dict[str, Any] = {} if os.name == "nt" else {"start_new_session": True}
    # What a runtime puts into a temporary folder, and leaves there when it crashes, goes with this one.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            **own_group,
        )
    try:
        return child.wait(timeout) if progress is None else _wait_and_tell(child, folder, timeout, progress)
    except subprocess.TimeoutExpired:
        raise BackendError(f"{what} took longer than {timeout:g} seconds.{_log_tail(folder)}") from None
    finally:
        # Also on KeyboardInterrupt: nothing that the child started may outlive this call.
        _kill(child)
        if child.stdin is not None:
            child.stdin.close()


def _wait_and_tell(
    child: subprocess.Popen[bytes], folder: Path, timeout: float | None, progress: Callable[..., None]
) -> int:
    """Wait for the child and pass on what it reports, a line of the progress file at a time."""
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    begun = b""  # a line that the child has not written in full
    with (folder / PROGRESS).open("rb") as stream:
        while True:
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(max(0.0, min(POLL_S, deadline - time.monotonic())))
            *lines, begun = (begun + stream.read()).split(b"\n")
            for line in lines:
                progress(*json.loads(line))
            if code is not None:
                return code
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(child.args, timeout or 0.0)


def _kill(child: subprocess.Popen[bytes]) -> None:
    if os.name != "nt":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    if child.poll() is None:
        child.kill()
        child.wait()


def _result(folder: Path, code: int, what: str) -> tuple[Any, int]:
    file = folder / "result.pickle"
    if not file.exists():
        raise BackendError(f"{what} {_ending(code)}.{_log_tail(folder)}")
    try:
        with file.open("rb") as stream:
            kind, value, peak = pickle.load(stream)
    except Exception as error:
        raise BackendError(f"{what} gave a result that cannot be read ({error}).") from error
    if kind == "result":
        return value, peak
    if kind == "expected":
        raise value
    raise BackendError(f"{what} failed: {value}.")


def _ending(code: int) -> str:
    """How a child ended that left no result."""
    if code >= 0:
        return f"ended with exit status {code} before it gave a result"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "was killed (SIGKILL), as happens when memory runs out"
    return f"crashed with {name}"


def _log_tail(folder: Path) -> str:
    text = (folder / "log").read_bytes()[-8192:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-LOG_LINES:]
    return f" Its last words: {' | '.join(lines)}" if lines else ""


def _child(name: str) -> None:
    """What the child runs: read the call, make it, write the outcome beside it and rename it into place."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    folder = Path(name)
    outcome: tuple[str, Any]
    try:
        with (folder / "call.pickle").open("rb") as file:
            function, args, kwargs = pickle.load(file)
        if (folder / PROGRESS).exists():
            kwargs["progress"] = partial(_tell, (folder / PROGRESS).open("ab", buffering=0))
        outcome = ("result", function(*args, **kwargs))
    except VitdeployError as error:
        outcome = ("expected", error)
    except BaseException as error:  # SystemExit too: the parent wants to know.
        outcome = ("other", f"{type(error).__name__}: {error}".rstrip(". "))
    part = folder / "result.part"
    try:
        with part.open("wb") as file:
            pickle.dump((*outcome, _peak_rss()), file, protocol=5)
    except Exception as error:
        with part.open("wb") as file:
            pickle.dump(("other", f"its result cannot be sent ({error})", 0), file)
    part.replace(folder / "result.pickle")
    # Runtimes with threads of their own have hung or crashed while the interpreter shuts down.
    sys.stdout.flush()
    os._exit(0)


def _tell(file: BinaryIO, *values: Any) -> None:
    file.write(json.dumps(values).encode() + b"\n")


def _exit_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _peak_rss() -> int:
    """Peak resident bytes of this process since it began to run this program."""
    try:
        # getrusage would count what the parent had before exec.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

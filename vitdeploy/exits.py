"""How the command line ends: on errors, signals and closed pipes, each with its documented exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

from vitdeploy.errors import UsageError, VitdeployError

FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
BROKEN_PIPE = 141
WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

TIDYING_SECONDS = 2.0

received: list[int] = []  # signals, in order
quiet_until = 0.0


def run(app: Callable[..., Any]) -> NoReturn:
    """Call a Typer app and exit with the code that its outcome has."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a terminal of another alphabet
    unwind_on_signals()
    try:
        returned = app(standalone_mode=False)
        sys.stdout.flush()
        code = returned if isinstance(returned, int) else 0
    except BaseException as error:
        # Whatever a library made of the interruption on its way through, it is no error of the model's.
        code = 0 if received else code_of(error)
    if received:
        with suppress(OSError):
            print(WORDS[signal.Signals(received[0]).name], file=sys.stderr)
        code = 128 + received[0]
    leave(code)


def unwind_on_signals() -> None:
    """Ctrl-C, a polite kill and a closed terminal unwind, so that temporary folders and child processes go."""
    for name in WORDS:
        number = getattr(signal, name, None)
        # what nohup or a background shell ignores stays ignored
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, note_and_raise)
    sys.unraisablehook = lambda found: None if received else sys.__unraisablehook__(found)


def note_and_raise(number: int, _: FrameType | None) -> None:
    """Raise, unless the last signal is still being obeyed: an impatient second one must not stop the tidying up."""
    global quiet_until
    impatient = time.monotonic() < quiet_until
    quiet_until = time.monotonic() + TIDYING_SECONDS
    received.append(number)
    if not impatient:
        raise KeyboardInterrupt


def stop_if_asked() -> None:
    """Raise again what a library may have swallowed: the interruption can strike where exceptions are ignored."""
    if received:
        raise KeyboardInterrupt


def code_of(error: BaseException) -> int:
    """Tell an error on stderr; returns its exit code. A bug of ours is raised again, for its traceback."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # what Typer makes of it
        return BROKEN_PIPE
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in FULL:
        error = UsageError(f"Cannot write {error.filename or 'the output'}: {error.strerror}.")
    torch_is_out = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or torch_is_out:
        error = UsageError("There is not enough memory for this.", fix="A smaller image or batch needs less.")
    usage = hasattr(error, "format_message")
    if not (usage or isinstance(error, VitdeployError)):
        raise error
    with suppress(OSError):  # a full disk behind stderr does not change the code
        tell_usage(error) if usage else tell(error)
    return int(getattr(error, "exit_code", 1))


def tell(error: Any) -> None:
    from vitdeploy.report.tables import print_error

    if "--verbose" in sys.argv or "-v" in sys.argv:
        import traceback

        traceback.print_exception(error)
    print_error(error)


def tell_usage(error: Any) -> None:
    """Typer's own usage errors, in our shape."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return
    text = error.format_message()
    print(f"error: {text}{'' if text.endswith(('.', '?', '!')) else '.'}", file=sys.stderr)
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"       Try: {context.command_path} --help", file=sys.stderr)


def leave(code: int) -> NoReturn:
    """Exit with `code`, whatever becomes of what is still to be written."""
    flush(sys.stdout)
    flush(sys.stderr)
    if received:
        os._exit(code)  # an interrupted library may hang or complain while the interpreter shuts down
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; Ctrl-C in the shutdown would show a traceback
    raise SystemExit(code)


def flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:  # nobody reads, or the disk is full: the interpreter must not try again on its way out
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

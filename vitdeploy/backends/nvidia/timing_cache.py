"""TensorRT's timing cache: how long each kernel took on this device, so that the next build need not time it again.

One file for each device and version, since a cache of another is of no use. Builders in several processes may write
it: each adds its own measurements to what is there, under a lock, and replaces the file whole.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitdeploy import cache
from vitdeploy.errors import UsageError

OFF = "off"


def place(option: str, runtime: str, version: str, device: str) -> Path | None:
    """The cache's file: the one that was named, or the one of this device and version; None where there is to be none.

    Args:
        option: a path, 'off' or empty.
        device: name and compute capability: 'NVIDIA L4 8.9'.

    Raises UsageError where a file that was named cannot be written: better now than after a build of minutes.
    """
    if option.lower() == OFF:
        return None
    if not option:
        name = re.sub(r"[^\w.\-]+", "-", f"{runtime}-{version}-{device}").strip("-")
        return cache.folder("timing") / f"{name}.cache"
    file = Path(option).expanduser().absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab"):
            pass
    except OSError as error:
        raise UsageError(f"The timing cache {file} cannot be written: {error.strerror or error}.") from error
    return file


def attach(config: Any, file: Path | None) -> None:
    """Have the builder start from what the file holds; a damaged one is as good as none.

    Raises UsageError where it cannot be read.
    """
    if file is None:
        return
    held = config.create_timing_cache(_read(file))
    if held is None or not config.set_timing_cache(held, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(config: Any, file: Path | None) -> None:
    """Add what the builder measured to the file; on a full disk the next build measures again."""
    measured = config.get_timing_cache() if file is not None else None
    if file is None or measured is None:
        return
    with suppress(OSError, UsageError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            others = config.create_timing_cache(_read(file))  # another builder may have written meanwhile
            if others is not None:
                measured.combine(others, False)
            _replace(file, bytes(memoryview(measured.serialize())))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"The timing cache {file} cannot be read: {error.strerror or error}.") from error


def _replace(file: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Wait for whoever else writes the file. Where the system has no such locks, the last writer wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Folders that appear whole: made hidden beside their place, and renamed onto it.

A hidden folder holds a lock that the system drops with its process, so what a killed run leaves behind is told from
what a live one is writing.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitdeploy.errors import UsageError

if sys.platform != "win32":
    import fcntl

# Where the system has no locks on folders, another machine may be writing: what it left is kept for this long.
UNLOCKED_SECONDS = 24 * 3600
ATTEMPTS = 20
FULL = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
REFUSED = {errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


def make_stage(place: Path, parents: list[Path]) -> tuple[Path, int | None]:
    """A new locked folder beside `place`, and the lock; the parents that had to be made are added to `parents`."""
    for _ in range(ATTEMPTS):
        try:
            _make_parents(place.parent, parents)
            folder = _hidden(place, "tmp")
            folder.mkdir()
        except FileNotFoundError:  # another run failed and took the parents that it had made with it
            continue
        lock: int | None = None
        try:
            lock = lock_folder(folder)
            if lock is None or os.path.samestat(os.fstat(lock), folder.stat()):
                return folder, lock
        except (BlockingIOError, FileNotFoundError):
            pass  # a tidying run came between mkdir and lock, and took it for a dead one's
        except BaseException:
            folder.rmdir()
            raise
        if lock is not None:
            os.close(lock)
    raise FileNotFoundError(errno.ENOENT, "The folder above it keeps vanishing")


def _make_parents(folder: Path, made: list[Path]) -> None:
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir()
            made.append(path)


def move_into(folder: Path, place: Path, check: Callable[[], None]) -> None:
    """Rename `folder` to `place`. A folder that is there is replaced, in one step where possible.

    `check` raises unless it may be replaced, and FileNotFoundError when it vanishes meanwhile.
    """
    for attempt in range(ATTEMPTS):
        try:
            if not os.path.lexists(place):
                os.rename(folder, place)  # noqa: PTH104  refused by the system when a filled folder came meanwhile
                return
            check()
            if not _exchange(folder, place):
                _exchange_by_renames(folder, place)
            shutil.rmtree(folder, ignore_errors=True)  # now the old one, by a name that tidy knows
            return
        except OSError as error:  # noqa: PERF203
            moved_meanwhile = error.errno in OCCUPIED or isinstance(error, (FileNotFoundError, BlockingIOError))
            if not moved_meanwhile or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.01)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step. False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _exchange_by_renames(new: Path, place: Path) -> None:
    """Swap two folders in three steps. Whoever dies before the second leaves an '.old' that `tidy` brings back."""
    aside = _hidden(place, "old")
    lock = lock_folder(place)
    try:
        os.rename(place, aside)  # noqa: PTH104
        try:
            os.rename(new, place)  # noqa: PTH104
        except BaseException:
            if not os.path.lexists(place):
                os.rename(aside, place)  # noqa: PTH104
            else:  # another run took the place meanwhile, which replaced the old one as well
                _remove(aside, _hidden(place, "tmp"))
            raise
        with suppress(OSError):  # the new one is in place; the next run can still remove the old one
            os.rename(aside, new)  # noqa: PTH104
    finally:
        if lock is not None:
            os.close(lock)


def _remove(aside: Path, doomed: Path) -> None:
    """An '.old' is always whole: it is not deleted by that name."""
    os.rename(aside, doomed)  # noqa: PTH104
    shutil.rmtree(doomed, ignore_errors=True)


def tidy(place: Path) -> None:
    """Remove what dead processes left beside `place`; put back the artifact that one of them had moved aside."""
    pattern = re.compile(re.escape(f".{place.name}.") + r"(tmp|old)-(\d+)-[0-9a-f]+")
    try:
        names = sorted(os.listdir(place.parent))  # noqa: PTH208
    except OSError:
        return
    for name in names:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        left = place.parent / name
        lock: int | None = None
        with suppress(OSError):  # BlockingIOError: in use; others: gone, or not ours to remove
            try:
                lock = lock_folder(left)
                if lock is None and not _abandoned(left, int(match[2])):
                    continue
                if match[1] == "old" and not os.path.lexists(place):
                    os.rename(left, place)  # noqa: PTH104
                else:
                    _remove(left, _hidden(place, "tmp"))
            finally:
                if lock is not None:
                    os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed, wherever the folder is moved.

    None where the system or the file system has no locks on folders. Raises BlockingIOError when another holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _abandoned(folder: Path, pid: int) -> bool:
    """Without locks: whether its process is gone and nothing has been added for long."""
    return time.time() - folder.stat().st_mtime > UNLOCKED_SECONDS and not _runs(pid)


def _runs(pid: int) -> bool:
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        return bool(handle and ctypes.windll.kernel32.CloseHandle(handle))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def disk_errors(shown: Path, folder: Path, *, everything: bool = False) -> Iterator[None]:
    """Turn OSErrors into UsageErrors about `shown`: all, or only a full disk and refused writes in `folder`."""
    try:
        yield
    except OSError as error:
        file = Path(error.filename) if isinstance(error.filename, str) else None
        inside = file is None or folder in (file, *file.parents)
        if not (everything or error.errno in FULL or (error.errno in REFUSED and inside)):
            raise
        place = shown if inside or everything else file
        fix = "Free some space, or choose another place with --out." if error.errno == errno.ENOSPC else None
        raise UsageError(f"Cannot write {place}: {error.strerror or error}.", fix=fix) from error


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Lend a folder that takes its place when all went well; else nothing stays behind.

    Raises UsageError when the destination exists or cannot be written.
    """

    def refuse() -> None:
        raise UsageError(f"{destination} exists.", fix="Choose another place.")

    place = Path(os.path.realpath(destination))
    parents: list[Path] = []
    stage, lock, done = None, None, False
    try:
        with disk_errors(destination, place.parent, everything=True):
            if os.path.lexists(place):
                refuse()
            tidy(place)
            stage, lock = make_stage(place, parents)
        with disk_errors(destination, stage):
            yield stage
        with disk_errors(destination, place.parent, everything=True):
            flush(stage)
            move_into(stage, place, refuse)
        done = True
    finally:
        if not done:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)
            for parent in reversed(parents):
                with suppress(OSError):
                    parent.rmdir()
        if lock is not None:
            os.close(lock)


def files_in(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted. Unlike Path.rglob, raises OSError on a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    return sorted(Path(root, name) for root, _, names in os.walk(folder, onerror=refuse) for name in names)


def flush(folder: Path) -> None:
    """Have the disk hold every file before the rename says so; a full disk may only show here."""
    if sys.platform == "win32":
        return
    files = files_in(folder)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for each in {folder, *(file.parent for file in files)}:
        flush_folder(each)


def flush_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):  # not every file system can flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _hidden(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}")

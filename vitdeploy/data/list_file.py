"""Lists of images: a text file with one path a line, and perhaps its label."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from pathlib import Path

from vitdeploy.data.folder import EXTENSIONS
from vitdeploy.errors import UsageError

_ENDINGS = "|".join(sorted(extension[1:] for extension in EXTENSIONS))
# Greedy: the path ends at the last image extension that a separator or the line's end follows.
_PATH_AND_LABEL = re.compile(rf"(.*\.(?:{_ENDINGS}))(?:\s*[,\t]\s*|\s+|$)(.*)", re.IGNORECASE)
_LAST_WORD = re.compile(r"(.*\S)(?:\s*[,\t]\s*|\s+)([^,\s]+)")


def read_list(path: Path) -> list[tuple[Path, str | None]]:
    """The images of a list file, each with its label or None, in the file's order.

    Blank lines and lines that begin with # are skipped. Paths are relative to the list's folder. After the path, and
    behind a comma, a tab or spaces, may stand a label: a class's number or name. The path ends at the last image
    extension (.jpg, .png, ...) that is followed so, hence it may hold spaces and commas itself, and so may the label:

        photos/red fox.jpg
        photos/red fox.jpg 3
        photos/red fox.jpg, Vulpes vulpes

    A line without any such extension is a path if there is such a file, or else its last word is the label. A path in
    double quotes is taken as CSV has it. The first line of a .csv is skipped when it names neither an image nor a file.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text, or lists nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a list of images: it is not UTF-8 text.") from None
    entries = []
    may_be_head = path.suffix.lower() == ".csv"
    for line in map(str.strip, lines):
        if not line or line.startswith("#"):
            continue
        name, label = _split(line, path.parent)
        image = path.parent / name
        if not (may_be_head and image.suffix.lower() not in EXTENSIONS and not _is_file(image)):
            entries.append((image, label or None))
        may_be_head = False
    if not entries:
        raise UsageError(f"{path} lists no image.", fix="Write one path a line, relative to the list's folder.")
    return entries


def _split(line: str, folder: Path) -> tuple[str, str]:
    """The path and the label of a line; the label is empty where there is none."""
    if line.startswith('"'):
        with suppress(csv.Error):  # then it is no CSV
            name, *rest = next(csv.reader([line], skipinitialspace=True))
            return name, ",".join(rest).strip()
    found = _PATH_AND_LABEL.fullmatch(line)
    if found is None and not _is_file(folder / line):
        found = _LAST_WORD.fullmatch(line)
    return (found[1], found[2].strip('"')) if found is not None else (line, "")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False

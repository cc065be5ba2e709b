"""Artifact: a folder that holds the model file(s) and `manifest.json`. It is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vitdeploy import __version__
from vitdeploy.errors import UsageError
from vitdeploy.spec import LARGEST_BATCH, ModelSpec
from vitdeploy.staging import disk_errors, files_in, flush, flush_folder, make_stage, move_into, tidy

MANIFEST = "manifest.json"
REPOSITORY = "triton"  # the folder that is a Triton model repository: NAME/VERSION/model file
PACKED = ".mlpackage"  # the suffix of a folder that is one model
SCHEMA = 2
ADDED: dict[int, dict[str, Any]] = {2: {"devices": []}}  # by schema: what older manifests lack


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, where it came from and how it fared. JSON values, but for `model`.

    A new or changed field needs a new schema: an older vitdeploy refuses what it cannot read in full.

    Attributes:
        model: the ModelSpec.
        request: what was asked for: precision, backend, batch, opset, io_precision, threads, ...
        applied: what was applied: notes on precision, census, fp32 islands.
        model_file: the file that the backend opens, relative to the folder.
        files: {name relative to the folder: {'bytes': int, 'sha256': hex}}, the manifest itself left out.
        passes: [{'name': str, 'rewrites': int}] in the order in which they ran.
        graph: nodes, parameters, macs.
        verification, bench: their results, or None where they were not run.
        devices: what other devices reported of this artifact, in the order in which they did; see lab.results.
        environment: the machine and the versions.
        lineage: digests of the parents: the weights file, the parent artifact.
        steps: [{'name': str, 'seconds': float, 'detail': str}] in order.
        vitdeploy: version that wrote it.
        schema: of this record.
    """

    model: ModelSpec
    request: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Any] = field(default_factory=dict)
    model_file: str = "model.onnx"
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    passes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    graph: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] | None = None
    bench: Mapping[str, Any] | None = None
    devices: Sequence[Mapping[str, Any]] = field(default_factory=list)
    environment: Mapping[str, Any] = field(default_factory=dict)
    lineage: Sequence[str] = field(default_factory=list)
    steps: Sequence[Mapping[str, Any]] = field(default_factory=list)
    vitdeploy: str = __version__
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a number that is not finite becomes None."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return _plain(own | {"model": self.model.to_dict()})

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """Inverse of `to_dict`. Raises UsageError on a newer schema, a missing or unknown field, or a wrong kind."""
        if not isinstance(data, dict):
            raise UsageError(f"It is {_kind(data)}, not an object.")
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UsageError("It has no valid 'schema'.")
        if schema > SCHEMA:
            raise UsageError(
                f"It has schema {schema}, newer than the {SCHEMA} that vitdeploy {__version__} reads.",
                fix="Upgrade vitdeploy.",
            )
        for later, added in ADDED.items():
            data = data | (added | {"schema": later} if schema < later else {})
        for name in sorted(set(FIELD_KINDS) ^ set(data)):
            raise UsageError(f"It lacks the field '{name}'." if name in FIELD_KINDS else f"'{name}' is not a field.")
        for name, kinds in FIELD_KINDS.items():
            if not _is(data[name], *kinds):
                raise UsageError(f"'{name}' is {_kind(data[name])}, not {_kind(kinds[0]())}.")
        for name in (*data["files"], data["model_file"]):
            _check_name(name)
        for name, entry in data["files"].items():
            _check_record(f"files/{name}", entry, bytes=int, sha256=str)
        for entry in data["passes"]:
            _check_record("passes", entry, name=str, rewrites=int)
        for entry in data["steps"]:
            _check_record("steps", entry, name=str, seconds=float, detail=str)
        _check_request(data["request"])
        if not all(_is(entry, dict) for entry in data["devices"]):
            raise UsageError("'devices' is not a list of objects.")
        if not all(_is(digest, str) for digest in data["lineage"]):
            raise UsageError("'lineage' is not a list of digests.")
        return cls(**(data | {"model": ModelSpec.from_dict(data["model"])}))

    def to_json(self) -> str:
        """ASCII; the same manifest gives the same text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Inverse of `to_json`. Raises UsageError as `from_dict` does, and on text that is not JSON."""
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"It is not JSON: {error}.") from None
        return cls.from_dict(data)


def _check_request(request: dict[str, Any]) -> None:
    """What opening and verifying an artifact takes from its request; the rest is for people."""
    kinds: dict[str, type] = {"backend": str, "precision": str, "io_precision": str, "opset": int, "build": dict}
    for name, kind in kinds.items():
        if name in request and not _is(request[name], kind):
            raise UsageError(f"'request/{name}' is {_kind(request[name])}, not {_kind(kind())}.")
    if not _is(request.get("build", {}).get("seed", 0), int):
        raise UsageError("'request/build/seed' is no whole number.")
    batch = request.get("batch", 1)
    sizes = batch if isinstance(batch, list) and len(batch) == 3 else [batch]
    if not all(_is(size, int) and 1 <= size <= LARGEST_BATCH for size in sizes):
        raise UsageError(f"'request/batch' is {batch!r}, not a size from 1 to {LARGEST_BATCH} or [min, opt, max].")


FIELD_KINDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "vitdeploy": (str,),
    "model": (dict,),
    "request": (dict,),
    "applied": (dict,),
    "model_file": (str,),
    "files": (dict,),
    "passes": (list,),
    "graph": (dict,),
    "verification": (dict, type(None)),
    "bench": (dict, type(None)),
    "devices": (list,),
    "environment": (dict,),
    "lineage": (list,),
    "steps": (list,),
}


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read an artifact from its folder, or from the path of a file in it.

        Raises UsageError when there is no manifest, or when it cannot be read; file digests are left to `check_files`.
        """
        path = Path(path)
        if not path.exists():
            raise UsageError(f"No such artifact: {path}.")
        folder = path if path.is_dir() else folder_of(path)
        file = folder / MANIFEST
        if not file.is_file():
            raise UsageError(f"{path} is not an artifact: {'it' if folder == path else folder} has no {MANIFEST}.")
        try:
            return cls(folder, Manifest.from_json(file.read_bytes()))
        except OSError as error:
            raise UsageError(f"Cannot read {file}: {error.strerror or error}.") from error
        except UsageError as error:
            raise UsageError(f"{file} is not a manifest that can be read: {error.message}", fix=error.fix) from None

    @property
    def model_path(self) -> Path:
        """The file that the backend opens."""
        return self.folder / self.manifest.model_file

    def check_files(self) -> None:
        """Hold every file against the manifest. Raises UsageError on the first that is missing or has changed."""
        for name, entry in sorted(self.manifest.files.items()):
            file = self.folder / name
            if not file.is_file():
                raise UsageError(f"{file} is missing.", fix="Export the artifact again.")
            if file.stat().st_size != entry["bytes"] or digest_file(file) != entry["sha256"]:
                raise UsageError(f"{file} has changed since it was exported.", fix="Export the artifact again.")

    def amend(self, manifest: Manifest, texts: Mapping[str, str]) -> Artifact:
        """The artifact with another manifest and with `texts` (by file name) in place of what it had; whole or nothing.

        Raises UsageError when the folder cannot be written.
        """
        with staged(self.folder, force=True) as stage:
            for file in files_in(self.folder):
                name = file.relative_to(self.folder)
                if name.as_posix() not in {MANIFEST, *texts}:
                    (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    _link(file, stage.folder / name)
            for title, text in texts.items():
                (stage.folder / title).write_text(text, encoding="utf-8", newline="\n")
            return stage.commit(manifest)

    def digest(self) -> str:
        """sha256 over the names and contents of the files that the manifest lists; what `lineage` holds of a parent."""
        listed = sorted((name, entry["sha256"]) for name, entry in self.manifest.files.items())
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


class Stage:
    """A folder in the making. `commit` turns it into the artifact."""

    def __init__(self, folder: Path, place: Path, shown: Path, force: bool) -> None:
        self.folder = folder
        self.committed = False
        self._place, self._shown, self._force = place, shown, force

    def commit(self, manifest: Manifest, *, failed: bool = False) -> Artifact:
        """Write the manifest, with the digests of all files, and move the folder to its place in one step.

        Args:
            manifest: `files` is filled in here.
            failed: move it to `<destination>.failed` instead, in place of an older one.

        Raises:
            UsageError: the folder cannot be written, or another process took the destination meanwhile.
        """
        place, shown = (_failed(self._place), _failed(self._shown)) if failed else (self._place, self._shown)
        with disk_errors(shown, self.folder, everything=True):
            manifest = replace(manifest, files=_digests(self.folder))
            if not failed and not (self.folder / manifest.model_file).exists():
                raise ValueError(f"nothing wrote {manifest.model_file}")
            (self.folder / MANIFEST).write_text(manifest.to_json(), encoding="ascii", newline="\n")
            flush(self.folder)
            force = self._force or failed
            move_into(self.folder, place, lambda: _refuse_to_replace(place, shown, force=force))
            self.committed = True
            flush_folder(place.parent)
        return Artifact(shown, manifest)


@contextmanager
def staged(destination: Path, *, force: bool = False) -> Iterator[Stage]:
    """Lend a Stage for the artifact `destination`. Unless it is committed, nothing stays behind, parents included.

    What earlier runs for this destination left when they were killed is removed first; the artifact that one of them
    was just replacing comes back.

    Args:
        destination: the artifact's folder; a symbolic link means the folder that it points at.
        force: replace an existing artifact at the commit, and never a folder that is something else.

    Raises:
        UsageError: it exists, is not a folder, or cannot be written; a full disk, also one that the body runs into.
    """
    destination = Path(destination)
    place = Path(os.path.realpath(destination))
    if not place.name:
        raise UsageError(f"{destination} cannot be an artifact's folder.")
    for beside in (place, _failed(place)):
        tidy(beside)
    with disk_errors(destination, place.parent, everything=True), suppress(FileNotFoundError):
        _refuse_to_replace(place, destination, force=force)
    parents: list[Path] = []
    stage: Stage | None = None
    lock: int | None = None
    try:
        with disk_errors(destination, place.parent, everything=True):
            folder, lock = make_stage(place, parents)
        stage = Stage(folder, place, destination, force)
        with disk_errors(destination, folder):
            yield stage
    finally:
        if stage is None or not stage.committed:
            if stage is not None:
                shutil.rmtree(stage.folder, ignore_errors=True)
            for parent in reversed(parents):
                with suppress(OSError):
                    parent.rmdir()
        if lock is not None:
            os.close(lock)


def folder_of(file: Path) -> Path:
    """The folder of the artifact that a file would belong to.

    That is its own, or the one around a Triton model repository or a Core ML package.
    """
    parents = (file if len(file.parents) > 3 else file.absolute()).parents
    packed = len(parents) > 3 and (parents[2].name == REPOSITORY or parents[2].suffix == PACKED)
    around = parents[3:4] if packed else ()
    return next((folder for folder in (file.parent, *around) if (folder / MANIFEST).is_file()), file.parent)


def digest_file(path: Path) -> str:
    """sha256 of a file, read in pieces. Raises UsageError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def _refuse_to_replace(place: Path, shown: Path, *, force: bool) -> None:
    """Raise UsageError unless `place` is an artifact (or empty folder) that may be replaced.

    Raises FileNotFoundError when there is nothing, or no longer the same folder.
    """
    status = place.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{shown} is not a folder.", fix="Choose another place with --out.")
    if not force:
        raise UsageError(f"{shown} exists.", fix="Use --force to replace it, or --out for another place.")
    try:
        ours = not any(place.iterdir()) or b'"vitdeploy"' in (place / MANIFEST).read_bytes()
    except IsADirectoryError:
        ours = False
    except FileNotFoundError:
        if not os.path.samestat(status, place.stat()):
            raise
        ours = False
    except OSError as error:
        raise UsageError(f"Cannot read {error.filename or shown}: {error.strerror or error}.") from error
    if not ours:
        raise UsageError(
            f"{shown} exists and is not an artifact, so --force leaves it alone.",
            fix="Move it away, or choose another place with --out.",
        )


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in files_in(folder)
        if path != folder / MANIFEST
    }


def _link(file: Path, to: Path) -> None:
    try:
        to.hardlink_to(file)
    except OSError:  # a file system without links
        shutil.copy2(file, to)


def _failed(place: Path) -> Path:
    return place.with_name(place.name + ".failed")


def _plain(value: Any) -> Any:
    """JSON values only: tuples become lists, numpy's numbers Python's, and what is not finite None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if not isinstance(value, (str, int, float, type(None))) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is(value: Any, *kinds: type) -> bool:
    """Whether a JSON value is of one of these kinds; a bool is no number here, an int is a float."""
    kinds = (*kinds, int) if float in kinds else kinds
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}
    return names.get(type(value), "null" if value is None else "a number")


def _check_name(name: str) -> None:
    """A file of the artifact must lie in its folder, on every system."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise UsageError(f"The file '{name}' is outside the artifact.")


def _check_record(place: str, record: Any, **kinds: type) -> None:
    if not isinstance(record, dict) or set(record) != set(kinds):
        raise UsageError(f"An entry of '{place}' does not have just the fields {', '.join(kinds)}.")
    for name, kind in kinds.items():
        if not _is(record[name], kind):
            raise UsageError(f"'{name}' in '{place}' is {_kind(record[name])}, not {_kind(kind())}.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")

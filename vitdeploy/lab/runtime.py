"""onnxruntime-web's files: fetched once from the npm registry by an explicit command, checked, and kept."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from pathlib import Path

from vitdeploy.cache import folder
from vitdeploy.errors import MissingDependency, UsageError
from vitdeploy.staging import disk_errors

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512, npm's
LARGEST = 1 << 28
# The smaller build has WebAssembly alone, the other WebGPU too.
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
COMMAND = "vitdeploy lab --fetch"


def files() -> dict[str, Path]:
    """Where the runtime's files lie, by name. Raises MissingDependency where they were never fetched."""
    found = {name: place() / name for name in FILES}
    if not all(path.is_file() for path in found.values()):
        raise MissingDependency(f"onnxruntime-web {VERSION}, which the page runs, is not here.", fix=COMMAND)
    return found


def place() -> Path:
    return folder("onnxruntime-web") / VERSION


def fetch(package: Path | None = None) -> Path:
    """Take the files out of the npm package, which is downloaded unless it is given; returns their folder.

    Raises:
        MissingDependency: the registry cannot be reached.
        UsageError: the package is not the one that this version of vitdeploy knows, or the disk is full.
    """
    data = download() if package is None else read(package)
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != INTEGRITY:
        raise UsageError(f"{package or URL} is not onnxruntime-web {VERSION} as it was published.")
    with disk_errors(place(), place(), everything=True):
        place().mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise UsageError(f"{package or URL} has no {name}.")
                partly = place() / f".{name}.{os.getpid()}"
                partly.write_bytes(member.read())
                partly.replace(place() / name)
    return place()


def download() -> bytes:
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            return bytes(answer.read(LARGEST))
    except OSError as error:
        raise MissingDependency(
            f"{URL} cannot be downloaded: {getattr(error, 'reason', error)}.",
            fix=f"Where there is a network: npm pack onnxruntime-web@{VERSION}; here: {COMMAND} --package FILE.tgz",
        ) from None


def read(package: Path) -> bytes:
    try:
        with package.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise UsageError(f"Cannot read {package}: {error.strerror or error}.") from None

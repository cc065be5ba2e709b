"""What of TensorRT is installed: the whole, a part that cannot build, or something that cannot be loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vitdeploy.backends import isolate
from vitdeploy.errors import BackendError

TIMEOUT_S = 120
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
# Packages that are a part of TensorRT or akin to it, and what to say where nothing else is there.
PARTS = {
    "tensorrt_bindings": "of TensorRT only the Python bindings are installed, without the libraries",
    "tensorrt_lean": "only TensorRT's lean runtime is installed, which runs engines and cannot build them",
    "tensorrt_dispatch": "only TensorRT's dispatch runtime is installed, which runs engines and cannot build them",
    "tensorrt_rtx": "TensorRT-RTX is installed, but not TensorRT itself",
}


@dataclass(frozen=True)
class Installation:
    """A Python module of TensorRT's.

    Attributes:
        version: empty where it cannot build engines.
        reason: why it cannot; empty where it can.
        parts: modules found in its stead or beside it.
    """

    version: str
    reason: str
    parts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reason


@cache
def installation(module: str) -> Installation:
    """What is there of 'tensorrt' or 'tensorrt_rtx'. Never raises; looked at once a process, in a child."""
    parts = tuple(part for part in PARTS if part != module and exists(part))
    if not exists(module):
        return Installation("", _absent(module, parts), parts)
    title = TITLES[module]
    try:
        version, reason = isolate.call(_load, module, timeout=TIMEOUT_S, what=f"Loading {title}")
    except BackendError as error:
        return Installation("", f"{title} is installed and cannot be loaded: {error.message.rstrip('.')}", parts)
    return Installation(version, reason and f"{title} is installed and cannot be loaded: {reason}", parts)


def _absent(module: str, parts: tuple[str, ...]) -> str:
    if module == "tensorrt" and parts:
        return PARTS[parts[0]]
    return f"{TITLES[module]} is not installed"


def exists(module: str) -> bool:
    """Whether Python would find a module. Imports its parents alone."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _load(module: str) -> tuple[str, str]:
    """(version, why it is of no use). Made to run in a child process: libraries that do not fit crash."""
    try:
        trt: Any = import_module(module)
    except Exception as error:
        library = re.search(r"(lib\S+\.so[.\d]*|\S+\.dll)", str(error))
        text = f"{library[1]} is missing" if library and "cannot open" in str(error) else _sentence(error)
        return "", text
    missing = [name for name in ("__version__", "Builder", "OnnxParser", "Runtime") if not hasattr(trt, name)]
    if missing:
        return "", f"it has no {missing[0]}"
    return str(trt.__version__), ""


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(". :")

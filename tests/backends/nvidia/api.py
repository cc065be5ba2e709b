"""The API of NVIDIA's real TensorRT bindings, and a module of that very API that records what is asked of it.

The bindings are wheels on the package index; the libraries that they want are not. Stubs of these let the bindings be
imported, which is enough to read every class, member and signature. Nothing of the API is written down here.
"""

from __future__ import annotations

import enum
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# A folder with one folder a version, as `pip install --no-deps --target FOLDER/11.4 tensorrt-cu13-bindings==11.4.*`.
WHERE = "VITDEPLOY_TENSORRT_BINDINGS"
VERSIONS = ("10.16", "11.4")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
READ = """
import json, sys
import tensorrt_bindings as trt
api = {"__version__": trt.__version__}
for name in dir(trt):
    thing = getattr(trt, name)
    if not isinstance(thing, type) or name.startswith("_"):
        continue
    members = getattr(thing, "__members__", None)
    if members is not None:
        api[name] = {"enum": {key: int(value) for key, value in members.items()}}
        continue
    parts = {}
    for part in dir(thing):
        if part.startswith("_") and part != "__init__":
            continue
        value = getattr(thing, part)
        kind = "property" if isinstance(value, property) else "call" if callable(value) else "constant"
        parts[part] = [kind, (value.__doc__ or "") if kind == "call" else ""]
    api[name] = {"class": parts}
json.dump(api, sys.stdout)
"""


def stub_libraries(folder: Path, major: str) -> Path:
    """Libraries that define what the bindings link to, and do nothing. Skips where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make stub libraries with")
    source = folder / "stub.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in SYMBOLS), encoding="utf-8")
    for library in LIBRARIES:
        soname = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", str(source), f"-Wl,-soname,{soname}", "-o", str(folder / soname)], check=True
        )
    return folder


def bindings(version: str) -> Path:
    """The folder with the bindings of a version. Skips where they are not installed."""
    folder = Path(os.environ.get(WHERE, "/nowhere")) / version
    if not (folder / "tensorrt_bindings").is_dir():
        pytest.skip(f"${WHERE}/{version} has no tensorrt_bindings: see .ci/run")
    return folder


def read_api(version: str, stubs: Path) -> dict[str, Any]:
    """Classes with their members' docstrings, and enums with their values, as the real bindings tell."""
    env = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(bindings(version))}
    done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@dataclass
class Record:
    """What was asked: (class, member, arguments) of every call, and (class, member, value) of every assignment.

    Attributes:
        answers: by (class, member): a value, or a function of the arguments; it overrides what the types suggest.
    """

    calls: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)

    def of(self, kind: str, member: str) -> list[tuple[Any, ...]]:
        """The arguments of each call."""
        return [args for owner, name, args in self.calls if (owner, name) == (kind, member)]


def recorded(api: dict[str, Any], record: Record, name: str = "tensorrt") -> ModuleType:
    """A module with the classes, members, signatures and enums of `api` and no others."""
    module = ModuleType(name)
    module.__dict__["__version__"] = api["__version__"]
    for kind, about in api.items():
        if kind == "__version__":
            continue
        made = (
            enum.IntEnum(kind, about["enum"])
            if "enum" in about
            else _recorded_class(module, kind, about["class"], record)
        )
        setattr(module, kind, made)
    return module


def _recorded_class(module: ModuleType, kind: str, parts: dict[str, list[str]], record: Record) -> type:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).__name__ == kind:
            _check(module, kind, "__init__", parts["__init__"][1], args, kwargs)
        record.calls.append((kind, "__init__", args))

    def get(self: Any, member: str) -> Any:
        if member.startswith("__"):
            raise AttributeError(member)
        if member not in parts:
            raise AttributeError(f"TensorRT {module.__dict__['__version__']}: {kind} has no {member}")
        answer = record.answers.get((kind, member))
        if parts[member][0] == "property":
            return answer() if callable(answer) else answer

        def call(*args: Any, **kwargs: Any) -> Any:
            returned = _check(module, kind, member, parts[member][1], args, kwargs)
            record.calls.append((kind, member, (*args, *kwargs.values())))
            if (kind, member) in record.answers:
                return answer(*args) if callable(answer) else answer
            return _made(module, returned)

        return call

    def put(self: Any, member: str, value: Any) -> None:
        if type(self).__name__ != kind:  # a class of ours that derives from theirs
            object.__setattr__(self, member, value)
            return
        if member not in parts:
            raise AttributeError(f"TensorRT {module.__dict__['__version__']}: {kind} has no {member}")
        record.calls.append((kind, member, (value,)))

    constants = {part: f"{kind}.{part}" for part, (sort, _) in parts.items() if sort == "constant"}
    return type(kind, (), {"__init__": init, "__getattr__": get, "__setattr__": put, **constants})


def _check(module: ModuleType, kind: str, member: str, doc: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Hold arguments against the signatures in a docstring; returns the type that the one that fits gives back."""
    signatures = re.findall(rf"^(?:\d+\. )?{re.escape(member)}\((.*)\) -> (.*)$", doc, re.MULTILINE)
    signatures = [pair for pair in signatures if pair[0] != "*args, **kwargs"]
    if not signatures:
        return "None"
    for parameters, returned in signatures:
        names = [_parameter(text) for text in _split(parameters)][1:]  # self
        if _fits(module, names, args, kwargs):
            return str(returned)
    raise TypeError(f"TensorRT {module.__dict__['__version__']}: {kind}.{member}{(*args, kwargs)} fits no {signatures}")


def _fits(
    module: ModuleType, names: list[tuple[str, str, bool]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    if len(args) > len(names) or not set(kwargs) <= {name for name, _, _ in names[len(args) :]}:
        return False
    given = dict(zip([name for name, _, _ in names], args, strict=False)) | kwargs
    return all(optional or name in given for name, _, optional in names) and all(
        _is(module, given[name], kind) for name, kind, _ in names if name in given
    )


def _is(module: ModuleType, value: Any, kind: str) -> bool:
    """Whether an argument is of a type as pybind11 writes it."""
    short = kind.rpartition(".")[2]
    known = getattr(module, short, None)
    if short == "Dims":
        return isinstance(value, tuple) and all(isinstance(n, int) for n in value)
    if isinstance(known, type):
        return isinstance(value, known)
    plain = {"str": str, "bool": bool, "SupportsInt": int, "SupportsFloat": (int, float), "Buffer": (bytes, memoryview)}
    return isinstance(value, plain[short]) if short in plain else True


def _made(module: ModuleType, kind: str) -> Any:
    short = kind.rpartition(".")[2]
    known = getattr(module, short, None)
    if isinstance(known, type) and not issubclass(known, enum.IntEnum):
        return object.__new__(known)
    return {"bool": True, "int": 0, "str": ""}.get(short)


def _parameter(text: str) -> tuple[str, str, bool]:
    """(name, type, whether it may be left out)."""
    name, _, rest = text.partition(":")
    kind, equals, _ = rest.partition("=")
    return name.strip(), kind.strip(), bool(equals)


def _split(text: str) -> list[str]:
    """At commas that are within no brackets."""
    parts, depth, begin = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]

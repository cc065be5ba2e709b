from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import MissingDependency, UsageError


def entry_points(*points: EntryPoint) -> object:
    return lambda group: list(points)


def test_backends_hold_the_built_in_ones_when_the_metadata_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", entry_points())
    assert {name: backend.name for name, backend in registry.backends().items()} == {
        "inductor": "inductor",
        "onnxruntime": "onnxruntime",
        "openvino": "openvino",
    }


def test_backends_list_a_third_party_one_when_its_import_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "explodes.py").write_text("raise OSError('libfoo.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("gone", "no_such_module:Thing", registry.GROUP),
        EntryPoint("bang", "explodes:Thing", registry.GROUP),
        EntryPoint("odd", "builtins:dict", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", entry_points(*points))
    found = registry.backends()
    assert list(found) == ["bang", "gone", "inductor", "odd", "onnxruntime", "openvino"]
    for name, reason in {
        "gone": "no_such_module",
        "bang": "libfoo.so is missing",
        "odd": "no vitdeploy Backend",
    }.items():
        capabilities = found[name].capabilities()
        assert not capabilities.installed
        assert reason in capabilities.reason
        assert capabilities.fix
        (tmp_path / "m.onnx").touch()
        with pytest.raises(MissingDependency, match=reason):
            found[name].open(tmp_path / "m.onnx", RunOptions())


def test_backends_keep_the_built_in_one_when_another_takes_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "entry_points", entry_points(EntryPoint("onnxruntime", "builtins:dict", registry.GROUP))
    )
    assert registry.backends()["onnxruntime"].capabilities().installed


def test_get_names_the_nearest_when_the_name_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"Unknown backend 'onnx-runtime'\. Did you mean onnxruntime"):
        registry.get("onnx-runtime")
    with pytest.raises(UsageError, match=r"There are: .*onnxruntime"):
        registry.get("qqqq")


def test_listing_backends_imports_no_runtime() -> None:
    code = (
        "import sys; from vitdeploy.backends.registry import backends; backends();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'onnx_ir', 'openvino', 'tensorrt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

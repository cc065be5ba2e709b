from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vitdeploy.errors import MissingDependency, UsageError
from vitdeploy.lab import runtime


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_names_the_command_when_nothing_was_fetched() -> None:
    with pytest.raises(MissingDependency) as caught:
        runtime.files()
    assert caught.value.fix == "vitdeploy lab --fetch"


def test_fetch_refuses_a_package_when_its_digest_is_another(tmp_path: Path, cache: Path) -> None:
    package = tmp_path / "ort.tgz"
    with tarfile.open(package, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/dist/ort.wasm.min.mjs"), io.BytesIO())
    with pytest.raises(UsageError, match="as it was published"):
        runtime.fetch(package)
    assert not cache.exists()


def test_fetch_tells_when_the_package_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        runtime.fetch(tmp_path / "none.tgz")


def test_fetch_tells_how_to_do_without_a_network_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "URL", "http://127.0.0.1:9/none.tgz")
    with pytest.raises(MissingDependency) as caught:
        runtime.fetch()
    assert "npm pack" in (caught.value.fix or "")

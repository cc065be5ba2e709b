from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.artifact import Artifact, Manifest, digest_file, staged
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec, ModelSpec, WeightsSource

SPEC = ModelSpec(
    name="mobilevit_xs",
    config={"width": 2, "stages": [{"depth": 1}]},
    input=InputSpec(shape=(3, 64, 48)),
    num_classes=2,
    labels=("kot", "пёс"),
    weights=WeightsSource(kind="file", location="w.safetensors", sha256="ab" * 32),
)


def manifest(**changes: Any) -> Manifest:
    full = Manifest(
        model=SPEC,
        request={"precision": "fp16", "batch": [1, 8, 32], "threads": 1},
        applied={"islands": ["Softmax"], "census": {"Conv": {"fp16": 3}}},
        passes=[{"name": "fold_batchnorm", "rewrites": 3}, {"name": "tidy_layout", "rewrites": 0}],
        graph={"nodes": 10, "parameters": 100, "macs": None},
        verification={"passed": True, "max_abs": 1e-3},
        environment={"cpu": "x"},
        lineage=["cd" * 32],
        steps=[{"name": "trace", "seconds": 1.5, "detail": "10 nodes"}, {"name": "verify", "seconds": 2, "detail": ""}],
    )
    return dataclasses.replace(full, **changes)


def export(place: Path, content: bytes = b"model", *, force: bool = False, failed: bool = False) -> Artifact:
    with staged(place, force=force) as stage:
        (stage.folder / "model.onnx").write_bytes(content)
        return stage.commit(manifest(), failed=failed)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- manifest


def test_manifest_survives_json_when_every_field_is_set() -> None:
    first = manifest(files={"model.onnx": {"bytes": 5, "sha256": "ef" * 32}}, bench={"p50": 1.25})
    assert Manifest.from_json(first.to_json()) == first
    assert Manifest.from_json(first.to_json()).to_json() == first.to_json()


def test_manifest_json_is_ascii_sorted_and_ordered_where_order_means_something() -> None:
    text = manifest(request={"b": 1, "a": 2}).to_json()
    assert text.isascii()
    assert text.endswith("}\n")
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert list(data["request"]) == ["a", "b"]
    assert [entry["name"] for entry in data["passes"]] == ["fold_batchnorm", "tidy_layout"]
    assert data["model"]["labels"] == ["kot", "пёс"]
    assert manifest(request={"a": 2, "b": 1}).to_json() == text


def test_manifest_holds_none_when_a_number_is_not_finite() -> None:
    bench = {"nan": math.nan, "rows": [np.float32("inf"), np.float64(2)], "n": np.int64(3), "pair": (1, -math.inf)}
    text = manifest(bench=bench).to_json()
    assert json.loads(text)["bench"] == {"nan": None, "rows": [None, 2.0], "n": 3, "pair": [1, None]}
    Manifest.from_json(text)


def _changed(**changes: Any) -> bytes:
    data = manifest(files={"model.onnx": {"bytes": 1, "sha256": "0"}}).to_dict()
    for name, value in changes.items():
        if value is ...:
            del data[name]
        else:
            data[name] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not JSON"),
        (b'{"schema": 1', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (_changed(bench={"x": 1}).replace(b'"x": 1', b'"x": NaN'), "NaN"),
        (b"[1]", "a list, not an object"),
        (b"{}", "schema"),
        (_changed(schema=True), "schema"),
        (_changed(schema="1"), "schema"),
        (_changed(schema=3), "schema 3, newer"),
        (_changed(schema=3, surprise=1), "schema 3, newer"),
        (_changed(files=...), "lacks the field 'files'"),
        (_changed(surprise=1), "'surprise' is not a field"),
        (_changed(files=[]), "'files' is a list, not an object"),
        (_changed(passes={}), "'passes' is an object, not a list"),
        (_changed(vitdeploy=1), "'vitdeploy' is a whole number, not a text"),
        (_changed(verification=False), "'verification' is true or false"),
        (_changed(request=None), "'request' is null"),
        (_changed(passes=["x"]), "passes"),
        (_changed(passes=[{"name": "a"}]), "passes"),
        (_changed(passes=[{"name": "a", "rewrites": 1.5}]), "rewrites"),
        (_changed(steps=[{"name": "a", "seconds": True, "detail": ""}]), "seconds"),
        (_changed(files={"model.onnx": {"bytes": "1", "sha256": "0"}}), "bytes"),
        (_changed(files={"../model.onnx": {"bytes": 1, "sha256": "0"}}), "outside"),
        (_changed(files={"/etc/passwd": {"bytes": 1, "sha256": "0"}}), "outside"),
        (_changed(files={"..\\model.onnx": {"bytes": 1, "sha256": "0"}}), "outside"),
        (_changed(files={"C:model.onnx": {"bytes": 1, "sha256": "0"}}), "outside"),
        (_changed(model_file="../model.onnx"), "outside"),
        (_changed(model_file="."), "outside"),
        (_changed(lineage=[1]), "lineage"),
        (_changed(model={}), "model specification"),
    ],
)
def test_load_says_what_is_wrong_in_one_sentence_when_the_manifest_is(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(UsageError) as caught:
        Artifact.load(tmp_path)
    assert words in caught.value.message
    assert str(tmp_path / "manifest.json") in caught.value.message
    assert "\n" not in str(caught.value)


# --- artifact


def test_artifact_loads_from_its_folder_or_a_file_in_it(tmp_path: Path) -> None:
    made = export(tmp_path / "out")
    assert made.folder == tmp_path / "out"
    for path in (made.folder, made.folder / "model.onnx", made.folder / "manifest.json"):
        loaded = Artifact.load(path)
        assert loaded == made
        assert loaded.model_path.read_bytes() == b"model"
    expected = {"model.onnx": {"bytes": 5, "sha256": hashlib.sha256(b"model").hexdigest()}}
    assert loaded.manifest.files == expected


def test_load_refuses_when_there_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(UsageError, match=r"has no manifest\.json"):
            Artifact.load(path)
    with pytest.raises(UsageError, match="No such artifact"):
        Artifact.load(tmp_path / "absent")


def _with_parts(place: Path) -> Artifact:
    with staged(place) as stage:
        (stage.folder / "model.onnx").write_bytes(b"model")
        (stage.folder / "parts").mkdir()
        (stage.folder / "parts" / "weights.bin").write_bytes(bytes(3_000_000))
        return stage.commit(manifest())


def test_check_files_names_the_file_when_it_changed_or_is_missing(tmp_path: Path) -> None:
    made = _with_parts(tmp_path / "out")
    made.check_files()
    weights = made.folder / "parts" / "weights.bin"
    assert made.manifest.files["parts/weights.bin"]["bytes"] == 3_000_000
    content = bytearray(weights.read_bytes())
    content[2_999_999] = 1
    weights.write_bytes(content)
    with pytest.raises(UsageError, match=r"weights\.bin has changed"):
        made.check_files()
    weights.write_bytes(bytes(3_000_001))
    with pytest.raises(UsageError, match=r"weights\.bin has changed"):
        made.check_files()
    weights.unlink()
    with pytest.raises(UsageError, match=r"weights\.bin is missing"):
        made.check_files()


def test_digest_follows_names_and_contents_of_files_alone(tmp_path: Path) -> None:
    first = export(tmp_path / "a").digest()
    assert export(tmp_path / "b").digest() == first
    assert export(tmp_path / "c", b"other").digest() != first
    with staged(tmp_path / "d") as stage:
        (stage.folder / "renamed.onnx").write_bytes(b"model")
        assert stage.commit(manifest(model_file="renamed.onnx", bench={"p50": 1})).digest() != first
    assert Artifact.load(tmp_path / "a").digest() == first


def test_digest_file_is_sha256_when_the_file_spans_pieces(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes((1 << 20) + 17)
    (tmp_path / "f").write_bytes(content)
    assert digest_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UsageError, match="absent"):
        digest_file(tmp_path / "absent")


# --- staging


def test_stage_stands_hidden_beside_the_destination_until_the_commit(tmp_path: Path) -> None:
    with staged(tmp_path / "deep" / "er" / "out") as stage:
        assert stage.folder.parent == tmp_path / "deep" / "er"
        assert stage.folder.name.startswith(".out.tmp-")
        assert names(stage.folder.parent) == [stage.folder.name]
        (stage.folder / "model.onnx").write_bytes(b"model")
        stage.commit(manifest())
        assert names(tmp_path / "deep" / "er") == ["out"]
    assert names(tmp_path / "deep" / "er" / "out") == ["manifest.json", "model.onnx"]


def test_committed_folder_has_the_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert export(tmp_path / "out").folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [None, RuntimeError("bug"), KeyboardInterrupt(), UsageError("no.")])
def test_nothing_stays_behind_when_the_body_does_not_commit(tmp_path: Path, error: BaseException | None) -> None:
    def body() -> None:
        with staged(tmp_path / "made" / "too" / "out") as stage:
            (stage.folder / "sub").mkdir()
            (stage.folder / "sub" / "model.onnx").write_bytes(b"model")
            if error is not None:
                raise error

    if error is None:
        body()
    else:
        with pytest.raises(type(error)) as caught:
            body()
        assert caught.value is error
    assert names(tmp_path) == []


def test_artifact_stays_when_the_body_fails_after_the_commit(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="late"), staged(tmp_path / "made" / "out") as stage:  # noqa: PT012
        (stage.folder / "model.onnx").write_bytes(b"model")
        stage.commit(manifest())
        raise RuntimeError("late")
    Artifact.load(tmp_path / "made" / "out").check_files()


def test_commit_is_a_bug_when_nothing_wrote_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx"), staged(tmp_path / "out") as stage:
        stage.commit(manifest())
    assert names(tmp_path) == []


def test_staged_refuses_before_any_work_when_the_destination_exists(tmp_path: Path) -> None:
    export(tmp_path / "out", b"first")
    with pytest.raises(UsageError) as caught, staged(tmp_path / "out"):
        pytest.fail("the body must not run")
    assert caught.value.message == f"{tmp_path / 'out'} exists."
    assert caught.value.fix == "Use --force to replace it, or --out for another place."
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"first"


def test_force_replaces_only_at_the_commit(tmp_path: Path) -> None:
    export(tmp_path / "out", b"first")
    (tmp_path / "out" / "report.md").write_text("old")
    with staged(tmp_path / "out", force=True) as stage:
        (stage.folder / "model.onnx").write_bytes(b"second")
        assert (tmp_path / "out" / "model.onnx").read_bytes() == b"first"
        stage.commit(manifest())
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["manifest.json", "model.onnx"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"second"


def test_force_keeps_the_old_one_when_the_body_fails(tmp_path: Path) -> None:
    export(tmp_path / "out", b"first")
    with pytest.raises(RuntimeError), staged(tmp_path / "out", force=True):
        raise RuntimeError
    assert names(tmp_path) == ["out"]
    Artifact.load(tmp_path / "out").check_files()


@pytest.mark.parametrize("content", [None, '{"name": "a browser extension", "manifest_version": 3}', ""])
def test_force_leaves_a_folder_alone_when_it_is_no_artifact(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("dear")
    if content is not None:
        (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="is not an artifact"), staged(tmp_path / "out", force=True):
        pytest.fail("the body must not run")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "dear"


def test_force_leaves_a_folder_alone_when_it_came_during_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an artifact"), staged(tmp_path / "out", force=True) as stage:  # noqa: PT012
        (stage.folder / "model.onnx").write_bytes(b"model")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("dear")
        stage.commit(manifest())
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "thesis.tex").read_text() == "dear"


def test_force_takes_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        export(tmp_path / "out")
    export(tmp_path / "out", force=True)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_staged_refuses_when_the_destination_is_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("dear")
    with pytest.raises(UsageError, match="is not a folder"), staged(tmp_path / "out", force=force):
        pytest.fail("the body must not run")
    with pytest.raises(UsageError, match=r"Cannot write .*out/model"), staged(tmp_path / "out" / "model", force=force):
        pytest.fail("the body must not run")
    assert (tmp_path / "out").read_text() == "dear"


@pytest.mark.parametrize("place", ["/", "/.."])
def test_staged_refuses_when_the_destination_has_no_name(place: str) -> None:
    with pytest.raises(UsageError, match="cannot be"), staged(Path(place)):
        pytest.fail("the body must not run")


def test_destination_may_be_relative_and_end_in_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "sub")
    assert export(Path("out")).folder == Path("out")
    assert names(tmp_path / "here" / "sub") == ["out"]
    with pytest.raises(UsageError, match="is not an artifact"):
        export(Path(".."), force=True)


def test_force_replaces_what_a_link_points_at(tmp_path: Path) -> None:
    export(tmp_path / "v1", b"first")
    (tmp_path / "latest").symlink_to("v1")
    export(tmp_path / "latest", b"second", force=True)
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "v1" / "model.onnx").read_bytes() == b"second"
    assert names(tmp_path) == ["latest", "v1"]


def test_failed_artifact_stands_apart_and_replaces_an_older_failed_one(tmp_path: Path) -> None:
    export(tmp_path / "out", b"good")
    for content in (b"bad", b"worse"):
        made = export(tmp_path / "out", content, force=True, failed=True)
        assert made.folder == tmp_path / "out.failed"
        assert made.model_path.read_bytes() == content
    assert names(tmp_path) == ["out", "out.failed"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"good"


def test_failed_artifact_needs_no_force_and_no_model(tmp_path: Path) -> None:
    for _ in range(2):
        with staged(tmp_path / "out") as stage:
            (stage.folder / "report.md").write_text("why")
            stage.commit(manifest(), failed=True)
    assert names(tmp_path) == ["out.failed"]


def test_second_commit_is_refused_and_the_first_kept_when_two_export_to_one_place(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as second:
        (second.folder / "model.onnx").write_bytes(b"second")
        export(tmp_path / "out", b"first")
        assert second.folder.exists()
        with pytest.raises(UsageError, match="exists"):
            second.commit(manifest())
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"first"


def test_last_commit_wins_when_two_replace_one_artifact(tmp_path: Path) -> None:
    export(tmp_path / "out", b"zero")
    with staged(tmp_path / "out", force=True) as slow:
        (slow.folder / "model.onnx").write_bytes(b"slow")
        export(tmp_path / "out", b"quick", force=True)
        assert (tmp_path / "out" / "model.onnx").read_bytes() == b"quick"
        slow.commit(manifest())
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"slow"


def test_importing_artifact_imports_no_heavy_package() -> None:
    code = "import sys, vitdeploy.artifact; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# --- amending


def test_manifest_has_no_devices_when_it_is_of_the_first_schema() -> None:
    data = json.loads(_changed(schema=1))
    del data["devices"]
    assert Manifest.from_dict(data).devices == []


def test_manifest_is_refused_when_devices_are_no_objects() -> None:
    with pytest.raises(UsageError, match="devices"):
        Manifest.from_json(_changed(devices=["phone"]))


def test_amend_writes_another_manifest_and_keeps_every_file(tmp_path: Path) -> None:
    artifact = export(tmp_path / "a")
    artifact = artifact.amend(artifact.manifest, {"report.md": "old"})
    devices = [{"device": "phone"}]
    amended = artifact.amend(dataclasses.replace(artifact.manifest, devices=devices), {"report.md": "new"})
    assert names(tmp_path / "a") == ["manifest.json", "model.onnx", "report.md"]
    assert (tmp_path / "a" / "report.md").read_text() == "new"
    loaded = Artifact.load(tmp_path / "a")
    loaded.check_files()
    assert loaded.manifest == amended.manifest
    assert loaded.manifest.devices == devices
    assert names(tmp_path) == ["a"]


def test_amend_leaves_the_artifact_alone_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = export(tmp_path / "a")
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    monkeypatch.setattr(Manifest, "to_json", lambda self: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UsageError):
        artifact.amend(artifact.manifest, {"report.md": "new"})
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before
    assert names(tmp_path / "a") == ["manifest.json", "model.onnx"]

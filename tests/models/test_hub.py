"""timm's hub layout: both styles read, broken folders refused, downloads without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.models import hub
from vitdeploy.spec import InputSpec

CFG = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 3, "tag": "mine"}
NEW = {"architecture": "mobilevit_xxs", "num_classes": 3, "model_args": {"img_size": 64}, "pretrained_cfg": CFG}


def folder(path: Path, config: Any, weights: str | None = "model.safetensors") -> Path:
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights:
        (path / weights).write_bytes(b"x")
    return path


def test_new_style_is_read(tmp_path: Path) -> None:
    found = hub.read_hub_folder(folder(tmp_path, NEW | {"label_names": ["a", "b", "c"]}))
    assert (found.architecture, found.num_classes, found.labels) == ("mobilevit_xxs", 3, ("a", "b", "c"))
    assert found.model_args == {"img_size": 64}
    assert InputSpec.from_pretrained_cfg(found.pretrained_cfg).shape == (3, 64, 64)
    assert found.weights == tmp_path / "model.safetensors"


def test_flat_style_is_read(tmp_path: Path) -> None:
    flat = {"architecture": "levit_128s", **CFG, "labels": ["a", "b", "c"]}
    found = hub.read_hub_folder(folder(tmp_path, flat, "pytorch_model.bin"))
    assert (found.architecture, found.num_classes, found.labels) == ("levit_128s", 3, ("a", "b", "c"))
    assert found.pretrained_cfg == CFG
    assert found.model_args == {}
    assert found.weights.name == "pytorch_model.bin"


def test_safetensors_win_when_both_are_there(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert hub.read_hub_folder(folder(tmp_path, NEW)).weights.suffix == ".safetensors"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n2": "dog", "n1": "cat"}}, ("cat", "dog", "n3")),
        ({"label_names": ["n1", "n2", "n3"], "label_descriptions": ["x", "y", "z"]}, ("x", "y", "z")),
        ({"label_names": {"2": "z", "0": "x", "1": "y"}}, ("x", "y", "z")),
        ({"label_descriptions": {"n1": "cat"}}, None),
        ({}, None),
    ],
)
def test_labels_come_in_logit_order(tmp_path: Path, labels: dict[str, Any], expected: Any) -> None:
    assert hub.read_hub_folder(folder(tmp_path, NEW | labels)).labels == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("[1]", "holds a list"),
        ("", "not valid JSON"),
        ({k: v for k, v in NEW.items() if k != "architecture"}, "names no 'architecture'"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "transformers library"),
        (NEW | {"architecture": 3}, "'architecture' is a int"),
        (NEW | {"architecture": "../../etc/passwd"}, "no model's name"),
        (NEW | {"num_classes": "3"}, "'num_classes' is a str"),
        (NEW | {"num_classes": True}, "'num_classes' is a bool"),
        (NEW | {"num_classes": -1}, "'num_classes' is -1"),
        (NEW | {"pretrained_cfg": [1]}, "'pretrained_cfg' is a list"),
        (NEW | {"model_args": "x"}, "'model_args' is a str"),
        (NEW | {"label_names": ["a", "b"]}, "2 labels for 3 classes"),
        (NEW | {"label_names": ["a", 2, "c"]}, "not every label"),
        (NEW | {"label_names": 5}, "'label_names' is a int"),
    ],
)
def test_broken_config_is_a_usage_error(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        hub.read_hub_folder(folder(tmp_path, config))
    assert words in str(caught.value)


def test_binary_config_is_a_usage_error(tmp_path: Path) -> None:
    folder(tmp_path, NEW)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00\x81{")
    with pytest.raises(UsageError, match="not valid JSON"):
        hub.read_hub_folder(tmp_path)


def test_missing_parts_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        hub.read_hub_folder(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no config\.json"):
        hub.read_hub_folder(tmp_path)
    with pytest.raises(UsageError, match="has neither"):
        hub.read_hub_folder(folder(tmp_path, NEW, None))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="Sharded"):
        hub.read_hub_folder(tmp_path)


@pytest.mark.parametrize("bad", ["", "name", "a/b/c", "../x", "a b/c", "https://huggingface.co/a/b", "hf-hub:"])
def test_bad_hub_id_is_a_usage_error(bad: str) -> None:
    with pytest.raises(UsageError, match="not a hub id"):
        hub.download(bad)


def offline_cache(monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    """An empty hub cache, and a hub that cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return path


def test_unreachable_hub_is_a_usage_error_that_names_the_way_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offline_cache(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="cannot be reached") as caught:
        hub.download("timm/levit_128s.fb_dist_in1k")
    assert "--weights FOLDER" in (caught.value.fix or "")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_cached_snapshot_is_used_when_the_hub_is_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = offline_cache(monkeypatch, tmp_path) / "models--me--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    folder(snapshot, NEW, name)
    assert hub.download("hf-hub:me/net") == snapshot
    assert hub.read_hub_folder(snapshot).weights.name == name
    with pytest.raises(UsageError):
        hub.download("me/net", revision="v2")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated"),
        ("RevisionNotFoundError", "no revision"),
        ("RepositoryNotFoundError", "no repository"),
    ],
)
def test_refusals_of_the_hub_are_told_apart(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    import huggingface_hub

    error = getattr(huggingface_hub.errors, kind)

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UsageError, match=words):
        hub.download("me/net", revision="v2")


def test_any_failure_of_the_http_stack_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UsageError, match="No space left"):
        hub.download("me/net")

"""build(): from a name and options to a module and the ModelSpec that says how it came about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.models.build import BuildOptions, Built, build, rebuild

NAME = "deit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32}
CFG = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95}
FACTORY = """
def two_outputs():
    net = sized()
    net.forward = lambda x: (x, x)
    return net
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net_code: str) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(net_code + FACTORY)
    return tmp_path


def hub_folder(folder: Path, changes: dict[str, Any] | None = None, name: str = NAME, **config: Any) -> Path:
    """A small model fine-tuned for three classes, in timm's layout; `changes` are to its constructor arguments."""
    from vitdeploy.models import catalog
    from vitdeploy.models.build import construct

    entry, _ = catalog.find(name)
    module = construct(entry, {**entry.config, **SMALL, "num_classes": 3, **(changes or {})})
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.randn(value.shape, generator=generator) / 8 for key, value in module.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    found = {"architecture": name, "num_classes": 3, "pretrained_cfg": CFG, "model_args": SMALL | (changes or {})}
    (folder / "config.json").write_text(json.dumps(found | config))
    return folder


def test_folder_gives_architecture_size_preprocessing_and_labels(work: Path) -> None:
    folder = hub_folder(work / "tuned", label_names=["ant", "bee", "cow"])
    built = build(NAME, BuildOptions(weights=str(folder)))
    spec = built.spec
    assert spec.input.shape == (3, 32, 32)
    assert (spec.input.mean, spec.input.std, spec.input.crop_pct) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95)
    assert (spec.num_classes, spec.labels, spec.weights.kind) == (3, ("ant", "bee", "cow"), "folder")
    assert len(built.module.blocks) == 2
    assert not built.module.training
    assert built.module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(("quickgelu", "notes"), [("openai", 1), ("laion2b", 0)])
def test_tag_fetches_its_weights_and_warns_of_another_activation(
    work: Path, monkeypatch: pytest.MonkeyPatch, quickgelu: str, notes: int
) -> None:
    name, asked = "vit_base_patch32_clip_224", []
    folder = hub_folder(work / "0123abc", name=name)
    monkeypatch.setattr("vitdeploy.models.hub.download", lambda hub_id: asked.append(hub_id) or folder)
    built = build(f"{name}.{quickgelu}", BuildOptions())
    assert asked == [f"timm/{name}.{quickgelu}"]
    assert (built.spec.tag, built.spec.weights.kind, built.spec.weights.revision) == (quickgelu, "hub", "0123abc")
    said = [note for note in built.notes if "vit_base_patch32_clip_quickgelu_224" in note]
    assert len(said) == notes


@pytest.mark.parametrize(
    ("model", "classes", "label"),
    [
        (f"{NAME}.fb_in1k", 1000, "tabby, tabby cat"),
        (f"{NAME}.fb_in1k", 3, None),  # the file has another head
        (f"hf-hub:timm/{NAME}.fb_in1k", 1000, "tabby, tabby cat"),
        (f"hf-hub:someone/{NAME}.fb_in1k", 1000, None),
        (f"hf-hub:timm/{NAME}.in1k_custom.v2", 1000, None),
    ],
)
def test_published_imagenet_weights_bring_their_labels(
    work: Path, monkeypatch: pytest.MonkeyPatch, model: str, classes: int, label: str | None
) -> None:
    folder = hub_folder(work / "0123abc", {"num_classes": classes}, num_classes=classes)
    monkeypatch.setattr("vitdeploy.models.hub.download", lambda hub_id: folder)
    labels = build(model, BuildOptions()).spec.labels
    assert (labels[281] if labels else None) == label


def test_rebuild_gives_the_same_model_and_refuses_when_the_weights_have_changed(work: Path) -> None:
    folder = hub_folder(work / "tuned")
    built = build(NAME, BuildOptions(weights=str(folder), image_size=(48, 64), crop_pct=0.5))
    again = rebuild(built.spec)
    assert again.spec == built.spec
    image = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.module(image), built.module(image))
    hub_folder(folder, {"embed_dim": 96})
    with pytest.raises(UsageError):
        rebuild(built.spec)
    state = {key: value + 1 for key, value in built.module.state_dict().items()}
    save_file(state, hub_folder(folder) / "model.safetensors")
    with pytest.raises(UsageError, match="has changed since the export"):
        rebuild(built.spec)


def test_options_override_what_the_weights_say(work: Path) -> None:
    folder = hub_folder(work / "tuned")
    options = BuildOptions(str(folder), mean=(0.5, 0.5, 0.5), interpolation="bilinear", image_size=(64, 64))
    spec = build(NAME, options).spec
    assert (spec.input.mean, spec.input.std) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6))
    assert (spec.input.interpolation, spec.input.shape) == ("bilinear", (3, 64, 64))


@pytest.mark.parametrize(
    "model_args",
    [
        {"depth": 10**9},
        {"depth": -(10**9)},
        {"embed_dim": float("nan")},
        {"embed_dim": {"a": 1}},
        {"embed_dim": [[1]]},
        {"embed_dim": "wide"},
        {"embed_dim": -48},
        {"embed_dim": 0},
        {"num_heads": 0},
        {"num_heads": 5},
        {"patch_size": 0},
        {"mlp_ratio": -1.0},
        {"no_such_argument": 1},
        {"act_layer": "no_such_activation"},
        {"act_layer": "os.system"},
    ],
)
def test_hostile_model_args_are_one_sentence(work: Path, model_args: dict[str, Any]) -> None:
    folder = hub_folder(work / "tuned", model_args=SMALL | model_args)
    with pytest.raises(UsageError) as caught:
        build(NAME, BuildOptions(weights=str(folder)))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 10**12},
        {"num_classes": -1},
        {"in_chans": 10**9},
        {"in_chans": 0},
        {"image_size": (10**7, 10**7)},
        {"image_size": (8, 8)},
        {"weights": "", "pretrained": None},
        {"weights": "missing.pth"},
        {"weights": "missing.pth", "pretrained": True},
    ],
)
def test_impossible_options_are_one_sentence(work: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        build(NAME, replace(BuildOptions(pretrained=False), **options))
    assert "\n" not in caught.value.message


def test_same_seed_gives_the_same_random_weights_and_another_does_not() -> None:
    def first(seed: int) -> Built:
        return build("mobilevit_xxs", BuildOptions(seed=seed))

    a, b, c = first(1), first(1), first(2)
    states = [m.module.state_dict() for m in (a, b, c)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert a.spec.weights.seed == 1


def test_factory_in_a_file_says_its_size_or_is_told(work: Path) -> None:
    built = build("net.py:sized", BuildOptions())
    assert built.spec.input.shape == (3, 16, 16)
    assert (built.spec.num_classes, built.spec.weights.kind) == (4, "factory")
    with pytest.raises(UsageError, match="does not say its input size"):
        build("net.py:Net", BuildOptions())
    assert build("net.py:Net", BuildOptions(image_size=(24, 32))).spec.input.shape == (3, 24, 32)


def test_factory_takes_weights_from_a_file(work: Path) -> None:
    made = build("net.py:sized", BuildOptions()).module
    state = {key: value + 1 for key, value in made.state_dict().items()}
    torch.save(state, work / "tuned.pth")
    built = build("net.py:sized", BuildOptions(weights="tuned.pth"))
    assert torch.equal(built.module.conv.bias, made.conv.bias + 1)
    assert built.spec.weights.sha256


def test_factory_with_several_outputs_is_unsupported(work: Path) -> None:
    with pytest.raises(UnsupportedModel, match="returns tuple"):
        build("net.py:two_outputs", BuildOptions())


def test_a_finished_graph_is_unsupported(work: Path) -> None:
    with pytest.raises(UnsupportedModel, match="finished graph"):
        build("model.onnx", BuildOptions())

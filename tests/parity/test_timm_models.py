"""Every architecture of the catalog against timm's: the same keys, the same shapes, the same logits on live weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm_import import import_timm
from torch import Tensor, nn

from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.models import catalog, weights
from vitdeploy.models.build import construct
from vitdeploy.models.random_weights import random_weights
from vitdeploy.spec import InputSpec

timm = import_timm()

BOUND = 1e-5  # of the largest logit
VITS = ("vit", "dinov2", "deit", "deit3")


# Constructor arguments of architectures in stages, which leave a block or two a stage and cut the rest.
SHORT: dict[str, dict[str, Any]] = {
    "pit": {"depth": [1, 1, 1]},
    "twins": {"depths": [2, 2, 2, 2]},
    "crossvit": {"depth": [[1, 1, 0]]},
    "maxvit": {"depths": [1, 1, 1, 1], "img_size": 96},
}


def is_large(entry: catalog.Entry) -> bool:
    cut = entry.family in ("cait", "xcit", *SHORT) and entry.name != "crossvit_18_240"  # which timm makes in one size
    return entry.params > 100e6 or entry.macs > (3e9 if cut else 20e9)


def by_size(names: list[str]) -> list[Any]:
    """Test parameters; those of large models are slow."""
    return [pytest.param(n, marks=pytest.mark.slow if is_large(catalog.find(n)[0]) else ()) for n in names]


def shrunk(entry: catalog.Entry) -> dict[str, Any]:
    """Constructor arguments, the same for both sides, that leave the structure and widths of an entry and cut the rest.

    4x4 patches, and two blocks or one a stage.
    """
    if entry.family in SHORT:
        return SHORT[entry.family]
    if "patch_size" in entry.config:
        return {"depth": 2, "img_size": 4 * entry.config["patch_size"]}
    return {"depth": (1, 1, 1), "img_size": 64} if entry.family.startswith("levit") else {}


def ours(name: str, **changes: Any) -> nn.Module:
    """Our module in eval mode on live random weights."""
    entry, _ = catalog.find(name)
    module = construct(entry, {**entry.arguments(), **changes}).eval()
    random_weights(module, 3, image_shape(entry, changes))
    return module


def image_shape(entry: catalog.Entry, changes: dict[str, Any]) -> tuple[int, int, int]:
    size = changes.get("img_size", entry.input.shape[1])
    height, width = (size, size) if isinstance(size, int) else size
    return changes.get("in_chans", 3), height, width


def theirs(name: str, state: dict[str, Tensor], **changes: Any) -> nn.Module:
    """timm's module in eval mode around these very tensors; keys and shapes must fit one to one."""
    if catalog.find(name)[0].family in VITS:  # nothing is drawn that would be overwritten
        with torch.device("meta"):
            module = timm.create_model(name, **changes)
    else:
        module = timm.create_model(name, **changes)
    expected = module.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def images(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    spec = InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0])
    return torch.from_numpy(synthetic_images(spec, count))


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal within the bound, on outputs that depend on the image."""
    assert got.shape == expected.shape
    scale = float(expected.abs().max())
    assert float((expected[0] - expected[1]).abs().max()) > 0.02 * scale, "this model sees no images: a dead test"
    assert float((got - expected).abs().max()) <= BOUND * scale


def assert_parity(name: str, shape: tuple[int, int, int], **changes: Any) -> None:
    with torch.inference_mode():
        mine = ours(name, **changes)
        other = theirs(name, mine.state_dict(), **changes)
        batch = images(shape)
        assert_same(mine(batch), other(batch))
        mine.load_state_dict(other.state_dict(), strict=True)


@pytest.mark.parametrize("name", by_size(catalog.names()))
def test_logits_equal_timms_on_shared_weights(name: str) -> None:
    assert_parity(name, catalog.find(name)[0].input.shape)


@pytest.mark.parametrize("name", [n for n in catalog.names() if is_large(catalog.find(n)[0])])
def test_logits_equal_timms_when_a_large_model_is_cut_short(name: str) -> None:
    entry, _ = catalog.find(name)
    changes = shrunk(entry)
    assert changes
    assert_parity(name, image_shape(entry, changes), **changes)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", (96, 160)),
        ("vit_wee_patch16_reg1_gap_256", 128),
        ("vit_xsmall_patch16_clip_224", 112),
        ("deit_tiny_distilled_patch16_224", 128),
        ("deit3_small_patch16_224", (64, 96)),
        ("vit_small_patch14_reg4_dinov2", 126),
        ("levit_128s", 112),
        ("levit_128s", (96, 160)),
        ("levit_conv_128s", (160, 96)),
        ("levit_256d", 240),
        ("levit_conv_384_s8", 72),
        ("cait_xxs24_224", (96, 160)),
        ("xcit_nano_12_p16_224", (96, 160)),
        ("xcit_nano_12_p8_224", 72),
        ("pit_ti_224", (160, 216)),
        ("twins_pcpvt_small", (96, 160)),
        ("twins_svt_small", (160, 256)),
        ("nest_tiny", 160),
        ("nest_tiny_jx", 96),
        ("crossvit_9_240", 480),
        ("crossvit_9_dagger_240", (240, 480)),
        ("maxvit_rmlp_pico_rw_256", (160, 96)),
        ("maxvit_pico_rw_256", (96, 160)),
        ("maxvit_tiny_tf_224", (96, 128)),
    ],
)
def test_logits_equal_timms_at_another_image_size(name: str, size: int | tuple[int, int]) -> None:
    assert_parity(name, image_shape(catalog.find(name)[0], {"img_size": size}), img_size=size)


@pytest.mark.parametrize("size", [(192, 192), (224, 224), (240, 240), (288, 288), (160, 208), (81, 113)])
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_mobilevit_logits_equal_timms_at_any_map_size(name: str, size: tuple[int, int]) -> None:
    assert_parity(name, (3, *size))


@pytest.mark.parametrize(
    ("name", "trained", "size"),
    [
        ("vit_tiny_patch16_224", 224, 128),
        ("vit_tiny_patch16_224", 96, 160),
        ("vit_wee_patch16_reg1_gap_256", 256, 192),
        ("deit_tiny_patch16_224", 224, 288),
        ("deit_tiny_distilled_patch16_224", 224, 160),
        ("deit3_small_patch16_224", 224, 128),
        ("vit_small_patch14_dinov2", 518, 126),
        ("vit_small_patch14_reg4_dinov2", 518, 126),
    ],
)
def test_resampled_checkpoint_gives_timms_logits(name: str, trained: int, size: int) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    cut = {"depth": 2}
    with torch.inference_mode():
        state = ours(name, img_size=trained, **cut).state_dict()
        mine = ours(name, img_size=size, **cut)
        weights.load_into(mine, state, trained_size=(trained, trained))
        empty = timm.create_model(name, img_size=size, **cut)
        other = theirs(name, checkpoint_filter_fn(dict(state), empty), img_size=size, **cut)
        batch = images((3, size, size))
        assert_same(mine(batch), other(batch))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "mobilevit_xxs",
        "mobilevitv2_050",
        "levit_128s",
        "levit_conv_256d",
        "cait_xxs24_224",
        "xcit_nano_12_p8_224",
        "pit_ti_224",
        "pit_ti_distilled_224",
        "twins_pcpvt_small",
        "twins_svt_small",
        "nest_tiny_jx",
        "crossvit_9_dagger_240",
        "maxvit_pico_rw_256",
        "maxvit_tiny_pm_256",
        "maxvit_tiny_tf_224",
    ],
)
@pytest.mark.parametrize("classes", [10, 0])
def test_logits_equal_timms_with_one_channel_and_other_classes(name: str, classes: int) -> None:
    entry, _ = catalog.find(name)
    changes = shrunk(entry) | {"in_chans": 1, "num_classes": classes}
    assert_parity(name, image_shape(entry, changes), **changes)


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "max"},
        {"global_pool": "avgmax"},
        {"global_pool": "avg", "pool_include_prefix": True},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "", "num_classes": 0},
        {"qk_norm": True},
        {"qkv_bias": False},
        {"final_norm": False},
        {"fc_norm": True},
        {"patch_size": (8, 16)},
        {"reg_tokens": 3},
        {"pre_norm": True, "init_values": 0.1},
    ],
    ids=str,
)
def test_logits_equal_timms_with_other_constructor_arguments(arguments: dict[str, Any]) -> None:
    changes = {"img_size": 64, "depth": 2, **arguments}
    assert_parity("vit_tiny_patch16_224", (3, 64, 64), **changes)


# --- training ------------------------------------------------------------------------------------------------------


def training_pair(name: str, **changes: Any) -> tuple[nn.Module, Any]:
    mine = ours(name, **changes)
    state = {key: value.clone() for key, value in mine.state_dict().items()}
    return mine.train(), theirs(name, state, **changes).train()


TRAINED: list[tuple[str, dict[str, Any]]] = [
    ("mobilevit_xxs", {}),
    ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}),
    ("deit3_small_patch16_224", {"img_size": 64, "depth": 4}),
    ("levit_256d", {"img_size": 64, "depth": (2, 1, 2)}),
    ("levit_conv_256d", {"img_size": 64, "depth": (2, 1, 2)}),
    ("mobilevitv2_050", {}),
]


@pytest.mark.parametrize(("name", "changes"), TRAINED, ids=[name for name, _ in TRAINED])
def test_gradients_and_statistics_equal_timms_after_a_training_step(name: str, changes: dict[str, Any]) -> None:
    mine, other = training_pair(name, **changes)
    batch = images((3, 64, 64), 4)
    for module in (mine, other):
        module.double()
        module(batch.double()).square().mean().backward()
    for (key, got), (_, expected) in zip(mine.named_parameters(), other.named_parameters(), strict=True):
        assert got.grad is not None, key
        assert expected.grad is not None, key
        assert torch.allclose(got.grad, expected.grad, rtol=1e-6, atol=1e-9), key
    torch.testing.assert_close(mine.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "changes"), TRAINED[1:5], ids=[name for name, _ in TRAINED[1:5]])
def test_drop_path_drops_as_timms_does_in_training_and_not_in_eval(name: str, changes: dict[str, Any]) -> None:
    mine, other = training_pair(name, **changes, drop_path_rate=0.4)
    batch = images((3, 64, 64), 8)
    outputs = []
    for module in (mine, other):
        torch.manual_seed(11)
        with torch.no_grad():
            outputs.append(module(batch))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        different = mine(batch)
        assert float((different - outputs[0]).abs().max()) > 0.01 * float(outputs[0].abs().max())
        mine.eval()
        assert torch.equal(mine(batch), mine(batch))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}),
        ("levit_128s", {"img_size": 64}),
        ("levit_conv_128s", {"img_size": 64}),
    ],
)
def test_distilled_model_gives_timms_pair_while_training(name: str, changes: dict[str, Any]) -> None:
    # In float64: BatchNorm over a batch of four and a map of one pixel makes much of the last bits of float32.
    mine, other = (module.double() for module in training_pair(name, **changes))
    other.set_distilled_training(True)
    batch = images((3, 64, 64), 4).double()
    with torch.no_grad():
        got, expected = mine(batch), other(batch)
        assert isinstance(got, tuple)
        assert len(got) == len(expected) == 2
        for one, two in zip(got, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(got[0], got[1], atol=1e-2)
        assert isinstance(mine.eval()(batch), Tensor)


def test_mobilevit_drops_paths_in_training_and_not_in_eval() -> None:
    model = ours("mobilevit_xxs", drop_path_rate=0.5)
    batch = images((3, 64, 64), 4)
    with torch.no_grad():
        plain = ours("mobilevit_xxs")(batch)
        assert torch.equal(model(batch), plain)
        model.train()
        for module in model.modules():  # only drop path may make a difference
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        torch.manual_seed(0)
        first, second = model(batch), model(batch)
    assert float((first - second).abs().max()) > 0.01 * float(plain.abs().max())

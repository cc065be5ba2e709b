"""The rule that `verify.bisect` stands on: a name in the traced and in the optimised graph means the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from torch import nn

from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.run import values
from vitdeploy.models.levit import LevitDistilled
from vitdeploy.models.mobilevit import MobileViT, MobileViTV2, MobileViTV2Block
from vitdeploy.models.random_weights import random_weights
from vitdeploy.models.vision_transformer import VisionTransformer, VisionTransformerDistilled

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
LEVIT: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": (32, 48, 64),
    "key_dim": 8,
    "depth": (1, 1, 1),
    "num_heads": (2, 3, 4),
}
STAGES: list[dict[str, Any]] = [
    {"depth": 1, "chs": 16, "stride": 2, "expand": 2.0},
    {"depth": 1, "chs": 24, "stride": 2, "expand": 2.0, "dim": 32, "blocks": 2},
    {"depth": 1, "chs": 32, "stride": 2, "expand": 2.0, "dim": 48, "blocks": 1},
]


def mobilevit_v2() -> nn.Module:
    model = MobileViTV2(0.5, num_classes=10)
    for module in model.modules():
        if isinstance(module, MobileViTV2Block):
            del module.transformer[1:]
    return model


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "deit": (lambda: VisionTransformer(**VIT), 32),
    "deit_distilled": (lambda: VisionTransformerDistilled(**VIT), 32),
    "deit3": (lambda: VisionTransformer(**VIT, no_embed_class=True, init_values=1e-6), 32),
    "dinov2_reg4": (lambda: VisionTransformer(**VIT, reg_tokens=4, init_values=1e-5, mlp_layer="swiglu_packed"), 32),
    "gap": (lambda: VisionTransformer(**VIT, class_token=False, global_pool="avg", qk_norm=True), 32),
    "clip": (lambda: VisionTransformer(**VIT, pre_norm=True, act_layer="quick_gelu"), 32),
    "mobilevit": (lambda: MobileViT(16, STAGES, 64, num_classes=10), 64),
    "mobilevit_resized": (lambda: MobileViT(16, STAGES, 64, num_classes=10), 48),
    "mobilevitv2": (mobilevit_v2, 64),
    "levit": (lambda: LevitDistilled(**LEVIT, num_classes=10), 64),
    "levit_conv": (lambda: LevitDistilled(**LEVIT, num_classes=10, use_conv=True), 64),
}


# Their dynamic batch takes no path through the passes that the others do not take.
SLOW = {"mobilevit_resized", "deit3", "clip", "mobilevitv2", "levit_conv"}


def cases() -> Iterator[Any]:
    for family in FAMILIES:
        yield pytest.param(family, 1, id=f"{family}-static")
        marks = [pytest.mark.slow] if family in SLOW else []
        yield pytest.param(family, (1, 2, 8), id=f"{family}-dynamic", marks=marks)


def made(model: ir.Model) -> list[str]:
    """Names of all tensors that nodes make."""
    return [v.name for node in model.graph if node.op_type != "SplitToSequence" for v in node.outputs if v.name]


@pytest.mark.parametrize(("family", "batch"), cases())
def test_value_names_mean_the_same_numbers_after_the_passes(family: str, batch: int | tuple[int, int, int]) -> None:
    build, size = FAMILIES[family]
    module = build().eval()
    random_weights(module, 0, (3, size, size))
    traced = trace(module, (3, size, size), batch=batch)
    optimised = ir.from_proto(ir.to_proto(traced))
    optimise(optimised)
    known, finished = set(made(traced)), made(optimised)
    pairs = {name: name for name in finished if name in known}
    for name in set(finished) - known:  # these two say that only the shape is another
        bare = name.removesuffix("/flat").removesuffix("/restored")
        if bare in known:
            pairs[name] = bare
    image = np.random.default_rng(0).standard_normal((1 if batch == 1 else 3, 3, size, size), dtype=np.float32)
    want = dict(values(traced, {"image": image}, list(pairs.values())))
    compared = 0
    for name, got in values(optimised, {"image": image}, list(pairs)):
        expected = want[pairs[name]]
        if name in known and expected.shape != got.shape:
            continue
        error = np.abs(got.astype(np.float64) - expected.reshape(got.shape)).max(initial=0)
        assert error <= 1e-4 * np.abs(expected).max(initial=0), name
        compared += 1
    assert compared >= len(finished) / 3

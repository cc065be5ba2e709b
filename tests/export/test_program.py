"""PyTorch modules as programs: the batch that was asked for, attention as one op, nothing changed in place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.program import export_program, op_name
from vitdeploy.export.trace import trace
from vitdeploy.models.vision_transformer import VisionTransformer

SHAPE = (3, 32, 32)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=5).eval()


def images(batch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, *SHAPE)).astype(np.float32))


@pytest.mark.parametrize(("batch", "sizes"), [(1, (1,)), (3, (3,)), ((1, 2, 8), (1, 2, 5, 8)), ((1, 1, 4), (1, 4))])
def test_program_equals_the_module_when_the_batch_is_in_range(
    batch: int | tuple[int, int, int], sizes: tuple[int, ...]
) -> None:
    module = vit()
    program = export_program(module, SHAPE, batch=batch)
    for size in sizes:
        with torch.inference_mode():
            np.testing.assert_allclose(program.module()(images(size)), module(images(size)), rtol=1e-5, atol=1e-6)


def test_range_of_the_batch_is_kept_when_it_begins_above_two() -> None:
    program = export_program(vit(), SHAPE, batch=(4, 8, 16))
    (bounds,) = program.range_constraints.values()
    assert (bounds.lower, bounds.upper) == (4, 16)


def test_attention_is_one_op_in_a_program_and_spelled_out_in_a_graph() -> None:
    module = vit()
    ops = Counter(op_name(node) for node in export_program(module, SHAPE).graph.nodes)
    assert ops["scaled_dot_product_attention"] == 2
    assert ops["matmul"] == ops["softmax"] == 0
    nodes = Counter(node.op_type for node in trace(module, SHAPE).graph)
    assert nodes["Softmax"] == 2


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return torch.relu_(y).mean((2, 3))


def test_nothing_is_changed_in_place_when_the_module_does_so() -> None:
    program = export_program(InPlace(), SHAPE)
    assert not [node.target for node in program.graph.nodes if op_name(node).endswith("_")]
    np.testing.assert_allclose(program.module()(images(1)), InPlace()(images(1)), rtol=1e-6)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.amax((2, 3))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize(("module", "says"), [(Two(), "2 values"), (Branches(), "torch.export cannot trace")])
def test_unsupported_model_is_raised_when_it_is_no_program_of_one_output(module: nn.Module, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says) as caught:
        export_program(module, SHAPE)
    assert "\n" not in caught.value.message

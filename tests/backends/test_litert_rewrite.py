"""What is done to a program before LiteRT's converter sees it."""

from __future__ import annotations

from operator import attrgetter

import pytest
import torch
from torch import Tensor, fx, nn

from vitdeploy import api
from vitdeploy.backends.litert_rewrite import fold_constants, spell_attention
from vitdeploy.export.program import export_program, op_name
from vitdeploy.models.layers import attend


def traced(module: nn.Module, size: int = 8) -> fx.GraphModule:
    graph = export_program(module.eval(), (3, size, size)).module()
    assert isinstance(graph, fx.GraphModule)
    return graph


def ops(graph: fx.GraphModule) -> list[str]:
    return [op_name(node) for node in graph.graph.nodes if node.op == "call_function"]


class Table(nn.Module):
    """A bias looked up in a table, which depends on weights alone, and a product, which does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(3, 4))
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, image: Tensor) -> Tensor:
        offsets = (torch.arange(0, 8)[:, None] - torch.arange(8)).abs() % 4
        return (image @ self.weight + self.table[:, offsets] * 2).mean((2, 3))


def test_what_is_made_of_weights_is_computed_once() -> None:
    module = Table()
    graph = traced(module)
    image = torch.randn(1, 3, 8, 8)
    assert {"arange", "index"} <= set(ops(graph))
    assert fold_constants(graph) == 1
    assert set(ops(graph)) == {"matmul", "add", "mean"}
    (name,) = [node.target for node in graph.graph.find_nodes(op="get_attr") if "folded" in node.target]
    assert attrgetter(name)(graph).shape == (3, 8, 8)
    torch.testing.assert_close(graph(image), module(image))


@pytest.mark.parametrize("model", ["levit_128s", "deit_tiny_patch16_224", "mobilevit_xxs"])
def test_attention_is_spelled_and_gives_the_same(model: str) -> None:
    module = api.build(model, pretrained=False, image_size=(64, 64), num_classes=10).module
    graph = traced(module, 64)
    image = torch.randn(1, 3, 64, 64)
    layers = ops(graph).count("scaled_dot_product_attention")
    fold_constants(graph)
    assert layers
    assert spell_attention(graph) == layers
    assert "scaled_dot_product_attention" not in ops(graph)
    assert ops(graph).count("softmax") == layers
    assert not {"index", "arange"} & set(ops(graph))
    with torch.inference_mode():
        torch.testing.assert_close(graph(image), module(image), rtol=1e-4, atol=1e-5)


class Odd(nn.Module):
    """Attention that stays as it is: `mask` is bool, or one key serves all heads."""

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, image: Tensor) -> Tensor:
        mask = torch.eye(8, dtype=torch.bool) if self.mask else None
        key = image if self.mask else image[:, :1]
        return nn.functional.scaled_dot_product_attention(image, key, key, mask).mean((2, 3))


@pytest.mark.parametrize("mask", [True, False])
def test_other_attention_is_left_alone(mask: bool) -> None:
    graph = traced(Odd(mask))
    assert spell_attention(graph) == 0
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(graph(image), Odd(mask)(image))


def test_a_scale_is_kept() -> None:
    class Scaled(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return attend(image, image, image, 0.3).mean((2, 3))

    graph = traced(Scaled())
    assert spell_attention(graph) == 1
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(graph(image), Scaled()(image))

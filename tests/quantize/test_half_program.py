"""Programs in 16 bits: products in them, all else in fp32, and fp32 islands where fp16 cannot hold the numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.export.program import export_program, op_name
from vitdeploy.export.program_norms import fold_norms
from vitdeploy.quantize.half_program import HalfReport, Mixed, to_half, weights_of

SHAPE = (3, 8, 8)
IMAGE = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)


class Block(nn.Module):
    """A convolution with a norm, attention under a mask, a residual sum whose size `gain` sets, and a head."""

    def __init__(self, gain: float = 1.0, masked: float = -torch.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8, bias=False)
        self.bn1 = nn.BatchNorm1d(8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.gain = gain
        self.register_buffer("mask", torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, masked))
        for bn in (self.bn, self.bn1):
            nn.init.uniform_(bn.weight, 0.5, 2)
            nn.init.normal_(bn.bias)
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(image)), inplace=True).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(len(x), 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2).reshape(x.shape)
        y = self.bn1(self.proj(y).flatten(0, 1)).reshape(x.shape)
        return self.head(self.norm(x * self.gain + y).mean(1))


def halved(module: nn.Module, precision: str = "fp16", **options: str) -> tuple[nn.Module, HalfReport]:
    return to_half(export_program(module, SHAPE, batch=2), precision, [IMAGE], **options)


def types(module: nn.Module) -> dict[str, torch.dtype]:
    """What each op of a module computes in, by its name; a set of one, or this fails."""
    found: dict[str, set[torch.dtype]] = {}
    for node in export_program(module, SHAPE, batch=2).graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and op_name(node) != "_to_copy":
            found.setdefault(op_name(node), set()).add(value.dtype)
    return {name: kinds.pop() for name, kinds in found.items() if len(kinds) == 1}


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-3), ("bf16", 3e-2)])
def test_outputs_stay_near_when_products_are_in_16_bits(precision: str, bound: float) -> None:
    module = Block().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    half, report = halved(module, precision)
    with torch.inference_mode():
        want, got = module(torch.from_numpy(IMAGE)), half(torch.from_numpy(IMAGE))
    assert got.dtype is torch.float32
    error = float((got - want).abs().max() / want.abs().max())
    assert 0 < error < bound
    assert report.islands == []
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the module was changed"


def test_products_and_sums_are_in_16_bits_and_the_rest_in_fp32() -> None:
    half, _ = halved(Block().eval())
    found = types(half)
    for name in ("conv2d", "linear", "scaled_dot_product_attention", "add"):
        assert found[name] is torch.float16, name
    for name in ("layer_norm", "mean", "relu", "mul"):
        assert found[name] is torch.float32, name


def test_weights_are_stored_as_those_who_read_them_want() -> None:
    half, report = halved(Block().eval())
    sizes = {torch.float16: 0, torch.float32: 0}
    for tensor in half.buffers():
        sizes[tensor.dtype] += tensor.numel()
    # The convolution and three linear layers with the biases that they have after folding; and the mask.
    assert sizes[torch.float16] == (8 * 3 * 16 + 8) + (24 * 8 + 24) + (8 * 8 + 8) + (5 * 8 + 5) + 16
    assert sizes[torch.float32] == 2 * 8  # LayerNorm
    assert report.storage == "fp16"


def test_input_and_output_are_of_the_precision_that_is_asked_for() -> None:
    half, _ = halved(Block().eval(), io_precision="fp16")
    assert half(torch.from_numpy(IMAGE).half()).dtype is torch.float16


def test_sums_are_kept_in_fp32_when_they_come_near_the_end_of_fp16() -> None:
    module = Block(gain=1e6).eval()
    half, report = halved(module)
    assert [island.op_type for island in report.islands] == ["add"]
    assert "overflow" in report.islands[0].reason
    assert types(half)["add"] is torch.float32
    with torch.inference_mode():
        want, got = module(torch.from_numpy(IMAGE)), half(torch.from_numpy(IMAGE))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * float(want.abs().max()))
    assert halved(module, "bf16")[1].islands == []  # which reaches as far as fp32


def test_products_are_kept_in_fp32_when_a_mask_is_beyond_fp16_and_not_when_it_is_infinite() -> None:
    assert [island.op_type for island in halved(Block(masked=-1e9).eval())[1].islands] == [
        "scaled_dot_product_attention"
    ]
    assert halved(Block(masked=-torch.inf).eval())[1].islands == []


def test_norms_are_folded_into_the_layers_before_them() -> None:
    module = Block().eval()
    program = export_program(module, SHAPE, batch=2)
    weights = dict(weights_of(program))
    assert fold_norms(program.graph_module, weights) == 2
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    same = Mixed(program.graph_module, weights, {node.name: None for node in program.graph.nodes}, torch.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(same(torch.from_numpy(IMAGE)), module(torch.from_numpy(IMAGE)), rtol=1e-5, atol=1e-6)


class TwoReaders(Block):
    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head((self.bn(x) + x).flatten(2).mean(2))


class SharedLayer(Block):
    def forward(self, image: Tensor) -> Tensor:
        return self.head((self.bn(self.stem(image)) + self.stem(image.flip(3))).flatten(2).mean(2))


@pytest.mark.parametrize("make", [TwoReaders, SharedLayer])
def test_norms_stay_when_the_layer_before_serves_others_too(make: Callable[[], nn.Module]) -> None:
    module = make().eval()
    program = export_program(module, SHAPE, batch=2)
    assert fold_norms(program.graph_module, dict(weights_of(program))) == 0
    half, _ = halved(module)
    with torch.inference_mode():
        want, got = module(torch.from_numpy(IMAGE)), half(torch.from_numpy(IMAGE))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=3e-3 * float(want.abs().max()))

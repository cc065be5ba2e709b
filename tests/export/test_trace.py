"""trace(): what it takes, what it refuses, and that it leaves torch as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx_files import assert_file_equals_eager, export_file
from torch import Tensor, nn

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.export.trace import trace

SHAPE = (3, 8, 8)


class Attention(nn.Module):
    """One attention over the pixels, in blocks of two rows, in three or five dimensions."""

    def __init__(self, rank: int, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rank, self.masked = rank, masked
        self.qkv = nn.Linear(3, 24)
        self.head = nn.Linear(8, 5)
        self.bias = nn.Parameter(torch.randn(16, 16) if rank == 5 else torch.randn(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        if self.rank == 5:  # (batch, heads, blocks, tokens, width)
            x = self.qkv(x.reshape(-1, 4, 16, 3)).reshape(-1, 4, 16, 2, 12).permute(0, 3, 1, 2, 4)
        else:
            x = self.qkv(x)
        q, k, v = x.chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, self.bias if self.masked else None)
        if self.rank == 5:
            out = out.permute(0, 2, 3, 1, 4).reshape(-1, 64, 8)
        return self.head(out.mean(1))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("batch", [1, (1, 2, 8)])
def test_attention_of_any_rank_is_exported(tmp_path: Path, rank: int, masked: bool, batch: Any) -> None:
    module = Attention(rank, masked).eval()
    export_file(module, SHAPE, batch, tmp_path / "model.onnx")
    assert_file_equals_eager(tmp_path / "model.onnx", module, SHAPE, *((1,) if batch == 1 else (1, 2, 5)))


def test_torch_is_as_before_when_the_trace_fails(capfd: pytest.CaptureFixture[str]) -> None:
    before = F.scaled_dot_product_attention
    with pytest.raises(UnsupportedModel, match=r"torch\.export cannot trace this model") as caught:
        trace(Branches(), SHAPE)
    assert "\n" not in caught.value.message
    assert F.scaled_dot_product_attention is before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [17, 25, 0])
def test_opset_is_refused_when_torch_cannot_write_it(opset: int) -> None:
    with pytest.raises(UsageError, match="18 to 24") as caught:
        trace(Branches(), SHAPE, opset=opset)
    assert str(opset) in caught.value.message


def test_batch_is_named_when_dynamic_and_a_number_when_fixed() -> None:
    module = Attention(5, False)
    fixed, dynamic = trace(module, SHAPE, batch=3), trace(module, SHAPE, batch=(1, 4, 8))
    above = trace(module, SHAPE, batch=(4, 8, 16))
    assert [str(n) for n in above.graph.inputs[0].shape or ()] == ["batch", "3", "8", "8"]
    assert [str(n) for n in fixed.graph.inputs[0].shape or ()] == ["3", "3", "8", "8"]
    assert [str(n) for n in dynamic.graph.inputs[0].shape or ()] == ["batch", "3", "8", "8"]
    assert str((dynamic.graph.outputs[0].shape or [None])[0]) == "batch"

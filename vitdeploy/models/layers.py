"""Blocks that several papers share. Parameter names are timm's, so that its checkpoints load with no mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": lambda: QuickGELU(),
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "hard_swish": nn.Hardswish,
}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the GELU approximation that CLIP was trained with (Hendrycks and Gimpel, 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T * scale + bias) v (Vaswani et al., 1706.03762).

    Args:
        q, k, v: (..., tokens, head_dim) floats; v's last dimension may differ.
        scale: factor on the scores, usually head_dim ** -0.5.
        bias: added to the scores; broadcasts to (..., query tokens, key tokens).
        dropout: probability on the attention weights.

    Returns:
        (..., query tokens, v's head_dim).

    While a graph is traced this is spelled out, so that every exporter sees the same MatMul, Softmax, MatMul; but for
    compilers of PyTorch programs, whose fused kernels are known by the one op (see attention_as_one_op).
    """
    whole = _as_one_op or not torch.compiler.is_exporting()
    if whole and _recorded is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    scores = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return F.dropout(record(scores.softmax(dim=-1)), dropout, training=dropout > 0) @ v


def record(attention: Tensor) -> Tensor:
    """The same, and noted for `attention_recorded`: for attention weights that `attend` does not see."""
    if _recorded is not None:
        _recorded.append(attention)
    return attention


_as_one_op = False
_recorded: list[Tensor] | None = None


@contextmanager
def attention_as_one_op() -> Iterator[None]:
    """What is traced within keeps `attend` as scaled_dot_product_attention."""
    global _as_one_op
    before, _as_one_op = _as_one_op, True
    try:
        yield
    finally:
        _as_one_op = before


@contextmanager
def attention_recorded() -> Iterator[list[Tensor]]:
    """The attention weights of what runs within, (..., query tokens, key tokens) each, in the order of their layers."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 1603.09382): drops a residual branch per sample while training."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1.0 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (Touvron et al., 2103.17239)."""

    def __init__(self, dim: int, init_value: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PatchEmbed(nn.Module):
    """Image (B, C, H, W) to tokens (B, H/p * W/p, dim), row by row."""

    def __init__(self, img_size: tuple[int, int], patch: tuple[int, int], in_chans: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.grid = (img_size[0] // patch[0], img_size[1] // patch[1])
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b c h w -> b (h w) c")


class Mlp(nn.Module):
    """Linear, activation, Linear on the last dimension."""

    def __init__(self, dim: int, hidden: int, act: str = "gelu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = ACTIVATIONS[act]()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class SwiGLUPacked(nn.Module):
    """The gated MLP of Shazeer (2002.05202) with gate and value in one Linear: silu(gate) * value."""

    def __init__(self, dim: int, hidden: int, act: str = "silu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden // 2, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop2(self.fc2(self.drop1(F.silu(gate) * value)))


MLPS: dict[str, Callable[..., nn.Module]] = {"mlp": Mlp, "swiglu_packed": SwiGLUPacked}


class Attention(nn.Module):
    """Multi-head self-attention over (..., tokens, dim); qkv's rows are (q | k | v), each (head, head_dim)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {dim}")
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "... n (h d) -> ... h n d", h=self.num_heads) for t in self.qkv(x).chunk(3, dim=-1))
        x = self.mix(self.q_norm(q), self.k_norm(k), v)
        return self.proj_drop(self.proj(self.merge(x)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the heads make of their queries, keys and values, (..., heads, tokens, head_dim) each."""
        return attend(q, k, v, self.scale, dropout=self.attn_drop if self.training else 0.0)

    def merge(self, x: Tensor) -> Tensor:
        """(..., heads, tokens, head_dim) to (..., tokens, dim)."""
        return rearrange(x, "... h n d -> ... n (h d)")


class Block(nn.Module):
    """The pre-norm transformer block of ViT (2010.11929): x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        act_layer: str = "gelu",
        mlp_layer: str = "mlp",
        norm_eps: float = 1e-6,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLPS[mlp_layer](dim, int(dim * mlp_ratio), act_layer, proj_drop)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ConvNormAct(nn.Module):
    """Conv2d without bias, BatchNorm2d, and an activation (or none)."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = "silu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class ClassifierHead(nn.Module):
    """Global average pool over (B, C, H, W), dropout, Linear."""

    def __init__(self, in_chs: int, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(in_chs, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(x.mean(dim=(-2, -1))))


def to_pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """An int n as (n, n); a pair as it is."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, never more than 10 % below it (MobileNetV2, 1801.04381)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def linspace_rates(rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates that rise linearly from 0 to `rate` over `depth` blocks."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]

"""MaxViT: convolutions, then attention within windows, then attention over a grid of pixels that are far apart
(Tu et al., 2204.01697)."""

from __future__ import annotations

import torch
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import FeedForward, Residual, quotient
from vitdeploy.models.layers import DropPath, attend


class SqueezeExcitation(nn.Module):
    """Channels times a gate that the mean of the map opens (Hu et al., 1709.01507)."""

    def __init__(self, dim: int, shrinkage_rate: float) -> None:
        super().__init__()
        hidden = int(dim * shrinkage_rate)
        self.gate = nn.Sequential(
            Reduce("b c h w -> b c", "mean"),
            nn.Linear(dim, hidden, bias=False),
            nn.SiLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.Sigmoid(),
            Rearrange("b c -> b c 1 1"),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class MBConvResidual(nn.Module):
    """x + fn(x); while training the branch is dropped for some samples."""

    def __init__(self, fn: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.fn = fn
        self.dropsample = DropPath(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropsample(self.fn(x))


def mbconv(dim: int, dim_out: int, *, downsample: bool, expansion_rate: float, shrinkage_rate: float) -> nn.Module:
    """MobileNet's inverted residual with squeeze and excitation; residual where the shape stays."""
    hidden = int(expansion_rate * dim_out)
    net = nn.Sequential(
        nn.Conv2d(dim, hidden, 1),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        nn.Conv2d(hidden, hidden, 3, stride=2 if downsample else 1, padding=1, groups=hidden),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
        SqueezeExcitation(hidden, shrinkage_rate),
        nn.Conv2d(hidden, dim_out, 1),
        nn.BatchNorm2d(dim_out),
    )
    return MBConvResidual(net) if dim == dim_out and not downsample else net


class WindowAttention(nn.Module):
    """Each window of (B, windows, windows, w, w, dim) attends to itself, with a learned bias by relative position."""

    def __init__(self, dim: int, dim_head: int, dropout: float, window_size: int) -> None:
        super().__init__()
        self.heads = quotient("dim", dim, "dim_head", dim_head)
        self.scale = dim_head**-0.5
        self.drop = dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, dim * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Dropout(dropout))
        reach = 2 * window_size - 1
        self.rel_pos_bias = nn.Embedding(reach**2, self.heads)
        away = torch.arange(window_size)[:, None] - torch.arange(window_size) + window_size - 1
        offsets = away[:, None, :, None] * reach + away[None, :, None, :]
        self.rel_pos_indices: Tensor
        self.register_buffer("rel_pos_indices", offsets.flatten(2).flatten(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(t, "b y x p q (h d) -> b (y x) h (p q) d", h=self.heads) for t in found)
        bias = self.rel_pos_bias.weight.t()[:, self.rel_pos_indices]
        out = attend(q, k, v, self.scale, bias, self.drop if self.training else 0.0)
        return self.to_out(rearrange(out, "b (y x) h (p q) d -> b y x p q (h d)", y=x.shape[1], p=x.shape[3]))


class MaxViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes). Maps, from H / 4 on, must divide into windows.

    Args:
        depth: blocks of each stage.
        dim: width of the first stage; each next is twice as wide.
        dim_conv_stem: of the stem; None takes `dim`.

    Raises:
        ValueError: a depth that is no tuple, or heads that do not divide the width.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: tuple[int, ...],
        dim_head: int = 32,
        dim_conv_stem: int | None = None,
        window_size: int = 7,
        mbconv_expansion_rate: float = 4,
        mbconv_shrinkage_rate: float = 0.25,
        dropout: float = 0.1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if not isinstance(depth, tuple):
            raise ValueError(f"depth ({depth}) must be a tuple: the blocks of each stage")
        before = dim if dim_conv_stem is None else dim_conv_stem
        self.conv_stem = nn.Sequential(
            nn.Conv2d(channels, before, 3, stride=2, padding=1), nn.Conv2d(before, before, 3, padding=1)
        )
        rates = {"expansion_rate": mbconv_expansion_rate, "shrinkage_rate": mbconv_shrinkage_rate}
        w = {"w1": window_size, "w2": window_size}
        self.layers = nn.ModuleList()
        for stage, count in enumerate(depth):
            width = dim * 2**stage
            for block in range(count):
                self.layers.append(
                    nn.Sequential(
                        mbconv(before, width, downsample=block == 0, **rates),
                        Rearrange("b d (x w1) (y w2) -> b x y w1 w2 d", **w),  # windows
                        Residual(WindowAttention(width, dim_head, dropout, window_size)),
                        Residual(FeedForward(width, width * 4, dropout)),
                        Rearrange("b x y w1 w2 d -> b d (x w1) (y w2)"),
                        Rearrange("b d (w1 x) (w2 y) -> b x y w1 w2 d", **w),  # a grid
                        Residual(WindowAttention(width, dim_head, dropout, window_size)),
                        Residual(FeedForward(width, width * 4, dropout)),
                        Rearrange("b x y w1 w2 d -> b d (w1 x) (w2 y)"),
                    )
                )
                before = width
        pool = Reduce("b d h w -> b d", "mean")
        self.mlp_head = nn.Sequential(pool, nn.LayerNorm(before), nn.Linear(before, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_stem(x)
        for block in self.layers:
            x = block(x)
        return self.mlp_head(x)

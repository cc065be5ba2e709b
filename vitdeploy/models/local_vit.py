"""LocalViT: the MLP becomes an inverted residual of convolutions, so that tokens also talk to their neighbours
(Li et al., 2104.05707)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Block, Named, Residual, ViTVariant


class DepthwiseConv(Named):
    """A convolution of each channel, then one across channels."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int, *, bias: bool = True) -> None:
        depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)
        super().__init__(net=nn.Sequential(depthwise, nn.Conv2d(dim, dim_out, 1, bias=bias)))


class LocalFeedForward(nn.Module):
    """Norm, then widen, convolve and narrow the map of patch tokens (B, rows * rows, dim).

    In vit-pytorch the norm of tokens is applied to the map, which raises; here it comes before.
    """

    def __init__(self, dim: int, hidden_dim: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.rows = rows
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Conv2d(dim, hidden_dim, 1),
            nn.Hardswish(),
            DepthwiseConv(hidden_dim, hidden_dim, 3),
            nn.Hardswish(),
            nn.Dropout(dropout),
            nn.Conv2d(hidden_dim, dim, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        norm, *convolutions = self.net
        x = rearrange(norm(x), "b (h w) c -> b c h w", h=self.rows)
        for layer in convolutions:
            x = layer(x)
        return rearrange(x, "b c h w -> b (h w) c")


class ExcludeCLS(nn.Module):
    """`fn` of all tokens but the first."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, :1], self.fn(x[:, 1:])), dim=1)


class LocalViT(ViTVariant, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's."""

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        ff = LocalFeedForward(dim, mlp_dim, self.grid[0], dropout)
        return Residual(Attention(dim, heads, dim_head, dropout)), ExcludeCLS(Residual(ff))

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return Named(layers=nn.Sequential(*(nn.Sequential(*block) for block in blocks)))

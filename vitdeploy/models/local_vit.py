"""LocalViT: the MLP becomes an inverted residual of convolutions, so that tokens also talk to their neighbours
(Li et al., 2104.05707)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Residual, ViTVariant


class DepthwiseConv(nn.Module):
    """A convolution of each channel, then one across channels."""

    def __init__(self, dim: int, dim_out: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)
        self.net = nn.Sequential(depthwise, nn.Conv2d(dim, dim_out, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


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


class Transformer(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, rows: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Residual(Attention(dim, heads, dim_head, dropout)),
                    ExcludeCLS(Residual(LocalFeedForward(dim, mlp_dim, rows, dropout))),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer.children():
                x = part(x)
        return x


class LocalViT(ViTVariant, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments and errors are ViTVariant's."""

    def make_transformer(
        self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, dropout: float
    ) -> nn.Module:
        return Transformer(dim, depth, heads, dim_head, mlp_dim, self.grid[0], dropout)

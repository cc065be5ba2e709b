"""ViT for small datasets: patches that see their neighbours (SPT), and attention that looks away from itself with a
learned temperature (LSA) (Lee et al., 2112.13492)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Block, FeedForward, Size, ViTVariant, grid, pair
from vitdeploy.models.layers import attend


class LSA(Attention):
    """Attention in which no token attends to itself, and the scores' scale is learned."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        self.temperature = nn.Parameter(torch.tensor(math.log(dim_head**-0.5)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        itself = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device) * torch.finfo(q.dtype).min
        dropout = self.drop if self.training else 0.0
        return attend(q * self.temperature.exp(), k, v, 1.0, itself, dropout)


class SPT(nn.Module):
    """Shifted patch tokenization: (B, channels, H, W) to (B, n, dim), from the image and its shifts by one pixel to
    either side."""

    def __init__(self, *, dim: int, patch_size: int, channels: int = 3) -> None:
        super().__init__()
        patch_dim = patch_size * patch_size * 5 * channels
        self.to_patch_tokens = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch_size, p2=patch_size),
            nn.LayerNorm(patch_dim),
            nn.Linear(patch_dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        shifts = ((1, -1, 0, 0), (-1, 1, 0, 0), (0, 0, 1, -1), (0, 0, -1, 1))
        return self.to_patch_tokens(torch.cat((x, *(F.pad(x, shift) for shift in shifts)), dim=1))


class ViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments are ViTVariant's.

    Raises:
        ValueError: as ViTVariant, and patches that are not square.
    """

    def make_embedding(
        self, dim: int, image_size: Size, patch_size: Size, channels: int
    ) -> tuple[nn.Module, tuple[int, ...]]:
        side, other = pair(patch_size)
        if side != other:
            raise ValueError(f"patch_size {patch_size} must be square")
        return SPT(dim=dim, patch_size=side, channels=channels), grid(image_size, side)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return LSA(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

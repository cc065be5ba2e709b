"""NesT: attention within blocks of the map, and convolutions across their borders as four blocks become one
(Zhang et al., Nested Hierarchical Transformer, 2105.12723)."""

from __future__ import annotations

import torch
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import ChannelNorm, MapFeedForward, Transformer, of_stages, parts, quotient
from vitdeploy.models.layers import attend


class BlockAttention(nn.Module):
    """Each of `blocks` x `blocks` parts of (B, dim, H, W) attends to itself; parts are a dimension of their own."""

    def __init__(self, dim: int, heads: int, blocks: int, dropout: float) -> None:
        super().__init__()
        dim_head = quotient("dim", dim, "heads", heads)
        self.heads, self.blocks = heads, blocks
        self.scale = dim_head**-0.5
        self.drop = dropout
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        parts = {"h": self.heads, "y": self.blocks, "x": self.blocks}
        q, k, v = (
            rearrange(t, "b (h d) (y p) (x q) -> b (y x) h (p q) d", **parts)
            for t in self.to_qkv(self.norm(x)).chunk(3, dim=1)
        )
        out = attend(q, k, v, self.scale, dropout=self.drop if self.training else 0.0)
        side = x.shape[-2] // self.blocks
        return self.to_out(rearrange(out, "b (y x) h (p q) d -> b (h d) (y p) (x q)", y=self.blocks, p=side))


class Level(Transformer):
    """Transformer blocks over a map of `blocks` x `blocks` parts, which share their position embeddings."""

    def __init__(self, dim: int, side: int, blocks: int, depth: int, heads: int, mult: int, dropout: float) -> None:
        pairs = (
            (BlockAttention(dim, heads, blocks, dropout), MapFeedForward(dim, mult, dropout)) for _ in range(depth)
        )
        super().__init__(dim, pairs, norm=False)
        self.side, self.blocks = side, blocks
        self.pos_emb = nn.Parameter(torch.randn(side * side))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pos_emb.view(self.side, self.side).repeat(self.blocks, self.blocks))


class NesT(nn.Module):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        num_hierarchies: levels; the first has 4 ** (num_hierarchies - 1) blocks, each next a quarter of them.
        block_repeats: transformer blocks of each level; a number is for all.
        dim, heads: of the first level; each next has twice as many.
        dim_head: of no effect, as in vit-pytorch: it is dim / heads.

    Raises:
        ValueError: patches do not fill the image, blocks not the map, or heads not the width.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        heads: int,
        num_hierarchies: int,
        block_repeats: int | tuple[int, ...],
        mlp_mult: int = 4,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        blocks = 2 ** (num_hierarchies - 1)
        rows = quotient("image_size", image_size, "patch_size", patch_size)
        side = quotient("image_size / patch_size", rows, "2 ** (num_hierarchies - 1)", blocks)
        repeats = of_stages("block_repeats", block_repeats, num_hierarchies)
        patch_dim = channels * patch_size**2
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (p1 p2 c) h w", p1=patch_size, p2=patch_size),
            ChannelNorm(patch_dim),
            nn.Conv2d(patch_dim, dim, 1),
            ChannelNorm(dim),
        )
        self.layers = nn.ModuleList()
        for level, depth in enumerate(repeats):
            width, last = dim * 2**level, level == num_hierarchies - 1
            transformer = Level(width, side, blocks >> level, depth, heads * 2**level, mlp_mult, dropout)
            self.layers.append(nn.ModuleList([transformer, nn.Identity() if last else aggregate(width, width * 2)]))
        pool = Reduce("b c h w -> b c", "mean")
        self.mlp_head = nn.Sequential(ChannelNorm(width), pool, nn.Linear(width, num_classes))

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        for transformer, merge in parts(self.layers):
            x = merge(transformer(x))
        return self.mlp_head(x)


def aggregate(dim: int, dim_out: int) -> nn.Sequential:
    """(B, dim, H, W) to (B, dim_out, H / 2, W / 2), across the borders of blocks."""
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(nn.Conv2d(dim, dim_out, 3, padding=1), ChannelNorm(dim_out), pool)

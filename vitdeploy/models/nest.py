"""NesT: attention within blocks of the map, and convolutions across their borders as four blocks become one
(Zhang et al., Nested Hierarchical Transformer, 2105.12723)."""

from __future__ import annotations

import torch
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    ChannelNorm,
    MapAttention,
    MapConv,
    MapFeedForward,
    PatchLinear,
    Transformer,
    of_stages,
    parts,
    quotient,
)


class BlockAttention(MapAttention):
    """Each of `blocks` x `blocks` parts of (B, H, W, dim) attends to itself."""

    def __init__(self, dim: int, heads: int, side: int, dropout: float) -> None:
        super().__init__(dim, heads, quotient("dim", dim, "heads", heads), dim, dropout, side)
        self.to_qkv = PatchLinear(dim, dim * 3, bias=False)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.to_qkv(x).chunk(3, dim=-1)


class Level(Transformer):
    """Transformer blocks over a map of `blocks` x `blocks` parts, which share their position embeddings."""

    def __init__(self, dim: int, side: int, blocks: int, depth: int, heads: int, mult: int, dropout: float) -> None:
        pairs = ((BlockAttention(dim, heads, side, dropout), MapFeedForward(dim, mult, dropout)) for _ in range(depth))
        super().__init__(dim, pairs, norm=False)
        self.side, self.blocks = side, blocks
        self.pos_emb = nn.Parameter(torch.randn(side * side))

    def forward(self, x: Tensor) -> Tensor:
        positions = self.pos_emb.view(self.side, self.side).repeat(self.blocks, self.blocks)
        return super().forward(x + positions[..., None])


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
            Rearrange("b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=patch_size, p2=patch_size),
            ChannelNorm(patch_dim),
            PatchLinear(patch_dim, dim),
            ChannelNorm(dim),
        )
        self.layers = nn.ModuleList()
        for level, depth in enumerate(repeats):
            width, last = dim * 2**level, level == num_hierarchies - 1
            transformer = Level(width, side, blocks >> level, depth, heads * 2**level, mlp_mult, dropout)
            self.layers.append(nn.ModuleList([transformer, nn.Identity() if last else Aggregate(width, width * 2)]))
        pool = Reduce("b h w c -> b c", "mean")
        self.mlp_head = nn.Sequential(ChannelNorm(width), pool, nn.Linear(width, num_classes))

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        for transformer, merge in parts(self.layers):
            x = merge(transformer(x))
        return self.mlp_head(x)


class Aggregate(nn.Sequential):
    """(B, H, W, dim) to (B, H / 2, W / 2, dim_out), across the borders of blocks."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(
            MapConv(dim, dim_out, 3, padding=1), ChannelNorm(dim_out), nn.MaxPool2d(3, stride=2, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, pool = self
        return pool(norm(conv(x)).movedim(-1, 1)).movedim(1, -1)

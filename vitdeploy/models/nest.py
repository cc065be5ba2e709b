"""NesT: attention within blocks of the map, and convolutions across their borders as four blocks become one
(Zhang et al., Nested Hierarchical Transformer, 2105.12723). `NesT` is vit-pytorch's, `Nest` the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models import layers
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
from vitdeploy.models.vision_transformer import check_image_size, check_pool


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

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
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


class Attention(layers.Attention):
    """Self-attention over (..., tokens, dim) whose output has the heads' channels interleaved."""

    def merge(self, x: Tensor) -> Tensor:
        return rearrange(x, "... h n d -> ... n (d h)")


class PatchEmbed(nn.Module):
    """Images to maps (B, dim, H / patch, W / patch)."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class ConvPool(nn.Module):
    """Maps (B, dim, H, W) to (B, dim_out, H / 2, W / 2), across the borders of blocks.

    Args:
        pad_type: 'same' pads the pool behind the map alone, as TensorFlow does; '' pads all around.
    """

    def __init__(self, dim: int, dim_out: int, pad_type: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm = nn.LayerNorm(dim_out, eps=1e-6)
        self.same = pad_type == "same"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)
        if self.same:  # of an even size, the last window reaches one pixel beyond: so it does by ceil_mode
            return F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        return F.max_pool2d(x, 3, stride=2, padding=1)


class NestLevel(nn.Module):
    """A map (B, dim, H, W), pooled but for the first level, and its square blocks' own transformer."""

    def __init__(self, pool: nn.Module, dim: int, blocks: int, side: int, encoder: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pool, self.blocks, self.side = pool, blocks, side
        self.pos_embed = nn.Parameter(torch.randn(1, blocks**2, side**2, dim) * 0.02)
        self.transformer_encoder = nn.Sequential(*encoder)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.pool(x), "b c (y p) (x q) -> b (y x) (p q) c", p=self.side, q=self.side)
        x = self.transformer_encoder(x + self.pos_embed)
        return rearrange(x, "b (y x) (p q) c -> b c (y p) (x q)", y=self.blocks, p=self.side)


class Nest(nn.Module):
    """NesT as its authors trained it, with timm's constructor and keys: (B, in_chans, H, W) to (B, num_classes).

    Unlike vit-pytorch's NesT, each block has position embeddings of its own, at full width, and qkv have biases.

    Args:
        num_levels: the first has 4 ** (num_levels - 1) blocks, each next a quarter of them.
        embed_dims, num_heads, depths: of each level.
        pad_type: '' or, for weights from JAX, 'same'; see ConvPool.

    Raises:
        UsageError: an image that is no square, or whose patches do not divide into the blocks; another pool than 'avg'.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 4,
        num_levels: int = 3,
        embed_dims: Sequence[int] = (128, 256, 512),
        num_heads: Sequence[int] = (4, 8, 16),
        depths: Sequence[int] = (2, 2, 20),
        num_classes: int = 1000,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.5,
        pad_type: str = "",
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        height, width = layers.to_pair(img_size)
        blocks = 2 ** (num_levels - 1)
        if height != width:
            raise UsageError(f"Image size {height}x{width} is no square, which NesT's blocks are.")
        check_image_size((height, width), (patch_size * blocks, patch_size * blocks))
        check_pool(global_pool, "avg")
        side = height // (patch_size * blocks)
        self.patch_embed = PatchEmbed(in_chans, embed_dims[0], patch_size)
        rates = iter(layers.linspace_rates(drop_path_rate, sum(depths)))
        levels = []
        for level, (dim, heads, depth) in enumerate(zip(embed_dims, num_heads, depths, strict=True)):
            encoder = [
                layers.Block(
                    dim,
                    Attention(dim, heads, qkv_bias, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate),
                    mlp_ratio,
                    proj_drop=proj_drop_rate,
                    drop_path=next(rates),
                )
                for _ in range(depth)
            ]
            pool = ConvPool(embed_dims[level - 1], dim, pad_type) if level else nn.Identity()
            levels.append(NestLevel(pool, dim, blocks >> level, side, encoder))
        self.levels = nn.Sequential(*levels)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.levels(self.patch_embed(x))
        return self.head(self.head_drop(self.norm(x.movedim(1, -1)).mean(dim=(1, 2))))

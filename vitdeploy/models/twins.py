"""Twins with timm's constructor and keys, as its authors trained it: PCPVT, whose pixels attend to a coarse summary of
the map, and SVT, where every other layer attends within windows instead (Chu et al., 2104.13840). vit-pytorch's is in
twins_svt."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.blocks import PEG, MapConv, attend_in_windows, merge_heads, quotient, split_heads
from vitdeploy.models.layers import Block, attend, linspace_rates, to_pair
from vitdeploy.models.vision_transformer import check_pool


class LocallyGroupedAttn(nn.Module):
    """Each window of (B, H, W, dim) attends to itself; zeros fill the windows at the lower and right border."""

    def __init__(self, dim: int, num_heads: int, window: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.window, self.attn_drop = num_heads, window, attn_drop
        self.scale = quotient("embed_dims", dim, "num_heads", num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        below, beside = -rows % self.window, -columns % self.window
        if below or beside:
            x = F.pad(x, (0, 0, 0, beside, 0, below))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        dropout = self.attn_drop if self.training else 0.0
        out = attend_in_windows(q, k, v, self.num_heads, self.window, self.scale, dropout=dropout)
        return self.proj_drop(self.proj(out[:, :rows, :columns]))


class GlobalSubSampleAttn(nn.Module):
    """All pixels of (B, H, W, dim) attend to one key and value of every `sr_ratio` x `sr_ratio` of them."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.scale = quotient("embed_dims", dim, "num_heads", num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, dim * 2)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sr = MapConv(dim, dim, sr_ratio, sr_ratio) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim) if sr_ratio > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        seen = x if self.sr is None or self.norm is None else self.norm(self.sr(x))
        found = (self.q(x), *self.kv(seen).chunk(2, dim=-1))
        q, k, v = (split_heads(t.flatten(1, 2), self.num_heads) for t in found)
        out = attend(q, k, v, self.scale, dropout=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(merge_heads(out))).unflatten(1, x.shape[1:3])


class PatchEmbed(nn.Module):
    """(B, H, W, dim) to (B, H / patch, W / patch, dim_out)."""

    def __init__(self, dim: int, dim_out: int, patch: int) -> None:
        super().__init__()
        self.proj = MapConv(dim, dim_out, patch, patch)
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class Twins(nn.Module):
    """(B, in_chans, H, W) to logits (B, num_classes).

    Unlike vit-pytorch's TwinsSVT, positions are convolved behind each stage's first block, which attends within
    windows alone; heads and the MLP's width are of each stage; and projections have biases.

    Args:
        patch_size: of the first stage; 2 in the others.
        embed_dims, num_heads, mlp_ratios, depths: of each stage.
        sr_ratios: pixels down and across that a key stands for, of each stage.
        wss: windows of each stage, in every other layer from the first; None for none (PCPVT).

    Raises:
        UsageError: an image that the patches of all stages do not fill, or another pool than 'avg'.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (3, 4, 6, 3),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        wss: Sequence[int] | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_pool(global_pool, "avg")
        size, step = to_pair(img_size), patch_size * 2 ** (len(depths) - 1)
        if any(side < step or side % step for side in size):
            raise UsageError(f"Image size {size[0]}x{size[1]} does not divide by {step}, as Twins' stages do.")
        drops = (attn_drop_rate, proj_drop_rate)

        def attention(stage: int, index: int) -> nn.Module:
            if wss is None or index % 2:
                return GlobalSubSampleAttn(embed_dims[stage], num_heads[stage], sr_ratios[stage], *drops)
            return LocallyGroupedAttn(embed_dims[stage], num_heads[stage], wss[stage], *drops)

        rates = iter(linspace_rates(drop_path_rate, sum(depths)))
        dims = (in_chans, *embed_dims)
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(dims[stage], dims[stage + 1], 2 if stage else patch_size) for stage in range(len(depths))
        )
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(
                        embed_dims[stage],
                        attention(stage, index),
                        mlp_ratios[stage],
                        proj_drop=proj_drop_rate,
                        drop_path=next(rates),
                    )
                    for index in range(depth)
                )
            )
            for stage, depth in enumerate(depths)
        )
        self.pos_block = nn.ModuleList(PositionConv(dim) for dim in embed_dims)
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dims[-1], num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for embed, blocks, positions in zip(self.patch_embeds, self.blocks, self.pos_block, strict=True):
            first, *others = blocks.children()
            x = positions(first(self.pos_drop(embed(x))))
            for block in others:
                x = block(x)
        return self.head(self.head_drop(self.norm(x).mean(dim=(1, 2))))


class PositionConv(PEG):
    """PEG, whose keys have one number more."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj = nn.Sequential(self.proj)  # type: ignore[assignment]

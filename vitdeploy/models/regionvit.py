"""RegionViT: tokens of small patches attend within their region, together with a token of the region, and the regions'
tokens attend to each other (Chen et al., 2106.02689)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    PEG,
    ChannelNorm,
    FeedForward,
    MapConv,
    MaskedAttention,
    PatchLinear,
    of_stages,
    parts,
)


class Downsample(nn.Module):
    """Half of the rows and columns."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = MapConv(dim, dim_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class R2LTransformer(nn.Module):
    """Regional to local attention over maps of local tokens (B, H, W, dim) and of regions (B, h, w, dim)."""

    def __init__(self, dim: int, window_size: int, depth: int, attn_dropout: float, ff_dropout: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.local_rel_pos_bias = nn.Embedding((2 * window_size - 1) ** 2, 4)
        self.layers = nn.ModuleList(
            nn.ModuleList([MaskedAttention(dim, 4, 32, attn_dropout), FeedForward(dim, dim * 4, ff_dropout).net[:-1]])
            for _ in range(depth)
        )

    def bias(self, rows: int, columns: int) -> Tensor:
        """Of a region's tokens to each other, (heads, 1 + n, 1 + n); none from or to the region's own."""
        at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(self.local_rel_pos_bias.weight.device)
        down, across = (at[:, None] - at + self.window_size - 1).unbind(-1)
        bias = self.local_rel_pos_bias.weight.t()[:, down + across * (2 * self.window_size - 1)]
        return F.pad(bias, (1, 0, 1, 0))

    def forward(self, local: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = region.shape[1:3]
        high, wide = local.shape[1] // rows, local.shape[2] // columns
        bias = self.bias(high, wide)
        near = rearrange(local, "b (h p) (w q) c -> b (h w) (p q) c", p=high, q=wide)
        far = region.flatten(1, 2)
        for attn, ff in parts(self.layers):
            far = far + attn(far)
            both = torch.cat((far.unsqueeze(2), near), dim=2)
            both = both + attn(both, bias=bias)
            both = both + ff(both)
            far, near = both[:, :, 0], both[:, :, 1:]
        local = rearrange(near, "b (h w) (p q) c -> b (h p) (w q) c", h=rows, p=high)
        return local, far.unflatten(1, (rows, columns))


class RegionViT(nn.Module):
    """Images (B, channels, H, W), of sizes that regions divide, to logits (B, num_classes).

    Args:
        dim, depth: of the four stages, or a number for all.
        window_size: local patches that a region is wide.
        tokenize_local_3_conv: local tokens by three convolutions instead of one.
        use_peg: positions by a convolution before the later stages.

    Raises:
        ValueError: numbers that are not of four stages, or channels other than 3, which local tokens are made of.
    """

    def __init__(
        self,
        *,
        dim: int | tuple[int, ...] = (64, 128, 256, 512),
        depth: int | tuple[int, ...] = (2, 2, 8, 2),
        window_size: int = 7,
        num_classes: int = 1000,
        tokenize_local_3_conv: bool = False,
        local_patch_size: int = 4,
        use_peg: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        dims, depths = of_stages("dim", dim, 4), of_stages("depth", depth, 4)
        if channels != 3:
            raise ValueError(f"channels ({channels}) must be 3")
        first = dims[0]
        if tokenize_local_3_conv:
            self.local_encoder: nn.Module = nn.Sequential(
                MapConv(3, first, 3, 2, 1),
                ChannelNorm(first),
                nn.GELU(),
                MapConv(first, first, 3, 2, 1),
                ChannelNorm(first),
                nn.GELU(),
                MapConv(first, first, 3, 1, 1),
            )
        else:
            self.local_encoder = MapConv(3, first, 8, 4, 3)
        side = local_patch_size * window_size
        pixels = Rearrange("b (h p1) (w p2) c -> b h w (c p1 p2)", p1=side, p2=side)
        self.region_encoder = nn.Sequential(pixels, PatchLinear(side**2 * channels, first))
        self.layers = nn.ModuleList()
        before = first
        for stage, (width, count) in enumerate(zip(dims, depths, strict=True)):
            down = Downsample(before, width) if stage else nn.Identity()
            positions = PEG(width) if stage and use_peg else nn.Identity()
            transformer = R2LTransformer(width, window_size, count, attn_dropout, ff_dropout)
            self.layers.append(nn.ModuleList([down, positions, transformer]))
            before = width
        pool = Reduce("b h w c -> b c", "mean")
        self.to_logits = nn.Sequential(pool, nn.LayerNorm(before), nn.Linear(before, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        local, region = self.local_encoder(x), self.region_encoder(x)
        for down, positions, transformer in parts(self.layers):
            local, region = transformer(positions(down(local)), down(region))
        return self.to_logits(region)

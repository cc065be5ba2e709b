"""RvT: ViT with rotary positions on both axes, convolved queries and gated MLPs (after Su et al., RoFormer,
2104.09864)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Block, FeedForward, ViTVariant, prepend
from vitdeploy.models.local_vit import DepthwiseConv


class SpatialConv(nn.Module):
    """A convolution over the map of patch tokens; the class token, in front, is projected where the width changes."""

    def __init__(self, dim: int, dim_out: int, kernel: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.conv = DepthwiseConv(dim, dim_out, kernel, bias=False)
        self.cls_proj = nn.Linear(dim, dim_out) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv(rearrange(x[:, 1:], "b (h w) d -> b d h w", h=self.rows))
        return torch.cat((self.cls_proj(x[:, :1]), rearrange(patches, "b d h w -> b (h w) d")), dim=1)


class GEGLU(nn.Module):
    """Half of the channels, times GELU of the others (Shazeer, 2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gates = x.chunk(2, dim=-1)
        return F.gelu(gates) * x


class AxialRotaryEmbedding(nn.Module):
    """Rotations of pairs of channels by a patch's place: a half by its row, a half by its column.

    `scales` are frequencies, of which vit-pytorch keeps a copy in the state dict.
    """

    def __init__(self, dim: int, rows: int, max_freq: float) -> None:
        super().__init__()
        self.scales: Tensor
        self.register_buffer("scales", torch.linspace(1.0, max_freq / 2, dim // 4))
        self.rows = rows

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (rows * rows, 4 * frequencies)."""
        angles = torch.linspace(-1.0, 1.0, self.rows, device=self.scales.device)[:, None] * self.scales * math.pi
        return turns(axial(angles, angles))


def axial(down: Tensor, across: Tensor) -> Tensor:
    """Angles of rows (h, n) and of columns (w, n) to those of a map's places, (h * w, 2 * n)."""
    both = down[:, None].expand(-1, len(across), -1), across.expand(len(down), -1, -1)
    return torch.cat(both, dim=-1).flatten(0, 1)


def turns(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of angles (n, d), each for two channels: (n, 2 * d)."""
    both = angles.repeat_interleave(2, dim=-1)
    return both.cos(), both.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first channels of tokens (B, heads, 1 + n, d) turned by their place, but for the first token's."""
    first, x = x[:, :, :1], x[:, :, 1:]
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turning[..., ::2], turning[..., 1::2]
    quarter = torch.stack((-b, a), dim=-1).flatten(-2)
    return torch.cat((first, torch.cat((turning * cos + quarter * sin, rest), dim=-1)), dim=2)


class RotaryAttention(Attention):
    """Attention of queries and keys that are turned by what AxialRotaryEmbedding gives."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if rotary is not None:
            q, k = rotated(q, *rotary), rotated(k, *rotary)
        return super().mix(q, k, v)


class RvT(ViTVariant, without=("pool",)):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes); arguments and errors are ViTVariant's,
    and more:

    Args:
        emb_dropout: of no effect, as in vit-pytorch.
        use_rotary, use_ds_conv, use_glu: rotary positions, convolved queries, gated MLPs.
    """

    patch_norms = False

    def __init__(
        self,
        *,
        image_size: int,
        dim_head: int = 64,
        use_rotary: bool = True,
        use_ds_conv: bool = True,
        use_glu: bool = True,
        **vit: Any,
    ) -> None:
        self.use_rotary, self.use_ds_conv, self.use_glu = use_rotary, use_ds_conv, use_glu
        super().__init__(image_size=image_size, dim_head=dim_head, **vit)
        del self.pos_embedding
        self.transformer.pos_emb = AxialRotaryEmbedding(dim_head, self.grid[0], image_size)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        attention, ff = (
            RotaryAttention(dim, heads, dim_head, dropout, split_kv=True),
            FeedForward(dim, mlp_dim, dropout),
        )
        if self.use_ds_conv:
            attention.to_q = SpatialConv(dim, heads * dim_head, 5, self.grid[0])  # type: ignore[assignment]
        if self.use_glu:
            ff.net[1], ff.net[2] = nn.Linear(dim, mlp_dim * 2), GEGLU()
        return attention, ff

    def forward(self, img: Tensor) -> Tensor:
        x = prepend(self.cls_token, self.to_patch_embedding(img))
        rotary: Any = self.transformer.pos_emb
        return self.classify(self.transformer(x, rotary=rotary() if self.use_rotary else None))

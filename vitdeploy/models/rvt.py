"""RvT: ViT with rotary positions on both axes, convolved queries and gated MLPs (after Su et al., RoFormer,
2104.09864)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, merge_heads, norm_head, parts, patch_embedding, prepend, quotient
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
        by_row = angles[:, None].expand(-1, self.rows, -1)
        both = torch.cat((by_row, by_row.transpose(0, 1)), dim=-1).flatten(0, 1).repeat_interleave(2, dim=-1)
        return both.cos(), both.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first channels of tokens (B, heads, 1 + n, d) turned by their place, but for the first token's."""
    first, x = x[:, :, :1], x[:, :, 1:]
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    a, b = turning[..., ::2], turning[..., 1::2]
    quarter = torch.stack((-b, a), dim=-1).flatten(-2)
    return torch.cat((first, torch.cat((turning * cos + quarter * sin, rest), dim=-1)), dim=2)


class RotaryAttention(Attention):
    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, rows: int, use_ds_conv: bool) -> None:
        super().__init__(dim, heads, dim_head, dropout, split_kv=True)
        if use_ds_conv:
            self.to_q = SpatialConv(dim, heads * dim_head, 5, rows)  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self, x: Tensor, turns: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """`turns` are what AxialRotaryEmbedding gives; None leaves positions out."""
        q, k, v = self.qkv(self.norm(x))
        if turns is not None:
            q, k = rotated(q, *turns), rotated(k, *turns)
        return self.to_out(merge_heads(self.mix(q, k, v)))


class Transformer(nn.Module):
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        image_size: int,
        rows: int,
        dropout: float,
        *,
        use_rotary: bool,
        use_ds_conv: bool,
        use_glu: bool,
    ) -> None:
        super().__init__()
        self.use_rotary = use_rotary
        self.pos_emb = AxialRotaryEmbedding(dim_head, rows, image_size)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    RotaryAttention(dim, heads, dim_head, dropout, rows, use_ds_conv),
                    FeedForward(dim, mlp_dim, dropout, use_glu=use_glu),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        turns = self.pos_emb() if self.use_rotary else None
        for attn, ff in parts(self.layers):
            x = x + attn(x, turns)
            x = x + ff(x)
        return x


class FeedForward(nn.Module):
    """Norm, Linear, gated GELU or GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, *, use_glu: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim * 2 if use_glu else hidden_dim),
            GEGLU() if use_glu else nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class RvT(nn.Module):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        emb_dropout: of no effect, as in vit-pytorch.
        use_rotary, use_ds_conv, use_glu: rotary positions, convolved queries, gated MLPs.

    Raises:
        ValueError: patches that do not fill the image.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        use_rotary: bool = True,
        use_ds_conv: bool = True,
        use_glu: bool = True,
    ) -> None:
        super().__init__()
        rows = quotient("image_size", image_size, "patch_size", patch_size)
        flags = {"use_rotary": use_rotary, "use_ds_conv": use_ds_conv, "use_glu": use_glu}
        self.patch_size = patch_size
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels, norms=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = Transformer(dim, depth, heads, dim_head, mlp_dim, image_size, rows, dropout, **flags)
        self.mlp_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        return self.mlp_head(self.transformer(prepend(self.cls_token, self.to_patch_embedding(img)))[:, 0])

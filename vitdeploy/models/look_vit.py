"""LookViT: few tokens do the work and look things up among many, which reuse that attention to be told of it (Koner et
al., LookupViT, 2407.12753)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import merge_heads, parts, quotient, sincos, split_heads
from vitdeploy.models.layers import record
from vitdeploy.models.mobilevit import resize_bilinear


class GainNorm(nn.Module):
    """LayerNorm without bias, whose gain is learned from one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma + 1)


def mlp(dim: int, factor: float, dropout: float) -> nn.Sequential:
    """Norm, Linear, GELU, Linear."""
    hidden = int(dim * factor)
    layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)]
    return nn.Sequential(GainNorm(dim), *layers)


class Attention(nn.Module):
    """Attention of tokens to themselves or to a context; with `reuses` by scores that are given.

    Args:
        crosses: whether there is a context, which gets a norm of its own.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int, dropout: float, *, crosses: bool = False, reuses: bool = False
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.Identity() if reuses else GainNorm(dim)
        self.norm_context = GainNorm(dim) if crosses else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        if not reuses:
            self.to_q, self.to_k = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Identity(), nn.Linear(inner, dim, bias=False), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is attended to, and the scores (B, heads, n, m)."""
        x = self.norm(x)
        context = x if context is None else self.norm_context(context)
        if scores is None:
            q, k = split_heads(self.to_q(x), self.heads), split_heads(self.to_k(context), self.heads)
            scores = q * self.scale @ k.transpose(-2, -1)
        weights = self.dropout(record(scores.softmax(dim=-1)))
        return self.to_out(merge_heads(weights @ split_heads(self.to_v(context), self.heads))), scores


class LookViT(nn.Module):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        patch_size, mlp_factor, heads, dim_head: of the few tokens; with `highres_`, of the many.
        patch_conv_kernel_size: of the convolution that makes the many.

    Raises:
        ValueError: patches that do not fill the image, few tokens that are not fewer, an even kernel, or a width that
            is no multiple of 4.
    """

    def __init__(
        self,
        *,
        dim: int,
        image_size: int,
        num_classes: int,
        depth: int = 3,
        patch_size: int = 16,
        heads: int = 8,
        mlp_factor: float = 4,
        dim_head: int = 64,
        highres_patch_size: int = 12,
        highres_mlp_factor: float = 4,
        cross_attn_heads: int = 8,
        cross_attn_dim_head: int = 64,
        patch_conv_kernel_size: int = 7,
        dropout: float = 0.1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        many = quotient("image_size", image_size, "highres_patch_size", highres_patch_size)
        self.few = quotient("image_size", image_size, "patch_size", patch_size)
        if patch_size <= highres_patch_size:
            raise ValueError(f"patch_size ({patch_size}) must be above highres_patch_size ({highres_patch_size})")
        if patch_conv_kernel_size % 2 == 0:
            raise ValueError(f"patch_conv_kernel_size ({patch_conv_kernel_size}) must be odd")
        if dim % 4:
            raise ValueError(f"dim ({dim}) must be a multiple of 4, two sines and two cosines")
        side = highres_patch_size
        self.to_patches = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (p1 p2 c) h w", p1=side, p2=side),
            nn.Conv2d(channels * side**2, dim, patch_conv_kernel_size, padding=patch_conv_kernel_size // 2),
            Rearrange("b c h w -> b h w c"),
            GainNorm(dim),
        )
        self.pos_embedding = nn.Parameter(torch.randn(many**2, dim))  # of no use in vit-pytorch either
        self.positions: Tensor
        self.register_buffer("positions", sincos((many, many), dim).unflatten(0, (many, many)), persistent=False)
        across = (dim, cross_attn_heads, cross_attn_dim_head, dropout)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Attention(dim, heads, dim_head, dropout),
                    mlp(dim, mlp_factor, dropout),
                    Attention(*across, crosses=True),
                    Attention(*across, crosses=True, reuses=True),
                    GainNorm(dim),
                    mlp(dim, highres_mlp_factor, dropout),
                ]
            )
            for _ in range(depth)
        )
        self.norm, self.highres_norm = GainNorm(dim), GainNorm(dim)
        self.to_logits = nn.Linear(dim, num_classes, bias=False)

    def forward(self, img: Tensor) -> Tensor:
        patches = self.to_patches(img) + self.positions
        few = resize_bilinear(rearrange(patches, "b h w d -> b d h w"), self.few, self.few, align_corners=False)
        x, many = rearrange(few, "b d h w -> b (h w) d"), patches.flatten(1, 2)
        for attend, feed, look_up, tell, norm, feed_many in parts(self.layers):
            found, scores = look_up(x, many)
            x = x + found
            x = x + attend(x)[0]
            x = x + feed(x)
            many = norm(many + tell(many, x, scores.transpose(-2, -1))[0])
            many = many + feed_many(many)
        return self.to_logits(self.norm(x).mean(dim=1) + self.highres_norm(many).mean(dim=1))

"""CrossViT: two ViTs of small and large patches, whose class tokens look at each other's patches (Chen et al.,
2103.14899)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, Block, Embedder, encoder, norm_head, parts, patch_embedding, quotient


class CrossAttention(nn.Module):
    """A class token (B, 1, dim) attends to itself and to patches (B, n, dim_other), at their width."""

    def __init__(self, dim: int, dim_other: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.fn = Attention(dim_other, heads, dim_head, dropout, split_kv=True)
        alike = dim == dim_other
        self.project_in = nn.Identity() if alike else nn.Linear(dim, dim_other)
        self.project_out = nn.Identity() if alike else nn.Linear(dim_other, dim)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        token = self.project_in(token)
        normed = self.fn.norm(token)
        return self.project_out(self.fn(token, torch.cat((normed, patches), dim=1)))


class CrossTransformer(nn.Module):
    """Each class token in turn attends to the other scale's patches."""

    def __init__(self, small: int, large: int, depth: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        rest = (heads, dim_head, dropout)
        self.layers = nn.ModuleList(
            nn.ModuleList([CrossAttention(small, large, *rest), CrossAttention(large, small, *rest)])
            for _ in range(depth)
        )

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
        (a, patches), (b, coarse) = (small[:, :1], small[:, 1:]), (large[:, :1], large[:, 1:])
        for to_large, to_small in parts(self.layers):
            a = a + to_large(a, coarse)
            b = b + to_small(b, patches)
        return torch.cat((a, patches), dim=1), torch.cat((b, coarse), dim=1)


class MultiScaleEncoder(nn.Module):
    """Both scales, (B, 1 + n, sm_dim) and (B, 1 + m, lg_dim), through encoders of their own and then across."""

    def __init__(self, layers: Iterable[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers)

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
        for of_small, of_large, across in parts(self.layers):
            small, large = across(of_small(small), of_large(large))
        return small, large


class CrossViT(nn.Module):
    """Images (B, channels, image_size, image_size) to logits (B, num_classes).

    Args:
        sm_..., lg_...: of the scale of small and of large patches.
        depth: times that both scales are encoded and cross.

    Raises:
        ValueError: patches that do not fill the image.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_classes: int,
        sm_dim: int,
        lg_dim: int,
        sm_patch_size: int = 12,
        sm_enc_depth: int = 1,
        sm_enc_heads: int = 8,
        sm_enc_mlp_dim: int = 2048,
        sm_enc_dim_head: int = 64,
        lg_patch_size: int = 16,
        lg_enc_depth: int = 4,
        lg_enc_heads: int = 8,
        lg_enc_mlp_dim: int = 2048,
        lg_enc_dim_head: int = 64,
        cross_attn_depth: int = 2,
        cross_attn_heads: int = 8,
        cross_attn_dim_head: int = 64,
        depth: int = 3,
        dropout: float = 0.1,
        emb_dropout: float = 0.1,
        channels: int = 3,
    ) -> None:
        super().__init__()

        def embedder(dim: int, patch_size: int, name: str) -> Embedder:
            count = quotient("image_size", image_size, name, patch_size) ** 2
            return Embedder(patch_embedding(dim, patch_size, channels), count, dim, emb_dropout)

        self.sm_image_embedder = embedder(sm_dim, sm_patch_size, "sm_patch_size")
        self.lg_image_embedder = embedder(lg_dim, lg_patch_size, "lg_patch_size")
        small = (sm_dim, sm_enc_depth, sm_enc_heads, sm_enc_dim_head, sm_enc_mlp_dim, dropout)
        large = (lg_dim, lg_enc_depth, lg_enc_heads, lg_enc_dim_head, lg_enc_mlp_dim, dropout)
        across = (sm_dim, lg_dim, cross_attn_depth, cross_attn_heads, cross_attn_dim_head, dropout)
        self.multi_scale_encoder = MultiScaleEncoder(
            (encoder(*small, split_kv=True), encoder(*large, split_kv=True), CrossTransformer(*across))
            for _ in range(depth)
        )
        self.sm_mlp_head = norm_head(sm_dim, num_classes)
        self.lg_mlp_head = norm_head(lg_dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        small, large = self.multi_scale_encoder(self.sm_image_embedder.embed(img), self.lg_image_embedder.embed(img))
        return self.sm_mlp_head(small[:, 0]) + self.lg_mlp_head(large[:, 0])

"""ViViT: attention over space and over time, one after the other (Arnab et al., 2103.15691)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    FeedForward,
    MaskedAttention,
    Size,
    Transformer,
    checked_pool,
    mask_bias,
    pair,
    parts,
    prepend,
    video_embedding,
    video_grid,
)


class FactorizedTransformer(Transformer):
    """Over (B, f, n, dim), each of `blocks` attends within a frame, then along the frames, then takes its MLP."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if bias is not None:
            bias = bias[:, None]
        for spatial, temporal, ff in parts(self.layers):
            x = (x + spatial(x)).transpose(1, 2)
            x = x + temporal(x, bias=bias)
            x = (x + ff(x)).transpose(1, 2)
        return self.norm(x)


class ViViT(nn.Module):
    """Videos (B, channels, frames, H, W) to logits (B, num_classes). Smaller videos take the first positions.

    `mask` (B, frames), where given, says which frames there are: only patches all of whose frames are there are
    attended to over time.

    Args:
        image_size, image_patch_size: numbers, or (height, width).
        pool: 'cls' (learned tokens that are read at the end) or 'mean'.
        variant: 'factorized_encoder' (a transformer over each frame, then one over the frames' tokens) or
            'factorized_self_attention' (both attentions in each block, so that the depths must be the same).
        use_flash_attn: the same function either way; PyTorch chooses the kernel.

    Raises:
        ValueError: patches that do not fill the video, an unknown pool or variant, or depths that are not the same.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        image_patch_size: Size,
        frames: int,
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        spatial_depth: int,
        temporal_depth: int,
        heads: int,
        mlp_dim: int,
        pool: str = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        variant: str = "factorized_encoder",
        use_flash_attn: bool = True,
    ) -> None:
        super().__init__()
        if variant not in ("factorized_encoder", "factorized_self_attention"):
            raise ValueError(f"variant ({variant!r}) must be 'factorized_encoder' or 'factorized_self_attention'")
        length, rows, columns = video_grid(frames, frame_patch_size, image_size, image_patch_size)
        self.patch_size = pair(image_patch_size)
        self.frame_patch_size = frame_patch_size
        self.pool, self.variant = checked_pool(pool), variant
        self.to_patch_embedding = video_embedding(dim, frame_patch_size, image_patch_size, channels, "f (h w)")
        self.pos_embedding = nn.Parameter(torch.randn(1, length, rows * columns, dim))
        self.dropout = nn.Dropout(emb_dropout)

        def token() -> nn.Parameter | None:
            return nn.Parameter(torch.randn(1, 1, dim)) if pool == "cls" else None

        def attention(kind: type[Attention]) -> Attention:
            return kind(dim, heads, dim_head, dropout, project_out=None)

        def ff() -> nn.Module:
            return FeedForward(dim, mlp_dim, dropout)

        self.spatial_cls_token = token()
        if variant == "factorized_encoder":
            self.temporal_cls_token = token()
            self.spatial_transformer, self.temporal_transformer = (
                Transformer(dim, ((attention(kind), ff()) for _ in range(depth)))
                for kind, depth in ((Attention, spatial_depth), (MaskedAttention, temporal_depth))
            )
        elif spatial_depth != temporal_depth:
            raise ValueError(f"temporal_depth ({temporal_depth}) must be spatial_depth ({spatial_depth})")
        else:
            self.factorized_transformer = FactorizedTransformer(
                dim, ((attention(Attention), attention(MaskedAttention), ff()) for _ in range(spatial_depth))
            )
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Linear(dim, num_classes)

    def forward(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.to_patch_embedding(video)
        x = x + self.pos_embedding[:, : x.shape[1], : x.shape[2]]
        if self.spatial_cls_token is not None:
            x = prepend(self.spatial_cls_token, x)
        x = self.dropout(x)
        if mask is not None:
            mask = rearrange(mask, "b (f p) -> b 1 1 f p", p=self.frame_patch_size).all(dim=-1)
        x = self.over_frames(x, mask) if self.variant == "factorized_encoder" else self.together(x, mask)
        return self.mlp_head(self.to_latent(x))

    def over_frames(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.spatial_transformer(x)
        x = x.mean(dim=2) if self.pool == "mean" else x[:, :, 0]
        if self.temporal_cls_token is not None:
            x = prepend(self.temporal_cls_token, x)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        x = self.temporal_transformer(x, bias=None if mask is None else mask_bias(mask, x.dtype))
        return x.mean(dim=1) if self.pool == "mean" else x[:, 0]

    def together(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.factorized_transformer(x, None if mask is None else mask_bias(mask, x.dtype))
        return x.mean(dim=(1, 2)) if self.pool == "mean" else x[:, 0, 0]


ViT = ViViT  # the name in vit-pytorch's README

"""The ViT of masked patch position prediction: fixed positions, mean pooling (Zhai et al., Position Prediction as an
Effective Pretraining Strategy, 2207.07611)."""

from __future__ import annotations

from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    FeedForward,
    Size,
    Transformer,
    grid,
    norm_head,
    pair,
    patch_embedding,
    sincos,
)


class ViT(nn.Module):
    """Images (B, channels, H, W) of `image_size` to logits (B, num_classes).

    Raises:
        ValueError: patches that do not fill the image, or a width that is no multiple of 4.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: Size,
        patch_size: Size,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim ({dim}) must be a multiple of 4, two sines and two cosines")
        rows, columns = grid(image_size, patch_size)
        self.patch_size, self.dim, self.num_patches = pair(patch_size), dim, rows * columns
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels)
        self.register_buffer("pos_embedding", sincos((rows, columns), dim), persistent=False)
        attentions = (Attention(dim, heads, dim_head, dropout, split_kv=True) for _ in range(depth))
        blocks = ((attention, FeedForward(dim, mlp_dim, dropout)) for attention in attentions)
        self.transformer = Transformer(dim, blocks, norm=False)
        self.to_latent = nn.Identity()
        self.linear_head = norm_head(dim, num_classes)

    def forward(self, img: Tensor) -> Tensor:
        x = self.transformer(self.to_patch_embedding(img) + self.pos_embedding)
        return self.linear_head(self.to_latent(x.mean(dim=1)))

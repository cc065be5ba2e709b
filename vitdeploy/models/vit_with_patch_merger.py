"""ViT with a patch merger: half-way through, learned queries gather all tokens into a few (Renggli et al., Learning to
Merge Tokens in Vision Transformers, 2202.12015)."""

from __future__ import annotations

import torch
from einops.layers.torch import Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import Attention, FeedForward, Size, Transformer, grid, pair, parts, patch_embedding


class PatchMerger(nn.Module):
    """(B, n, dim) to (B, num_tokens_out, dim)."""

    def __init__(self, dim: int, num_tokens_out: int) -> None:
        super().__init__()
        self.scale = dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(num_tokens_out, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return (self.queries @ x.transpose(-2, -1) * self.scale).softmax(dim=-1) @ x


class MergingTransformer(Transformer):
    """Merges behind the layer of number `at`."""

    def __init__(self, dim: int, blocks: list[tuple[nn.Module, nn.Module]], at: int, count: int) -> None:
        super().__init__(dim, blocks)
        self.at = at
        self.patch_merger = PatchMerger(dim, count)

    def forward(self, x: Tensor) -> Tensor:
        for index, (attn, ff) in enumerate(parts(self.layers)):
            x = x + attn(x)
            x = x + ff(x)
            if index == self.at:
                x = self.patch_merger(x)
        return self.norm(x)


class ViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes).

    Args:
        patch_merge_layer: the layer, counted from 1, behind which tokens are merged; None is the middle one.
        patch_merge_num_tokens: how many are left.

    Raises:
        ValueError: patches that do not fill the image.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        patch_merge_layer: int | None = None,
        patch_merge_num_tokens: int = 8,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        rows, columns = grid(image_size, patch_size)
        self.patch_size = pair(patch_size)
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels)
        self.pos_embedding = nn.Parameter(torch.randn(1, rows * columns + 1, dim))  # the last is never used
        self.dropout = nn.Dropout(emb_dropout)
        blocks: list[tuple[nn.Module, nn.Module]] = [
            (Attention(dim, heads, dim_head, dropout, project_out=None), FeedForward(dim, mlp_dim, dropout))
            for _ in range(depth)
        ]
        at = (depth // 2 if patch_merge_layer is None else patch_merge_layer) - 1
        self.transformer = MergingTransformer(dim, blocks, at, patch_merge_num_tokens)
        self.mlp_head = nn.Sequential(Reduce("b n d -> b d", "mean"), nn.Linear(dim, num_classes))

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(img)
        return self.mlp_head(self.transformer(self.dropout(x + self.pos_embedding[:, : x.shape[1]])))

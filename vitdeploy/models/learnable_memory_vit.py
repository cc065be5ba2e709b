"""ViT with learnable memory: a frozen model learns a new task by tokens of its own in every layer, which it reads and
which leave its old answers as they were (Sandler et al., Fine-tuning Image Transformers using Learnable Memory,
2203.15243)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    Block,
    FeedForward,
    Transformer,
    ViTVariant,
    append,
    mask_bias,
    merge_heads,
    norm_head,
    parts,
    prepend,
)
from vitdeploy.models.layers import attend


class MemoryAttention(Attention):
    """Attention to the tokens and to memories (m, dim), which are not normed, where `attn_mask` (n, n + m) is true."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout, split_kv=True)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, memories: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x = self.norm(x)
        q, k, v = self.qkv(x, x if memories is None else append(x, memories))
        bias = None if attn_mask is None else mask_bias(attn_mask, x.dtype)
        return self.to_out(merge_heads(attend(q, k, v, self.scale, bias, self.drop if self.training else 0.0)))


class MemoryTransformer(Transformer):
    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None, memories: Tensor | None = None
    ) -> Tensor:
        """Memories are (layers, m, dim)."""
        for index, (attn, ff) in enumerate(parts(self.layers)):
            x = x + attn(x, attn_mask, None if memories is None else memories[index])
            x = x + ff(x)
        return x


class ViT(ViTVariant):
    """Images (B, channels, H, W) to logits (B, num_classes), by the class token whatever `pool` says; arguments and
    errors are ViTVariant's."""

    def __init__(self, **vit: Any) -> None:
        super().__init__(**vit)
        self.pool = "cls"

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return MemoryAttention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return MemoryTransformer(dim, blocks, norm=False)

    def img_to_tokens(self, img: Tensor) -> Tensor:
        """(B, 1 + n, dim), the class token first."""
        return self.embed(img)


class Adapter(nn.Module):
    """A new task on a frozen ViT of this file: images to (B, num_classes).

    Its class token sees everything; the model's own tokens see neither it nor the memories.

    Raises:
        TypeError: another model.
    """

    def __init__(self, *, vit: ViT, num_memories_per_layer: int = 10, num_classes: int = 2) -> None:
        super().__init__()
        if not isinstance(vit, ViT):
            raise TypeError(f"vit must be a learnable_memory_vit.ViT, not a {type(vit).__name__}")
        tokens, dim = vit.pos_embedding.shape[-2:]
        self.vit = vit.requires_grad_(False)
        self.memory_cls_token = nn.Parameter(torch.randn(dim))
        self.memories_per_layer = nn.Parameter(torch.randn(len(vit.transformer.layers), num_memories_per_layer, dim))  # type: ignore[arg-type]
        self.mlp_head = norm_head(dim, num_classes)
        mask = torch.ones(1 + tokens, 1 + tokens + num_memories_per_layer, dtype=torch.bool)
        mask[1:, 0] = mask[1:, 1 + tokens :] = False
        self.register_buffer("attn_mask", mask)

    def forward(self, img: Tensor) -> Tensor:
        tokens = prepend(self.memory_cls_token[None], self.vit.img_to_tokens(img))
        return self.mlp_head(self.vit.transformer(tokens, self.attn_mask, self.memories_per_layer)[:, 0])

"""SimpleViT whose queries and keys are normed, so that attention scores cannot grow (Dehghani et al., Scaling Vision
Transformers to 22 Billion Parameters, 2302.05442)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Attention, Block, FeedForward, unit
from vitdeploy.models.layers import attend


class HeadNorm(nn.Module):
    """RMSNorm over each head's vectors, (B, heads, n, dim_head), with a gain of each head."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(heads, 1, dim) / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) * (self.scale * self.gamma)


class NormedAttention(Attention):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__(dim, heads, dim_head, dropout=None)
        self.q_norm = HeadNorm(heads, dim_head)
        self.k_norm = HeadNorm(heads, dim_head)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(self.q_norm(q), self.k_norm(k), v, 1.0)


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes).

    vit-pytorch's class has a LayerNorm in the classifier's place and returns (B, dim) whatever num_classes is: a state
    dict of its own lacks `linear_head.weight` (num_classes, dim) and `linear_head.bias`.
    """

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> Block:
        return NormedAttention(dim, heads, dim_head), FeedForward(dim, mlp_dim, dropout=None)

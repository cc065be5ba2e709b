"""ViT that drops tokens as it goes: each layer keeps some, drawn by how much the class token attends to them (Fayyaz et
al., Adaptive Token Sampling, 2111.15667)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    Attention,
    Block,
    FeedForward,
    Transformer,
    ViTVariant,
    mask_bias,
    merge_heads,
    parts,
)
from vitdeploy.models.layers import record


class AdaptiveTokenSampling(nn.Module):
    """Which tokens stay: `output_num_tokens` drawn by inverse transform sampling, of which the same are one.

    In eval it draws at the middles of equal parts of the distribution, as the paper has it, and so always the same
    tokens; in training at random. vit-pytorch draws at random in both.
    """

    def __init__(self, output_num_tokens: int) -> None:
        super().__init__()
        self.count = output_num_tokens

    def forward(self, attn: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, heads, n, n), values (B, heads, n, d) and the tokens that are there (B, n), the class token
        first, to a choice (B, 1 + count, n), a one in each row, and which rows of it are there (B, 1 + count).

        Shapes do not depend on what is drawn: a token that is drawn again leaves a row that is not there.
        """
        scores = (attn[:, :, 0, 1:] * value[:, :, 1:].norm(dim=-1)).sum(dim=1) * mask[:, 1:]
        reached = scores.cumsum(dim=-1)
        if self.training:
            points = torch.rand(len(scores), self.count, device=scores.device).sort(dim=-1).values
        else:
            points = (torch.arange(self.count, device=scores.device) + 0.5)[None] / self.count
        below = reached[:, None, :] < points[:, :, None] * reached[:, -1:, None]
        drawn = below.sum(dim=-1).clamp(max=scores.shape[-1] - 1) + 1  # 0 is the class token
        drawn = F.pad(drawn, (1, 0))
        there = F.pad(drawn[:, 1:] != drawn[:, :-1], (1, 0), value=True)
        return (drawn[..., None] == torch.arange(attn.shape[-1], device=drawn.device)).to(attn.dtype), there


class SamplingAttention(Attention):
    """Attention that answers for the tokens that stay."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, output_num_tokens: int) -> None:
        super().__init__(dim, heads, dim_head, dropout)
        self.dropout = nn.Dropout(dropout)
        self.ats = AdaptiveTokenSampling(output_num_tokens)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(what is attended to, which tokens are there, the choice among those of before; None where all stay)."""
        q, k, v = self.qkv(self.norm(x))
        scores = q * self.scale @ k.transpose(-2, -1) + mask_bias(mask, x.dtype)[:, None, None]
        attn, choice = self.dropout(record(scores.softmax(dim=-1))), None
        if x.shape[1] - 1 > self.ats.count:
            choice, mask = self.ats(attn, v, mask)
            attn = choice[:, None] @ attn
        return self.to_out(merge_heads(attn @ v)), mask, choice


class SamplingTransformer(Transformer):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Tokens that are left, and the number (B, n) that each had at first; -1 where there is none."""
        mask = x[..., 0] == x[..., 0]  # all are there; without saying how many images there are
        ids = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[None, :, None] + 0 * x[..., :1]
        for attn, ff in parts(self.layers):
            out, mask, choice = attn(x, mask)
            if choice is not None:
                x, ids = choice @ x, choice @ ids
            x = x + out
            x = x + ff(x)
        return x, ids.squeeze(-1).long().masked_fill(~mask, -1)


class ViT(ViTVariant, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); arguments are ViTVariant's, and more:

    Args:
        max_tokens_per_depth: patch tokens that each layer keeps at most, falling.

    Raises:
        ValueError: as ViTVariant, and numbers that are not of each layer, rise, or leave nothing.
    """

    def __init__(self, *, depth: int, max_tokens_per_depth: tuple[int, ...], **vit: Any) -> None:
        most = tuple(max_tokens_per_depth)
        if len(most) != depth or list(most) != sorted(most, reverse=True) or min(most, default=0) < 1:
            raise ValueError(f"max_tokens_per_depth {most} must be {depth} falling numbers, one a layer")
        self.most = iter(most)
        super().__init__(depth=depth, **vit)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        attention = SamplingAttention(dim, heads, dim_head, dropout, next(self.most))
        return attention, FeedForward(dim, mlp_dim, dropout)

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return SamplingTransformer(dim, blocks, norm=False)

    def forward(self, img: Tensor, return_sampled_token_ids: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Logits; where asked for, also the patches (B, n) that the last layer kept, -1 where there is none."""
        x, ids = self.transformer(self.embed(img))
        logits = self.classify(x)
        return (logits, (ids[:, 1:] - 1).clamp(min=-1)) if return_sampled_token_ids else logits

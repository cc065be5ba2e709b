"""SimpleViT with value residuals: every layer mixes its values with those of the first (Zhou et al., Value Residual
Learning, 2410.17897)."""

from __future__ import annotations

from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models import simple_vit
from vitdeploy.models.blocks import Attention, Block, FeedForward, Transformer, merge_heads, parts


class MixedAttention(Attention):
    """Attention that also returns its values; given those of another layer, a learned share of them goes in."""

    def __init__(self, dim: int, heads: int, dim_head: int, *, mixes: bool) -> None:
        super().__init__(dim, heads, dim_head, dropout=None)
        if mixes:
            self.to_residual_mix = nn.Sequential(nn.Linear(dim, heads), nn.Sigmoid(), Rearrange("b n h -> b h n 1"))

    def forward(self, x: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.norm(x)
        q, k, v = self.qkv(x)
        if first is not None:
            v = first + self.to_residual_mix(x) * (v - first)
        return self.to_out(merge_heads(self.mix(q, k, v))), v


class ResidualTransformer(Transformer):
    """Layers that all see the first one's values."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        first: Tensor | None = None
        for attn, ff in parts(self.layers):
            out, values = attn(x, first)
            first = values if first is None else first
            x = x + out
            x = x + ff(x)
        return self.norm(x)


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes)."""

    first = True

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int) -> Block:
        attention, self.first = MixedAttention(dim, heads, dim_head, mixes=not self.first), False
        return attention, FeedForward(dim, mlp_dim, dropout=None).net

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return ResidualTransformer(dim, blocks)

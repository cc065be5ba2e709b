"""CvT: convolutions make the tokens, and the queries, keys and values, so that positions need no embedding (Wu et al.,
2103.15808)."""

from __future__ import annotations

from itertools import pairwise

from einops.layers.torch import Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import ChannelNorm, MapAttention, MapConv, MapFeedForward, PatchLinear, Transformer


class Projection(nn.Module):
    """A convolution of each channel with BatchNorm, then a Linear, over (B, H, W, dim)."""

    def __init__(self, dim: int, dim_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(dim, dim, kernel, stride, kernel // 2, groups=dim, bias=False)
        self.net = nn.Sequential(depthwise, nn.BatchNorm2d(dim), PatchLinear(dim, dim_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        depthwise, norm, linear = self.net
        return linear(norm(depthwise(x.movedim(-1, 1))).movedim(1, -1))


class ConvolvedAttention(MapAttention):
    """Attention over (B, H, W, dim); keys and values are of every `stride`-th pixel."""

    def __init__(self, dim: int, kernel: int, stride: int, heads: int, dim_head: int, dropout: float) -> None:
        inner = heads * dim_head
        super().__init__(dim, heads, dim_head, inner, dropout)
        self.to_q = Projection(dim, inner, kernel, 1)
        self.to_kv = Projection(dim, inner * 2, kernel, stride)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)


def stage(channels: int, dim: int, sizes: tuple[int, ...], dropout: float) -> nn.Sequential:
    """A convolution to tokens, then a transformer; `sizes` are in the order of CvT's arguments."""
    kernel, stride, proj_kernel, kv_stride, heads, depth, mlp_mult = sizes
    attentions = [ConvolvedAttention(dim, proj_kernel, kv_stride, heads, 64, dropout) for _ in range(depth)]
    blocks = [(attention, MapFeedForward(dim, mlp_mult, dropout)) for attention in attentions]
    embed = MapConv(channels, dim, kernel, stride, kernel // 2)
    return nn.Sequential(embed, ChannelNorm(dim), Transformer(dim, blocks, norm=False))


class CvT(nn.Module):
    """Images (B, channels, H, W) of any size to logits (B, num_classes).

    Args:
        s1_..., s2_..., s3_...: of each stage: width, kernel and stride of its embedding, kernel of its projections and
            stride of those to keys and values, heads, layers, and how much wider its MLPs are.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        s1_emb_dim: int = 64,
        s1_emb_kernel: int = 7,
        s1_emb_stride: int = 4,
        s1_proj_kernel: int = 3,
        s1_kv_proj_stride: int = 2,
        s1_heads: int = 1,
        s1_depth: int = 1,
        s1_mlp_mult: int = 4,
        s2_emb_dim: int = 192,
        s2_emb_kernel: int = 3,
        s2_emb_stride: int = 2,
        s2_proj_kernel: int = 3,
        s2_kv_proj_stride: int = 2,
        s2_heads: int = 3,
        s2_depth: int = 2,
        s2_mlp_mult: int = 4,
        s3_emb_dim: int = 384,
        s3_emb_kernel: int = 3,
        s3_emb_stride: int = 2,
        s3_proj_kernel: int = 3,
        s3_kv_proj_stride: int = 2,
        s3_heads: int = 6,
        s3_depth: int = 10,
        s3_mlp_mult: int = 4,
        dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        for number, kernel in enumerate((s1_proj_kernel, s2_proj_kernel, s3_proj_kernel), 1):
            if kernel % 2 == 0:
                raise ValueError(f"s{number}_proj_kernel ({kernel}) must be odd")
        s1 = s1_emb_kernel, s1_emb_stride, s1_proj_kernel, s1_kv_proj_stride, s1_heads, s1_depth, s1_mlp_mult
        s2 = s2_emb_kernel, s2_emb_stride, s2_proj_kernel, s2_kv_proj_stride, s2_heads, s2_depth, s2_mlp_mult
        s3 = s3_emb_kernel, s3_emb_stride, s3_proj_kernel, s3_kv_proj_stride, s3_heads, s3_depth, s3_mlp_mult
        widths = pairwise((channels, s1_emb_dim, s2_emb_dim, s3_emb_dim))
        stages = zip(widths, (s1, s2, s3), strict=True)
        self.layers = nn.Sequential(*(stage(*ends, sizes, dropout) for ends, sizes in stages))
        pool = Reduce("b h w c -> b c", "mean")
        self.to_logits = nn.Sequential(pool, nn.Identity(), nn.Linear(s3_emb_dim, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_logits(self.layers(x.movedim(1, -1)))

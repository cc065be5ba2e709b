"""Twins-SVT: attention within windows, then of all pixels to a coarse summary of the map (Chu et al., Twins,
2104.13840)."""

from __future__ import annotations

from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import PEG, ChannelNorm, MapFeedForward, Residual
from vitdeploy.models.layers import attend


class MapAttention(nn.Module):
    """What both attentions over (B, dim, H, W) have in common: queries of each pixel, keys and values by `k` x `k`."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, k: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.drop = heads, dropout
        self.scale = dim_head**-0.5
        self.norm = ChannelNorm(dim)
        self.to_q = nn.Conv2d(dim, inner, 1, bias=False)
        self.to_kv = nn.Conv2d(dim, inner * 2, k, stride=k, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, dim, 1), nn.Dropout(dropout))

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.norm(x)
        return self.to_q(x), *self.to_kv(x).chunk(2, dim=1)


class LocalAttention(MapAttention):
    """Within windows, which are a dimension of their own."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, window: int) -> None:
        super().__init__(dim, heads, dim_head, dropout, 1)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        sizes = {"h": self.heads, "p": self.window, "q": self.window}
        q, k, v = (rearrange(t, "b (h d) (y p) (x q) -> b (y x) h (p q) d", **sizes) for t in self.qkv(x))
        out = attend(q, k, v, self.scale)
        rows = x.shape[-2] // self.window
        return self.to_out(rearrange(out, "b (y x) h (p q) d -> b (h d) (y p) (x q)", y=rows, p=self.window))


class GlobalAttention(MapAttention):
    """To one key and value of every `k` x `k` pixels."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b (h d) y x -> b h (y x) d", h=self.heads) for t in self.qkv(x))
        out = attend(q, k, v, self.scale, dropout=self.drop if self.training else 0.0)
        return self.to_out(rearrange(out, "b h (y x) d -> b (h d) y x", y=x.shape[-2]))


class Transformer(nn.Module):
    """Local attention, MLP, global attention, MLP, `depth` times; without the first two where `window` is None."""

    def __init__(self, dim: int, depth: int, window: int | None, k: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            near: list[nn.Module] = [nn.Identity(), nn.Identity()]
            if window is not None:
                near = [
                    Residual(LocalAttention(dim, 8, 64, dropout, window)),
                    Residual(MapFeedForward(dim, 4, dropout)),
                ]
            far = [Residual(GlobalAttention(dim, 8, 64, dropout, k)), Residual(MapFeedForward(dim, 4, dropout))]
            self.layers.append(nn.ModuleList([*near, *far]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer.children():
                x = part(x)
        return x


def patch_merging(dim: int, dim_out: int, patch: int) -> nn.Module:
    """(B, dim, H, W) to (B, dim_out, H / patch, W / patch)."""
    made = nn.Sequential(Rearrange("b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch))
    width = patch**2 * dim
    made.add_module("proj", nn.Sequential(ChannelNorm(width), nn.Conv2d(width, dim_out, 1), ChannelNorm(dim_out)))
    return made


class TwinsSVT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes). Maps must divide into their stage's windows.

    Args:
        s1_..., s4_...: of each stage: width, patch, window, pixels that a key stands for, and layers behind the
            position convolution.

    Raises:
        ValueError: an even kernel of the position convolution.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        s1_emb_dim: int = 64,
        s1_patch_size: int = 4,
        s1_local_patch_size: int = 7,
        s1_global_k: int = 7,
        s1_depth: int = 1,
        s2_emb_dim: int = 128,
        s2_patch_size: int = 2,
        s2_local_patch_size: int = 7,
        s2_global_k: int = 7,
        s2_depth: int = 1,
        s3_emb_dim: int = 256,
        s3_patch_size: int = 2,
        s3_local_patch_size: int = 7,
        s3_global_k: int = 7,
        s3_depth: int = 5,
        s4_emb_dim: int = 512,
        s4_patch_size: int = 2,
        s4_local_patch_size: int = 7,
        s4_global_k: int = 7,
        s4_depth: int = 4,
        peg_kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if peg_kernel_size % 2 == 0:
            raise ValueError(f"peg_kernel_size ({peg_kernel_size}) must be odd")
        dim, layers = 3, []
        for width, patch, window, k, depth in (
            (s1_emb_dim, s1_patch_size, s1_local_patch_size, s1_global_k, s1_depth),
            (s2_emb_dim, s2_patch_size, s2_local_patch_size, s2_global_k, s2_depth),
            (s3_emb_dim, s3_patch_size, s3_local_patch_size, s3_global_k, s3_depth),
            (s4_emb_dim, s4_patch_size, None, s4_global_k, s4_depth),
        ):
            first, others = (Transformer(width, count, window, k, dropout) for count in (1, depth))
            positions = nn.Sequential()
            positions.add_module("proj", Residual(PEG(width, peg_kernel_size).proj))
            layers.append(nn.Sequential(patch_merging(dim, width, patch), first, positions, others))
            dim = width
        head = [Reduce("b c h w -> b c", "mean"), nn.Identity(), nn.Linear(dim, num_classes)]
        self.layers = nn.Sequential(*layers, *head)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

"""SepViT: windows attend to themselves and to a token of their own, and those tokens then mix the windows (Li et al.,
2203.15380)."""

from __future__ import annotations

import torch
from einops import rearrange
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import PEG, ChannelNorm, MapConv, MapFeedForward, PatchLinear, of_stages, parts
from vitdeploy.models.layers import attend, record


class OverlappingPatchEmbed(nn.Module):
    """(B, H, W, dim) to (B, H / stride, W / stride, dim_out), by a convolution twice as wide as its steps."""

    def __init__(self, dim: int, dim_out: int, stride: int) -> None:
        super().__init__()
        kernel = stride * 2 - 1
        self.conv = MapConv(dim, dim_out, kernel, stride=stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SeparableAttention(nn.Module):
    """Over maps (B, H, W, dim): within each window, with a token that gathers it; then each window becomes a mixture of
    all, by how alike their tokens are."""

    def __init__(self, dim: int, heads: int, dim_head: int, window: int, dropout: float) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.window, self.drop = heads, window, dropout
        self.scale = dim_head**-0.5
        self.norm = ChannelNorm(dim)
        self.to_qkv = nn.Conv1d(dim, inner * 3, 1, bias=False)
        self.window_tokens = nn.Parameter(torch.randn(dim))
        self.window_tokens_to_qk = nn.Sequential(
            nn.LayerNorm(dim_head),
            nn.GELU(),
            Rearrange("b h n c -> b (h c) n"),
            nn.Conv1d(inner, inner * 2, 1),
            Rearrange("b (h c) n -> b h n c", h=heads),
        )
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Sequential(PatchLinear(inner, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        sizes = {"p": self.window, "q": self.window}
        rows = x.shape[1] // self.window
        windows = rearrange(self.norm(x), "b (y p) (x q) c -> b (y x) (p q) c", **sizes)
        tokens = nn.functional.pad(windows, (0, 0, 1, 0))  # the window's own token first
        first = nn.functional.pad(self.window_tokens[None], (0, 0, 0, tokens.shape[2] - 1))
        weight = self.to_qkv.weight.squeeze(-1)
        q, k, v = (
            rearrange(t, "b w n (h d) -> b w h n d", h=self.heads)
            for t in nn.functional.linear(tokens + first, weight).chunk(3, dim=-1)
        )
        out = attend(q, k, v, self.scale, dropout=self.drop if self.training else 0.0)
        gathered, pixels = out[..., 0, :], out[..., 1:, :]
        mixed = rearrange(pixels, "b w h n d -> b h w (n d)")
        if mixed.shape[2] > 1:
            q, k = self.window_tokens_to_qk(rearrange(gathered, "b w h d -> b h w d")).chunk(2, dim=-1)
            mixed = self.dropout(record((q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1))) @ mixed
        return self.to_out(rearrange(mixed, "b h (y x) (p q d) -> b (y p) (x q) (h d)", y=rows, **sizes))


class Transformer(nn.Module):
    """Attention and MLP with residuals, and a norm at the end but in the last stage."""

    def __init__(
        self, dim: int, depth: int, heads: int, dim_head: int, window: int, mult: int, dropout: float, *, norm: bool
    ) -> None:
        super().__init__()
        attentions = (SeparableAttention(dim, heads, dim_head, window, dropout) for _ in range(depth))
        self.layers = nn.ModuleList(
            nn.ModuleList([attention, MapFeedForward(dim, mult, dropout)]) for attention in attentions
        )
        self.norm = ChannelNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for attn, ff in parts(self.layers):
            x = x + attn(x)
            x = x + ff(x)
        return self.norm(x)


class SepViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes). Maps, from H / 4 on, must divide into windows.

    Args:
        dim: width of the first stage; each next is twice as wide.
        depth: layers of each stage.
        heads, window_size: of each stage, or a number for all.
        dim_head: vit-pytorch has heads of 32, and windows of 7, whatever the arguments say.

    Raises:
        ValueError: numbers that are not of each stage.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: tuple[int, ...],
        heads: int | tuple[int, ...],
        window_size: int | tuple[int, ...] = 7,
        dim_head: int = 32,
        ff_mult: int = 4,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(depth, tuple):
            raise ValueError(f"depth ({depth}) must be a tuple: the layers of each stage")
        self.layers = nn.ModuleList()
        before = channels
        every = (of_stages("heads", heads, len(depth)), of_stages("window_size", window_size, len(depth)))
        for stage, (count, of_stage, window) in enumerate(zip(depth, *every, strict=True)):
            width, last = dim * 2**stage, stage == len(depth) - 1
            embed = OverlappingPatchEmbed(before, width, 2 if stage else 4)
            transformer = Transformer(width, count, of_stage, dim_head, window, ff_mult, dropout, norm=not last)
            self.layers.append(nn.ModuleList([embed, PEG(width), transformer]))
            before = width
        pool = Reduce("b h w d -> b d", "mean")
        self.mlp_head = nn.Sequential(pool, nn.LayerNorm(before), nn.Linear(before, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for stage in self.layers:
            for part in stage.children():
                x = part(x)
        return self.mlp_head(x)

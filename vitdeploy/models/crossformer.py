"""CrossFormer: patches of several sizes make each token, and tokens attend to near ones, then to far ones (Wang et al.,
2108.00154)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import ChannelNorm, MapFeedForward, PatchLinear, attend_in_windows, of_stages, quotient

Kernels = Sequence[int]


class CrossEmbedLayer(nn.Module):
    """Convolutions of several kernels, by the same steps, side by side: the larger the kernel, the fewer channels."""

    def __init__(self, dim: int, dim_out: int, kernel_sizes: Kernels, stride: int) -> None:
        super().__init__()
        widths = [dim_out >> scale for scale in range(1, len(kernel_sizes))]
        widths.append(dim_out - sum(widths))
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, width, kernel, stride, (kernel - stride) // 2)
            for kernel, width in zip(sorted(kernel_sizes), widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        return torch.cat([conv(x) for conv in self.convs], dim=1).movedim(1, -1)


def dynamic_position_bias(dim: int) -> nn.Sequential:
    """Differences of rows and columns (n, 2) to biases (n), by an MLP."""
    layers: list[nn.Module] = []
    for width in (2, dim, dim):
        layers += [nn.Linear(width, dim), nn.LayerNorm(dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dim, 1), Rearrange("... () -> ..."))


class WindowAttention(nn.Module):
    """Attention over maps (B, H, W, dim) among `window_size` x `window_size` pixels, which are neighbours, or with
    `distant` as far apart as the map allows."""

    def __init__(self, dim: int, window_size: int, dropout: float, *, distant: bool) -> None:
        super().__init__()
        self.heads, self.window, self.drop = quotient("dim", dim, "dim_head", 32), window_size, dropout
        self.distant = distant
        self.norm = ChannelNorm(dim)
        self.to_qkv = PatchLinear(dim, dim * 3, bias=False)
        self.to_out = PatchLinear(dim, dim)
        self.dpb = dynamic_position_bias(dim // 4)
        self.table: Tensor
        self.register_buffer("table", torch.cartesian_prod(*[torch.arange(-window_size, window_size + 1.0)] * 2), False)
        at = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))
        down, across = (at[:, None] - at + window_size - 1).unbind(-1)
        self.pairs: Tensor  # rows of the table, as vit-pytorch counts them: it is two rows wider than they say
        self.register_buffer("pairs", down * (2 * window_size - 1) + across, False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        bias, drop = self.dpb(self.table)[self.pairs], self.drop if self.training else 0.0
        out = attend_in_windows(q, k, v, self.heads, self.window, 32**-0.5, bias, drop, distant=self.distant)
        return self.to_out(out)


class Transformer(nn.Module):
    """Near attention, MLP, far attention, MLP."""

    def __init__(self, dim: int, near: int, far: int, depth: int, attn_dropout: float, ff_dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                part
                for window, distant in ((near, False), (far, True))
                for part in (
                    WindowAttention(dim, window, attn_dropout, distant=distant),
                    MapFeedForward(dim, 4, ff_dropout).net[:-1],
                )
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer.children():
                x = x + part(x)
        return x


class CrossFormer(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes). Maps must divide into windows.

    Args:
        dim, depth, local_window_size, global_window_size, cross_embed_strides: of the four stages, or one for all;
            widths are multiples of 32.
        cross_embed_kernel_sizes: kernels of each stage.

    Raises:
        ValueError: numbers that are not of four stages, or a width that heads of 32 do not divide.
    """

    def __init__(
        self,
        *,
        dim: int | tuple[int, ...] = (64, 128, 256, 512),
        depth: int | tuple[int, ...] = (2, 2, 8, 2),
        global_window_size: int | tuple[int, ...] = (8, 4, 2, 1),
        local_window_size: int | tuple[int, ...] = 7,
        cross_embed_kernel_sizes: tuple[tuple[int, ...], ...] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4)),
        cross_embed_strides: int | tuple[int, ...] = (4, 2, 2, 2),
        num_classes: int = 1000,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if len(cross_embed_kernel_sizes) != 4:
            raise ValueError(f"cross_embed_kernel_sizes {cross_embed_kernel_sizes} must be kernels of 4 stages")
        given = {"dim": dim, "depth": depth, "local_window_size": local_window_size}
        given |= {"global_window_size": global_window_size, "cross_embed_strides": cross_embed_strides}
        stages = zip(*(of_stages(name, value, 4) for name, value in given.items()), strict=True)
        self.layers = nn.ModuleList()
        before = channels
        for (width, count, near, far, stride), kernels in zip(stages, cross_embed_kernel_sizes, strict=True):
            embed = CrossEmbedLayer(before, width, kernels, stride)
            transformer = Transformer(width, near, far, count, attn_dropout, ff_dropout)
            self.layers.append(nn.ModuleList([embed, transformer]))
            before = width
        self.to_logits = nn.Sequential(Reduce("b h w c -> b c", "mean"), nn.Linear(before, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for stage in self.layers:
            for part in stage.children():
                x = part(x)
        return self.to_logits(x)

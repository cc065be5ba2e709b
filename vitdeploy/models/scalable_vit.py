"""ScalableViT: attention whose keys, values and widths are scaled apart, then attention within windows, which a
convolution of their values joins (Yang et al., 2203.10790)."""

from __future__ import annotations

from typing import Any

from einops.layers.torch import Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import (
    PEG,
    ChannelNorm,
    MapAttention,
    MapConv,
    MapFeedForward,
    PatchLinear,
    of_stages,
    parts,
)
from vitdeploy.models.regionvit import Downsample


class ScaledAttention(MapAttention):
    """Keys and values of every `step` x `step` pixels, with widths of their own."""

    def __init__(self, dim: int, heads: int, dim_key: int, dim_value: int, dropout: float, step: int = 1) -> None:
        super().__init__(dim, heads, dim_key, dim_value * heads, dropout)
        self.to_q = PatchLinear(dim, dim_key * heads, bias=False)
        self.to_k = PatchLinear(dim, dim_key * heads, step, bias=False)
        self.to_v = PatchLinear(dim, dim_value * heads, step, bias=False)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.to_q(x), self.to_k(x), self.to_v(x)


class InteractiveAttention(ScaledAttention):
    """Within windows, None being one of all pixels; a convolution of the values, which crosses borders, is added."""

    def __init__(self, dim: int, heads: int, dim_key: int, dim_value: int, dropout: float, window: int | None) -> None:
        super().__init__(dim, heads, dim_key, dim_value, dropout)
        self.window = window
        self.local_interactive_module = MapConv(dim_value * heads, dim_value * heads, 3, padding=1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mix(q, k, v) + self.local_interactive_module(v)


class Transformer(nn.Module):
    """Layers of both attentions, each with an MLP, and positions in the first; a norm at the end where it is wanted.

    Args:
        wide, near: arguments of the two attentions, behind the width.
    """

    def __init__(
        self, dim: int, depth: int, wide: tuple[Any, ...], near: tuple[Any, ...], mult: int, dropout: float, norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    ScaledAttention(dim, *wide),
                    MapFeedForward(dim, mult, dropout),
                    nn.Identity() if layer else PEG(dim),
                    MapFeedForward(dim, mult, dropout),
                    InteractiveAttention(dim, *near),
                ]
            )
            for layer in range(depth)
        )
        self.norm = ChannelNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for wide, first, positions, second, near in parts(self.layers):
            x = x + wide(x)
            x = positions(x + first(x))
            x = x + second(x)
            x = x + near(x)
        return self.norm(x)


class ScalableViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes). Maps, from H / 4 on, must divide into windows.

    Args:
        dim: width of the first stage; each next is twice as wide.
        depth: layers of each stage.
        heads, reduction_factor, window_size: of each stage, or one for all; a window of None is the map.
        ssa_..., iwsa_...: widths of a head's keys and values, in the first and the second attention, likewise.

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
        reduction_factor: int | tuple[int, ...],
        window_size: int | tuple[int | None, ...] | None = None,
        iwsa_dim_key: int | tuple[int, ...] = 32,
        iwsa_dim_value: int | tuple[int, ...] = 32,
        ssa_dim_key: int | tuple[int, ...] = 32,
        ssa_dim_value: int | tuple[int, ...] = 32,
        ff_expansion_factor: int = 4,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(depth, tuple):
            raise ValueError(f"depth ({depth}) must be a tuple: the layers of each stage")
        count = len(depth)
        windows = (None,) * count if window_size is None else of_stages("window_size", window_size, count)
        given = {"heads": heads, "ssa_dim_key": ssa_dim_key, "ssa_dim_value": ssa_dim_value}
        given |= {"reduction_factor": reduction_factor, "iwsa_dim_key": iwsa_dim_key, "iwsa_dim_value": iwsa_dim_value}
        stages = zip(depth, windows, *(of_stages(name, value, count) for name, value in given.items()), strict=True)
        self.to_patches = MapConv(channels, dim, 7, stride=4, padding=3)
        self.layers = nn.ModuleList()
        for stage, (layers, window, h, key, value, step, near_key, near_value) in enumerate(stages):
            width, last = dim * 2**stage, stage == count - 1
            wide, near = (h, key, value, dropout, step), (h, near_key, near_value, dropout, window)
            transformer = Transformer(width, layers, wide, near, ff_expansion_factor, dropout, not last)
            self.layers.append(nn.ModuleList([transformer, nn.Identity() if last else Downsample(width, width * 2)]))
        pool = Reduce("b h w d -> b d", "mean")
        self.mlp_head = nn.Sequential(pool, nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patches(img.movedim(1, -1))
        for transformer, down in parts(self.layers):
            x = down(transformer(x))
        return self.mlp_head(x)

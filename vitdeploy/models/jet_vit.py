"""JetViT: a transformer whose layers may attend fully, within windows, or linearly beside a convolution that the image
itself chooses, so that a search can mix them (Zou et al., JetViT, 2605.26636)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models import max_vit
from vitdeploy.models.blocks import Attention, Block, quotient
from vitdeploy.models.vit import ViT

KINDS = ("WA", "LA", "FA")  # within windows, linear, full


class DynamicConv(nn.Module):
    """A convolution of each channel of (B, heads, rows * columns, d), whose weights an MLP makes of the mean token."""

    def __init__(self, dim: int, rows: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.rows, self.kernel_size = rows, kernel_size
        self.mlp = nn.Sequential(nn.Linear(dim, dim // 4), nn.SiLU(), nn.Linear(dim // 4, dim * kernel_size**2))

    def forward(self, v: Tensor) -> Tensor:
        maps = rearrange(v, "b h (y x) d -> b y x (h d)", y=self.rows)
        kernels = self.mlp(maps.mean(dim=(1, 2))).unflatten(1, (-1, self.kernel_size**2)).unbind(-1)
        side, (rows, columns) = self.kernel_size // 2, maps.shape[1:3]
        padded = F.pad(maps, (0, 0, side, side, side, side))
        places = (divmod(place, self.kernel_size) for place in range(self.kernel_size**2))
        near = (padded[:, y : y + rows, x : x + columns] for y, x in places)
        # A sum over the kernel instead of a convolution: one whose weights are of each image has no batch dimension.
        out = sum(pixels * weight[:, None, None] for pixels, weight in zip(near, kernels, strict=True))
        return rearrange(out, "b y x (h d) -> b h (y x) d", h=v.shape[1])


class LinearAttention(Attention):
    """relu(q) (relu(k)^T v), each row divided by its sum of weights, and a convolution of the values."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float, rows: int) -> None:
        super().__init__(dim, heads, dim_head, dropout, project_out=None)
        self.dynamic_conv = DynamicConv(heads * dim_head, rows)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q.relu(), k.relu()
        total = (q * k.sum(dim=2, keepdim=True)).sum(dim=-1, keepdim=True)
        return q @ (k.transpose(-2, -1) @ v) / total.clamp(min=1e-6) + self.dynamic_conv(v)


class WindowAttention(max_vit.WindowAttention):
    """Tokens (B, rows * columns, dim) attend within windows."""

    def __init__(self, dim: int, dim_head: int, dropout: float, window_size: int, size: tuple[int, ...]) -> None:
        super().__init__(dim, dim_head, dropout, window_size)
        self.window, (self.rows, self.columns) = window_size, size

    def forward(self, x: Tensor) -> Tensor:
        sizes = {"y": self.rows // self.window, "p": self.window, "q": self.window}
        windows = rearrange(x, "b (y p x q) d -> b y x p q d", **sizes)
        return rearrange(super().forward(windows), "b y x p q d -> b (y p x q) d")


class RandomLayerSelector(nn.Module):
    """One of the attentions: the one that is named, or of several a random one while training and the first in eval."""

    def __init__(self, options: Mapping[str, nn.Module], attn_layer: str | tuple[str, ...]) -> None:
        super().__init__()
        self.choices = (attn_layer,) if isinstance(attn_layer, str) else tuple(attn_layer)
        if not self.choices or set(self.choices) - set(KINDS):
            raise ValueError(f"attn_layers ({attn_layer!r}) must be of {', '.join(KINDS)}")
        self.options = nn.ModuleDict(options)

    def forward(self, x: Tensor) -> Tensor:
        return self.options[random.choice(self.choices) if self.training else self.choices[0]](x)


class JetViT(ViT, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); with num_classes=0 to tokens (B, n, dim).

    vit-pytorch draws among a layer's attentions in eval too. Arguments are vit.ViT's, and more:

    Args:
        attn_layers: of each layer 'WA', 'LA' or 'FA', or several of them; None is 'FA' for all.
        window_size: patches that a window is wide; it must divide those of the image.

    Raises:
        ValueError: patches that do not fill the image, windows that do not divide the patches, an unknown attention, or
            not one for each layer.
    """

    def __init__(
        self,
        *,
        depth: int,
        window_size: int = 7,
        attn_layers: Sequence[str | tuple[str, ...]] | None = None,
        **vit: Any,
    ) -> None:
        wanted = ["FA"] * depth if attn_layers is None else attn_layers
        if len(wanted) != depth:
            raise ValueError(f"attn_layers ({len(wanted)}) must be as many as depth ({depth})")
        self.window_size, self.kinds = window_size, iter(wanted)
        super().__init__(depth=depth, pool="mean", **vit)
        del self.cls_token

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        kinds = next(self.kinds)
        if "WA" in kinds:
            for count in self.grid:
                quotient("image_size / patch_size", count, "window_size", self.window_size)
        full, ff = super().make_block(dim, heads, dim_head, mlp_dim, dropout)
        options = {
            "WA": WindowAttention(dim, dim_head, dropout, self.window_size, self.grid),
            "LA": LinearAttention(dim, heads, dim_head, dropout, self.grid[0]),
            "FA": full,
        }
        return RandomLayerSelector(options, kinds), ff

    def embed(self, img: Tensor) -> Tensor:
        return self.dropout(self.to_patch_embedding(img) + self.pos_embedding)

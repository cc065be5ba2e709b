"""CCT on videos: a transformer over what convolutions find, pooled by attention (after Hassani et al., 2104.05704)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import pair, quotient
from vitdeploy.models.layers import Attention, DropPath, linspace_rates

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
Sizes = Sequence[int]  # one for each axis


class Tokenizer(nn.Module):
    """(B, C, *sizes) to tokens (B, n, dim): convolution, ReLU, max pooling, as often as there are pairs of `widths`.

    Args:
        conv, pool: kernel, stride and padding, each one number an axis.
    """

    def __init__(self, widths: Sizes, conv: tuple[Sizes, Sizes, Sizes], pool: tuple[Sizes, Sizes, Sizes]) -> None:
        super().__init__()
        self.windows = [conv, pool] * (len(widths) - 1)
        axes = len(conv[0])
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    CONVOLUTIONS[axes](before, after, *map(tuple, conv), bias=False),
                    nn.ReLU(),
                    POOLS[axes](*map(tuple, pool)),
                )
                for before, after in pairwise(widths)
            )
        )
        for layer in self.conv_layers:
            nn.init.kaiming_normal_(layer[0].weight)  # type: ignore[index]

    def sequence_length(self, sizes: Sizes) -> int:
        """Tokens of an input of these sizes."""
        for kernel, stride, padding in self.windows:
            window = zip(sizes, kernel, stride, padding, strict=True)
            sizes = [(size + 2 * p - k) // s + 1 for size, k, s, p in window]
        return prod(sizes) if min(sizes) > 0 else 0

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layers(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention, then an MLP on normed tokens, which are also what its result is added to."""

    def __init__(self, dim: int, heads: int, hidden: int, attention_dropout: float, drop_path: float) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads, qkv_bias=False, attn_drop=attention_dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.linear2 = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        return x + self.drop_path(self.linear2(self.act(self.linear1(x))))


class TransformerClassifier(nn.Module):
    """Tokens (B, n, dim) to logits (B, num_classes), pooled with weights that each token gives itself."""

    positional_emb: Tensor | None

    def __init__(
        self,
        sequence_length: int,
        embedding_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        attention_dropout: float = 0.1,
        stochastic_depth_rate: float = 0.1,
        positional_embedding: str = "sine",
    ) -> None:
        super().__init__()
        quotient("embedding_dim", embedding_dim, "num_heads", num_heads)
        self.attention_pool = nn.Linear(embedding_dim, 1)
        if positional_embedding == "sine":
            self.register_buffer("positional_emb", interleaved_waves(sequence_length, embedding_dim))
        elif positional_embedding == "learnable":
            self.positional_emb = nn.Parameter(torch.empty(1, sequence_length, embedding_dim))
            nn.init.trunc_normal_(self.positional_emb, std=0.2)
        elif positional_embedding == "none":
            self.positional_emb = None
        else:
            raise ValueError(f"positional_embedding ({positional_embedding!r}) must be 'sine', 'learnable' or 'none'")
        hidden = int(embedding_dim * mlp_ratio)
        self.blocks = nn.Sequential(
            *(
                Block(embedding_dim, num_heads, hidden, attention_dropout, rate)
                for rate in linspace_rates(stochastic_depth_rate, num_layers)
            )
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.fc = nn.Linear(embedding_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.positional_emb is not None:
            x = x + self.positional_emb
        x = self.norm(self.blocks(x))
        weights = rearrange(self.attention_pool(x), "b n 1 -> b 1 n").softmax(dim=-1)
        return self.fc((weights @ x).squeeze(1))


def interleaved_waves(length: int, dim: int) -> Tensor:
    """Fixed positions of a sequence, (1, length, dim): sine, cosine, sine, ... (Vaswani et al., 1706.03762)."""
    frequencies = 10000 ** (-2 * (torch.arange(dim) // 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())[None]


class CCT(nn.Module):
    """Videos (B, channels, num_frames, H, W) of `img_size` to logits (B, num_classes).

    Args:
        img_size: a number, or (height, width).
        kernel_size, stride, padding: of the convolutions over H and W; those that begin with `frame_`, over time.
        pooling_kernel_size, pooling_stride, pooling_padding: of the max pooling behind each convolution, the same way.
        frame_padding, frame_pooling_padding: None for half of the kernel.
        positional_embedding: 'sine', 'learnable' or 'none'.

    Raises:
        ValueError: heads that do not divide the width, an unknown kind of positions, or a video too small for a token.
    """

    def __init__(
        self,
        img_size: Any = 224,
        num_frames: int = 8,
        embedding_dim: int = 768,
        n_input_channels: int = 3,
        n_conv_layers: int = 1,
        frame_stride: int = 1,
        frame_kernel_size: int = 3,
        frame_padding: int | None = None,
        frame_pooling_kernel_size: int = 1,
        frame_pooling_stride: int = 1,
        frame_pooling_padding: int | None = None,
        kernel_size: int = 7,
        stride: int = 2,
        padding: int = 3,
        pooling_kernel_size: int = 3,
        pooling_stride: int = 2,
        pooling_padding: int = 1,
        *,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        stochastic_depth_rate: float = 0.1,
        positional_embedding: str = "sine",
    ) -> None:
        super().__init__()

        def axes(time: int, space: int) -> Sizes:
            return time, space, space

        if frame_padding is None:
            frame_padding = frame_kernel_size // 2
        if frame_pooling_padding is None:
            frame_pooling_padding = frame_pooling_kernel_size // 2
        self.tokenizer = Tokenizer(
            [n_input_channels, *[64] * (n_conv_layers - 1), embedding_dim],
            (axes(frame_kernel_size, kernel_size), axes(frame_stride, stride), axes(frame_padding, padding)),
            (
                axes(frame_pooling_kernel_size, pooling_kernel_size),
                axes(frame_pooling_stride, pooling_stride),
                axes(frame_pooling_padding, pooling_padding),
            ),
        )
        length = self.tokenizer.sequence_length((num_frames, *pair(img_size)))
        if not length:
            raise ValueError(f"img_size ({img_size}) and num_frames ({num_frames}) must leave at least one token")
        self.classifier = TransformerClassifier(
            length,
            embedding_dim,
            num_layers,
            num_heads,
            mlp_ratio,
            num_classes,
            stochastic_depth_rate=stochastic_depth_rate,
            positional_embedding=positional_embedding,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.tokenizer(x))


def _cct(
    num_layers: int,
    num_heads: int,
    mlp_ratio: float,
    embedding_dim: int,
    *,
    kernel_size: int = 3,
    stride: int | None = None,
    padding: int | None = None,
    **kwargs: Any,
) -> CCT:
    return CCT(
        embedding_dim=embedding_dim,
        kernel_size=kernel_size,
        stride=max(1, kernel_size // 2 - 1) if stride is None else stride,
        padding=max(1, kernel_size // 2) if padding is None else padding,
        num_layers=num_layers,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        **kwargs,
    )


cct_2 = partial(_cct, 2, 2, 1, 128)
cct_4 = partial(_cct, 4, 2, 1, 128)
cct_6 = partial(_cct, 6, 4, 2, 256)
cct_7 = partial(_cct, 7, 4, 2, 256)
cct_8 = partial(_cct, 8, 4, 2, 256)
cct_14 = partial(_cct, 14, 6, 3, 384)
cct_16 = partial(_cct, 16, 6, 3, 384)

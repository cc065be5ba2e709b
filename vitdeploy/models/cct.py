"""CCT: a small ViT that convolutions give its tokens, pooled by attention instead of a class token (Hassani et al.,
Escaping the Big Data Paradigm with Compact Transformers, 2104.05704)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.models.blocks import Size, pair, quotient
from vitdeploy.models.layers import Attention, DropPath, linspace_rates

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
Sizes = Sequence[int]  # one for each axis
Windows = Sequence[Sizes]  # kernel, stride and padding


class Tokenizer(nn.Module):
    """(B, C, *sizes) to tokens (B, n, dim): convolution, ReLU, max pooling, as often as there are pairs of `widths`.

    Args:
        conv, pool: kernel, stride and padding.
    """

    def __init__(self, widths: Sizes, conv: Windows, pool: Windows) -> None:
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

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, attention_dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads, qkv_bias=False, attn_drop=attention_dropout, proj_drop=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop_path(self.self_attn(self.pre_norm(x))))
        return x + self.drop_path(self.dropout(self.linear2(self.dropout(self.act(self.linear1(x))))))


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
        dropout_rate: float = 0.0,
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
        self.dropout = nn.Dropout(dropout_rate)
        hidden = int(embedding_dim * mlp_ratio)
        self.blocks = nn.Sequential(
            *(
                Block(embedding_dim, num_heads, hidden, dropout_rate, attention_dropout, rate)
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
        x = self.norm(self.blocks(self.dropout(x)))
        weights = rearrange(self.attention_pool(x), "b n 1 -> b 1 n").softmax(dim=-1)
        return self.fc((weights @ x).squeeze(1))


def interleaved_waves(length: int, dim: int) -> Tensor:
    """Fixed positions of a sequence, (1, length, dim): sine, cosine, sine, ... (Vaswani et al., 1706.03762)."""
    frequencies = 10000 ** (-2 * (torch.arange(dim) // 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())[None]


class CompactTransformer(nn.Module):
    """A tokenizer and a classifier of inputs (B, C, *sizes); arguments are theirs."""

    def __init__(self, widths: Sizes, conv: Windows, pool: Windows, sizes: Sizes, *classifier: Any) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(widths, conv, pool)
        length = self.tokenizer.sequence_length(sizes)
        if not length:
            raise ValueError(f"img_size {tuple(sizes)} must leave at least one token")
        self.classifier = TransformerClassifier(length, widths[-1], *classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.tokenizer(x))


class CCT(CompactTransformer):
    """Images (B, n_input_channels, H, W) of `img_size` to logits (B, num_classes).

    Args:
        kernel_size, stride, padding: of the convolutions; with `pooling_`, of the max pooling behind each.
        positional_embedding: 'sine', 'learnable' or 'none'.

    Raises:
        ValueError: heads that do not divide the width, an unknown kind of positions, or an image too small for a token.
    """

    def __init__(
        self,
        img_size: Size = 224,
        embedding_dim: int = 768,
        n_input_channels: int = 3,
        n_conv_layers: int = 1,
        kernel_size: int = 7,
        stride: int = 2,
        padding: int = 3,
        pooling_kernel_size: int = 3,
        pooling_stride: int = 2,
        pooling_padding: int = 1,
        dropout_rate: float = 0.0,
        attention_dropout: float = 0.1,
        stochastic_depth_rate: float = 0.1,
        *,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        positional_embedding: str = "sine",
    ) -> None:
        widths = [n_input_channels, *[64] * (n_conv_layers - 1), embedding_dim]
        conv = [(number,) * 2 for number in (kernel_size, stride, padding)]
        pool = [(number,) * 2 for number in (pooling_kernel_size, pooling_stride, pooling_padding)]
        sizes = (num_layers, num_heads, mlp_ratio, num_classes)
        rates = (dropout_rate, attention_dropout, stochastic_depth_rate)
        super().__init__(widths, conv, pool, pair(img_size), *sizes, *rates, positional_embedding)


def sized(
    make: Callable[..., nn.Module],
    num_layers: int,
    num_heads: int,
    mlp_ratio: float,
    embedding_dim: int,
    *,
    kernel_size: int = 3,
    stride: int | None = None,
    padding: int | None = None,
    **kwargs: Any,
) -> Any:
    """A model of the paper's sizes; stride and padding follow from the kernel where they are not given."""
    return make(
        embedding_dim=embedding_dim,
        kernel_size=kernel_size,
        stride=max(1, kernel_size // 2 - 1) if stride is None else stride,
        padding=max(1, kernel_size // 2) if padding is None else padding,
        num_layers=num_layers,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        **kwargs,
    )


SIZES = {2: (2, 2, 1, 128), 4: (4, 2, 1, 128), 6: (6, 4, 2, 256), 7: (7, 4, 2, 256), 8: (8, 4, 2, 256)}
SIZES |= {14: (14, 6, 3, 384), 16: (16, 6, 3, 384)}  # layers, heads, the MLP's ratio, width
cct_2, cct_4, cct_6, cct_7, cct_8, cct_14, cct_16 = (partial(sized, CCT, *SIZES[layers]) for layers in SIZES)

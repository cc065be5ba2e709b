"""ViT-5: ViT with what transformers have learned since: RMSNorm, normed queries and keys, layer scale, registers, and
rotary positions on both axes (Wang et al., ViT-5, 2602.08071)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models import vit
from vitdeploy.models.blocks import Block, FeedForward, Transformer, parts, prepend, unit
from vitdeploy.models.rvt import RotaryAttention, axial, turns


class RMSNorm(nn.Module):
    """Vectors along the last dimension by their root mean square, times a gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) * (self.scale * self.g)


class Attention(RotaryAttention):
    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout, project_out=None)
        self.norm = RMSNorm(dim)  # type: ignore[assignment]
        self.q_norm, self.k_norm = RMSNorm(dim_head), RMSNorm(dim_head)

    def qkv(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x, context)
        return self.q_norm(q), self.k_norm(k), v


class AxialRotaryEmbedding(nn.Module):
    """Turns of registers by their number, and of patches by row in one half of the channels, by column in the other.

    vit-pytorch keeps both kinds of frequencies in the state dict.
    """

    def __init__(self, dim: int, num_registers: int, size: tuple[int, ...]) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"dim_head ({dim}) must be a multiple of 4, pairs of channels for rows and columns")
        half = dim // 2
        self.size, self.num_registers = size, num_registers
        self.patch_inv_freq: Tensor
        self.reg_inv_freq: Tensor
        self.register_buffer("patch_inv_freq", 100_000.0 ** -(torch.arange(0, half, 2) / half))
        self.register_buffer("reg_inv_freq", 100.0 ** -(torch.arange(0, dim, 2) / dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine (registers + patches, dim)."""
        rows, columns = (
            torch.arange(n, device=self.patch_inv_freq.device)[:, None] * self.patch_inv_freq for n in self.size
        )
        registers = torch.arange(self.num_registers, device=rows.device)[:, None] * self.reg_inv_freq
        return turns(torch.cat((registers, axial(rows, columns))))


class ScaledTransformer(Transformer):
    """Each branch times gains of its channels."""

    def __init__(self, dim: int, blocks: list[Block]) -> None:
        super().__init__(dim, blocks)
        self.norm = RMSNorm(dim)  # type: ignore[assignment]
        self.ls1, self.ls2 = (nn.ParameterList(torch.full((dim,), 1e-4) for _ in blocks) for _ in range(2))

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        for (attn, ff), first, second in zip(parts(self.layers), self.ls1, self.ls2, strict=True):
            x = x + attn(x, **given) * first
            x = x + ff(x) * second
        return self.norm(x)


class ViT(vit.ViT, without=("pool",)):
    """Images (B, channels, H, W) to logits (B, num_classes); with num_classes=0 to tokens (B, 1 + registers + n, dim).

    Arguments are vit.ViT's, and more.

    Raises:
        ValueError: patches that do not fill the image, or heads whose width is no multiple of 4.
    """

    patch_norms = False

    def __init__(self, *, num_registers: int = 4, dim_head: int = 64, **vit: Any) -> None:
        super().__init__(dim_head=dim_head, **vit)
        self.rotary_emb = AxialRotaryEmbedding(dim_head, num_registers, self.grid)
        if num_registers > 0:
            self.register_tokens = nn.Parameter(torch.randn(num_registers, vit["dim"]))
        self.pos_embedding = nn.Parameter(torch.randn(len(self.pos_embedding) + num_registers, vit["dim"]))

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        ff = FeedForward(dim, mlp_dim, dropout)
        ff.net[0] = RMSNorm(dim)
        return Attention(dim, heads, dim_head, dropout), ff

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return ScaledTransformer(dim, blocks)

    def embed(self, img: Tensor) -> Tensor:
        """Tokens (B, 1 + registers + n, dim) with their positions: the class token, registers, patches."""
        x = self.to_patch_embedding(img)
        if hasattr(self, "register_tokens"):
            x = prepend(self.register_tokens, x)
        return self.dropout(prepend(self.cls_token, x) + self.pos_embedding)

    def forward(self, img: Tensor) -> Tensor:
        return self.classify(self.transformer(self.embed(img), rotary=self.rotary_emb()))

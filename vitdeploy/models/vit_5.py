"""ViT-5: ViT with what transformers have learned since: RMSNorm, normed queries and keys, layer scale, registers, and
rotary positions on both axes (Wang et al., ViT-5, 2602.08071)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitdeploy.models import blocks
from vitdeploy.models.blocks import Size, grid, merge_heads, pair, patch_embedding, prepend, unit
from vitdeploy.models.rvt import rotated


class RMSNorm(nn.Module):
    """Vectors along the last dimension by their root mean square, times a gain."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return unit(x) * (self.scale * self.g)


class Attention(blocks.Attention):
    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__(dim, heads, dim_head, dropout, project_out=None)
        self.norm = RMSNorm(dim)  # type: ignore[assignment]
        self.q_norm, self.k_norm = RMSNorm(dim_head), RMSNorm(dim_head)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        q, k, v = self.qkv(self.norm(x))
        q, k = rotated(self.q_norm(q), *turns), rotated(self.k_norm(k), *turns)
        return self.to_out(merge_heads(self.mix(q, k, v)))


class FeedForward(blocks.FeedForward):
    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__(dim, hidden_dim, dropout)
        self.net[0] = RMSNorm(dim)


class AxialRotaryEmbedding(nn.Module):
    """Turns of registers by their number, and of patches by row in one half of the channels, by column in the other.

    vit-pytorch keeps both kinds of frequencies in the state dict.
    """

    def __init__(self, dim: int, num_registers: int, size: tuple[int, int]) -> None:
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
        across = rows[:, None].expand(-1, len(columns), -1), columns.expand(len(rows), -1, -1)
        patches = torch.cat(across, dim=-1).flatten(0, 1)
        registers = torch.arange(self.num_registers, device=patches.device)[:, None] * self.reg_inv_freq
        angles = torch.cat((registers, patches)).repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, dim_head, dropout), FeedForward(dim, mlp_dim, dropout)])
            for _ in range(depth)
        )
        self.ls1, self.ls2 = (
            nn.ParameterList(nn.Parameter(torch.full((dim,), 1e-4)) for _ in range(depth)) for _ in range(2)
        )

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        for (attn, ff), first, second in zip(blocks.parts(self.layers), self.ls1, self.ls2, strict=True):
            x = x + attn(x, turns) * first
            x = x + ff(x) * second
        return self.norm(x)


class ViT(nn.Module):
    """Images (B, channels, H, W) to logits (B, num_classes); with num_classes=0 to tokens (B, 1 + registers + n, dim).

    Raises:
        ValueError: patches that do not fill the image, or heads whose width is no multiple of 4.
    """

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: Size,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        num_registers: int = 4,
    ) -> None:
        super().__init__()
        size = grid(image_size, patch_size)
        self.patch_size = pair(patch_size)
        self.to_patch_embedding = patch_embedding(dim, patch_size, channels, norms=False)
        self.cls_token = nn.Parameter(torch.randn(1, dim))
        if num_registers > 0:
            self.register_tokens = nn.Parameter(torch.randn(num_registers, dim))
        self.pos_embedding = nn.Parameter(torch.randn(size[0] * size[1] + 1 + num_registers, dim))
        self.dropout = nn.Dropout(emb_dropout)
        self.rotary_emb = AxialRotaryEmbedding(dim_head, num_registers, size)
        self.transformer = Transformer(dim, depth, heads, dim_head, mlp_dim, dropout)
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Linear(dim, num_classes) if num_classes > 0 else None

    def embed(self, img: Tensor) -> Tensor:
        """Tokens (B, 1 + registers + n, dim) with their positions: the class token, registers, patches."""
        x = self.to_patch_embedding(img)
        if hasattr(self, "register_tokens"):
            x = prepend(self.register_tokens, x)
        return self.dropout(prepend(self.cls_token, x) + self.pos_embedding)

    def forward(self, img: Tensor) -> Tensor:
        x = self.transformer(self.embed(img), self.rotary_emb())
        return x if self.mlp_head is None else self.mlp_head(self.to_latent(x[:, 0]))

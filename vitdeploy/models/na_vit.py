"""NaViT: images of many sizes packed into one sequence, each attending to itself (Dehghani et al., 2307.06304)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vitdeploy.models.blocks import FeedForward, MaskedAttention, Size, Transformer, Variant, grid, mask_bias

Dropped = Callable[[int, int], float]  # the share of tokens that an image of this height and width loses
Images = Sequence[Tensor] | Sequence[Sequence[Tensor]]


class Packed(NamedTuple):
    """Images as tensors that a graph can take.

    Attributes:
        patches: (B, n, channels * patch_size ** 2), zeros where a sequence is shorter than n.
        positions: (B, n, 2), row and column of each patch in its image.
        image_ids: (B, n), the number of a patch's image in its sequence, -1 where there is none. They are the attention
            mask: patches attend to those with the same number.
    """

    patches: Tensor
    positions: Tensor
    image_ids: Tensor


def group_images_by_max_seq_len(
    images: Sequence[Tensor],
    patch_size: int,
    calc_token_dropout: Dropped | float | None = None,
    max_seq_len: int = 2048,
) -> list[list[Tensor]]:
    """Groups of images in their order, each of at most `max_seq_len` patches.

    Raises:
        ValueError: an image has more patches than that.
    """
    drop = as_function(calc_token_dropout)
    groups: list[list[Tensor]] = []
    room = 0
    for image in images:
        height, width = image.shape[-2:]
        length = int((height // patch_size) * (width // patch_size) * (1 - drop(height, width)))
        if length > max_seq_len:
            raise ValueError(f"max_seq_len ({max_seq_len}) must be at least {length}, the patches of an image")
        if not groups or length > room:
            groups.append([])
            room = max_seq_len
        groups[-1].append(image)
        room -= length
    return groups


def as_function(dropped: Dropped | float | None) -> Dropped:
    if callable(dropped):
        return dropped
    return lambda height, width: dropped or 0.0


def cut(image: Tensor, patch_size: int, dropped: Dropped | None = None) -> tuple[Tensor, Tensor]:
    """Patches (n, C p p) and positions (n, 2) of an image (C, H, W); with `dropped`, of some of its patches."""
    rows, columns = grid(tuple(image.shape[-2:]), patch_size)
    patches = rearrange(image, "c (h p) (w q) -> (h w) (c p q)", p=patch_size, q=patch_size)
    positions = torch.cartesian_prod(*(torch.arange(size, device=image.device) for size in (rows, columns)))
    if dropped is not None:
        kept = max(1, int(len(patches) * (1 - dropped(*image.shape[-2:]))))
        chosen = torch.randperm(len(patches), device=image.device)[:kept]
        patches, positions = patches[chosen], positions[chosen]
    return patches, positions


def pack(
    images: Images,
    patch_size: int,
    *,
    length: int | None = None,
    slots: int | None = None,
    dropped: Dropped | None = None,
) -> Packed:
    """Groups of images, or a single group, to the tensors of `NaViT.forward_packed`: a sequence for each group.

    Args:
        length: patches of a sequence, so that shapes are the same for any images; None for the most that there are.
        slots: images that a sequence may have; None for any number.
        dropped: share of an image's patches to leave out, by its height and width.

    Raises:
        ValueError: no images, images that patches do not fill, or too many of them for `length` or `slots`.
    """
    groups: Any = [images] if len(images) and isinstance(images[0], Tensor) else images
    if not len(groups) or not all(len(group) for group in groups):
        raise ValueError("images must not be empty, nor any group of them")
    rows = [[cut(image, patch_size, dropped) for image in group] for group in groups]
    patches, positions = (
        pad_sequence([torch.cat([found[i] for found in row]) for row in rows], batch_first=True) for i in (0, 1)
    )
    ids = [torch.cat([torch.full_like(at[:, 0], i) for i, (_, at) in enumerate(row)]) for row in rows]
    image_ids = pad_sequence(ids, batch_first=True, padding_value=-1)
    longest, most = patches.shape[1], max(map(len, rows))
    if length is not None and length < longest:
        raise ValueError(f"length ({length}) must be at least {longest}, the patches of the longest sequence")
    if slots is not None and slots < most:
        raise ValueError(f"slots ({slots}) must be at least {most}, the images of the fullest sequence")
    more = (length or longest) - longest
    return Packed(
        F.pad(patches, (0, 0, 0, more)),
        F.pad(positions, (0, 0, 0, more)),
        F.pad(image_ids, (0, more), value=-1),
    )


class LayerNorm(nn.Module):
    """LayerNorm without a bias, but with a buffer of zeros in its place."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class HeadNorm(nn.Module):
    """RMS norm of (B, heads, n, dim) with gains for each head."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(heads, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) * (self.scale * self.gamma)


class Attention(MaskedAttention):
    """Attention of normed queries and keys (Dehghani et al., 2302.05442), whose gains take the place of the scale."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dim_head, dropout, split_kv=True)
        self.scale = 1.0
        self.norm = LayerNorm(dim)  # type: ignore[assignment]
        self.q_norm, self.k_norm = HeadNorm(heads, dim_head), HeadNorm(heads, dim_head)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim, bias=False), nn.Dropout(dropout))

    def qkv(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x, context)
        return self.q_norm(q), self.k_norm(k), v


class NaViT(Variant):
    """Images (channels, H, W) of any sizes up to `image_size` to logits (images, num_classes), in their order.

    They come as a list of groups, each of which is one sequence, or as a single group; with `group_images`, as a list
    to make groups of, none longer than `group_max_seq_len` patches. `forward_packed` takes what `pack` makes. A tensor
    (B, channels, H, W) is images of one size, each a sequence: that needs no masks, and is what exports by default.

    Variants override `norm` and `attention`, and `pool`.

    Args:
        image_size: a number, or (height, width).
        token_dropout_prob: share of an image's patches left out in training, or a function of its height and width.

    Raises:
        ValueError: sizes that patches do not fill, images larger than `image_size` or with other channels, or a share
            that is not in [0, 1).
    """

    norm: Callable[[int], nn.Module] = LayerNorm
    attention: Callable[[int, int, int, float], nn.Module] = Attention

    def __init__(
        self,
        *,
        image_size: Size,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        token_dropout_prob: Dropped | float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(token_dropout_prob, (int, float)) and not 0 <= token_dropout_prob < 1:
            raise ValueError(f"token_dropout_prob ({token_dropout_prob}) must be at least 0 and less than 1")
        self.grid = grid(image_size, patch_size)
        self.channels, self.patch_size = channels, patch_size
        self.calc_token_dropout = None if token_dropout_prob is None else as_function(token_dropout_prob)
        norm, attention = type(self).norm, type(self).attention
        patch_dim = channels * patch_size**2
        self.to_patch_embedding = nn.Sequential(norm(patch_dim), nn.Linear(patch_dim, dim), norm(dim))
        self.pos_embed_height, self.pos_embed_width = (nn.Parameter(torch.randn(size, dim)) for size in self.grid)
        self.dropout = nn.Dropout(emb_dropout)

        def ff() -> nn.Module:
            net = FeedForward(dim, mlp_dim, dropout).net
            net[0] = norm(dim)
            return net

        blocks = ((attention(dim, heads, dim_head, dropout), ff()) for _ in range(depth))
        self.transformer = Transformer(dim, blocks)
        self.transformer.norm = norm(dim)  # type: ignore[assignment]
        self.attn_pool_queries = nn.Parameter(torch.randn(dim))
        self.attn_pool = attention(dim, heads, dim_head, 0.0)
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Sequential(norm(dim), nn.Linear(dim, num_classes, bias=False))

    @property
    def device(self) -> torch.device:
        return self.attn_pool_queries.device

    @property
    def dropped(self) -> Dropped | None:
        """What is left out of images now."""
        return self.calc_token_dropout if self.training else None

    def forward(
        self, batched_images: Images | Tensor, group_images: bool = False, group_max_seq_len: int = 2048
    ) -> Tensor:
        if isinstance(batched_images, Tensor) and self.dropped is None:
            return self.forward_images(batched_images)
        if group_images:
            batched_images = group_images_by_max_seq_len(
                batched_images,  # type: ignore[arg-type]
                self.patch_size,
                self.dropped,
                group_max_seq_len,
            )
        groups: Any = [batched_images] if isinstance(batched_images[0], Tensor) else batched_images
        self.check([image for group in groups for image in group])
        slots = torch.arange(max(map(len, groups)), device=self.device)
        logits = self.forward_packed(*pack(groups, self.patch_size, dropped=self.dropped), slots)
        return torch.cat([found[: len(group)] for found, group in zip(logits, groups, strict=True)])

    def check(self, images: Sequence[Tensor] | Tensor) -> None:
        height, width = (size * self.patch_size for size in self.grid)
        for image in images:
            if image.ndim != 3 or image.shape[0] != self.channels:
                raise ValueError(f"images must be ({self.channels}, H, W), not {tuple(image.shape)}: see channels")
            if image.shape[1] > height or image.shape[2] > width:
                raise ValueError(f"image_size ({height}, {width}) must be no less than an image's {image.shape[1:]}")

    def forward_images(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, H, W)."""
        self.check(images[:1])
        rows, columns = (side // self.patch_size for side in images.shape[2:])
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", h=rows, w=columns)
        where = (self.pos_embed_height[:rows, None] + self.pos_embed_width[:columns]).flatten(0, 1)
        x = self.transformer(self.dropout(self.to_patch_embedding(patches) + where))
        pooled = self.pool(self.attn_pool_queries[None, None], x, None)
        return self.mlp_head(self.to_latent(pooled))[:, 0]

    def forward_packed(self, patches: Tensor, positions: Tensor, image_ids: Tensor, slots: Tensor) -> Tensor:
        """Logits (B, m, num_classes) of the images with the numbers `slots` (m,), in sequences that `pack` made.

        Those of numbers that a sequence does not have mean nothing.
        """
        same = image_ids[:, None, :, None] == image_ids[:, None, None, :]
        asked = slots[:, None] == image_ids[:, None, None, :]
        x = self.transformer(self.embed(patches, positions), bias=mask_bias(same, patches.dtype))
        # One query a slot, without a shape to expand to.
        queries = (slots >= 0).to(x.dtype)[None, :, None] * self.attn_pool_queries
        return self.mlp_head(self.to_latent(self.pool(queries, x, mask_bias(asked, x.dtype))))

    def embed(self, patches: Tensor, positions: Tensor) -> Tensor:
        row, column = positions[..., 0], positions[..., 1]
        where = F.embedding(row, self.pos_embed_height) + F.embedding(column, self.pos_embed_width)
        return self.dropout(self.to_patch_embedding(patches) + where)

    def pool(self, queries: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.attn_pool(queries, x, bias=bias) + queries


class PackedNaViT(NaViT):
    """NaViT whose forward takes what `pack` makes of images, which a graph can take: only the batch is free.

    Logits are (B, slots, num_classes), those of an image at its number in its sequence; zeros where there is no image.
    Keys of the state dict are NaViT's.

    Args:
        length: patches of a sequence.
        slots: images that a sequence may have.

    Raises:
        ValueError: as NaViT, or a length that does not hold an image of `image_size`.
    """

    numbers: Tensor

    def __init__(self, *, length: int = 256, slots: int = 8, **vit: Any) -> None:
        super().__init__(**vit)
        patches = self.grid[0] * self.grid[1]
        if length < patches:
            raise ValueError(f"length ({length}) must be at least {patches}, the patches of an image of image_size")
        self.register_buffer("numbers", torch.arange(slots), persistent=False)

    def forward(self, patches: Tensor, positions: Tensor, image_ids: Tensor) -> Tensor:  # type: ignore[override]
        there = (self.numbers[:, None] == image_ids[:, None]).to(patches.dtype).amax(dim=-1, keepdim=True)
        return self.forward_packed(patches, positions, image_ids, self.numbers) * there

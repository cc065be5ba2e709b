"""What vit-pytorch's architectures share. Parameter names are its own, so that its state dicts load as they are.

A file of an architecture imports from here what it has in common with ViT, and writes down its own idea.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from vitdeploy.models.layers import attend

Size = int | tuple[int, int]  # of a square's side, or (height, width)
Block = tuple[nn.Module, ...]  # the parts of a layer, mostly attention and MLP


def pair(value: Any) -> tuple[Any, Any]:
    """A number n as (n, n); a pair as it is. Raises ValueError on a tuple of another length."""
    if isinstance(value, tuple) and len(value) != 2:
        raise ValueError(f"{value} must be a number or a pair of them")
    return value if isinstance(value, tuple) else (value, value)


def quotient(name: str, size: int, by_name: str, by: int) -> int:
    """`size / by`. Raises ValueError, naming both arguments, where that is not a whole positive number."""
    if by < 1 or size < 1 or size % by:
        raise ValueError(f"{by_name} ({by}) must divide {name} ({size})")
    return size // by


def grid(image_size: Any, patch_size: Any, by_name: str = "patch_size") -> tuple[int, int]:
    """Patches down and across. Raises ValueError where patches do not fill the image."""
    (height, width), (high, wide) = pair(image_size), pair(patch_size)
    return quotient("image_size", height, by_name, high), quotient("image_size", width, by_name, wide)


def patch_embedding(
    dim: int, patch_size: Any, channels: int = 3, *, flat: bool = True, norms: bool = True
) -> nn.Sequential:
    """Images (B, C, H, W) to tokens (B, n, dim), or without `flat` (B, H/p, W/p, dim): pixels of a patch, normed,
    projected, normed again (dual patch norm: Kumar et al., 2302.01327); without `norms` projected alone."""
    height, width = pair(patch_size)
    patch_dim = channels * height * width
    tokens = "(h w)" if flat else "h w"
    pixels = Rearrange(f"b c (h p1) (w p2) -> b {tokens} (p1 p2 c)", p1=height, p2=width)
    linear = nn.Linear(patch_dim, dim)
    return nn.Sequential(pixels, *([nn.LayerNorm(patch_dim), linear, nn.LayerNorm(dim)] if norms else [linear]))


def sincos(sizes: Sequence[int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed position embeddings of a grid, (product of sizes, dim): for each axis, the last first, sines and cosines of
    dim / (2 axes) frequencies (Beyer et al., 2205.01580); zeros where dim is no multiple of that.

    Raises ValueError where `dim` is too small.
    """
    width = dim // (2 * len(sizes))
    if width < 2:
        raise ValueError(f"dim ({dim}) must be at least {4 * len(sizes)} for fixed position embeddings")
    omega = 1.0 / temperature ** (torch.arange(width) / (width - 1))
    axes = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in reversed(axes)]
    found = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(found, (0, dim - found.shape[1]))


def prepend(tokens: Tensor, x: Tensor) -> Tensor:
    """Learned tokens (k, dim) or (1, k, dim) in front of each sequence of (B, n, dim).

    Both are padded with zeros and added, so that nothing is expanded to the batch, whose size a graph need not know.
    """
    count, length = tokens.shape[-2], x.shape[-2]
    return F.pad(x, (0, 0, count, 0)) + F.pad(tokens, (0, 0, 0, length)) if count else x


def append(x: Tensor, tokens: Tensor) -> Tensor:
    """The same, behind each sequence."""
    count, length = tokens.shape[-2], x.shape[-2]
    return F.pad(x, (0, 0, 0, count)) + F.pad(tokens, (0, 0, length, 0))


def parts(layers: nn.ModuleList) -> Iterator[tuple[nn.Module, ...]]:
    """What each layer is made of, where layers are lists of modules."""
    return (tuple(layer.children()) for layer in layers)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., n, heads * d) to (..., heads, n, d)."""
    return rearrange(x, "... n (h d) -> ... h n d", h=heads)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, n, d) to (..., n, heads * d)."""
    return rearrange(x, "... h n d -> ... n (h d)")


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, H, W, dim), at each pixel."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.g.flatten(), self.b.flatten(), self.eps)


class PatchLinear(nn.Conv2d):
    """A convolution without overlap, of `patch` x `patch` pixels, over (B, H, W, dim): a Linear of each patch.

    Rows and columns that do not fill a patch are left out.
    """

    def __init__(self, dim: int, dim_out: int, patch: int = 1, bias: bool = True) -> None:
        super().__init__(dim, dim_out, patch, stride=patch, bias=bias)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        if self.patch > 1:
            rows, columns = (size // self.patch * self.patch for size in x.shape[1:3])
            x = rearrange(x[:, :rows, :columns], "b (y p) (x q) c -> b y x (c p q)", p=self.patch, q=self.patch)
        return F.linear(x, self.weight.flatten(1), self.bias)


class MapConv(nn.Conv2d):
    """A convolution over (B, H, W, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x + self.fn(x, **kwargs)


class Named(nn.Sequential):
    """Modules in a row, by their names among the keys."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__(OrderedDict(modules))


class FeedForward(Named):
    """Norm, Linear, GELU, Linear over (B, n, dim).

    Args:
        dropout: after GELU and at the end; None leaves both layers out, and with them their numbers among the keys.
        act: instead of GELU.
    """

    net: nn.Sequential

    def __init__(self, dim: int, hidden_dim: int, dropout: float | None = 0.0, act: type[nn.Module] = nn.GELU) -> None:
        drop = [] if dropout is None else [nn.Dropout(dropout)]
        inner = [nn.Linear(dim, hidden_dim), act(), *drop, nn.Linear(hidden_dim, dim), *drop]
        super().__init__(net=nn.Sequential(nn.LayerNorm(dim), *inner))


class Attention(nn.Module):
    """Norm, multi-head attention over (B, n, dim), projection (Vaswani et al., 1706.03762).

    Variants override `mix`, which is what happens between the heads' queries, keys and values and their outputs.

    Args:
        dropout: on the attention weights and behind the projection; None for a projection with no bias and no dropout.
        split_kv: queries by `to_q`, keys and values by `to_kv`, instead of all three by `to_qkv`.
        project_out: None leaves the projection out where a single head is as wide as the input.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float | None = 0.0,
        *,
        split_kv: bool = False,
        project_out: bool | None = True,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.scale = dim_head**-0.5
        self.drop = dropout or 0.0
        self.norm = nn.LayerNorm(dim)
        if split_kv:
            self.to_q = nn.Linear(dim, inner, bias=False)
            self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        else:
            self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        if project_out is None:
            project_out = not (heads == 1 and dim_head == dim)
        self.to_out = out_projection(inner, dim, dropout) if project_out else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None, **given: Any) -> Tensor:
        """Tokens (B, n, dim) attend to those of `context` (B, m, dim), which is not normed, or else to themselves.

        What else is given goes to `mix`.
        """
        return self.to_out(merge_heads(self.mix(*self.qkv(self.norm(x), context), **given)))

    def qkv(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, tokens, dim_head) each."""
        if hasattr(self, "to_qkv"):
            found = self.to_qkv(x).chunk(3, dim=-1)
        else:
            found = (self.to_q(x), *self.to_kv(x if context is None else context).chunk(2, dim=-1))
        q, k, v = (split_heads(t, self.heads) for t in found)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.scale, dropout=self.drop if self.training else 0.0)


def out_projection(inner: int, dim: int, dropout: float | None = 0.0) -> nn.Module:
    """Linear and dropout; None for a Linear alone, without bias."""
    if dropout is None:
        return nn.Linear(inner, dim, bias=False)
    return nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))


class Transformer(nn.Module):
    """x + attn(x), then x + ff(x), for each of `blocks`, whose modules do their own norm.

    Args:
        norm: whether there is a LayerNorm at the end.
    """

    def __init__(self, dim: int, blocks: Iterable[Block], *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.layers = nn.ModuleList(nn.ModuleList(block) for block in blocks)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """What else is given goes to each attention."""
        for attn, ff in parts(self.layers):
            x = x + attn(x, **given)
            x = x + ff(x)
        return self.norm(x)


def encoder(
    dim: int,
    depth: int,
    heads: int,
    dim_head: int,
    mlp_dim: int,
    dropout: float,
    *,
    norm: bool = True,
    **attention: Any,
) -> Transformer:
    """A plain transformer; `attention` is what else its attentions take."""
    attentions = [Attention(dim, heads, dim_head, dropout, **attention) for _ in range(depth)]
    return Transformer(dim, [(attn, FeedForward(dim, mlp_dim, dropout)) for attn in attentions], norm=norm)


class MapFeedForward(Named):
    """Norm, Linear, GELU, Linear at each pixel of (B, H, W, dim)."""

    net: nn.Sequential

    def __init__(self, dim: int, mult: int = 4, dropout: float = 0.0) -> None:
        widen, narrow = PatchLinear(dim, dim * mult), PatchLinear(dim * mult, dim)
        drop = nn.Dropout(dropout)
        super().__init__(net=nn.Sequential(ChannelNorm(dim), widen, nn.GELU(), drop, narrow, drop))


class MapAttention(nn.Module):
    """What attentions over maps (B, H, W, dim) share: a norm, the mixing of all pixels or of windows, and a
    projection. Papers differ in how queries, keys and values (B, H, W, heads * d) are made: that is `qkv`.

    Args:
        inner: width of the values of all heads.
        window: rows and columns of windows; None lets all pixels attend to all keys.
    """

    def __init__(
        self, dim: int, heads: int, dim_head: int, inner: int, dropout: float, window: Size | None = None
    ) -> None:
        super().__init__()
        self.heads, self.drop, self.window = heads, dropout, window
        self.scale = dim_head**-0.5
        self.norm = ChannelNorm(dim)
        self.to_out = nn.Sequential(PatchLinear(inner, dim), nn.Dropout(dropout))

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self.mix(*self.qkv(self.norm(x))))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.drop if self.training else 0.0
        if self.window is not None:
            return attend_in_windows(q, k, v, self.heads, self.window, self.scale, dropout=dropout)
        rows_columns = q.shape[1:3]
        q, k, v = (split_heads(t.flatten(1, 2), self.heads) for t in (q, k, v))
        return merge_heads(attend(q, k, v, self.scale, dropout=dropout)).unflatten(1, rows_columns)


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    window: Size,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    *,
    distant: bool = False,
) -> Tensor:
    """Attention of maps (B, H, W, heads * d) within windows; an image's windows are a dimension of their own.

    Args:
        window: rows and columns, or one number for both, that divide the map's.
        bias: as `attend` has it.
        distant: a window's pixels are as far apart as the map allows, instead of neighbours.
    """
    high, wide = pair(window)
    layout = "b (p y) (q x) (h d)" if distant else "b (y p) (x q) (h d)"
    rows = q.shape[1] // high
    q, k, v = (rearrange(t, f"{layout} -> b (y x) h (p q) d", h=heads, p=high, q=wide) for t in (q, k, v))
    out = attend(q, k, v, scale, bias, dropout)
    return rearrange(out, f"b (y x) h (p q) d -> {layout}", y=rows, p=high, q=wide)


class Embedder(nn.Module):
    """What makes tokens, (B, count, dim) by `embed`, a class token in front of them, and learned positions."""

    def __init__(self, embed: nn.Module, count: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.to_patch_embedding = embed
        self.pos_embedding = nn.Parameter(torch.randn(1, count + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(dropout)

    def embed(self, img: Tensor) -> Tensor:
        """An input to tokens (B, 1 + n, dim) with their positions, the first of them where it is small."""
        x = prepend(self.cls_token, self.to_patch_embedding(img))
        return self.dropout(x + self.pos_embedding[..., : x.shape[1], :])


class ClassTokenViT(Embedder):
    """Embedder, a transformer, LayerNorm and Linear: what most variants of ViT put round their own idea.

    Args:
        pool: 'cls' (the class token is read at the end) or 'mean' (of all tokens, that one among them).

    Raises:
        ValueError: an unknown pool.
    """

    def __init__(
        self,
        embed: nn.Module,
        count: int,
        dim: int,
        transformer: nn.Module,
        num_classes: int,
        *,
        pool: str = "cls",
        emb_dropout: float = 0.0,
    ) -> None:
        super().__init__(embed, count, dim, emb_dropout)
        self.transformer = transformer
        self.pool = checked_pool(pool)
        self.to_latent = nn.Identity()
        self.mlp_head: nn.Module | None = norm_head(dim, num_classes) if num_classes > 0 else None

    def classify(self, x: Tensor) -> Tensor:
        """What the transformer gives to logits; the same where there is no head."""
        if self.mlp_head is None:
            return x
        return self.mlp_head(self.to_latent(x.mean(dim=1) if self.pool == "mean" else x[:, 0]))

    def forward(self, img: Tensor) -> Tensor:
        return self.classify(self.transformer(self.embed(img)))


class Variant(nn.Module):
    """A class whose constructor may take `**others` for its parent's: `inspect.signature` tells all of them.

    Args:
        without: arguments of the parent's that the class does not have.
    """

    def __init_subclass__(cls, without: Sequence[str] = ()) -> None:
        alike = "__init__" not in vars(cls)
        own = [] if alike else list(inspect.signature(cls.__init__, eval_str=True).parameters.values())[1:]
        if alike or (own and own[-1].kind is inspect.Parameter.VAR_KEYWORD):
            inherited = inspect.signature(cls.__mro__[1], eval_str=True).parameters.values()
            own[-1:] = [p for p in inherited if p.name not in (*without, *(given.name for given in own))]
        cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]


class ViTVariant(ClassTokenViT, Variant):
    """Images (B, channels, H, W) to logits (B, num_classes), with vit.ViT's arguments.

    Variants override what they change of `make_embedding`, `make_block` and `make_transformer`, and take what is not
    their own as `**vit`.

    Raises:
        ValueError: patches that do not fill the image, or an unknown pool.
    """

    patch_norms = True  # whether pixels and tokens of patches are normed

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
        pool: str = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
    ) -> None:
        self.grid: tuple[int, ...]
        embed, self.grid = self.make_embedding(dim, image_size, patch_size, channels)
        blocks = [self.make_block(dim, heads, dim_head, mlp_dim, dropout) for _ in range(depth)]
        transformer = self.make_transformer(dim, blocks)
        super().__init__(embed, prod(self.grid), dim, transformer, num_classes, pool=pool, emb_dropout=emb_dropout)
        self.patch_size = pair(patch_size)

    def make_embedding(
        self, dim: int, image_size: Size, patch_size: Size, channels: int
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """What makes tokens, and how many along each axis."""
        return patch_embedding(dim, patch_size, channels, norms=self.patch_norms), grid(image_size, patch_size)

    def make_block(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> Block:
        return Attention(dim, heads, dim_head, dropout, project_out=None), FeedForward(dim, mlp_dim, dropout)

    def make_transformer(self, dim: int, blocks: list[Block]) -> nn.Module:
        return Transformer(dim, blocks, norm=False)


def checked_pool(pool: str) -> str:
    """`pool`, or a ValueError where it is neither 'cls' nor 'mean'."""
    if pool not in ("cls", "mean"):
        raise ValueError(f"pool ({pool!r}) must be 'cls' or 'mean'")
    return pool


def norm_head(dim: int, num_classes: int) -> nn.Sequential:
    """LayerNorm and the classifier."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))


class PatchDropout(nn.Module):
    """While training, each sequence of (B, n, dim) keeps a random part of its tokens (Liu et al., 2208.07220).

    Raises:
        ValueError: a probability that is not from 0 to below 1.
    """

    def __init__(self, prob: float) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"patch_dropout ({prob}) must be from 0 to below 1")
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.prob == 0:
            return x
        kept = max(1, int(x.shape[1] * (1 - self.prob)))
        chosen = torch.rand(x.shape[:2], device=x.device).topk(kept, dim=-1).indices
        return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension divided by their length."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def video_grid(frames: int, frame_patch_size: int, image_size: Any, image_patch_size: Any) -> tuple[int, int, int]:
    """Patches along time, down and across. Raises ValueError where patches do not fill the video."""
    frames = quotient("frames", frames, "frame_patch_size", frame_patch_size)
    return frames, *grid(image_size, image_patch_size, "image_patch_size")


def video_embedding(
    dim: int, frame_patch_size: int, image_patch_size: Any, channels: int = 3, tokens: str = "(f h w)"
) -> nn.Sequential:
    """Videos (B, C, F, H, W) to tokens (B, f h w, dim), or with `tokens` 'f (h w)' to (B, f, h w, dim)."""
    height, width = pair(image_patch_size)
    patch_dim = channels * frame_patch_size * height * width
    sizes = {"pf": frame_patch_size, "p1": height, "p2": width}
    pixels = Rearrange(f"b c (f pf) (h p1) (w p2) -> b {tokens} (pf p1 p2 c)", **sizes)
    return nn.Sequential(pixels, nn.LayerNorm(patch_dim), nn.Linear(patch_dim, dim), nn.LayerNorm(dim))


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: nothing where `mask` is true, and elsewhere the lowest number that is finite."""
    return (~mask).to(dtype) * torch.finfo(dtype).min


class MaskedAttention(Attention):
    """Attention with a bias on the scores, which broadcasts to (..., heads, tokens, tokens)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attend(q, k, v, self.scale, bias, self.drop if self.training else 0.0)


def of_stages(name: str, value: Any, stages: int) -> tuple[Any, ...]:
    """A number of each stage; one is for all. Raises ValueError where there are others than there are stages."""
    found = value if isinstance(value, tuple) else (value,) * stages
    if len(found) != stages:
        raise ValueError(f"{name} {found} must be a number, or {stages} of them, one a stage")
    return found


class PEG(nn.Module):
    """Positions as a convolution of each channel sees them, added to (B, H, W, dim) (Chu et al., 2102.10882)."""

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.proj = MapConv(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(x)

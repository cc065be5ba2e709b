"""LeViT (Graham et al., 2104.01136), with timm's parameter names: a convolutional stem, then attention stages that
shrink the map. `use_conv` builds the twin that keeps (B, C, H, W) maps and 1x1 convolutions (timm's levit_conv_*)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.blocks import parts
from vitdeploy.models.layers import ACTIVATIONS, DropPath, attend, to_pair


class ConvNorm(nn.Module):
    """Conv2d without bias, then BatchNorm."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.linear = nn.Conv2d(in_chs, out_chs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))


class LinearNorm(nn.Module):
    """Linear without bias, then BatchNorm over the last dimension, on tokens (B, N, C)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.bn = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))


class NormLinear(nn.Module):
    """BatchNorm, dropout, Linear on vectors (B, C): the classifier head."""

    def __init__(self, in_features: int, out_features: int, drop: float = 0.0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features)
        self.drop = nn.Dropout(drop)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.bn(x)))


def norm_layer(in_chs: int, out_chs: int, use_conv: bool, zero_gain: bool = False) -> nn.Module:
    """A projection with BatchNorm; `zero_gain` starts a residual branch silent, as the paper trains it."""
    layer = ConvNorm(in_chs, out_chs) if use_conv else LinearNorm(in_chs, out_chs)
    if zero_gain:
        nn.init.zeros_(layer.bn.weight)
    return layer


class Stem(nn.Sequential):
    """3x3 stride-2 convolutions that double the channels, an activation between them: 4 for stride 16, 3 for 8."""

    def __init__(self, in_chans: int, out_chs: int, stride: int, act: str) -> None:
        super().__init__()
        count = {16: 4, 8: 3}[stride]
        chs = in_chans
        for i in range(count):
            width = out_chs >> (count - 1 - i)
            self.add_module(f"conv{i + 1}", ConvNorm(chs, width, 3, 2, 1))
            if i < count - 1:
                self.add_module(f"act{i + 1}", ACTIVATIONS[act]())
            chs = width


class Subsample(nn.Module):
    """Every second row and column of tokens (B, H*W, C), or of a map (B, C, H, W) when `grid` is None."""

    def __init__(self, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            return x[:, :, ::2, ::2]
        return x.unflatten(1, self.grid)[:, ::2, ::2].flatten(1, 2)


class LevitAttention(nn.Module):
    """Attention with a learned bias per head and per (|dy|, |dx|); with stride 2 its queries are subsampled.

    Tokens (B, N, in_dim) -> (B, N', out_dim), or maps (B, in_dim, H, W) -> (B, out_dim, H', W') with `use_conv`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        key_dim: int,
        num_heads: int,
        attn_ratio: float,
        act: str,
        grid: tuple[int, int],
        use_conv: bool,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.key_dim, self.num_heads, self.grid, self.stride, self.use_conv = key_dim, num_heads, grid, stride, use_conv
        self.val_dim = int(attn_ratio * key_dim)
        self.scale = key_dim**-0.5
        keys, values = key_dim * num_heads, self.val_dim * num_heads
        if stride == 1:
            self.qkv = norm_layer(in_dim, 2 * keys + values, use_conv)
        else:
            self.kv = norm_layer(in_dim, keys + values, use_conv)
            down = Subsample(None if use_conv else grid)
            self.q = nn.Sequential(OrderedDict(down=down, ln=norm_layer(in_dim, keys, use_conv)))
        ln = norm_layer(values, out_dim, use_conv, zero_gain=stride == 1)
        self.proj = nn.Sequential(OrderedDict(act=ACTIVATIONS[act](), ln=ln))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def bias(self) -> Tensor:
        """The learned bias of every query and key pair, (heads, queries, keys)."""
        rows, columns = self.grid
        dy = (torch.arange(0, rows, self.stride)[:, None] - torch.arange(rows)).abs()
        dx = (torch.arange(0, columns, self.stride)[:, None] - torch.arange(columns)).abs()
        offsets = dy[:, None, :, None] * columns + dx[None, :, None, :]
        return self.attention_biases[:, offsets.flatten(2).flatten(0, 1).to(self.attention_biases.device)]

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            sizes = (self.key_dim, self.key_dim, self.val_dim)
            q, k, v = self.heads(self.qkv(x)).split(sizes, dim=-1)
        else:
            k, v = self.heads(self.kv(x)).split((self.key_dim, self.val_dim), dim=-1)
            q = self.heads(self.q(x))
        q, k, v = (rearrange(t, "b n h d -> b h n d") for t in (q, k, v))
        out = attend(q, k, v, self.scale, self.bias())
        if not self.use_conv:
            return self.proj(rearrange(out, "b h n d -> b n (h d)"))
        return self.proj(rearrange(out, "b h (y x) d -> b (h d) y x", y=-(-self.grid[0] // self.stride)))

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, C) tokens or a (B, C, H, W) map to (B, N, heads, C / heads)."""
        if self.use_conv:
            return rearrange(x, "b (h d) y x -> b (y x) h d", h=self.num_heads)
        return rearrange(x, "b n (h d) -> b n h d", h=self.num_heads)


class LevitMlp(nn.Module):
    """Projection, activation, projection, each with BatchNorm."""

    def __init__(self, dim: int, hidden: int, act: str, use_conv: bool) -> None:
        super().__init__()
        self.ln1 = norm_layer(dim, hidden, use_conv)
        self.act = ACTIVATIONS[act]()
        self.ln2 = norm_layer(hidden, dim, use_conv, zero_gain=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln2(self.act(self.ln1(x)))


class LevitBlock(nn.Module):
    """x + attn(x), then x + mlp(x); no other norm."""

    def __init__(
        self, dim: int, attn: LevitAttention, mlp_ratio: float, act: str, use_conv: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.mlp = LevitMlp(dim, int(dim * mlp_ratio), act, use_conv)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(x))
        return x + self.drop_path2(self.mlp(x))


class LevitDownsample(nn.Module):
    """Attention with subsampled queries and no residual, then a residual MLP."""

    def __init__(self, dim: int, attn: LevitAttention, act: str, use_conv: bool, drop_path: float) -> None:
        super().__init__()
        self.attn_downsample = attn
        self.mlp = LevitMlp(dim, dim * 2, act, use_conv)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn_downsample(x)
        return x + self.drop_path(self.mlp(x))


class LevitStage(nn.Module):
    """Downsampling (but in the first stage), then `depth` blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[LevitBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Levit(nn.Module):
    """LeViT with one head: (B, in_chans, H, W) float -> (B, num_classes) logits.

    Args:
        img_size: H and W; multiples of the stem's stride. The attention biases belong to this size.
        embed_dim, num_heads, depth: width, heads and blocks of each stage.
        key_dim: of one head; values are `attn_ratio` times as wide (4 times while downsampling).
        mlp_ratio: hidden width of the MLPs over their width.
        stem_type: 's16' or 's8'.
        act_layer, attn_act_layer: see layers.ACTIVATIONS; the second defaults to the first.
        use_conv: 1x1 convolutions over maps in place of Linear over tokens.
        drop_rate, drop_path_rate: regularisation while training.

    Raises:
        UsageError: an image size that the stem's stride does not divide.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (256, 384, 512),
        key_dim: int = 32,
        depth: Sequence[int] = (4, 4, 4),
        num_heads: Sequence[int] = (4, 6, 8),
        attn_ratio: float = 2.0,
        mlp_ratio: float = 2.0,
        stem_type: str = "s16",
        act_layer: str = "hard_swish",
        attn_act_layer: str | None = None,
        use_conv: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size, stem_stride = to_pair(img_size), int(stem_type[1:])
        check_image_size(size, stem_stride)
        attn_act = attn_act_layer or act_layer
        self.use_conv = use_conv
        self.stem = Stem(in_chans, embed_dim[0], stem_stride, act_layer)
        grid = (size[0] // stem_stride, size[1] // stem_stride)
        stages, dim = [], embed_dim[0]
        for i, width in enumerate(embed_dim):
            downsample: nn.Module = nn.Identity()
            if i > 0:
                attn = LevitAttention(dim, width, key_dim, dim // key_dim, 4.0, attn_act, grid, use_conv, stride=2)
                downsample = LevitDownsample(width, attn, act_layer, use_conv, drop_path_rate)
                grid = (-(-grid[0] // 2), -(-grid[1] // 2))
            blocks = []
            for _ in range(depth[i]):
                attn = LevitAttention(width, width, key_dim, num_heads[i], attn_ratio, attn_act, grid, use_conv)
                blocks.append(LevitBlock(width, attn, mlp_ratio, act_layer, use_conv, drop_path_rate))
            stages.append(LevitStage(downsample, blocks))
            dim = width
        self.stages = nn.Sequential(*stages)
        self.head = NormLinear(dim, num_classes, drop_rate) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) to tokens (B, N, dim), or a map (B, dim, H', W') with `use_conv`."""
        x = self.stem(x)
        return self.stages(x if self.use_conv else rearrange(x, "b c h w -> b (h w) c"))

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(dim=(-2, -1)) if self.use_conv else x.mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.forward_features(x)))


class LevitDistilled(Levit):
    """LeViT with a second head taught by a teacher; both averaged in eval, a pair while training."""

    def __init__(
        self,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (256, 384, 512),
        drop_rate: float = 0.0,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes=num_classes, embed_dim=embed_dim, drop_rate=drop_rate, **kwargs)  # type: ignore[arg-type]
        self.head_dist = NormLinear(embed_dim[-1], num_classes, drop_rate) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.forward_features(x))
        logits, taught = self.head(x), self.head_dist(x)
        return (logits, taught) if self.training else (logits + taught) / 2  # type: ignore[return-value]


def check_image_size(size: tuple[int, int], stride: int) -> None:
    """Raise UsageError, naming the nearest sizes that fit, unless the stem's stride divides the image."""
    if all(s >= stride and s % stride == 0 for s in size):
        return
    below = [max(stride, s // stride * stride) for s in size]
    above = [-(-s // stride) * stride for s in size]
    near = " and ".join(dict.fromkeys("x".join(map(str, pair)) for pair in (below, above)))
    raise UsageError(
        f"Image size {size[0]}x{size[1]} is not a multiple of LeViT's stem stride {stride}.",
        fix=f"The nearest sizes that are: {near}.",
    )


# --- vit-pytorch's, with its constructor and parameter names ---


def conv_norm(dim: int, dim_out: int, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution without bias, then BatchNorm."""
    return nn.Sequential(nn.Conv2d(dim, dim_out, 1, stride, bias=False), nn.BatchNorm2d(dim_out))


class MapAttention(nn.Module):
    """Attention over (B, dim, size, size), with a learned bias of each head by (|dy|, |dx|); with `stride` 2 to
    (B, dim_out, size / 2, size / 2)."""

    def __init__(
        self, dim: int, size: int, heads: int, key: int, value: int, dropout: float, dim_out: int, stride: int
    ) -> None:
        super().__init__()
        self.heads, self.drop = heads, dropout
        self.scale = key**-0.5
        self.to_q = conv_norm(dim, key * heads, stride)
        self.to_k = conv_norm(dim, key * heads)
        self.to_v = conv_norm(dim, value * heads)
        norm = nn.BatchNorm2d(dim_out)
        nn.init.zeros_(norm.weight)
        self.to_out = nn.Sequential(nn.GELU(), nn.Conv2d(value * heads, dim_out, 1), norm, nn.Dropout(dropout))
        self.pos_bias = nn.Embedding(size * size, heads)
        away = (torch.arange(0, size, stride)[:, None] - torch.arange(size)).abs()
        offsets = away[:, None, :, None] * size + away[None, :, None, :]
        self.pos_indices: Tensor
        self.register_buffer("pos_indices", offsets.flatten(2).flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = (self.to_q(x), self.to_k(x), self.to_v(x))
        q, k, v = (rearrange(t, "b (h d) y x -> b h (y x) d", h=self.heads) for t in found)
        bias = self.pos_bias.weight.t()[:, self.pos_indices] / self.scale
        out = attend(q, k, v, self.scale, bias, self.drop if self.training else 0.0)
        return self.to_out(rearrange(out, "b h (y x) d -> b (h d) y x", y=found[0].shape[-2]))


class MapFeedForward(nn.Module):
    """Two 1x1 convolutions with HardSwish between."""

    def __init__(self, dim: int, mult: int, dropout: float) -> None:
        super().__init__()
        layers = [nn.Conv2d(dim, dim * mult, 1), nn.Hardswish(), nn.Dropout(dropout), nn.Conv2d(dim * mult, dim, 1)]
        self.net = nn.Sequential(*layers, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MapTransformer(nn.Module):
    """Layers over maps; those that shrink or widen have no residual round their attention."""

    def __init__(
        self, depth: int, dim: int, dim_out: int, mult: int, dropout: float, shrinks: bool, **attention: int
    ) -> None:
        super().__init__()
        self.residual = not shrinks and dim == dim_out
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attn = MapAttention(dim, dropout=dropout, dim_out=dim_out, stride=2 if shrinks else 1, **attention)
            self.layers.append(nn.ModuleList([attn, MapFeedForward(dim_out, mult, dropout)]))

    def forward(self, x: Tensor) -> Tensor:
        for attn, ff in parts(self.layers):
            x = x + attn(x) if self.residual else attn(x)
            x = x + ff(x)
        return x


class LeViT(nn.Module):
    """Images (B, 3, image_size, image_size) to logits (B, num_classes); with `num_distill_classes` to these and the
    logits of a second head.

    It is not the paper's: the stem has no BatchNorm and no activation, position biases are divided by the scale of the
    scores, GELU stands before the projection, MLPs have no BatchNorm, and both heads are plain. The paper's is
    `levit_256` of the catalog, the class Levit above.

    Args:
        dim, depth, heads: of each stage; where fewer are given the last is for the rest.

    Raises:
        ValueError: more numbers than stages.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_classes: int,
        dim: int | tuple[int, ...],
        depth: int | tuple[int, ...],
        heads: int | tuple[int, ...],
        mlp_mult: int,
        stages: int = 3,
        dim_key: int = 32,
        dim_value: int = 64,
        dropout: float = 0.0,
        num_distill_classes: int | None = None,
    ) -> None:
        super().__init__()
        dims = of_stages("dim", dim, stages)
        widths = (3, 32, 64, 128, dims[0])
        convolutions = (nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.conv_embedding = nn.Sequential(*convolutions)
        size = image_size // 16
        if size < 1:
            raise ValueError(f"image_size ({image_size}) must be 16 or more")
        layers: list[nn.Module] = []
        sizes = zip(dims, of_stages("depth", depth, stages), of_stages("heads", heads, stages), strict=True)
        for stage, (width, count, of_stage) in enumerate(sizes):
            attention = {"key": dim_key, "value": dim_value, "size": size}
            layers.append(MapTransformer(count, width, width, mlp_mult, dropout, False, heads=of_stage, **attention))
            if stage < stages - 1:
                wide = dims[stage + 1]
                layers.append(MapTransformer(1, width, wide, mlp_mult, 0.0, True, heads=of_stage * 2, **attention))
                size = (size + 1) // 2
        self.backbone = nn.Sequential(*layers)
        self.distill_head = nn.Linear(dims[-1], num_distill_classes) if num_distill_classes is not None else None
        self.mlp_head = nn.Linear(dims[-1], num_classes)

    def forward(self, img: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.backbone(self.conv_embedding(img)).mean(dim=(-2, -1))
        return self.mlp_head(x) if self.distill_head is None else (self.mlp_head(x), self.distill_head(x))


def of_stages(name: str, value: int | tuple[int, ...], stages: int) -> tuple[int, ...]:
    """A number of each stage; the last given is for the rest. Raises ValueError where there are too many."""
    given = value if isinstance(value, tuple) else (value,)
    if len(given) > stages or not given:
        raise ValueError(f"{name} {given} must be 1 to {stages} numbers, one a stage")
    return given + given[-1:] * (stages - len(given))

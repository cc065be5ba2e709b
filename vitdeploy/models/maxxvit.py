"""MaxViT with timm's constructor and keys, as its authors and timm's trained it: a convolution block, attention within
windows, and attention over a grid of distant pixels, in each block (Tu et al., 2204.01697). max_vit is vit-pytorch's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.blocks import attend_in_windows, quotient
from vitdeploy.models.layers import ACTIVATIONS, DropPath, LayerScale, Mlp, linspace_rates, make_divisible, to_pair
from vitdeploy.models.vision_transformer import check_image_size, check_pool

REDUCTION = 32  # from the image to the last map, and from the image to a window


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution by half the size, padded as TensorFlow's 'same': a map of even size below and beside alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def conv3x3(in_chs: int, out_chs: int, stride: int, padding: str, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """Args: padding: 'same', or '' for one pixel all around."""
    if padding == "same" and stride > 1:
        return SameConv2d(in_chs, out_chs, 3, stride, groups=groups, bias=bias)
    return nn.Conv2d(in_chs, out_chs, 3, stride, 1, groups=groups, bias=bias)


class BatchNormAct(nn.BatchNorm2d):
    """BatchNorm and an activation, or none."""

    def __init__(self, chs: int, eps: float, act: str | None) -> None:
        super().__init__(chs, eps)
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SqueezeExcite(nn.Module):
    """A gate of each channel, by what all channels are on average (Hu et al., 1709.01507)."""

    def __init__(self, chs: int, rd_chs: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(chs, rd_chs, 1)
        self.fc2 = nn.Conv2d(rd_chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class Downsample2d(nn.Module):
    """The mean of every 2x2 pixels, and a projection where the width changes."""

    def __init__(self, in_chs: int, out_chs: int, bias: bool) -> None:
        super().__init__()
        self.expand = nn.Identity() if in_chs == out_chs else nn.Conv2d(in_chs, out_chs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.avg_pool2d(x, 2))


class MbConvBlock(nn.Module):
    """Norm, expand 1x1, depthwise 3x3, squeeze and excite, project 1x1; a residual (MobileNetV2, 1801.04381).

    Args:
        expand_output: the inner width is 4 times the output's, instead of the input's.
        attn_ratio: width within squeeze-and-excite, as a part of the output's or, without `expand_output`, of the
            inner width.
        output_bias: of the projections out and of the shortcut.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        drop_path: float,
        *,
        expand_output: bool,
        attn_ratio: float,
        output_bias: bool,
        act_layer: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        super().__init__()
        mid = make_divisible((out_chs if expand_output else in_chs) * 4)
        self.shortcut = Downsample2d(in_chs, out_chs, output_bias) if stride > 1 else nn.Identity()
        self.pre_norm = BatchNormAct(in_chs, norm_eps, None)
        self.conv1_1x1 = nn.Conv2d(in_chs, mid, 1, bias=False)
        self.norm1 = BatchNormAct(mid, norm_eps, act_layer)
        self.conv2_kxk = conv3x3(mid, mid, stride, padding, groups=mid)
        self.norm2 = BatchNormAct(mid, norm_eps, act_layer)
        self.se = SqueezeExcite(mid, int(attn_ratio * (out_chs if expand_output else mid)))
        self.conv3_1x1 = nn.Conv2d(mid, out_chs, 1, bias=output_bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1_1x1(self.pre_norm(x)))
        y = self.conv3_1x1(self.se(self.norm2(self.conv2_kxk(y))))
        return self.drop_path(y) + self.shortcut(x)


def offsets(window: tuple[int, int], device: torch.device) -> Tensor:
    """Numbers of the offsets from key to query in a window, row by row, (area, area)."""
    down, across = (torch.arange(size, device=device)[:, None] - torch.arange(size, device=device) for size in window)
    down, across = down + window[0] - 1, across + window[1] - 1
    return (down[:, None, :, None] * (2 * window[1] - 1) + across[None, :, None, :]).flatten(2).flatten(0, 1)


class RelPosBias(nn.Module):
    """A learned bias of each offset between two pixels of a window: (heads, area, area)."""

    def __init__(self, window: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.window = window
        count = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.randn(count, num_heads) * 0.02)

    def forward(self) -> Tensor:
        table = self.relative_position_bias_table
        return table.t()[:, offsets(self.window, table.device)]


class RelPosBiasTf(nn.Module):
    """The same with its table as TensorFlow's weights have it, (heads, rows, columns), by offset from query to key."""

    def __init__(self, window: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.window = window
        shape = num_heads, 2 * window[0] - 1, 2 * window[1] - 1
        self.relative_position_bias_table = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self) -> Tensor:
        table = self.relative_position_bias_table
        return table.flatten(1)[:, offsets(self.window, table.device).t()]


class RelPosMlp(nn.Module):
    """The same, by an MLP of the offset on a logarithmic scale (Liu et al., Swin V2, 2111.09883)."""

    def __init__(self, window: tuple[int, int], num_heads: int, hidden_dim: int = 512) -> None:
        super().__init__()
        self.window = window
        layers = [("fc1", nn.Linear(2, hidden_dim)), ("act", nn.ReLU()), ("drop1", nn.Dropout(0.125))]
        self.mlp = nn.Sequential(OrderedDict([*layers, ("fc2", nn.Linear(hidden_dim, num_heads))]))

    def forward(self) -> Tensor:
        device = next(self.parameters()).device
        scaled = []
        for size in self.window:
            away = torch.arange(1 - size, size, device=device)
            scaled.append(away.sign() * away.abs().float().log1p())
        coordinates = torch.stack(torch.meshgrid(*scaled, indexing="ij"), dim=-1).flatten(0, 1)
        bias = self.mlp(coordinates.to(next(self.parameters()).dtype))
        return bias.t()[:, offsets(self.window, device)]


REL_POS: dict[str, type[nn.Module]] = {"bias": RelPosBias, "bias_tf": RelPosBiasTf, "mlp": RelPosMlp}


class AttentionCl(nn.Module):
    """Attention of (B, H, W, dim) within windows, or with `distant` among pixels as far apart as the map allows.

    Args:
        head_first: rows of qkv are (head, q | k | v, head_dim), instead of (q | k | v, head, head_dim).
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        window: tuple[int, int],
        *,
        distant: bool,
        dim_head: int,
        head_first: bool,
        rel_pos_type: str,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_first = quotient("embed_dim", dim, "dim_head", dim_head), head_first
        self.window, self.distant, self.scale = window, distant, dim_head**-0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.rel_pos = REL_POS[rel_pos_type](window, self.num_heads)
        self.proj = nn.Linear(dim, dim_out)

    def in_order(self, parameter: Tensor) -> Tensor:
        """A parameter of qkv with its rows as (q | k | v, head, head_dim)."""
        if not self.head_first:
            return parameter
        return parameter.unflatten(0, (self.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_order(self.qkv.weight), self.in_order(self.qkv.bias)).chunk(3, dim=-1)
        bias = self.rel_pos()
        return self.proj(
            attend_in_windows(q, k, v, self.num_heads, self.window, self.scale, bias, distant=self.distant)
        )


class PartitionAttention(nn.Module):
    """Attention and MLP over (B, H, W, dim), each a residual with a norm before; LayerScale with `init_values`."""

    def __init__(
        self,
        dim: int,
        init_values: float | None,
        act_layer: str,
        norm_eps: float,
        drop_path: float,
        **attention: object,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=norm_eps) for _ in range(2))
        self.add_attention(dim, **attention)
        self.mlp = Mlp(dim, dim * 4, act_layer)
        scales = (nn.Identity() if init_values is None else LayerScale(dim, init_values) for _ in range(2))
        self.ls1, self.ls2 = scales
        self.drop_path = DropPath(drop_path)

    def add_attention(self, dim: int, **attention: object) -> None:
        self.attn = AttentionCl(dim, dim, **attention)  # type: ignore[arg-type]

    def mix(self, x: Tensor) -> Tensor:
        return self.attn(x)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.mix(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ParallelPartitionAttention(PartitionAttention):
    """The same with both attentions side by side, half as wide each."""

    def add_attention(self, dim: int, **attention: object) -> None:
        self.attn_block = AttentionCl(dim, dim // 2, distant=False, **attention)  # type: ignore[arg-type]
        self.attn_grid = AttentionCl(dim, dim // 2, distant=True, **attention)  # type: ignore[arg-type]

    def mix(self, x: Tensor) -> Tensor:
        return torch.cat((self.attn_block(x), self.attn_grid(x)), dim=-1)


class MaxxVitBlock(nn.Module):
    """Convolutions over (B, dim, H, W), then attention within windows and over a grid."""

    def __init__(self, conv: nn.Module, attentions: dict[str, nn.Module]) -> None:
        super().__init__()
        self.conv = conv
        for name, attention in attentions.items():
            self.add_module(name, attention)
        self.names = tuple(attentions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).movedim(1, -1)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x.movedim(-1, 1)


class Stem(nn.Module):
    """Images to maps of half their size."""

    def __init__(self, in_chans: int, widths: tuple[int, int], bias: bool, act: str, eps: float, padding: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_chans, widths[0], 2, padding, bias=bias)
        self.norm1 = BatchNormAct(widths[0], eps, act)
        self.conv2 = conv3x3(*widths, 1, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm1(self.conv1(x)))


class Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Head(nn.Module):
    """Global average pool over (B, dim, H, W) and the classifier; with `hidden`, LayerNorm, Linear, tanh between."""

    def __init__(self, dim: int, num_classes: int, hidden: int | None, norm_eps: float, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if hidden else nn.Identity()
        self.pre_logits = nn.Sequential()
        if hidden:
            self.pre_logits = nn.Sequential(OrderedDict([("fc", nn.Linear(dim, hidden)), ("act", nn.Tanh())]))
        self.drop = nn.Dropout(drop)
        self.fc = nn.Linear(hidden or dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.pre_logits(self.norm(x.mean(dim=(2, 3))))))


class MaxxVit(nn.Module):
    """(B, in_chans, H, W) to logits (B, num_classes); of timm's MaxxVit what its MaxViT models are made of.

    timm's constructor takes these arguments over a configuration; here they stand alone.

    Args:
        img_size: a multiple of 32: windows are an image's 32nd part.
        embed_dim, depths: of each stage.
        block_type: 'M', or 'PM' with two convolution blocks and both attentions side by side, in each block.
        stem_width: of the stem's two convolutions, or a number for both.
        head_hidden_size: width of a Linear + tanh before the classifier; None for none.
        conv_...: see MbConvBlock; `conv_padding` 'same' is TensorFlow's.
        transformer_rel_pos_type: 'bias', 'bias_tf' or 'mlp': see the classes.
        transformer_head_first: see AttentionCl.
        transformer_init_values: LayerScale's start value; None leaves LayerScale out.

    Raises:
        UsageError: an image size that is no multiple of 32, another pool than 'avg', an unknown block or bias.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        block_type: str = "M",
        stem_width: int | Sequence[int] = 64,
        stem_bias: bool = False,
        head_hidden_size: int | None = None,
        conv_expand_output: bool = True,
        conv_attn_ratio: float = 0.25,
        conv_output_bias: bool = True,
        conv_act_layer: str = "gelu",
        conv_norm_eps: float = 1e-5,
        conv_padding: str = "",
        transformer_dim_head: int = 32,
        transformer_head_first: bool = True,
        transformer_rel_pos_type: str = "bias",
        transformer_init_values: float | None = None,
        transformer_act_layer: str = "gelu",
        transformer_norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size = to_pair(img_size)
        check_image_size(size, (REDUCTION, REDUCTION))
        check_pool(global_pool, "avg")
        for name, value, known in (
            ("block_type", block_type, ("M", "PM")),
            ("transformer_rel_pos_type", transformer_rel_pos_type, tuple(REL_POS)),
        ):
            if value not in known:
                raise UsageError(f"Unknown {name} '{value}': one of {', '.join(known)}.")
        before = to_pair(stem_width)[1]  # type: ignore[arg-type]
        self.stem = Stem(in_chans, to_pair(stem_width), stem_bias, conv_act_layer, conv_norm_eps, conv_padding)  # type: ignore[arg-type]
        window = size[0] // REDUCTION, size[1] // REDUCTION

        def conv(chs: int, out: int, stride: int, rate: float) -> nn.Module:
            return MbConvBlock(
                chs,
                out,
                stride,
                rate,
                expand_output=conv_expand_output,
                attn_ratio=conv_attn_ratio,
                output_bias=conv_output_bias,
                act_layer=conv_act_layer,
                norm_eps=conv_norm_eps,
                padding=conv_padding,
            )

        def attention(kind: type[PartitionAttention], dim: int, rate: float, **distant: bool) -> nn.Module:
            return kind(
                dim,
                transformer_init_values,
                transformer_act_layer,
                transformer_norm_eps,
                rate,
                window=window,
                dim_head=transformer_dim_head,
                head_first=transformer_head_first,
                rel_pos_type=transformer_rel_pos_type,
                **distant,
            )

        def block(chs: int, out: int, stride: int, rate: float) -> nn.Module:
            if block_type == "PM":
                convs = nn.Sequential(conv(chs, out, stride, rate), conv(out, out, 1, rate))
                return MaxxVitBlock(convs, {"attn": attention(ParallelPartitionAttention, out, rate)})
            near, far = (attention(PartitionAttention, out, rate, distant=distant) for distant in (False, True))
            return MaxxVitBlock(conv(chs, out, stride, rate), {"attn_block": near, "attn_grid": far})

        rates = iter(linspace_rates(drop_path_rate, sum(depths)))
        stages = []
        for dim, depth in zip(embed_dim, depths, strict=True):
            blocks = [block(dim if index else before, dim, 1 if index else 2, next(rates)) for index in range(depth)]
            stages.append(Stage(blocks))
            before = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity() if head_hidden_size else nn.LayerNorm(before, eps=transformer_norm_eps)
        self.head = Head(before, num_classes, head_hidden_size, transformer_norm_eps, drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(self.norm(x.movedim(1, -1)).movedim(-1, 1))

"""CCT on videos: a transformer over what convolutions find, pooled by attention (after Hassani et al., 2104.05704)."""

from __future__ import annotations

from functools import partial

from vitdeploy.models.blocks import Size, pair
from vitdeploy.models.cct import SIZES, CompactTransformer, sized


class CCT(CompactTransformer):
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
        img_size: Size = 224,
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
        if frame_padding is None:
            frame_padding = frame_kernel_size // 2
        if frame_pooling_padding is None:
            frame_pooling_padding = frame_pooling_kernel_size // 2
        widths = [n_input_channels, *[64] * (n_conv_layers - 1), embedding_dim]
        over_time = (frame_kernel_size, frame_stride, frame_padding)
        conv = [(t, x, x) for t, x in zip(over_time, (kernel_size, stride, padding), strict=True)]
        over_time = (frame_pooling_kernel_size, frame_pooling_stride, frame_pooling_padding)
        over_space = (pooling_kernel_size, pooling_stride, pooling_padding)
        pool = [(t, x, x) for t, x in zip(over_time, over_space, strict=True)]
        sizes = (num_layers, num_heads, mlp_ratio, num_classes)
        rates = (0.0, 0.1, stochastic_depth_rate)
        super().__init__(widths, conv, pool, (num_frames, *pair(img_size)), *sizes, *rates, positional_embedding)


cct_2, cct_4, cct_6, cct_7, cct_8, cct_14, cct_16 = (partial(sized, CCT, *SIZES[layers]) for layers in SIZES)

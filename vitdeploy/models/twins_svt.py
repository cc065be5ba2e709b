"""Twins-SVT: attention within windows, then of all pixels to a coarse summary of the map (Chu et al., Twins,
2104.13840)."""

from __future__ import annotations

from einops.layers.torch import Rearrange, Reduce
from torch import Tensor, nn

from vitdeploy.models.blocks import PEG, ChannelNorm, MapAttention, MapFeedForward, PatchLinear, Residual


class WindowOrSummary(MapAttention):
    """Attention within windows, or with a window of None to one key and value of every `k` x `k` pixels."""

    def __init__(self, dim: int, dropout: float, window: int | None, k: int = 1) -> None:
        super().__init__(dim, 8, 64, 8 * 64, dropout, window)
        self.to_q = PatchLinear(dim, 8 * 64, bias=False)
        self.to_kv = PatchLinear(dim, 8 * 64 * 2, k, bias=False)

    def qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)


class Transformer(nn.Module):
    """Local attention, MLP, global attention, MLP, `depth` times; without the first two where `window` is None."""

    def __init__(self, dim: int, depth: int, window: int | None, k: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            near: list[nn.Module] = [nn.Identity(), nn.Identity()]
            if window is not None:
                near = [
                    Residual(WindowOrSummary(dim, dropout, window)),
                    Residual(MapFeedForward(dim, 4, dropout)),
                ]
            far = [Residual(WindowOrSummary(dim, dropout, None, k)), Residual(MapFeedForward(dim, 4, dropout))]
            self.layers.append(nn.ModuleList([*near, *far]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer.children():
                x = part(x)
        return x


class PatchEmbedding(nn.Module):
    """(B, H, W, dim) to (B, H / patch, W / patch, dim_out)."""

    def __init__(self, dim: int, dim_out: int, patch: int) -> None:
        super().__init__()
        width = patch**2 * dim
        self.pixels = Rearrange("b (y p) (x q) c -> b y x (c p q)", p=patch, q=patch)
        self.proj = nn.Sequential(ChannelNorm(width), PatchLinear(width, dim_out), ChannelNorm(dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.pixels(x))


class TwinsSVT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes). Maps must divide into their stage's windows.

    Args:
        s1_..., s4_...: of each stage: width, patch, window, pixels that a key stands for, and layers behind the
            position convolution.

    Raises:
        ValueError: an even kernel of the position convolution.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        s1_emb_dim: int = 64,
        s1_patch_size: int = 4,
        s1_local_patch_size: int = 7,
        s1_global_k: int = 7,
        s1_depth: int = 1,
        s2_emb_dim: int = 128,
        s2_patch_size: int = 2,
        s2_local_patch_size: int = 7,
        s2_global_k: int = 7,
        s2_depth: int = 1,
        s3_emb_dim: int = 256,
        s3_patch_size: int = 2,
        s3_local_patch_size: int = 7,
        s3_global_k: int = 7,
        s3_depth: int = 5,
        s4_emb_dim: int = 512,
        s4_patch_size: int = 2,
        s4_local_patch_size: int = 7,
        s4_global_k: int = 7,
        s4_depth: int = 4,
        peg_kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if peg_kernel_size % 2 == 0:
            raise ValueError(f"peg_kernel_size ({peg_kernel_size}) must be odd")
        dim, layers = 3, []
        for width, patch, window, k, depth in (
            (s1_emb_dim, s1_patch_size, s1_local_patch_size, s1_global_k, s1_depth),
            (s2_emb_dim, s2_patch_size, s2_local_patch_size, s2_global_k, s2_depth),
            (s3_emb_dim, s3_patch_size, s3_local_patch_size, s3_global_k, s3_depth),
            (s4_emb_dim, s4_patch_size, None, s4_global_k, s4_depth),
        ):
            first, others = (Transformer(width, count, window, k, dropout) for count in (1, depth))
            positions = nn.Sequential()
            positions.add_module("proj", Residual(PEG(width, peg_kernel_size).proj))
            layers.append(nn.Sequential(PatchEmbedding(dim, width, patch), first, positions, others))
            dim = width
        head = [Reduce("b h w c -> b c", "mean"), nn.Identity(), nn.Linear(dim, num_classes)]
        self.layers = nn.Sequential(*layers, *head)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.movedim(1, -1))

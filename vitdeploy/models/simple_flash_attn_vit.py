"""SimpleViT by FlashAttention: the same attention without its matrix of scores in memory (Dao et al., 2205.14135)."""

from __future__ import annotations

from typing import Any

from vitdeploy.models import simple_vit


class SimpleViT(simple_vit.SimpleViT):
    """Images (B, channels, H, W) to logits (B, num_classes). A norm stands in the head, none behind the transformer.

    Args:
        use_flash: of no effect: PyTorch takes FlashAttention where the device has it, and the function is the same.
    """

    head_norm = True

    def __init__(self, *, use_flash: bool = True, **vit: Any) -> None:
        super().__init__(**vit)

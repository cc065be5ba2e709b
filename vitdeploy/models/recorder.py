"""A model's attention maps beside its output, as Dosovitskiy et al. look into ViT (2010.11929, appendix D.8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.layers import attention_recorded


class Wrapper(nn.Module):
    """Round a model, until it is ejected."""

    def __init__(self, vit: nn.Module, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.vit, self.device = vit, device
        self.ejected = False

    def eject(self) -> nn.Module:
        """The model without the wrapper, which runs no more."""
        self.ejected = True
        return self.vit

    def check(self) -> None:
        if self.ejected:
            raise RuntimeError(f"This {type(self).__name__.lower()} has been ejected.")


class Recorder(Wrapper):
    """Wraps a model: images to (what the model gives, attention maps).

    The maps are (B, layers, heads, query tokens, key tokens), without gradients; a tuple of (B, heads, ...) each where
    their sizes differ, and None where the model has no softmax attention. Nothing is hooked, so that a traced Recorder
    gives the same each time.

    Args:
        vit: any model of this package.
        device: where the maps go; None leaves them where the images are.
    """

    def forward(self, img: Tensor) -> tuple[Any, Tensor | tuple[Tensor, ...] | None]:
        self.check()
        with attention_recorded() as found:
            pred = self.vit(img)
        maps = tuple(attn.detach().to(self.device or img.device) for attn in found)
        if not maps:
            return pred, None
        alike = len({attn.shape for attn in maps}) == 1
        return pred, torch.stack(maps, dim=1) if alike else maps

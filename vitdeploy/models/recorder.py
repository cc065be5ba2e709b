"""Recorder: a ViT that also says where each of its layers looked (maps as in Abnar and Zuidema, 2005.00928)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.layers import attention_recorded


class Recorder(nn.Module):
    """Images to what `vit` gives and the attention weights (B, layers, heads, tokens, tokens), None if there are none.

    The weights are what goes through `attend`, before dropout. They are kept in `recordings` until `clear` or the
    next call, but for those of a trace.

    Args:
        vit: all its layers have as many heads and tokens.
        device: where the weights go; None for the images'.

    Raises:
        RuntimeError: called after `eject`.
    """

    def __init__(self, vit: nn.Module, device: Any = None) -> None:
        super().__init__()
        self.vit = vit
        self.device = device
        self.recordings: list[Tensor] = []
        self.ejected = False

    def eject(self) -> nn.Module:
        """The ViT itself; the recorder cannot be used any more."""
        self.ejected = True
        return self.vit

    def clear(self) -> None:
        self.recordings.clear()

    def forward(self, img: Tensor) -> tuple[Any, Tensor | None]:
        if self.ejected:
            raise RuntimeError("this recorder was ejected: make a new one")
        self.clear()
        with attention_recorded() as weights:
            found = self.vit(img)
        device = img.device if self.device is None else self.device
        weights = [each.detach().to(device) for each in weights]
        if not torch.compiler.is_exporting():
            self.recordings.extend(weights)
        return found, torch.stack(weights, dim=1) if weights else None

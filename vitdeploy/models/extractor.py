"""Extractor: a ViT that also gives what one of its layers took in or gave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Extractor(nn.Module):
    """Images to what `vit` gives and the embeddings, both of them as the layer has them: tensors, or tuples of them.

    The embeddings are kept in `latents` until `clear` or the next call, but for those of a trace.

    Args:
        device: where the embeddings go; None for the images'.
        layer: a module of `vit`; None for its attribute `layer_name`.
        layer_save_input: the layer's inputs, a tuple, instead of its output.
        return_embeddings_only: without what `vit` gives; also an argument of a call.
        detach: the embeddings carry no gradients.

    Raises:
        ValueError: `vit` has no module of that name.
        RuntimeError: called after `eject`.
    """

    def __init__(
        self,
        vit: nn.Module,
        device: Any = None,
        layer: nn.Module | None = None,
        layer_name: str = "transformer",
        layer_save_input: bool = False,
        return_embeddings_only: bool = False,
        detach: bool = True,
    ) -> None:
        super().__init__()
        if layer is None and not isinstance(getattr(vit, layer_name, None), nn.Module):
            raise ValueError(f"layer_name ({layer_name!r}) must be the name of a module of vit")
        self.vit = vit
        self.device = device
        self.layer = layer
        self.layer_name = layer_name
        self.layer_save_input = layer_save_input
        self.return_embeddings_only = return_embeddings_only
        self.detach = detach
        self.latents: Any = None
        self.ejected = False

    def eject(self) -> nn.Module:
        """The ViT itself; the extractor cannot be used any more."""
        self.ejected = True
        return self.vit

    def clear(self) -> None:
        self.latents = None

    def forward(self, img: Tensor, return_embeddings_only: bool = False) -> Any:
        if self.ejected:
            raise RuntimeError("this extractor was ejected: make a new one")
        seen: list[Any] = []
        layer = getattr(self.vit, self.layer_name) if self.layer is None else self.layer
        # The hook lives as long as the call, so that a trace leaves none behind.
        hook = layer.register_forward_hook(
            lambda _, inputs, output: seen.append(each(self.keep, inputs if self.layer_save_input else output))
        )
        try:
            found = self.vit(img)
        finally:
            hook.remove()
        device = img.device if self.device is None else self.device
        latents = each(lambda t: t.to(device), seen[-1]) if seen else None
        if not torch.compiler.is_exporting():
            self.latents = latents
        return latents if return_embeddings_only or self.return_embeddings_only else (found, latents)

    def keep(self, x: Tensor) -> Tensor:
        return x.detach().clone() if self.detach else x


def each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Of a tensor, or of each in a tuple."""
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)

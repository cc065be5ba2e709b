"""A model's embeddings beside its output: what one of its layers gives, or is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.recorder import Wrapper


class Extractor(Wrapper):
    """Wraps a model: images to (what the model gives, what the layer gives).

    The layer is hooked for the time of a run alone, so that a traced Extractor gives the same each time.

    Args:
        device: where the embeddings go; None leaves them where the images are.
        layer: a module of the model; None takes the one that is called `layer_name`.
        layer_save_input: its inputs, as a tuple, instead of its output.
        return_embeddings_only: leave out what the model gives.
        detach: without gradients.

    Raises:
        ValueError: the model has no layer of that name.
    """

    def __init__(
        self,
        vit: nn.Module,
        device: torch.device | str | None = None,
        layer: nn.Module | None = None,
        layer_name: str = "transformer",
        layer_save_input: bool = False,
        return_embeddings_only: bool = False,
        detach: bool = True,
    ) -> None:
        super().__init__(vit, device)
        found = layer if layer is not None else getattr(vit, layer_name, None)
        if not isinstance(found, nn.Module):
            raise ValueError(f"layer_name ({layer_name!r}) is no layer of the model")
        self.layer = [found]  # in a list, so that it is not registered a second time
        self.layer_save_input = layer_save_input
        self.return_embeddings_only = return_embeddings_only
        self.detach = detach

    def forward(self, img: Tensor, return_embeddings_only: bool = False) -> Any:
        self.check()
        found: list[Any] = []
        hook = self.layer[0].register_forward_hook(
            lambda _, inputs, output: found.append(inputs if self.layer_save_input else output)
        )
        try:
            pred = self.vit(img)
        finally:
            hook.remove()
        device = self.device or img.device

        def settled(x: Tensor) -> Tensor:
            return (x.detach() if self.detach else x).to(device)

        latents = tuple(settled(x) for x in found[-1]) if isinstance(found[-1], tuple) else settled(found[-1])
        return latents if return_embeddings_only or self.return_embeddings_only else (pred, latents)

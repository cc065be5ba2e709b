"""More than logits out of a model: what its classifier reads, and its attention maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdeploy.errors import UnsupportedModel
from vitdeploy.models.layers import attention_recorded
from vitdeploy.spec import OUTPUTS

LOGITS, EMBEDDINGS, ATTENTION = OUTPUTS


class Outputs(nn.Module):
    """Wraps a model: inputs to a tensor for each of `output_names`.

    'embeddings' are what the last Linear as wide as the logits is given, (B, dim) where tokens are pooled before it;
    'attention' the weights of every layer, (B, layers, heads, query tokens, key tokens), or where their shapes differ
    an output for each layer, 'attention_0' and so on.

    Args:
        vit: a model in eval mode that returns one tensor; attention is known of this package's models alone.
        wanted: of 'logits', 'embeddings' and 'attention'.
        shape: of an input, without the batch, for a run that tells what there is.

    Raises:
        UnsupportedModel: the model has no such classifier, or no attention is seen.
    """

    def __init__(self, vit: nn.Module, wanted: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__()
        self.vit = vit
        self.wanted = tuple(wanted)
        self.classifier: list[nn.Module] = []  # in a list, so that it is not registered a second time
        parameter = next(vit.parameters(), torch.zeros(()))
        image = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
        with torch.no_grad():
            self.classifier = [last_linear(vit, image)] if EMBEDDINGS in wanted else []
            self.output_names = list(self.named(image))

    def named(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by their names."""
        read: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for layer in self.classifier]
        try:
            with attention_recorded() as maps:
                found = {LOGITS: self.vit(image)}
        finally:
            for hook in hooks:
                hook.remove()
        if EMBEDDINGS in self.wanted:
            found[EMBEDDINGS] = read[-1]
        if ATTENTION in self.wanted:
            if not maps:
                raise UnsupportedModel("No attention is seen in this model: its maps cannot be outputs.")
            alike = len({tuple(one.shape[1:]) for one in maps}) == 1
            parts = {ATTENTION: torch.stack(maps, dim=1)} if alike else {}
            found |= parts or {f"{ATTENTION}_{layer}": one for layer, one in enumerate(maps)}
        return found

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(image).values())


def last_linear(vit: nn.Module, image: Tensor) -> nn.Module:
    """The Linear as wide as the logits that runs last. Raises UnsupportedModel where there is none."""
    ran: list[nn.Linear] = []
    linears = [layer for layer in vit.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in linears]
    try:
        width = vit(image).shape[-1]
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [layer for layer in ran if layer.out_features == width]
    if not fitting:
        raise UnsupportedModel("This model has no classifier: it gives no embeddings beside its output.")
    return fitting[-1]

"""More than logits out of a model: what its classifier reads, and its attention maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdeploy.errors import UnsupportedModel
from vitdeploy.models.inputs import zeros
from vitdeploy.models.layers import attention_recorded
from vitdeploy.spec import OUTPUTS, TensorSpec

LOGITS, EMBEDDINGS, ATTENTION = OUTPUTS


class Outputs(nn.Module):
    """Wraps a model: inputs to a tensor for each of `output_names`.

    'embeddings' are what the last Linear as wide as the logits is given, (B, dim) where tokens are pooled before it;
    'attention' the weights of every layer, (B, layers, heads, query tokens, key tokens), or where their shapes differ
    an output for each layer, 'attention_0' and so on.

    Args:
        vit: a model in eval mode that returns one tensor; attention is known of this package's models alone.
        wanted: of 'logits', 'embeddings' and 'attention'.
        inputs: what it is given, for a run that tells what there is.

    Raises:
        UnsupportedModel: the model has no such classifier, or no attention is seen.
    """

    def __init__(self, vit: nn.Module, wanted: Sequence[str], inputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.vit = vit
        self.wanted = tuple(wanted)
        self.classifier: list[nn.Module] = []  # in a list, so that it is not registered a second time
        example = zeros(inputs)
        with torch.no_grad():
            self.classifier = [last_linear(vit, example)] if EMBEDDINGS in wanted else []
            self.output_names = list(self.named(*example))

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by their names."""
        read: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for layer in self.classifier]
        try:
            with attention_recorded() as maps:
                found = {LOGITS: self.vit(*inputs)}
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

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*inputs).values())


def last_linear(vit: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """The Linear as wide as the logits that runs last. Raises UnsupportedModel where there is none."""
    ran: list[nn.Linear] = []
    linears = [layer for layer in vit.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in linears]
    try:
        width = vit(*inputs).shape[-1]
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [layer for layer in ran if layer.out_features == width]
    if not fitting:
        raise UnsupportedModel("This model has no classifier: it gives no embeddings beside its output.")
    return fitting[-1]

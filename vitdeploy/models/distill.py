"""ViTs that take a distillation token along, which learns from a teacher (Touvron et al., DeiT, 2012.12877)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from vitdeploy.models import efficient
from vitdeploy.models.blocks import append
from vitdeploy.models.t2t import T2TViT
from vitdeploy.models.vit import ViT


class DistillMixin(nn.Module):
    """Before a model: it remembers its arguments, and runs with a token more where one is given."""

    model: type[nn.Module]
    embed: Any
    transformer: Any
    classify: Any

    def __init_subclass__(cls) -> None:
        cls.__signature__ = inspect.signature(cls.model, eval_str=True)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args, self.kwargs = args, kwargs
        self.dim, self.num_classes = kwargs["dim"], kwargs["num_classes"]

    def to_vit(self) -> Any:
        """The plain model, of the same weights."""
        made = self.model(*self.args, **self.kwargs)
        made.load_state_dict(self.state_dict())
        return made

    def forward(self, img: Tensor, distill_token: Tensor | None = None) -> Any:
        """Images to logits; with a token (1, dim), or (1, 1, dim), also what became of it, (B, dim)."""
        if distill_token is None:
            return super().forward(img)
        x = self.transformer(append(self.embed(img), distill_token))
        return self.classify(x[:, :-1]), x[:, -1]


class DistillableViT(DistillMixin, ViT):
    """vit.ViT, with its arguments."""

    model = ViT


class DistillableT2TViT(DistillMixin, T2TViT):
    """t2t.T2TViT, with its arguments; vit-pytorch's raises."""

    model = T2TViT


class DistillableEfficientViT(DistillMixin, efficient.ViT):
    """efficient.ViT, with its arguments; vit-pytorch's raises."""

    model = efficient.ViT

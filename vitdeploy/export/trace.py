"""PyTorch module -> ONNX graph, through torch.export."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.spec import BATCH, IMAGE, InputSpec, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

OUTPUT = "logits"
OPSET = 20
ATTENTION_OPSET = 23  # the first that has Attention
OPSETS = range(18, 25)


def trace(
    module: nn.Module,
    takes: InputSpec | tuple[int, ...],
    *,
    batch: tuple[int, int, int] | int = 1,
    opset: int = OPSET,
) -> ir.Model:
    """Trace `module` in eval mode to a graph with the inputs that `takes` says and the output `logits`.

    Args:
        module: returns (B, classes), or a tensor for each of its `output_names`.
        takes: what it is given; a shape, (C, H, W) of an image or (C, F, H, W) of a video, stands for one float32
            input `image` (B, *shape).
        batch: a fixed batch, or (min, opt, max) for a dynamic one.
        opset: of the default ONNX domain.

    Raises:
        UsageError: an opset that torch's exporter cannot write.
        UnsupportedModel: torch.export cannot trace the module; the message holds its reason.
    """
    import torch

    from vitdeploy.models.inputs import zeros

    if opset not in OPSETS:
        raise UsageError(
            f"Opset {opset} is not supported.", fix=f"Choose one from {OPSETS.start} to {OPSETS.stop - 1}."
        )
    # torch.export takes a size of 1 for a constant, and any other stands for the whole range.
    names = [str(name) for name in getattr(module, "output_names", [OUTPUT])]
    inputs = takes.tensors if isinstance(takes, InputSpec) else (TensorSpec(IMAGE, "float32", (BATCH, *takes)),)
    example = zeros(inputs, batch if isinstance(batch, int) else max(batch[0], 2))
    shapes: Any = None
    if isinstance(batch, tuple):
        shapes = ({0: torch.export.Dim(BATCH, min=batch[0], max=batch[2])},) * len(inputs)
        taken = inspect.signature(module.forward).parameters.values()
        if [parameter.kind for parameter in taken] == [inspect.Parameter.VAR_POSITIONAL]:
            shapes = (shapes,)  # of the one tuple that it takes
    try:
        with quiet(), attention_in_4d(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                optimize=False,
                input_names=[one.name for one in inputs],
                output_names=names,
                dynamic_shapes=shapes,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedModel(f"torch.export cannot trace this model: {reason(error)}") from error
    assert program is not None
    return program.model


@contextlib.contextmanager
def attention_in_4d() -> Iterator[None]:
    """Give scaled_dot_product_attention (batch, heads, tokens, width) whatever its rank: the only one exported.

    Models with windows or blocks call it on five dimensions, those with a single head on three.
    """
    import torch.nn.functional as F
    from torch import Tensor

    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if query.ndim == 4:
            return original(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        four = [t if t is None else t[..., None, :, :].flatten(0, -4) for t in (query, key, value, attn_mask)]
        return original(*four, *args, **kwargs).reshape(*query.shape[:-1], value.shape[-1])  # type: ignore[arg-type]

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def reason(error: BaseException) -> str:
    """The innermost message of an exporter's error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter prints, warns of and logs off the terminal: on failure, whole graphs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        sink = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(sink))
        stack.enter_context(contextlib.redirect_stderr(sink))
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

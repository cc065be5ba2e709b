"""Random weights that leave no branch of a model silent, for latency work and for verification without a checkpoint.

A fresh model is a poor test: zero BatchNorm gains (LeViT), LayerScale at 1e-5 (DINOv2) and untouched running statistics
let whole branches vanish in constant folding, and wrong graphs then match. Here every parameter is drawn apart from
zero, and BatchNorm statistics are measured on noise images, so that activations keep their size in any depth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm

COLOUR = (0.6, 0.6, 1.5, 1.5)  # of the noise images that the statistics are measured on: how far from grey each is


def random_weights(model: nn.Module, seed: int, shape: tuple[int, ...] | None = None) -> None:
    """Draw every parameter and BatchNorm statistic of a model anew, in place.

    The same seed gives the same weights whatever the number of threads: draws come from one generator of its own, and
    statistics are measured in float64 and rounded. torch's global generators are left alone, and so is training mode.

    Args:
        model: on the CPU; its dtype is kept.
        seed: any 64-bit integer.
        shape: (channels, height, width) of an image, to measure BatchNorm statistics on; where None, 224x224 and the
            first convolution's channels. Models without BatchNorm do not need it.

    Raises:
        UsageError: the model has BatchNorm and cannot run on an image of that shape.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with torch.no_grad():
        drawn: set[int] = set()
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in drawn:
                    drawn.add(id(parameter))
                    parameter.copy_(_draw(module, name, parameter, generator))
        if norms:
            _measure_batch_norms(model, norms, shape or _default_shape(model), generator)


def _draw(module: nn.Module, name: str, parameter: Tensor, generator: Generator) -> Tensor:
    """New values for one parameter, by what it is."""
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    def normal(deviation: float, mean: float = 0.0) -> Tensor:
        return mean + deviation * torch.randn(parameter.shape, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(parameter.shape, generator=generator)

    if isinstance(module, _BatchNorm):
        return uniform(0.5, 1.5) if name == "weight" else normal(0.2)
    if name == "gamma" or name.startswith("gamma_"):  # LayerScale
        return uniform(0.1, 1.0)
    if name in ("weight", "scale") and parameter.ndim == 1:  # LayerNorm, GroupNorm, RMSNorm
        return normal(0.1, mean=1.0)
    if name == "bias":
        return normal(0.05)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return normal(1 / math.sqrt(parameter[0].numel()))
    if name == "attention_biases" or name.endswith(("_token", "_embed")):
        return normal(0.5)
    if parameter.ndim > 1:
        return normal(1 / math.sqrt(parameter.shape[-1]))
    return normal(0.5)


def _default_shape(model: nn.Module) -> tuple[int, int, int]:
    from torch import nn

    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (first.in_channels if first is not None else 3, 224, 224)


def _measure_batch_norms(
    model: nn.Module, norms: list[_BatchNorm], shape: tuple[int, ...], generator: Generator
) -> None:
    """Set every BatchNorm's running statistics from what reaches it, each shaken so that none is exact.

    One pass does it: a hook sets a layer's statistics just before the layer uses them.
    """
    import torch

    shake = {
        id(norm): (
            torch.randn(norm.num_features, generator=generator).double(),
            torch.rand(norm.num_features, generator=generator).double(),
        )
        for norm in norms
    }

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        # One scale for the whole layer, and nothing centred: per-channel statistics of a few images fit those alone,
        # and over the depth any other image would explode. The strongest image sets it: attention that is sharper than
        # a trained model's turns roundings into other outputs.
        power = _rounded(args[0].square().flatten(1).mean(dim=1).max().clamp(min=1e-6))
        normal, uniform = shake[id(norm)]
        norm.get_buffer("running_mean").copy_(0.1 * power.sqrt() * normal)
        norm.get_buffer("running_var").copy_(power * (0.5 + uniform))

    parameters = list(model.parameters())
    dtype, training = parameters[0].dtype, model.training
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        model.double().eval()(_noise_images(shape, generator))
    except Exception as error:  # a model of the user's may raise anything
        size = "x".join(map(str, shape))
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"The model does not run on an input of {size}: {first}.", fix="Give the size it is for."
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
        model.to(dtype).train(training)


def _noise_images(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Images (4, C, H, W), float64: each of its own colour, blurred noise and grain, as wide as real pixels.

    For (C, F, H, W) videos that stand still.
    """
    import torch
    import torch.nn.functional as F

    channels, *frames, height, width = shape
    count = len(COLOUR)
    images = torch.randn(count, channels, 1, 1, generator=generator).double() * torch.tensor(COLOUR).view(-1, 1, 1, 1)
    images = images.expand(count, channels, height, width).clone()
    for side in ((8, 8), (height, width)):
        layer = torch.randn(count, channels, *side, generator=generator).double()
        images += 0.6 * F.interpolate(layer, size=(height, width), mode="bilinear")
    return images[:, :, None].repeat(1, 1, frames[0], 1, 1) if frames else images


def _rounded(values: Tensor) -> Tensor:
    """To 12 bits of mantissa: float64 sums differ by thread count in their last bits, and these must not."""
    import torch

    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 4096) / 4096, exponent)

"""What is around a model in a file, as PyTorch modules, for runtimes that start from PyTorch. Frames have one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitdeploy.data.frames import BLUE_OF_U, GREEN_OF_U, GREEN_OF_V, RED_OF_V
from vitdeploy.export.preprocess import GREY
from vitdeploy.export.resample import Axis, axes, bands, check_interpolation, inside
from vitdeploy.spec import INDICES, OUTPUTS, SCORES, InputSpec, ModelSpec


class Ends(nn.Module):
    """A model between its preprocessing and its answers, as far as a spec has these.

    Attributes:
        output_names: of the tensors that it returns, in order.
        products: how many matrix products make its tensor.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.before: nn.Module = Preprocess(spec.input) if spec.input.frame is not None else nn.Identity()
        self.model, self.top = model, spec.top
        self.products = self.before.products if isinstance(self.before, Preprocess) else 0
        self.output_names = (OUTPUTS[0], SCORES, INDICES) if spec.top else (OUTPUTS[0],)
        self.eval()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits = self.model(self.before(image))
        if not self.top:
            return logits
        scores, indices = logits.softmax(1).topk(self.top)
        return logits, scores, indices


class Preprocess(nn.Module):
    """export.preprocess for frames of one size: uint8 of the frame's shape to float32 (1, channels, height, width).

    Raises:
        UnsupportedModel: an interpolation that cannot be put into a file.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        assert spec.frame is not None
        assert spec.frame.size is not None
        check_interpolation(spec)
        down, across = axes(*spec.frame.size, spec)
        self.format, self.grey = spec.frame.format, spec.shape[0] == 1
        self.size = spec.frame.size
        self.down, self.across = Pass(down, spec.interpolation), Pass(across, spec.interpolation)
        self.products = len(self.down.reads) + len(self.across.reads)
        self.mean: Tensor
        self.std: Tensor
        self.outside: Tensor | None
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None])
        colour = torch.tensor([float(round(255 * mean)) for mean in spec.mean])[:, None, None]
        shown = torch.outer(torch.from_numpy(inside(down)), torch.from_numpy(inside(across)))
        self.register_buffer("outside", (1 - shown) * colour if spec.crop_mode == "border" else None)

    def forward(self, image: Tensor) -> Tensor:
        planes = self.planes(image)
        if self.grey:
            parts = zip(planes, GREY, strict=True)
            planes = ((sum(plane * weight for plane, weight in parts) + (1 << 15)) / (1 << 16)).floor()[None]
        planes = self.down(self.across(planes.transpose(1, 2)).transpose(1, 2))
        if self.outside is not None:
            planes = planes + self.outside
        return ((planes / 255 - self.mean) / self.std)[None]

    def planes(self, image: Tensor) -> Tensor:
        """float32 (3, rows, columns) of levels 0 to 255, of those that the passes read."""
        rows, columns = slice(self.down.start, self.down.stop), slice(self.across.start, self.across.stop)
        if self.format == "nv21":
            return self.of_nv21(image.float())[:, rows, columns]
        colours = image[rows, columns].float().permute(2, 0, 1)
        if self.format == "bgra":
            return torch.stack([colours[2], colours[1], colours[0]])
        return colours[:3]

    def of_nv21(self, levels: Tensor) -> Tensor:
        height, width = self.size
        luma, chroma = levels[:height], levels[height:].reshape(height // 2, 1, width // 2, 1, 2) - 128
        chroma = chroma.expand(height // 2, 2, width // 2, 2, 2).reshape(height, width, 2)
        v, u = chroma[..., 0], chroma[..., 1]
        tints = (RED_OF_V * v, GREEN_OF_U * u + GREEN_OF_V * v, BLUE_OF_U * u)
        return (torch.stack([luma + tint for tint in tints]) + 0.5).floor().clamp(0, 255)


class Pass(nn.Module):
    """One pass of the resize, along the second dimension of (3, pixels, others), rounded to whole levels.

    Attributes:
        start, stop: the pixels that it reads at all; it takes those alone.
    """

    def __init__(self, axis: Axis, interpolation: str) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []
        self.matrices = nn.ParameterList()
        for start, stop, matrix in bands(axis, interpolation):
            self.reads.append((start, stop))
            self.matrices.append(nn.Parameter(torch.from_numpy(matrix), requires_grad=False))
        self.start, self.stop = min(start for start, _ in self.reads), max(stop for _, stop in self.reads)

    def forward(self, planes: Tensor) -> Tensor:
        parts: Sequence[Tensor] = [
            matrix @ planes[:, start - self.start : stop - self.start]
            for (start, stop), matrix in zip(self.reads, self.matrices, strict=True)
        ]
        return (torch.cat(list(parts), dim=1) + 0.5).floor().clamp(0, 255)

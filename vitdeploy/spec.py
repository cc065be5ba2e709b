"""ModelSpec and InputSpec: what a model is and what it eats, as frozen data. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitdeploy.errors import UsageError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
IMAGE, BATCH = "image", "batch"  # the usual input, and the dimension that is free
HEIGHT, WIDTH, ROWS = "height", "width", "rows"  # of frames, where these are free
EXAMPLE = {HEIGHT: 480, WIDTH: 640, ROWS: 720}  # what they are where one has to be made
LARGEST_SIDE = 1 << 14
LARGEST_BATCH = 1 << 16
CHANNEL_ORDERS = ("RGB", "BGR")
CROP_MODES = ("center", "squash", "border")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int8+bf16", "int8-dynamic", "int8-weights", "int4-weights")
OUTPUTS = ("logits", "embeddings", "attention")
SCORES, INDICES = "scores", "indices"  # what a file with its postprocessing inside gives beside the logits
FRAME_FORMATS = ("rgb", "rgba", "bgra", "nv21")
CALIBRATED = ("int8", "int8+bf16", "fp8")  # on images


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output. A dynamic dimension is its name (a str)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def example(self) -> tuple[int, ...]:
        """The shape with a number for each dimension: of a batch and what is unknown, 1."""
        return tuple(n if isinstance(n, int) else EXAMPLE.get(n, 1) for n in self.shape)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Packing:
    """How images are packed into sequences: see models.na_vit.pack.

    Attributes:
        patch_size: side of a patch, in pixels.
        length: patches of a sequence.
        slots: images that a sequence may have.
    """

    patch_size: int
    length: int
    slots: int

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) and 1 <= n <= LARGEST_SIDE for n in (self.patch_size, self.length, self.slots)):
            raise UsageError(f"{self} has a number that is not from 1 to {LARGEST_SIDE}.")


@dataclass(frozen=True)
class Frame:
    """What a file with its preprocessing inside is given: one uint8 picture, as a camera or a decoder has it.

    Attributes:
        format: 'rgb' (height, width, 3), 'rgba' or 'bgra' (height, width, 4; the fourth is not looked at), or 'nv21'
            (height * 3 / 2, width): Android's camera format, the luma plane and under it V and U in turn for each
            2 x 2 pixels, in JFIF's full range.
        size: (height, width), or None for any.
    """

    format: str = "rgb"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.format not in FRAME_FORMATS:
            raise UsageError(f"Unknown frame format '{self.format}': one of {', '.join(FRAME_FORMATS)}.")
        if self.size is None:
            return
        object.__setattr__(self, "size", tuple(self.size))
        if len(self.size) != 2 or not all(isinstance(n, int) and 1 <= n <= LARGEST_SIDE for n in self.size):
            raise UsageError(f"A frame is height x width, each from 1 to {LARGEST_SIDE}, not {self.size}.")
        if self.format == "nv21" and any(n % 2 for n in self.size):
            raise UsageError(f"Frames of nv21 have an even height and width, not {self.size[0]}x{self.size[1]}.")

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Of the array, dimensions that are free by name."""
        height, width = self.size or (HEIGHT, WIDTH)
        if self.format == "nv21":
            return (height * 3 // 2 if isinstance(height, int) else ROWS, width)
        return (height, width, 3 if self.format == "rgb" else 4)

    def __str__(self) -> str:
        return f"{self.format} frames of {'any size' if self.size is None else '{}x{}'.format(*self.size)}"


@dataclass(frozen=True)
class InputSpec:
    """Everything between an image file and the input tensor.

    Attributes:
        shape: (channels, height, width) of one image, or (channels, frames, height, width) of one video.
        mean, std: per channel, for pixels scaled to [0, 1].
        crop_pct: the centre crop's side as a fraction of the resized image's side.
        interpolation: resize filter, by Pillow's names.
        crop_mode: 'center' (resize the short side, crop), 'squash' (resize both sides, ignore aspect), 'border'
            (resize the long side, pad).
        channel_order: 'RGB' or 'BGR'.
        packing: how images of up to that height and width are packed into sequences, where the model takes such.
        frame: what the file is given where all of this is done inside it; None where it is given tensors.
    """

    shape: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    channel_order: str = "RGB"
    packing: Packing | None = None
    frame: Frame | None = None

    def __post_init__(self) -> None:
        sizes = len(self.shape) in (3, 4) and all(isinstance(n, int) and 1 <= n <= LARGEST_SIDE for n in self.shape)
        if not sizes:
            raise UsageError(
                f"Input shape {self.shape} is not (channels, height, width) or (channels, frames, height, width), each "
                f"from 1 to {LARGEST_SIDE}."
            )
        channels = self.shape[0]
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) == 1 or (len(values) != channels and len(set(values)) == 1):
                object.__setattr__(self, name, (values[0],) * channels)
            elif len(values) != channels:
                raise UsageError(f"{name} has {len(values)} values for {channels} channels.")
            if not all(math.isfinite(v) for v in getattr(self, name)):
                raise UsageError(f"{name} {values} is not finite.")
        if any(v <= 0 for v in self.std):
            raise UsageError(f"std {self.std} must be positive.")
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop_pct {self.crop_pct} is not in (0, 1].")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"Unknown interpolation '{self.interpolation}': one of {', '.join(INTERPOLATIONS)}.")
        if self.crop_mode not in CROP_MODES:
            raise UsageError(f"Unknown crop_mode '{self.crop_mode}': one of {', '.join(CROP_MODES)}.")
        if self.channel_order not in CHANNEL_ORDERS:
            raise UsageError(f"Unknown channel_order '{self.channel_order}': one of {', '.join(CHANNEL_ORDERS)}.")

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> InputSpec:
        """Read timm's `pretrained_cfg` keys (input_size, mean, std, crop_pct, interpolation, crop_mode)."""
        known = {"input_size": "shape", "mean": "mean", "std": "std", "crop_pct": "crop_pct"}
        known |= {"interpolation": "interpolation", "crop_mode": "crop_mode"}
        return cls.from_dict({ours: cfg[theirs] for theirs, ours in known.items() if cfg.get(theirs) is not None})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Inverse of `to_dict`. Raises UsageError on a value of the wrong kind."""
        try:
            fields = dict(data)
            if "shape" in fields:
                fields["shape"] = tuple(int(n) for n in fields["shape"])
            for name in ("mean", "std"):
                if name in fields:
                    value = fields[name]
                    values = value if isinstance(value, Sequence) else [value]
                    fields[name] = tuple(float(v) for v in values)
            if "crop_pct" in fields:
                fields["crop_pct"] = float(fields["crop_pct"])
            if fields.get("packing") is not None:
                fields["packing"] = Packing(**fields["packing"])
            if fields.get("frame") is not None:
                fields["frame"] = Frame(**fields["frame"])
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise UsageError(f"Not an input specification: {error}.") from None

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.shape[-2], self.shape[-1]

    @property
    def frames(self) -> int | None:
        """Of a video; None where the input is an image."""
        return self.shape[1] if len(self.shape) == 4 else None

    @property
    def kind(self) -> str:
        """What the model sees, in a word."""
        return "packed images" if self.packing is not None else "image" if self.frames is None else "video"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What the file is given; the batch is the first dimension of each, but frames come one by one."""
        if self.frame is not None:
            return (TensorSpec(IMAGE, "uint8", self.frame.shape),)
        if self.packing is None:
            return (TensorSpec(IMAGE, "float32", (BATCH, *self.shape)),)
        sequence = (BATCH, self.packing.length)
        return (
            TensorSpec("patches", "float32", (*sequence, self.shape[0] * self.packing.patch_size**2)),
            TensorSpec("positions", "int64", (*sequence, 2)),
            TensorSpec("image_ids", "int64", sequence),
        )

    def with_size(self, height: int, width: int) -> InputSpec:
        return replace(self, shape=(*self.shape[:-2], height, width))

    def __str__(self) -> str:
        def compact(values: tuple[float, ...]) -> str:
            return f"{values[0]:g}" if len(set(values)) == 1 else "/".join(f"{v:g}" for v in values)

        size = "x".join(str(n) for n in self.shape)
        pixels = f"{size}, mean {compact(self.mean)}, std {compact(self.std)}"
        if self.packing is not None:
            return f"up to {pixels}, in sequences of {self.packing.length} patches and {self.packing.slots} images"
        if self.frames is not None:
            return pixels
        crop = f"crop {self.crop_pct:g}" + ("" if self.crop_mode == "center" else f" {self.crop_mode}")
        inside = "" if self.frame is None else f", made inside of {self.frame}"
        return f"{pixels}, {crop}, {self.interpolation}{inside}"


@dataclass(frozen=True)
class WeightsSource:
    """Where a model's weights came from.

    Attributes:
        kind: 'random', 'file', 'folder', 'hub' or 'factory' (the user's code or timm made the module).
        location: path, hub id or factory name; empty for random.
        seed: of random weights.
        sha256: of the checkpoint file, where there is one.
        revision: the hub's commit, where there is one.
    """

    kind: str = "random"
    location: str = ""
    seed: int | None = None
    sha256: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """A model: its name, constructor arguments, input and provenance.

    Attributes:
        name: catalog name without tag ('mobilevit_xs'), or what the user named ('timm:resnet18', 'my.py:make').
        tag: the pretrained tag ('cvnets_in1k'), or None.
        config: constructor arguments that make exactly this module (JSON values only).
        input: the InputSpec.
        num_classes: width of the logits.
        labels: class names in logit order, or None.
        weights: WeightsSource.
        outputs: what the model gives: 'logits', and perhaps 'embeddings' and 'attention'.
        top: how many of the best classes the file tells beside them (SCORES, INDICES); 0 for none.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    input: InputSpec = field(default_factory=InputSpec)
    num_classes: int = 1000
    tag: str | None = None
    labels: tuple[str, ...] | None = None
    weights: WeightsSource = field(default_factory=WeightsSource)
    outputs: tuple[str, ...] = ("logits",)
    top: int = 0

    @property
    def full_name(self) -> str:
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def bare(self) -> ModelSpec:
        """Of the model alone, without what is around it in a file."""
        return replace(self, input=replace(self.input, frame=None), top=0)

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["input"] = self.input.to_dict()
        data["labels"] = list(self.labels) if self.labels else None
        data["outputs"] = list(self.outputs)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of `to_dict`. Raises UsageError when a field is missing or of the wrong kind."""
        try:
            fields = dict(data)
            fields["input"] = InputSpec.from_dict(fields["input"])
            fields["weights"] = WeightsSource(**fields["weights"])
            fields["labels"] = tuple(fields["labels"]) if fields.get("labels") else None
            fields["outputs"] = tuple(fields.get("outputs") or ("logits",))
            spec = cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"Not a model specification: {error}.") from None
        if not isinstance(spec.name, str) or not isinstance(spec.tag, str | None) or not spec.name:
            raise UsageError(f"Not a model specification: its name is {spec.name!r}, its tag {spec.tag!r}.")
        if not isinstance(spec.num_classes, int) or spec.num_classes < 0:
            raise UsageError(f"Not a model specification: it has {spec.num_classes!r} classes.")
        if not isinstance(spec.top, int) or not 0 <= spec.top <= spec.num_classes:
            raise UsageError(f"Not a model specification: it tells {spec.top!r} best classes.")
        if not all(isinstance(name, str) for name in spec.outputs):
            raise UsageError(f"Not a model specification: its outputs are {spec.outputs!r}.")
        if spec.labels and (len(spec.labels) != spec.num_classes or not all(isinstance(n, str) for n in spec.labels)):
            raise UsageError(f"Not a model specification: its labels are not {spec.num_classes} names.")
        return spec

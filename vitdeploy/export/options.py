"""What is put into a file around the model: its preprocessing, its answers, its classes' names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitdeploy.data.labels import read_labels
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.spec import OUTPUTS, Frame, ModelSpec

TOP = 5
USUAL_FRAME = (480, 640)  # (height, width), where a file's input needs a size and none is named


@dataclass(frozen=True)
class EmbedOptions:
    """What an export puts around the model.

    Attributes:
        embed_preprocessing: the file takes camera frames, and makes the model's tensor of them itself.
        frame_format: of these, see spec.Frame; None is 'rgb'.
        frame_size: (height, width); None is any, where the backend has files for any.
        embed_postprocessing: the file gives the best classes and their scores beside the logits.
        top_k: how many; None is TOP, or as many as there are.
        labels: 'imagenet', or a file that data.labels.read_labels reads; None keeps those of the weights.
    """

    embed_preprocessing: bool = False
    frame_format: str | None = None
    frame_size: tuple[int, int] | None = None
    embed_postprocessing: bool = False
    top_k: int | None = None
    labels: str | None = None

    def check(self) -> None:
        """Raise UsageError on options that mean nothing without others, or nothing at all."""
        if not self.embed_preprocessing and (self.frame_format is not None or self.frame_size is not None):
            raise UsageError("Frames are for files with their preprocessing inside.", fix="Add --embed-preprocessing.")
        if not self.embed_postprocessing and self.top_k is not None:
            raise UsageError(
                "--top-k is for files with their postprocessing inside.", fix="Add --embed-postprocessing."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"The best {self.top_k} classes are none.")
        self.frame()

    def frame(self) -> Frame | None:
        """What the file takes; None where it takes tensors. Raises UsageError on a frame that cannot be."""
        return Frame(self.frame_format or "rgb", self.frame_size) if self.embed_preprocessing else None


def around(spec: ModelSpec, options: EmbedOptions, *, any_size: bool) -> ModelSpec:
    """The spec of the file, of the spec of the model that goes into it.

    Args:
        any_size: whether the file can take frames of any size; else the usual one is taken where none is named.

    Raises:
        UsageError: labels that cannot be read or are not as many as the classes; more best classes than there are.
        UnsupportedModel: the model does not take one image, or has no classes.
    """
    if options.labels is not None:
        spec = replace(spec, labels=read_labels(options.labels, spec.num_classes))
    if options.embed_preprocessing:
        spec = replace(spec, input=replace(spec.input, frame=_frame(spec, options, any_size)))
    if options.embed_postprocessing:
        spec = replace(spec, top=_top(spec, options.top_k))
    return spec


def _frame(spec: ModelSpec, options: EmbedOptions, any_size: bool) -> Frame | None:
    takes, frame = spec.input, options.frame()
    if takes.kind != "image" or takes.shape[0] not in (1, 3) or takes.channel_order != "RGB":
        raise UnsupportedModel(
            f"Preprocessing can be put into models of images in colour or grey, and {spec.full_name} takes {takes}."
        )
    if frame is not None and frame.size is None and not any_size:
        return replace(frame, size=USUAL_FRAME)
    return frame


def _top(spec: ModelSpec, wanted: int | None) -> int:
    if spec.num_classes < 1 or OUTPUTS[0] not in spec.outputs:
        raise UnsupportedModel(f"{spec.full_name} gives no classes, and so there are none to be best.")
    if wanted is not None and wanted > spec.num_classes:
        raise UsageError(f"{spec.full_name} has {spec.num_classes} classes, and not {wanted}.")
    return wanted or min(TOP, spec.num_classes)

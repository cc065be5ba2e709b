"""Outputs to compare: eager PyTorch's, and a compiled artifact's from a child process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.backends.base import Census, RunOptions, Session
from vitdeploy.data.frames import to_image
from vitdeploy.data.images import preprocess
from vitdeploy.data.synthetic import synthetic_frame, synthetic_images
from vitdeploy.errors import UsageError, VerificationFailed
from vitdeploy.graph.feeds import feeds
from vitdeploy.spec import IMAGE, InputSpec

if TYPE_CHECKING:
    from torch import nn

SEEDS = 4
MOST_REAL_IMAGES = 32


@dataclass(frozen=True)
class Case:
    """One input batch, float32 (B, C, H, W), packed (see data.packed) or a frame, and where it came from."""

    image: np.ndarray
    source: str

    def describe(self) -> dict[str, Any]:
        about = {"source": self.source, "batch": len(self.image)}
        return about if self.image.dtype != np.uint8 else {**about, "frame": list(self.image.shape[1:])}


def make_cases(
    spec: InputSpec, batches: Sequence[int], data: Path | None = None, seeds: int = SEEDS, *, strict: bool = True
) -> list[Case]:
    """Inputs to verify on: `seeds` synthetic sets at each batch, and the user's images.

    Args:
        spec: how images become tensors.
        batches: batch sizes; a static graph has one, a dynamic one is tried at two.
        data: images as data.image_set.open_images reads them, of which at most 32 are used, or None.
        seeds: of synthetic images; with 0 the user's images are tried at every batch size.
        strict: an image that cannot be read is an error.
    """
    cases = []
    frame = spec.frame
    if frame is not None:
        cases = [Case(synthetic_frame(frame, seed)[None], f"synthetic seed {seed}") for seed in range(seeds)]
        if data is not None:
            from vitdeploy.data.image_set import open_images

            chosen = open_images(data, spec, limit=MOST_REAL_IMAGES, strict=strict)
            cases += [Case(image, "data") for image, _ in chosen.batches(1)]
        return cases
    for batch in dict.fromkeys(batches):
        cases += [Case(synthetic_images(spec, batch, seed), f"synthetic seed {seed}") for seed in range(seeds)]
    if data is not None:
        from vitdeploy.data.image_set import open_images

        chosen = open_images(data, spec, limit=MOST_REAL_IMAGES, strict=strict)
        images = next(iter(chosen.batches(MOST_REAL_IMAGES)))[0]
        for batch in dict.fromkeys(batches[: 1 if seeds else None]):
            whole = images[np.arange(-(-len(images) // batch) * batch) % len(images)]  # the last batch starts over
            cases += [Case(whole[i : i + batch], "data") for i in range(0, len(whole), batch)]
    return cases


def eager_outputs(
    module: nn.Module, cases: Sequence[Case], spec: InputSpec | None = None, *, double: bool = False
) -> list[dict[str, np.ndarray]]:
    """What PyTorch itself says, float32, in eval mode, without gradients; computed in float64 with `double`.

    By the names in the module's `output_names`, where it has some, and else as 'logits'. Frames go through Pillow
    first, as `spec` says.

    Raises:
        VerificationFailed: NaN or Inf: the model is broken before anything was exported.
        UsageError: the module does not return a tensor.
    """
    import torch

    results: list[dict[str, np.ndarray]] = []
    names = [str(name) for name in getattr(module, "output_names", ["logits"])]
    with torch.inference_mode():
        for case in cases:
            inputs = [torch.from_numpy(array) for array in feeds(prepared(case.image, spec), IMAGE).values()]
            out = module(*(t.double() if double and t.is_floating_point() else t for t in inputs))
            named = isinstance(out, tuple) and len(out) == len(names)
            if not named and not isinstance(out, torch.Tensor):
                raise UsageError(f"The model returns {type(out).__name__}, not one tensor.")
            tensors = dict(zip(names, out if named else [out], strict=True))
            results.append({name: tensor.float().cpu().numpy() for name, tensor in tensors.items()})
            for array in results[-1].values():
                if not np.isfinite(array).all():
                    bad = int((~np.isfinite(array)).sum())
                    raise VerificationFailed(
                        f"PyTorch itself gives {bad} NaN or Inf of {array.size} outputs on {case.source}.",
                        fix="Check the checkpoint and the preprocessing.",
                    )
    return results


def prepared(batch: np.ndarray, spec: InputSpec | None) -> np.ndarray:
    """A batch as the model itself takes it: of a frame, what Pillow and numpy make of it, in the file's order."""
    if spec is None or spec.frame is None:
        return batch
    return np.stack([preprocess(to_image(frame, spec.frame), spec, across_first=True) for frame in batch])


@dataclass(frozen=True)
class Collected:
    """A session's outputs, one dict a case, and its census."""

    outputs: list[dict[str, np.ndarray]]
    census: Census | None


def collect(
    backend: str,
    model: Path,
    options: RunOptions,
    images: Sequence[np.ndarray],
    census: bool = True,
    stand_in: bool = False,
) -> Collected:
    """Open a compiled model, or its stand-in, and run it on every image batch.

    Made to run in a child process (backends.isolate).
    """
    from vitdeploy.backends import registry

    found = registry.get(backend)
    with (found.open_stand_in if stand_in else found.open)(model, options) as session:
        outputs = [run_batch(session, image) for image in images]
        return Collected(outputs, session.census() if census else None)


def run_batch(session: Session, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Run on a batch as data.image_set makes them, in the types that the session takes. Raises as Session.run."""
    types = {spec.name: spec.dtype for spec in session.inputs}
    given = feeds(batch, session.inputs[0].name)
    return session.run({name: array.astype(types.get(name), copy=False) for name, array in given.items()})

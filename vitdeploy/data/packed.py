"""An image as an item of a batch: itself, or the sequence that a model of packed images is given in its place."""

from __future__ import annotations

import zlib

import numpy as np

from vitdeploy.spec import InputSpec, Packing


def item_type(spec: InputSpec) -> np.dtype:
    """Of an item: float32 (C, H, W) or (C, F, H, W), or a structure with a field for each of the spec's tensors.

    Of a frame, uint8 of its shape; of one of any size, an example's.
    """
    if spec.frame is not None:
        return np.dtype((spec.tensors[0].dtype, spec.tensors[0].example))
    fields = [(tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in spec.tensors]
    return np.dtype(fields if spec.packing is not None else fields[0][1:])


def item(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """The image, float32 (C, H, W) or a frame; where the spec packs images, a sequence of it and of cuts of it.

    The sequence begins with the whole image; the cuts' sizes and places depend on the image alone, and there are as
    many as find room.
    """
    if spec.packing is None:
        return image
    import torch

    from vitdeploy.models.na_vit import pack

    images = [torch.tensor(part) for part in cuts(image, spec.packing)]
    packed = pack(images, spec.packing.patch_size, length=spec.packing.length, slots=spec.packing.slots)
    sequence = np.empty((), item_type(spec))
    for name, tensor in packed._asdict().items():
        sequence[name] = tensor[0].numpy()
    return sequence


def cuts(image: np.ndarray, packing: Packing) -> list[np.ndarray]:
    """The image and parts of it, in whole patches, that fill a sequence or nearly so."""
    side = packing.patch_size
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(image.tobytes())))
    most = np.array(image.shape[1:]) // side
    found, room = [image], packing.length - int(most.prod())
    while len(found) < packing.slots:
        size = rng.integers(1, most + 1)
        room -= int(size.prod())
        if room < 0:
            break
        top, left = rng.integers(0, most - size + 1)
        height, width = size
        found.append(image[:, top * side : (top + height) * side, left * side : (left + width) * side])
    return found

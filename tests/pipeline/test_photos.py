"""Files with their preprocessing inside, on real photos, against Pillow and eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitdeploy
from vitdeploy.backends.registry import backends
from vitdeploy.data.images import preprocess
from vitdeploy.models.build import rebuild

# Relative to the largest logit. Newer Pillows resize photos more than twice as tall as wide the other way round, which
# moves levels by rounding (see vitdeploy/export/resample.py).
BOUND, TALL = 5e-4, 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["mobilevit_xs", "levit_256", "deit_tiny_patch16_224"])
def test_photos_get_the_labels_that_pillow_and_pytorch_give_them(
    tmp_path: Path, photos: list[np.ndarray], name: str, backend: str
) -> None:
    if not backends()[backend].capabilities().installed:
        pytest.skip(f"{backend} is not installed")
    options = {"embed_preprocessing": True, "embed_postprocessing": True, "labels": "imagenet", "bench": False}
    artifact = vitdeploy.export(name, backend=backend, out=tmp_path / "made", **options)
    spec = artifact.manifest.model
    module = rebuild(spec).module
    assert spec.labels is not None
    assert len(photos) >= 200
    assert {photo.shape[0] > photo.shape[1] for photo in photos} == {True, False}
    with vitdeploy.load(artifact.folder) as session, torch.inference_mode():
        for photo in photos:
            wanted = module(torch.from_numpy(preprocess(Image.fromarray(photo), spec.input)[None])).numpy()
            got = session.run({"image": photo})
            error = np.abs(got["logits"] - wanted).max() / np.abs(wanted).max()
            assert error <= (TALL if photo.shape[0] > 2 * photo.shape[1] else BOUND), photo.shape
            assert spec.labels[got["indices"][0, 0]] == spec.labels[int(wanted.argmax())], photo.shape

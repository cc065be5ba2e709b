"""`--outputs`: embeddings and attention maps beside the logits, proven like these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from vitdeploy.errors import UnsupportedModel
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.models.outputs import Outputs
from vitdeploy.spec import TensorSpec

Cli = Callable[..., Any]
ALL = "logits,embeddings,attention"
SMALL = ("dim=32", "depth=2", "heads=2", "mlp_dim=32", "image_size=64", "patch_size=16", "num_classes=10")
VIT = ("zoo:vit", *(part for one in SMALL for part in ("--set", one)))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_outputs_are_written_and_proven(precision: str, cli: Cli, work: Path) -> None:
    photos = ("--calib-random", "--calib-images", "8") if precision == "int8" else ()
    flags = ("--precision", precision, *photos, "--outputs", ALL, "--batch", "1:2:4", "--no-bench", "--json")
    done = cli("export", *VIT, *flags)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    assert list(made["verification"]["outputs"]) == ALL.split(",")
    assert ["logits" in figures for figures in made["verification"]["outputs"].values()] == [True, False, False]
    folder = work / f"zoo-vit-{precision}"
    assert cli("verify", str(folder)).code == 0
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    logits, embeddings, attention = session.run(None, {"image": x})
    assert (logits.shape, embeddings.shape, attention.shape) == ((2, 10), (2, 32), (2, 2, 2, 17, 17))
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=0.05)


def test_embeddings_are_what_the_classifier_reads() -> None:
    built = build("levit_128s", BuildOptions(outputs=("logits", "embeddings"), image_size=(128, 128)))
    plain = build("levit_128s", BuildOptions(image_size=(128, 128)))
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        logits, embeddings = built.module(x)
        assert torch.equal(logits, plain.module(x))
    assert embeddings.shape == (2, 384)


def test_maps_of_different_sizes_are_outputs_of_their_own() -> None:
    built = build("levit_128s", BuildOptions(outputs=("logits", "attention"), image_size=(128, 128)))
    assert built.module.output_names[:2] == ["logits", "attention_0"]


def test_what_a_model_does_not_have_is_told() -> None:
    flat, image = (TensorSpec("image", "float32", ("batch", *shape)) for shape in ((4,), (3, 4, 4)))
    with pytest.raises(UnsupportedModel, match="No attention"):
        Outputs(torch.nn.Linear(4, 4), ("logits", "attention"), [flat])
    with pytest.raises(UnsupportedModel, match="no classifier"):
        Outputs(torch.nn.Conv2d(3, 3, 1), ("logits", "embeddings"), [image])


@pytest.mark.parametrize("wanted", ["", "embeddings", "logits,logits", "logits,maps"])
def test_unknown_outputs_are_refused(wanted: str, refused: Callable[..., str]) -> None:
    assert "are not logits, and perhaps" in refused("export", "levit_128s", "--outputs", wanted)

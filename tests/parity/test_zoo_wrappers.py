"""Recorder and Extractor against vit-pytorch's, and traced twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from zoo import CLOSE, alive, check_signature, far, inputs, ours, theirs

from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.save import save
from vitdeploy.models.layers import attend, attention_recorded

VIT = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 48}
SHAPE = (3, 64, 64)
EXTRACTORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attached": {"detach": False},
    "another name": {"layer_name": "to_patch_embedding"},
    "inputs": {"layer_save_input": True},
    "embeddings only": {"return_embeddings_only": True},
    "a device": {"device": "cpu"},
}


def vits() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    reference = alive(theirs("vit.ViT")(**VIT))
    mine = ours("vit.ViT")(**VIT).eval()
    mine.load_state_dict(reference.state_dict())
    return mine, reference


@pytest.mark.parametrize("name", ["recorder.Recorder", "extractor.Extractor"])
def test_constructor_is_theirs(name: str) -> None:
    check_signature(name)


def test_recorder_is_theirs() -> None:
    mine, reference = vits()
    recorder, their_recorder = ours("recorder.Recorder")(mine), theirs("recorder.Recorder")(reference)
    assert recorder.state_dict().keys() == their_recorder.state_dict().keys()
    for batch in (1, 3):
        x = inputs(SHAPE, batch, 1)
        (got, maps), want = recorder(x), their_recorder(x)
        assert far((got, maps), want) <= CLOSE
        assert maps.shape == (batch, 2, 2, 17, 17)
        assert not maps.requires_grad
    assert len(recorder.recordings) == 2
    recorder.clear()
    assert not recorder.recordings
    assert recorder.eject() is mine
    with pytest.raises(RuntimeError, match="ejected"):
        recorder(x)


def test_recorder_of_no_attention_has_no_maps() -> None:
    assert ours("recorder.Recorder")(nn.Flatten())(torch.zeros(1, 3, 4, 4))[1] is None


def test_recording_ends_with_its_block() -> None:
    q = torch.randn(1, 2, 3, 4)
    with attention_recorded() as outer:
        with attention_recorded() as inner:
            recorded = attend(q, q, q, 0.5)
        attend(q, q, q, 0.5)
    assert len(outer) == len(inner) == 1
    assert far(recorded, attend(q, q, q, 0.5)) <= CLOSE
    assert len(outer) == 1


def test_recorded_weights_drop_as_attend_does() -> None:
    q = torch.randn(1, 2, 3, 4)
    with attention_recorded() as weights:
        dropped = attend(q, q, q, 0.5, dropout=1.0)
    assert not dropped.any()
    assert torch.allclose(weights[0].sum(-1), torch.ones(1, 2, 3))


@pytest.mark.parametrize("options", EXTRACTORS.values(), ids=EXTRACTORS)
def test_extractor_is_theirs(options: dict[str, Any]) -> None:
    mine, reference = vits()
    extractor = ours("extractor.Extractor")(mine, **options)
    their_extractor = theirs("extractor.Extractor")(reference, **options)
    assert extractor.state_dict().keys() == their_extractor.state_dict().keys()
    x = inputs(SHAPE, 3, 1)
    got, want = extractor(x), their_extractor(x)
    assert far(got, want) <= CLOSE
    latents = got if options.get("return_embeddings_only") else got[1]
    assert far(extractor(x, return_embeddings_only=True), latents) == 0
    first = latents[0] if isinstance(latents, tuple) else latents
    assert first.requires_grad == (not options.get("detach", True))
    extractor.clear()
    assert extractor.latents is None
    assert extractor.eject() is mine
    with pytest.raises(RuntimeError, match="ejected"):
        extractor(x)


def test_extractor_takes_a_layer() -> None:
    mine, reference = vits()
    extractor = ours("extractor.Extractor")(mine, layer=mine.to_latent)
    their_extractor = theirs("extractor.Extractor")(reference, layer=reference.to_latent)
    x = inputs(SHAPE, 2, 1)
    assert far(extractor(x), their_extractor(x)) <= CLOSE


def test_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="layer_name"):
        ours("extractor.Extractor")(vits()[0], layer_name="encoder")


@pytest.mark.parametrize("name", ["recorder.Recorder", "extractor.Extractor"])
def test_traces_twice_to_the_same(name: str, tmp_path: Path) -> None:
    """Theirs registers its hooks once more in each trace, and afterwards gives twice the maps."""
    wrapped = ours(name)(vits()[0]).eval()
    x = inputs(SHAPE, 3, 1)
    with torch.no_grad():
        want = wrapped(x)
    for times in range(2):
        graph = trace(wrapped, SHAPE, batch=(1, 2, 4))
        optimise(graph)
        (path,) = save(graph, tmp_path / f"{times}.onnx")
        got = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            None, {"image": x.numpy()}
        )
        assert far(got, want) <= CLOSE
        with torch.no_grad():
            assert far(wrapped(x), want) == 0

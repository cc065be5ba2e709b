"""Recorder and Extractor give what vit-pytorch's give, also when they are traced again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from zoo import CLOSE, alive, far, inputs, theirs

from vitdeploy.models.build import BuildOptions, build
from vitdeploy.models.extractor import Extractor
from vitdeploy.models.recorder import Recorder
from vitdeploy.models.vit import ViT

SMALL: dict[str, Any] = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2}
SMALL["mlp_dim"] = 48


def pair() -> tuple[nn.Module, nn.Module]:
    """Our ViT and vit-pytorch's, of the same weights."""
    reference = alive(theirs("vit.ViT")(**SMALL))
    mine = ViT(**SMALL).eval()
    mine.load_state_dict(reference.state_dict())
    return mine, reference


def test_recorder_gives_the_attention_of_each_layer() -> None:
    mine, reference = pair()
    x = inputs((3, 64, 64), 2, 1)
    with torch.no_grad():
        got, want = Recorder(mine)(x), theirs("recorder.Recorder")(reference)(x)
    assert got[1].shape == (2, 2, 2, 17, 17)
    assert far(got, want) <= CLOSE
    torch.testing.assert_close(got[1].sum(-1), torch.ones(2, 2, 2, 17))


@pytest.mark.parametrize("options", [{}, {"layer_name": "to_patch_embedding"}, {"return_embeddings_only": True}])
def test_extractor_gives_what_a_layer_gives(options: dict[str, Any]) -> None:
    mine, reference = pair()
    x = inputs((3, 64, 64), 2, 1)
    with torch.no_grad():
        got, want = Extractor(mine, **options)(x), theirs("extractor.Extractor")(reference, **options)(x)
    assert far(got, want) <= CLOSE


def test_extractor_gives_what_a_layer_is_given() -> None:
    mine, _ = pair()
    x = inputs((3, 64, 64), 1, 1)
    (given,) = Extractor(mine, layer=mine.to_patch_embedding, layer_save_input=True)(x, return_embeddings_only=True)  # type: ignore[arg-type]
    assert torch.equal(given, x)
    assert Extractor(mine, detach=False)(x)[1].requires_grad
    with pytest.raises(ValueError, match="layer_name"):
        Extractor(mine, layer_name="encoder")


def test_recorder_gives_maps_of_their_own_sizes_in_a_pyramid() -> None:
    built = build("levit_128s", BuildOptions(image_size=(64, 64)))
    _, maps = Recorder(built.module)(inputs((3, 64, 64), 1, 1))
    assert isinstance(maps, tuple)
    assert len({attn.shape for attn in maps}) > 2


@pytest.mark.parametrize("wrapper", [Recorder, Extractor])
def test_wrapper_traces_to_the_same_again_and_again(wrapper: Any, tmp_path: Path) -> None:
    mine, _ = pair()
    wrapped, x = wrapper(mine).eval(), inputs((3, 64, 64), 2, 1)
    want = wrapped(x)
    for name in ("first.onnx", "second.onnx"):
        torch.onnx.export(wrapped, (x,), tmp_path / name, dynamo=True, verbose=False, input_names=["image"])
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        assert far(session.run(None, {"image": x.numpy()}), want) <= CLOSE
    assert far(wrapped(x), want) == 0


@pytest.mark.parametrize("wrapper", [Recorder, Extractor])
def test_ejected_wrapper_gives_the_model_and_runs_no_more(wrapper: Any) -> None:
    mine, _ = pair()
    wrapped = wrapper(mine)
    assert wrapped.eject() is mine
    with pytest.raises(RuntimeError, match="ejected"):
        wrapped(inputs((3, 64, 64), 1, 1))

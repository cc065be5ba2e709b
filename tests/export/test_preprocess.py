"""The input pipeline in the file, against Pillow's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from vitdeploy.data.frames import to_frame, to_image
from vitdeploy.data.images import preprocess
from vitdeploy.errors import UnsupportedModel
from vitdeploy.export.ends import Ends, Preprocess
from vitdeploy.export.postprocess import embed_postprocessing
from vitdeploy.export.preprocess import embed_preprocessing
from vitdeploy.spec import Frame, InputSpec, ModelSpec

SPECS = [
    InputSpec((3, 256, 256)),
    InputSpec((3, 224, 192), crop_pct=0.875, interpolation="bilinear"),
    InputSpec((3, 64, 64), crop_mode="squash", interpolation="lanczos"),
    InputSpec((3, 64, 80), crop_mode="border", interpolation="hamming", crop_pct=0.95),
    InputSpec((3, 64, 48), crop_mode="border", crop_pct=1.0),
    InputSpec((1, 48, 48), mean=(0.5,), std=(0.2,)),
    InputSpec((3, 34, 34), mean=(0.0,), std=(1.0,)),
]
SIZES = [(480, 640), (57, 1023), (1022, 58), (300, 203), (30, 42), (256, 256), (33, 999)]


def model(spec: InputSpec) -> ir.Model:
    """Gives the tensor that it is given."""
    sides = [
        ir.Value(name=name, shape=ir.Shape([1, *spec.shape]), type=ir.TensorType(ir.DataType.FLOAT))
        for name in ("image", "tensor")
    ]
    node = ir.node("Identity", sides[:1], outputs=sides[1:])
    return ir.Model(ir.Graph(sides[:1], sides[1:], nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10)


def session(spec: InputSpec) -> onnxruntime.InferenceSession:
    made = model(spec)
    embed_preprocessing(made, spec)
    return onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString())


def picture(height: int, width: int) -> Image.Image:
    coarse = np.random.default_rng(height).integers(0, 256, (height // 7 + 2, width // 7 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def off(got: np.ndarray, frame: np.ndarray, spec: InputSpec) -> tuple[float, float]:
    """The largest difference from Pillow in levels, and the share of pixels that differ by half a level or more."""
    assert spec.frame is not None
    wanted = preprocess(to_image(frame, spec.frame), spec, across_first=True)
    assert got.shape == (1, *wanted.shape)
    assert got.dtype == np.float32
    levels = np.abs(got[0] - wanted) * 255 * np.array(spec.std)[:, None, None]
    return float(levels.max()), float((levels > 0.5).mean())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["rgb", "bgra", "nv21"])
def test_file_resizes_frames_of_any_size_as_pillow_does(spec: InputSpec, name: str) -> None:
    spec = replace(spec, frame=Frame(name))
    run = session(spec)
    for size in SIZES:
        frame = to_frame(picture(*size), Frame(name))
        largest, share = off(run.run(None, {"image": frame})[0], frame, spec)
        assert largest < 1.01, size
        # Bilinear weights are small fractions, whose sums lie between two levels more often.
        assert share < (0.1 if spec.interpolation == "bilinear" else 0.01), size


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    "frame", [Frame("rgb", (231, 173)), Frame("rgba", (90, 400)), Frame("nv21", (480, 640))], ids=str
)
def test_file_and_module_of_one_size_resize_as_pillow_does(spec: InputSpec, frame: Frame) -> None:
    spec = replace(spec, frame=frame)
    given = to_frame(picture(500, 420), frame)
    by_graph = session(spec).run(None, {"image": given})[0]
    by_torch = Preprocess(spec)(torch.from_numpy(given)).numpy()
    for got in (by_graph, by_torch):
        largest, share = off(got, given, spec)
        assert largest < 1.01
        assert share < (0.1 if spec.interpolation == "bilinear" else 0.01)


def test_picture_of_the_models_own_size_passes_unchanged() -> None:
    spec = InputSpec((3, 60, 60), crop_pct=1.0, frame=Frame("rgb"))
    frame = to_frame(picture(60, 60), Frame("rgb"))
    np.testing.assert_array_equal(
        session(spec).run(None, {"image": frame})[0][0], preprocess(Image.fromarray(frame), spec)
    )


def test_frames_of_any_size_take_few_nodes_whatever_the_size_of_the_model() -> None:
    for side in (34, 256, 1022):
        spec = InputSpec((3, side, side), frame=Frame("rgb"))
        made = model(spec)
        products = embed_preprocessing(made, spec)
        assert products == sum(node.op_type == "MatMul" for node in made.graph)
        assert len(made.graph) < 160 + 5 * products


@pytest.mark.parametrize("interpolation", ["box", "nearest"])
def test_filter_that_no_formula_gives_is_refused(interpolation: str) -> None:
    spec = InputSpec((3, 32, 32), interpolation=interpolation, frame=Frame("rgb", (64, 64)))
    with pytest.raises(UnsupportedModel, match=interpolation):
        embed_preprocessing(model(spec), spec)
    with pytest.raises(UnsupportedModel, match=interpolation):
        Preprocess(spec)


def test_same_spec_gives_the_same_nodes() -> None:
    spec = InputSpec((3, 64, 64), frame=Frame("nv21"))
    made = [model(spec), model(spec)]
    for one in made:
        embed_preprocessing(one, spec)
    first, second = (ir.to_proto(one).SerializeToString(deterministic=True) for one in made)
    assert first == second


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.flatten(1))


def test_answers_are_the_best_classes_in_graph_and_module() -> None:
    logits = ir.Value(name="logits", shape=ir.Shape(["batch", 7]), type=ir.TensorType(ir.DataType.FLOAT))
    given = ir.Value(name="x", shape=ir.Shape(["batch", 7]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [given], outputs=[logits])
    made = ir.Model(ir.Graph([given], [logits], nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10)
    embed_postprocessing(made, 3)
    x = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    run = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString())
    got, scores, indices = run.run(["logits", "scores", "indices"], {"x": x})
    np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(indices, np.argsort(-x, axis=1)[:, :3])
    odds = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, np.take_along_axis(odds, indices, 1), rtol=1e-5)
    spec = ModelSpec("m", input=InputSpec((3, 2, 2)), num_classes=7, top=3)
    ends = Ends(Linear(), spec)
    assert ends.output_names == ("logits", "scores", "indices")
    image = torch.randn(2, 3, 2, 2)
    with torch.inference_mode():
        out = dict(zip(ends.output_names, ends(image), strict=True))
        assert torch.equal(out["logits"].topk(3).indices, out["indices"])
        assert torch.allclose(out["logits"].softmax(1).topk(3).values, out["scores"])


def test_postprocessing_is_refused_where_there_are_no_logits() -> None:
    with pytest.raises(UnsupportedModel, match="logits"):
        embed_postprocessing(model(InputSpec((3, 4, 4))), 2)

"""fp16 graphs: right against eager PyTorch, valid ONNX, casts only where precisions meet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vitdeploy.errors import UsageError
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.save import save
from vitdeploy.models import catalog
from vitdeploy.models.mobilevit import MobileViTV2Block
from vitdeploy.models.random_weights import random_weights
from vitdeploy.quantize.fp16 import Fp16Report, convert, settle_types, to_fp16
from vitdeploy.quantize.fp16_islands import float_nodes

RNG = np.random.default_rng(0)
WEIGHTS = Path("/work/shared/weights")
IMAGES = Path("/work/shared/data/fashion_mnist_test.npz")
FP16, FP32 = ir.DataType.FLOAT16, ir.DataType.FLOAT

STAGES = [
    {"depth": 1, "chs": 16, "stride": 1, "expand": 2},
    {"depth": 1, "chs": 16, "stride": 2, "expand": 2},
    {"depth": 1, "chs": 24, "stride": 2, "expand": 2, "dim": 32, "blocks": 1},
    {"depth": 1, "chs": 24, "stride": 2, "expand": 2},
    {"depth": 1, "chs": 32, "stride": 2, "expand": 2},
]
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "deit_tiny_patch16_224": (64, {"depth": 2}),
    "mobilevit_xxs": (64, {"stages": STAGES}),
    "mobilevitv2_050": (64, {}),
    "levit_128s": (96, {"depth": (1, 1, 1)}),
}
MORE: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (64, {"depth": 1}),
    "deit_tiny_distilled_patch16_224": (64, {"depth": 1}),
    "deit3_small_patch16_224": (64, {"depth": 1}),
    "vit_giant_patch14_reg4_dinov2": (56, {"depth": 1, "embed_dim": 192, "num_heads": 3}),
    "levit_conv_128s": (96, {"depth": (1, 1, 1)}),
}


@cache
def module(name: str) -> torch.nn.Module:
    size, changes = {**MODELS, **MORE}[name]
    entry, _ = catalog.find(name)
    path, cls = entry.target.split(":")
    arguments = {**entry.arguments(10, (size, size)), **changes}
    built = getattr(import_module(f"vitdeploy.models.{path}"), cls)(**arguments)
    for part in built.modules():
        if isinstance(part, MobileViTV2Block):  # one layer of each is enough
            part.transformer = torch.nn.Sequential(part.transformer[0])
    random_weights(built, 0, (3, size, size))
    return built.eval()


Batch = int | tuple[int, int, int]
DYNAMIC = (1, 2, 8)


@cache
def traced_bytes(name: str, batch: Batch) -> bytes:
    size, _ = {**MODELS, **MORE}[name]
    model = trace(module(name), (3, size, size), batch=batch)
    optimise(model)
    return ir.to_proto(model).SerializeToString()


def traced(name: str, batch: Batch = DYNAMIC) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(traced_bytes(name, batch)))


def images(name: str, count: int, seed: int) -> np.ndarray:
    size, _ = {**MODELS, **MORE}[name]
    return np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32)


def eager(name: str, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(name)(torch.from_numpy(x)).numpy()


def run(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    """Check the saved model as ONNX does, then run it on ONNX Runtime."""
    (path,) = save(model, folder / "model.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x})[0]


def plain_fp16(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The plainest runtime: ONNX's reference, which rounds every result of every node to its type."""
    with np.errstate(all="ignore"):
        outputs: Any = ReferenceEvaluator(ir.to_proto(model)).run(None, {"image": x})
        return outputs[0]


def rel_l2(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    yield from (value for node in model.graph for value in node.outputs)


def casts(model: ir.Model) -> dict[str, str]:
    """What each Cast makes, and of what."""
    nodes = [node for node in model.graph if node.op_type == "Cast"]
    return {node.outputs[0].name or "": node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None}


# --- our models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_fp16_matches_eager_fp32_when_the_model_is_one_of_ours(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = traced(name)
    names = {value.name for value in values(model)}
    report = to_fp16(model, [images(name, 2, seed=0)])
    x = images(name, 3, seed=1)
    got = run(model, x, tmp_path)
    assert got.dtype == np.float32
    assert rel_l2(got, eager(name, x)) < 5e-3
    # Casts at the graph's two ends and nowhere else: these models need no islands.
    assert casts(model) == {"image/fp16": "image", "logits": "logits/fp16"}
    assert (report.islands, report.casts) == ((), 2)
    assert all(value.dtype != FP32 for value in values(model) if value.name not in ("image", "logits"))
    assert report.weight_bytes_after == pytest.approx(report.weight_bytes_before / 2, rel=0.01)
    assert {value.name for value in values(model)} == names | {"image/fp16", "logits/fp16"}
    assert "warning" not in capfd.readouterr().err.lower()


def test_fp16_holds_when_every_result_is_rounded() -> None:
    name = "deit_tiny_patch16_224"
    model = traced(name)
    to_fp16(model, [images(name, 2, seed=0)])
    x = images(name, 2, seed=1)
    assert rel_l2(plain_fp16(model, x), eager(name, x)) < 5e-3


def test_fp16_io_takes_and_gives_fp16_when_asked(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    model = traced(name)
    report = to_fp16(model, [images(name, 2, seed=0)], io_precision="fp16")
    assert (report.casts, casts(model)) == (0, {})
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [FP16, FP16]
    x = images(name, 2, seed=1)
    got = run(model, x.astype(np.float16), tmp_path)
    assert got.dtype == np.float16
    assert rel_l2(got, eager(name, x)) < 5e-3


def test_report_and_file_are_the_same_when_run_twice(tmp_path: Path) -> None:
    found = []
    for i in range(2):
        model = traced("deit_tiny_patch16_224")
        report = to_fp16(model, [images("deit_tiny_patch16_224", 2, seed=0)], force_fp32={"blocks.0.mlp.fc1.weight"})
        (path,) = save(model, tmp_path / f"{i}.onnx")
        found.append((path.read_bytes(), json.dumps(report.to_dict())))
    assert found[0] == found[1]


@pytest.mark.skipif(not WEIGHTS.is_dir() or not IMAGES.is_file(), reason="trained checkpoints are not here")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs"])
def test_top1_agrees_with_fp32_when_the_model_is_trained(name: str, tmp_path: Path) -> None:
    from vitdeploy.models.checkpoint_file import read_checkpoint
    from vitdeploy.models.weights import load_into

    folder = WEIGHTS / f"{name}.fashion_mnist"
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    size = tuple(config["input_size"][1:])
    entry, _ = catalog.find(name)
    path, cls = entry.target.split(":")
    trained = getattr(import_module(f"vitdeploy.models.{path}"), cls)(**entry.arguments(10, size)).eval()
    load_into(trained, read_checkpoint(folder / "model.safetensors"))
    with np.load(IMAGES) as data:
        grey, labels = torch.from_numpy(data["images"][:216]).float(), data["labels"][:216]
    pixels = torch.nn.functional.interpolate(grey[:, None].repeat(1, 3, 1, 1) / 255, size=size, mode="bilinear")
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    x = (pixels - mean) / std
    model = trace(trained, (3, *size), batch=(1, 2, 256))
    optimise(model)
    to_fp16(model, [x[200:].numpy()])
    got = run(model, x[:200].numpy(), tmp_path).argmax(1)
    with torch.no_grad():
        want = trained(x[:200]).numpy().argmax(1)
    assert (got == want).mean() >= 0.99
    assert (want == labels[:200]).mean() > 0.7  # the reference itself classifies


# --- constructed graphs -------------------------------------------------------------------------------------------


def graph(*nodes: NodeProto, shape: tuple[int | str, ...] = ("n", 4), opset: int = 20, **weights: Any) -> ir.Model:
    """image -> nodes -> logits, no types noted in between."""
    proto = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [f"d{i}" for i in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def op(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), output.split(), name=f"node_{output}", **attributes)


def f32(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def overflowing() -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """Two paths: one leaves fp16's range and comes back, the other stays small. With an input and its right answer."""
    w, x = f32(8, 8), f32(4, 8)
    model = graph(
        op("MatMul", "image w", "h"),
        op("Mul", "h up", "large"),
        op("Relu", "large", "positive"),
        op("Mul", "positive down", "back"),
        op("MatMul", "h w", "side"),
        op("Add", "back side", "sum"),
        op("MatMul", "sum w", "logits"),
        shape=("n", 8),
        w=w,
        up=np.float32(1e5),
        down=np.float32(1e-5),
    )
    return model, x, (np.maximum(x @ w, 0) + x @ w @ w) @ w


def test_overflowing_branch_is_right_with_islands_and_broken_without(tmp_path: Path) -> None:
    model, x, want = overflowing()
    settle_types(model)
    convert(model, float_nodes(model, 20), (), 20, False)
    assert not np.isfinite(plain_fp16(model, x)).all()
    assert not np.isfinite(run(model, x, tmp_path)).all()

    model, x, want = overflowing()
    report = to_fp16(model, [x])
    assert rel_l2(plain_fp16(model, x), want) < 5e-3
    assert rel_l2(run(model, x, tmp_path), want) < 5e-3
    peak = np.abs(x @ np.asarray(model.graph.initializers["w"].const_value, np.float32)).max() * 1e5
    reasons = {island.output: island.reason for island in report.islands}
    assert set(reasons) == {"large", "positive", "back"}
    assert re.fullmatch(r"overflow: \|large\| reaches [\d.]+e\d; fp16 ends at 65504", reasons["large"])
    assert report.islands[0].figures["peak"] == pytest.approx(peak, rel=1e-2)
    # In and out once each, and the graph's two ends.
    expected = {"image/fp16": "image", "h/fp32": "h", "back/fp16": "back", "logits": "logits/fp16"}
    assert casts(model) == expected
    assert (report.casts, report.converted) == (4, 4)


def test_flat_layer_norm_is_right_with_its_island_and_broken_without(tmp_path: Path) -> None:
    x = f32(4, 8)
    x[2] = 0  # a row whose variance is 0: epsilon alone stands under the root, and fp16 makes 1e-12 zero
    one, zero = np.ones(8, np.float32), np.zeros(8, np.float32)

    def model() -> ir.Model:
        node = op("LayerNormalization", "image one zero", "logits", epsilon=1e-12, stash_type=10)
        return graph(node, shape=("n", 8), one=one, zero=zero)

    naive, safe = model(), model()
    settle_types(naive)
    convert(naive, float_nodes(naive, 20), (), 20, False)
    report = to_fp16(safe, [x])
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
    assert [island.reason for island in report.islands] == [
        "norm: variance + epsilon falls to 1e-12; fp16 loses bits below 6.1e-5"
    ]
    np.testing.assert_allclose(run(safe, x, tmp_path), want, atol=1e-5)
    assert len(casts(safe)) == 0


def test_casts_are_shared_when_several_nodes_need_the_other_precision() -> None:
    model = graph(
        op("MatMul", "image w", "a"),
        op("Relu", "a", "b"),  # fp32
        op("Sigmoid", "a", "c"),  # fp32
        op("MatMul", "b w", "d"),
        op("MatMul", "b w", "e"),
        op("MatMul", "c w", "f"),
        op("Sum", "d e f a", "logits"),
        w=f32(4, 4),
    )
    report = to_fp16(model, [f32(2, 4)], force_fp32={"b", "c"})
    expected = {"image/fp16": "image", "a/fp32": "a", "b/fp16": "b", "c/fp16": "c", "logits": "logits/fp16"}
    assert casts(model) == expected
    assert report.casts == len(expected)


def test_layout_between_islands_stays_fp32_and_needs_no_casts() -> None:
    nodes = [op("Relu", "image", "a"), op("Transpose", "a", "b", perm=[1, 0]), op("Relu", "b", "c")]
    model = graph(*nodes, op("MatMul", "w c", "logits"), w=f32(3, 4))
    report = to_fp16(model, [f32(2, 4)], force_fp32={"a", "c"})
    assert casts(model) == {"c/fp16": "c", "logits": "logits/fp16"}
    assert [island.reason.split(":")[0] for island in report.islands] == ["forced", "between", "forced"]


def test_weight_appears_twice_only_when_an_island_and_fp16_nodes_read_it() -> None:
    w, v = f32(4, 4), f32(4, 4)
    nodes = [op("MatMul", "image w", "a"), op("MatMul", "a w", "b"), op("MatMul", "b v", "logits")]
    model = graph(*nodes, w=w, v=v)
    report = to_fp16(model, [f32(2, 4)], force_fp32={"b"})
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    assert set(found) == {"w", "w/fp32", "v"}
    np.testing.assert_array_equal(found["w/fp32"], w)
    np.testing.assert_array_equal(found["w"], w.astype(np.float16))
    assert found["v"].dtype == np.float16
    assert (report.weight_bytes_before, report.weight_bytes_after) == (128, 128)


def test_large_weights_stay_recipes_until_they_are_written(tmp_path: Path) -> None:
    w = f32(256, 256)
    model = graph(op("MatMul", "image w", "logits"), shape=("n", 256), w=w)
    to_fp16(model, [f32(2, 256)])
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert not tensor.cache
    x = f32(2, 256)
    assert rel_l2(run(model, x, tmp_path), x @ w) < 5e-3


def test_types_are_right_when_ops_carry_them_in_attributes_and_constants(tmp_path: Path) -> None:
    model = graph(
        op("Constant", "", "two", value=numpy_helper.from_array(np.float32(2))),
        op("Constant", "", "half", value_float=0.5),
        op("Shape", "image", "shape"),
        op("ConstantOfShape", "shape", "ones", value=numpy_helper.from_array(np.ones(1, np.float32))),
        op("ConstantOfShape", "shape", "zeros"),
        op("Mul", "image two", "doubled"),
        op("Clip", "doubled half top", "clipped"),
        op("Pad", "clipped pads half", "padded"),
        op("Cast", "shape", "sizes", to=TensorProto.FLOAT),
        op("CastLike", "shape padded", "like"),
        op("ReduceSum", "sizes", "total"),
        op("ReduceSum", "like", "total_like"),
        op("Resize", "padded roi scales", "resized", mode="nearest"),
        op("Greater", "resized half", "is_large"),
        op("Where", "is_large resized half", "kept"),
        op("Slice", "kept start stop axes", "sliced"),
        op("Sum", "sliced ones zeros total total_like", "logits"),
        pads=np.array([0, 0, 0, 1]),
        top=np.float32(3.4e38),
        roi=np.zeros(0, np.float32),
        scales=np.array([1, 2], np.float32),
        start=np.array([0]),
        stop=np.array([4]),
        axes=np.array([1]),
    )
    x = np.abs(f32(2, 4))
    want = run(model, x, tmp_path)
    report = to_fp16(model, [x])
    assert not report.islands
    np.testing.assert_allclose(run(model, x, tmp_path), want, rtol=2e-3)
    assert model.graph.initializers["scales"].dtype == model.graph.initializers["roi"].dtype == FP32
    assert np.isposinf(model.graph.initializers["top"].const_value.numpy())  # type: ignore[union-attr]
    assert {v.name for n in model.graph for v in n.outputs if v.dtype == FP32} == {"logits"}
    assert not [node for node in model.graph if node.op_type in ("Constant", "CastLike")]


def test_arithmetic_on_shapes_stays_fp32_when_it_ends_in_integers(tmp_path: Path) -> None:
    model = graph(
        op("Shape", "image", "shape"),
        op("Cast", "shape", "sizes", to=TensorProto.FLOAT),
        op("Mul", "sizes factor", "scaled"),
        op("Cast", "scaled", "target", to=TensorProto.INT64),
        op("Expand", "image target", "logits"),
        shape=(1, 4),
        factor=np.array([2049, 1], np.float32),
    )
    report = to_fp16(model, [f32(1, 4)])
    assert not report.islands
    assert run(model, f32(1, 4), tmp_path).shape == (2049, 4)


def test_subgraph_keeps_the_types_that_it_captures(tmp_path: Path) -> None:
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branches = {
        f"{name}_branch": helper.make_graph([op(k, "h w", "r")], name, [], [result])
        for name, k in (("then", "MatMul"), ("else", "Add"))
    }
    nodes = [op("MatMul", "image w", "h"), op("If", "yes", "y", **branches), op("MatMul", "y w", "logits")]
    w, x = f32(4, 4), f32(4, 4)
    model = graph(*nodes, shape=(4, 4), w=w, yes=np.array(True))
    report = to_fp16(model, [x])
    assert [island.op_type for island in report.islands] == ["If"]
    assert rel_l2(run(model, x, tmp_path), x @ w @ w @ w) < 5e-3
    assert casts(model)["h/fp32"] == "h"


def test_casts_of_the_graph_itself_do_not_stand_in_a_row() -> None:
    model = graph(
        op("Cast", "image", "small", to=TensorProto.FLOAT16),  # a graph that is part fp16 already
        op("Cast", "small", "wide", to=TensorProto.FLOAT),
        op("MatMul", "wide w", "a"),
        op("Cast", "a", "whole", to=TensorProto.INT32),
        op("Cast", "whole", "number", to=TensorProto.FLOAT),
        op("Relu", "number", "b"),
        op("MatMul", "number w", "c"),
        op("Add", "b c", "logits"),
        w=f32(4, 4),
    )
    to_fp16(model, [f32(2, 4, scale=10)], force_fp32={"b"})
    assert casts(model) == {
        "small": "image",
        "whole": "a",
        "number": "whole",
        "number/fp32": "whole",
        "b/fp16": "b",
        "logits": "logits/fp16",
    }


def test_quantised_graph_is_valid_when_the_rest_becomes_fp16(tmp_path: Path) -> None:
    q = RNG.integers(-127, 128, (4, 4)).astype(np.int8)
    model = graph(
        op("QuantizeLinear", "image s zero", "q"),
        op("DequantizeLinear", "q s zero", "x"),
        op("DequantizeLinear", "weight s zero", "w"),
        op("MatMul", "x w", "logits"),
        s=np.float32(0.03),
        zero=np.int8(0),
        weight=q,
    )
    x = f32(2, 4)
    want = np.clip(np.round(x / np.float32(0.03)), -128, 127) * 0.03 @ (q * 0.03)
    to_fp16(model, [x])
    assert rel_l2(run(model, x, tmp_path), want) < 2e-2  # a value at .5 may round to the other side


def test_io_precision_is_refused_when_unknown_or_too_narrow() -> None:
    with pytest.raises(UsageError, match="fp32 or fp16"):
        to_fp16(graph(op("Relu", "image", "logits")), [f32(1, 4)], io_precision="bf16")
    model = graph(op("Mul", "image k", "logits"), k=np.float32(1e6))
    with pytest.raises(UsageError, match="'logits' reaches"):
        to_fp16(model, [f32(1, 4)], io_precision="fp16")


def test_report_is_plain_json() -> None:
    model = graph(op("Mul", "image k", "logits"), k=np.float32(1e6))
    report = to_fp16(model, [np.ones((1, 4), np.float32)])
    assert isinstance(report, Fp16Report)
    assert json.loads(json.dumps(report.to_dict())) == {
        "islands": [
            {
                "node": "node_logits",
                "op_type": "Mul",
                "output": "logits",
                "reason": "overflow: |logits| reaches 1e6; fp16 ends at 65504",
                "figures": {"peak": 1e6},
            }
        ],
        "converted": 0,
        "casts": 0,
        "weight_bytes_before": 4,
        "weight_bytes_after": 4,
    }

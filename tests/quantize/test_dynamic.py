"""int8 with activations quantised at run time: the arithmetic by hand, and what ONNX Runtime makes of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from test_fp16 import MODELS, eager, rel_l2, traced
from this_cpu import COARSER, SCHEME

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.graph.save import save
from vitdeploy.quantize.dynamic import DynamicReport, to_int8_dynamic
from vitdeploy.quantize.schemes import get
from vitdeploy.spec import InputSpec

RNG = np.random.default_rng(0)
NEAR = 0.05


def photos(name: str, count: int, seed: int) -> np.ndarray:
    size = MODELS[name][0]
    return synthetic_images(InputSpec((3, size, size), (0.5,) * 3, (0.25,) * 3), count, seed)


def parsed(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return ir.from_proto(proto)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def written(model: ir.Model, folder: Path) -> Path:
    (path,) = save(model, folder / "model.onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def run(path: Path, feeds: dict[str, np.ndarray], *, plain: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def planned(report: DynamicReport) -> int:
    return sum(op["precision"] == "int8" for op in report.ops)


def by_hand(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x (..., K) by w (K, N): uint8 by the tensor's range, with zero inside, times int8 by column, in integers."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    unit = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / unit), 0, 255))
    levels = np.clip(np.rint(x / unit) + zero, 0, 255).astype(np.int64) - zero
    step = np.abs(w).max(axis=0) / SCHEME.weight_peak
    return (levels @ np.rint(w / step).astype(np.int64)) * (unit * step)


@pytest.mark.parametrize("plain", [True, False], ids=["as written", "optimised"])
def test_products_are_those_computed_by_hand(plain: bool, tmp_path: Path) -> None:
    x, w, head, bias = normal(2, 5, 24), normal(24, 16), normal(7, 24), normal(7)
    model = parsed(
        """g (float[b, 5, 24] x) => (float[b, 5, 23] y) {
            rows = Reshape(x, flat)
            a = MatMul(x, w)
            t = Gemm<transB = 1>(rows, head, bias)
            back = Reshape(t, whole)
            y = Concat<axis = -1>(a, back)
        }""",
        flat=np.array([-1, 24]),
        whole=np.array([-1, 5, 7]),
        w=w,
        head=head,
        bias=bias,
    )
    report = to_int8_dynamic(model, SCHEME)
    got = run(written(model, tmp_path), {"x": x}, plain=plain)
    want = np.concatenate([by_hand(x, w), by_hand(x, head.T) + bias], axis=-1)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    assert [op["precision"] for op in report.ops] == ["int8", "int8"]
    assert report.macs == report.quantised_macs == 5 * 24 * (16 + 7)


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_fuses_every_planned_product_and_stays_near_eager(name: str, tmp_path: Path) -> None:
    model = traced(name)
    report = to_int8_dynamic(model, SCHEME)
    path = written(model, tmp_path)
    x = photos(name, 3, seed=1)
    assert rel_l2(run(path, {"image": x}), eager(name, x)) < NEAR * COARSER
    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        census = session.census()
    assert census.compute["int8"] == planned(report)
    assert not {"MatMulInteger", "Cast"} & set(census.ops)
    assert report.weight_bytes_after < report.weight_bytes_before
    reasons = {op["op_type"]: op["reason"] for op in report.ops if op["precision"] == "float"}
    assert "convolution" in reasons["Conv"]
    assert all(not op["reason"] for op in report.ops if op["precision"] == "int8")


def test_products_of_one_activation_share_its_quantisation_when_it_is_read_twice(tmp_path: Path) -> None:
    model = parsed(
        "g (float[b, 24] x) => (float[b, 16] y) { p = MatMul(x, w) q = MatMul(x, v) y = Add(p, q) }",
        w=normal(24, 16),
        v=normal(24, 16),
    )
    to_int8_dynamic(model, get("onnxruntime"))
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 1
    written(model, tmp_path)


def test_weights_keep_to_seven_bits_when_the_cpu_adds_in_sixteen() -> None:
    peaks = {}
    for scheme in ("onnxruntime", "onnxruntime-avx2"):
        model = traced("deit_tiny_patch16_224")
        to_int8_dynamic(model, get(scheme))
        weights = [v.const_value.numpy() for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8]  # type: ignore[union-attr]
        peaks[scheme] = max(int(np.abs(w.astype(np.int16)).max()) for w in weights)
    assert peaks == {"onnxruntime": 127, "onnxruntime-avx2": 63}


def test_layers_stay_in_float_when_they_are_kept() -> None:
    report = to_int8_dynamic(traced("deit_tiny_patch16_224"), get("onnxruntime"), keep=("head", "*.mlp.fc1"))
    kept = [op["label"] for op in report.ops if op["reason"] == "asked for"]
    assert kept == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "head"]
    assert all(op["precision"] == "float" for op in report.ops if op["label"] in kept)


def test_graph_is_left_with_a_reason_when_nothing_can_be_done() -> None:
    with pytest.raises(UsageError, match="'neck'"):
        to_int8_dynamic(traced("deit_tiny_patch16_224"), get("onnxruntime"), keep=("neck",))
    with pytest.raises(UnsupportedModel, match="tensorrt has no int8-dynamic: the parser"):
        to_int8_dynamic(traced("deit_tiny_patch16_224"), get("tensorrt"))
    with pytest.raises(UnsupportedModel, match="no linear layer"):
        to_int8_dynamic(traced("deit_tiny_patch16_224"), get("onnxruntime"), keep=("*",))


def test_narrow_layers_stay_in_float_when_openvino_would_not_quantise_their_input() -> None:
    model = parsed(
        "g (float[b, 16] x) => (float[b, 1] y) { p = MatMul(x, w) q = MatMul(p, v) y = MatMul(q, u) }",
        w=normal(16, 64),
        v=normal(64, 32),
        u=normal(32, 1),
    )
    report = to_int8_dynamic(model, get("openvino"))
    assert [op["precision"] for op in report.ops] == ["float", "int8", "float"]
    assert "32" in report.ops[0]["reason"]
    assert {node.op_type for node in model.graph} == {"MatMul", "DequantizeLinear"}


@pytest.mark.parametrize("scheme", ["onnxruntime", "openvino"])
def test_file_is_the_same_when_made_twice(scheme: str, tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        model = traced("levit_128s")
        to_int8_dynamic(model, get(scheme))
        (tmp_path / folder).mkdir()
        contents.append(written(model, tmp_path / folder).read_bytes())
    assert contents[0] == contents[1]

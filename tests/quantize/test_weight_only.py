"""Weights in 8 and 4 bits: near the weights, the same float products, and files that say what they hold."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from test_dynamic import normal, parsed, photos, written
from test_fp16 import MODELS, eager, module, rel_l2, traced

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.errors import UnsupportedModel, UsageError
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.quantize.weight_only import BLOCK, WeightReport, quantise_blocks, to_weight_only
from vitdeploy.verify.metrics import BOUNDS

# Random weights magnify errors, in LeViT most.
NEAR = {8: 0.08, 4: 0.35}
CASES = [(name, 8) for name in MODELS] + [("deit_tiny_patch16_224", 4), ("levit_128s", 4)]


@cache
def newer_bytes(name: str) -> bytes:
    size, _ = MODELS[name]
    model = trace(module(name), (3, size, size), batch=(1, 2, 8), opset=21)
    optimise(model)
    return ir.to_proto(model).SerializeToString()


def graph_of(name: str, bits: int) -> ir.Model:
    return traced(name) if bits == 8 else ir.from_proto(onnx.load_from_string(newer_bytes(name)))


def newer(model: ir.Model) -> ir.Model:
    model.opset_imports[""] = 21
    return model


def session_run(path: Path, x: np.ndarray) -> np.ndarray:
    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        return next(iter(session.run({session.inputs[0].name: x}).values()))


def dequantised(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, block: int) -> np.ndarray:
    levels = q.astype(np.float64) - np.repeat(zero_point, block, axis=0)
    return levels * np.repeat(scale, block, axis=0)


def test_weights_are_within_half_a_step_when_stored_in_8_bits(tmp_path: Path) -> None:
    w, kernel = normal(40, 12), normal(8, 3, 3, 3)
    text = """g (float[b, 3, 8, 8] x) => (float[b, 36, 12] y) {
        c = Conv(x, kernel) r = Reshape(c, rows) y = MatMul(r, w) }"""
    model = parsed(text.replace("36", "n"), kernel=kernel, w=w, rows=np.array([0, -1, 40]))
    to_weight_only(model, 8)
    found = {}
    for node in ir.to_proto(model).graph.node:
        if node.op_type == "DequantizeLinear":
            values = {t.name: onnx.numpy_helper.to_array(t) for t in ir.to_proto(model).graph.initializer}
            found[node.input[0]] = (values[node.input[0]], values[node.input[1]])
    q, step = found["w/int8"]
    assert (np.abs(q * step - w) <= step / 2 * 1.0001).all()
    assert (step * 127 >= np.abs(w).max(axis=0) * 0.9999).all()
    q, step = found["kernel/int8"]
    assert (np.abs(q * step[:, None, None, None] - kernel) <= step[:, None, None, None] / 2 * 1.0001).all()


def test_weights_are_exact_when_they_lie_on_sixteen_levels() -> None:
    rng = np.random.default_rng(1)
    levels, zero = rng.integers(0, 16, (64, 6)), np.repeat(rng.integers(0, 16, (2, 6)), 32, axis=0)
    levels[::32], levels[1::32] = 0, 15  # both ends are there, so that the range is known
    step = np.repeat(np.exp2(rng.integers(-6, 0, (2, 6))), 32, axis=0)
    w = ((levels - zero) * step).astype(np.float32)
    assert np.abs(dequantised(*quantise_blocks(w, 32), 32) - w).max() < 1e-6


def test_blocks_lose_less_than_plain_rounding_and_no_weight_inside_more_than_half_a_step() -> None:
    w = normal(96, 20)
    q, scale, zero_point = quantise_blocks(w, 32)
    assert q.max() <= 15
    found = dequantised(q, scale, zero_point, 32)
    inside = (q > 0) & (q < 15)
    assert (np.abs(found - w) <= np.repeat(scale, 32, axis=0) * 0.5 + 1e-6)[inside].mean() > 0.95
    blocks = w.reshape(3, 32, 20)
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    unit = (high - low) / 15
    zero = np.rint(-low / unit)
    plain = (np.clip(np.rint(blocks / unit[:, None]) + zero[:, None], 0, 15) - zero[:, None]) * unit[:, None]
    lost = ((found - w) ** 2).reshape(3, 32, 20).sum(axis=1)
    assert (lost <= ((plain - blocks) ** 2).sum(axis=1) * 1.0001).all()


def test_blocks_of_zeros_and_of_one_sign_stay_finite() -> None:
    w = np.concatenate([np.zeros((32, 2)), np.abs(normal(32, 2)) + 5, -np.abs(normal(32, 2)) - 5]).astype(np.float32)
    found = dequantised(*quantise_blocks(w, 32), 32)
    assert (found[:32] == 0).all()
    assert np.abs(found - w).max() < 0.5


@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_that_of_the_stored_weights(transposed: bool, tmp_path: Path) -> None:
    w, x, bias = normal(64, 10), normal(3, 64), normal(10)
    model = newer(
        parsed(
            f"g (float[b, 64] x) => (float[b, 10] y) {{ y = Gemm<transB = {int(transposed)}>(x, w, bias) }}",
            w=np.ascontiguousarray(w.T) if transposed else w,
            bias=bias,
        )
    )
    report = to_weight_only(model, 4)
    path = written(model, tmp_path)
    want = x @ dequantised(*quantise_blocks(w, BLOCK), BLOCK) + bias
    assert np.abs(session_run(path, x) - want).max() < 1e-4
    assert np.abs(ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0] - want).max() < 1e-4
    assert report.ops[0]["precision"] == "int4"
    assert report.weight_bytes_by_dtype == {"uint4": 64 * 10 // 2 + 2 * 10 // 2, "fp32": (2 * 10 + 10) * 4}


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_onnxruntime_multiplies_in_fp32_alone_and_stays_near_eager(name: str, bits: int, tmp_path: Path) -> None:
    model = graph_of(name, bits)
    report = to_weight_only(model, bits)
    path = written(model, tmp_path)
    x = photos(name, 3, seed=1)
    with OnnxRuntimeBackend().open(path, RunOptions()) as session:
        assert rel_l2(session.run({"image": x})["logits"], eager(name, x)) < NEAR[bits]
        census = session.census()
    assert set(census.compute) == {"fp32"}
    assert "DequantizeLinear" not in census.ops
    assert report.weight_bytes_after < 0.45 * report.weight_bytes_before
    assert all(op["precision"] in ("int8", "int4") for op in report.ops)
    assert all(bool(op["reason"]) == (op["precision"] != f"int{bits}") for op in report.ops)


def test_bound_catches_a_graph_when_zero_points_are_lost(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    x = photos(name, 3, seed=1)
    errors = []
    for lost in (False, True):
        model = graph_of(name, 4)
        to_weight_only(model, 4)
        for node in list(model.graph) if lost else ():
            if node.op_type == "DequantizeLinear":
                node.resize_inputs(2)
        errors.append(rel_l2(session_run(written(model, tmp_path), x), eager(name, x)))
    bound = BOUNDS["int4-weights"].rel_l2
    assert bound is not None
    assert errors[0] < bound < errors[1]


def report_of(text: str, bits: int = 4, **weights: np.ndarray) -> WeightReport:
    return to_weight_only(newer(parsed(text, **weights)), bits)


def test_layer_takes_8_bits_when_no_block_divides_its_width() -> None:
    text = "g (float[b, 48] x) => (float[b, 9] y) { p = MatMul(x, w) q = MatMul(p, v) y = MatMul(q, u) }"
    report = report_of(text, w=normal(48, 40), v=normal(40, 64), u=normal(64, 9))
    assert [op["precision"] for op in report.ops] == ["int4", "int8", "int4"]
    assert "40" in report.ops[1]["reason"]


def test_weight_is_stored_once_when_two_layers_share_it(tmp_path: Path) -> None:
    model = parsed(
        "g (float[b, 32] x) => (float[b, 32] y) { p = MatMul(x, w) q = Relu(p) y = MatMul(q, w) }", w=normal(32, 32)
    )
    to_weight_only(model, 8)
    assert [node.op_type for node in model.graph].count("DequantizeLinear") == 1
    written(model, tmp_path)


def test_layers_stay_in_float_when_they_are_kept() -> None:
    report = to_weight_only(traced("deit_tiny_patch16_224"), 8, keep=("head", "patch*"))
    kept = [op["label"] for op in report.ops if op["precision"] == "float"]
    assert kept == ["patch_embed.proj", "head"]
    assert {op["reason"] for op in report.ops if op["label"] in kept} == {"asked for"}


def test_graph_is_refused_in_one_sentence() -> None:
    name = "deit_tiny_patch16_224"
    with pytest.raises(UsageError, match="opset 21"):
        to_weight_only(traced(name), 4)
    with pytest.raises(UsageError, match="not in 3"):
        to_weight_only(traced(name), 3)
    with pytest.raises(UsageError, match="'neck'"):
        to_weight_only(traced(name), 8, keep=("neck",))
    with pytest.raises(UnsupportedModel, match="Nothing is left"):
        to_weight_only(traced(name), 8, keep=("*",))


@pytest.mark.parametrize("bits", [8, 4])
def test_file_is_the_same_when_made_twice(bits: int, tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        model = graph_of("levit_128s", bits)
        to_weight_only(model, bits)
        (tmp_path / folder).mkdir()
        contents.append(written(model, tmp_path / folder).read_bytes())
    assert contents[0] == contents[1]

"""The linter passes what we write for each scheme, and finds each fault that can be put into it, at its node."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from test_fp16 import DYNAMIC, MODELS, MORE, Batch, traced

from vitdeploy.data.synthetic import synthetic_images
from vitdeploy.graph.edit import add_node, array
from vitdeploy.graph.save import save
from vitdeploy.quantize.lint import lint
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.ptq import Images, to_int8
from vitdeploy.quantize.schemes import SCHEMES, get
from vitdeploy.spec import InputSpec


@cache
def made(name: str, scheme: str, batch: Batch) -> bytes:
    size = {**MODELS, **MORE}[name][0]
    photos = synthetic_images(InputSpec((3, size, size), (0.5,) * 3, (0.25,) * 3), 2)

    def batches(count: int) -> Iterable[np.ndarray]:
        return [photos]

    model = traced(name, batch)
    to_int8(model, Images(batches, 2, f"lint {name}", "test"), get(scheme), Int8Options(correct_bias=False))
    return ir.to_proto(model).SerializeToString()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path / "cache"))


def graph_of(name: str, scheme: str, batch: Batch = DYNAMIC) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(made(name, scheme, batch)))


def first(model: ir.Model, op_type: str, test: Callable[[ir.Node], bool] = lambda node: True) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type and test(node))


def source(node: ir.Node, slot: int = 0) -> ir.Node:
    """The node that makes what a node reads."""
    value = node.inputs[slot]
    assert value is not None
    made_by = value.producer()
    assert made_by is not None
    return made_by


def constant_of(model: ir.Model, node: ir.Node, slot: int, data: np.ndarray) -> None:
    node.replace_input_with(slot, array(model.graph, f"seeded/{slot}", data))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_what_we_write_keeps_to_its_scheme(name: str, scheme: str) -> None:
    assert [str(found) for found in lint(graph_of(name, scheme), get(scheme))] == []


def test_float_graph_has_nothing_to_find() -> None:
    assert lint(traced("deit_tiny_patch16_224"), get("tensorrt")) == []


# --- faults: each puts one into a clean graph and returns the node that must be named -----------------------------

Seed = Callable[[ir.Model], ir.Node]


def quantised_gemm(model: ir.Model) -> ir.Node:
    return first(model, "Gemm", lambda n: source(n).op_type == "DequantizeLinear" and len(n.inputs) > 2)


def wrong_axis(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 1)
    dq.attributes["axis"] = ir.AttrInt64("axis", 1 - dq.attributes["axis"].as_int())
    return dq


def shifted_activation(model: ir.Model) -> ir.Node:
    q = source(source(quantised_gemm(model)))
    constant_of(model, q, 2, np.array(3, np.int8))
    return q


def unsigned_activation(model: ir.Model) -> ir.Node:
    q = source(source(quantised_gemm(model)))
    constant_of(model, q, 2, np.array(0, np.uint8))
    return q


def activation_by_channel(model: ir.Model) -> ir.Node:
    q = source(source(quantised_gemm(model)))
    constant_of(model, q, 1, np.full(4, 0.1, np.float32))
    return q


def quantised_bias(model: ir.Model) -> ir.Node:
    gemm = quantised_gemm(model)
    ints, unit = (
        array(model.graph, "seeded/b", np.zeros(4, np.int32)),
        array(model.graph, "seeded/u", np.float32([1] * 4)),
    )
    gemm.replace_input_with(2, add_node(gemm, "DequantizeLinear", [ints, unit], "seeded/bias", gemm.outputs[0]))
    return gemm


def float_bias(model: ir.Model) -> ir.Node:
    gemm = quantised_gemm(model)
    constant_of(model, gemm, 2, np.zeros(4, np.float32))
    return gemm


def bias_in_another_unit(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 2)
    old = dq.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    constant_of(model, dq, 1, old * np.float32(2))
    return dq


def quantised_residual(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model))
    add = first(model, "Add", lambda n: all(v is not None and v.const_value is None for v in n.inputs))
    add.replace_input_with(1, dq.outputs[0])
    return add


def quantised_softmax(model: ir.Model) -> ir.Node:
    softmax = first(model, "Softmax")
    softmax.replace_input_with(0, source(quantised_gemm(model)).outputs[0])
    return softmax


def lonely_quantize(model: ir.Model) -> ir.Node:
    q = source(source(quantised_gemm(model)))
    cast = add_node(quantised_gemm(model), "Cast", [q.outputs[0]], "seeded/cast", q.outputs[0], to=1)
    assert cast.producer() is not None
    return q


def lonely_dequantize(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model))
    source(dq).op_type = "Cast"
    return dq


def unequal_pair(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model))
    constant_of(model, dq, 1, np.array(0.5, np.float32))
    return dq


def weight_by_tensor(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 1)
    constant_of(model, dq, 1, np.array(0.5, np.float32))
    return dq


def unsigned_weight(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 1)
    constant_of(model, dq, 0, dq.inputs[0].const_value.numpy().astype(np.uint8))  # type: ignore[union-attr]
    return dq


def shifted_weight(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 1)
    zeros = dq.inputs[2].const_value.numpy()  # type: ignore[union-attr]
    constant_of(model, dq, 2, zeros + np.int8(1))
    return dq


def wide_weight(model: ir.Model) -> ir.Node:
    dq = source(quantised_gemm(model), 1)
    constant_of(model, dq, 0, np.full_like(dq.inputs[0].const_value.numpy(), 100))  # type: ignore[union-attr]
    return dq


def zero_scale(model: ir.Model) -> ir.Node:
    q = source(source(quantised_gemm(model)))
    constant_of(model, q, 1, np.array(0, np.float32))
    return q


def float_weight(model: ir.Model) -> ir.Node:
    gemm = quantised_gemm(model)
    shape = source(gemm, 1).inputs[0].const_value.shape.numpy()  # type: ignore[union-attr]
    constant_of(model, gemm, 1, np.ones(shape, np.float32))
    return gemm


def float_conv_output(model: ir.Model) -> ir.Node:
    conv = first(model, "Conv", lambda n: source(n).op_type == "DequantizeLinear")
    q = next(iter(conv.outputs[0].uses()))[0]
    dq = next(iter(q.outputs[0].uses()))[0]
    for user, slot in list(dq.outputs[0].uses()):
        user.replace_input_with(slot, conv.outputs[0])
    for node in (dq, q):
        model.graph.remove(node, safe=True)
    return conv


def quantised_output(model: ir.Model) -> ir.Node:
    gemm = first(model, "Gemm", lambda n: any(u.op_type == "Gelu" for u, _ in n.outputs[0].uses()))
    gelu = next(iter(gemm.outputs[0].uses()))[0]
    q0 = source(source(gemm))
    q = add_node(gelu, "QuantizeLinear", [gemm.outputs[0], *q0.inputs[1:]], "seeded/q", gemm.outputs[0])
    gelu.replace_input_with(0, add_node(gelu, "DequantizeLinear", [q, *q0.inputs[1:]], "seeded/dq", gemm.outputs[0]))
    found = q.producer()
    assert found is not None
    return found


def separate_bias(model: ir.Model) -> ir.Node:
    gemm = quantised_gemm(model)
    out = gemm.outputs[0]
    gemm.op_type = "MatMul"
    gemm.attributes.clear()
    gemm.resize_inputs(2)
    users = list(out.uses())
    anchor = users[0][0]
    total = add_node(anchor, "Add", [out, array(model.graph, "seeded/b", np.float32([1.0]))], "seeded/sum", out)
    for user, slot in users:
        user.replace_input_with(slot, total)
    return gemm


def integer_product(model: ir.Model) -> ir.Node:
    product = first(model, "MatMul")
    product.op_type = "MatMulInteger"
    return product


FAULTS: dict[str, tuple[Seed, str, str, str]] = {
    "weight-axis": (wrong_axis, "deit_tiny_patch16_224", "tensorrt", "weight-axis"),
    "a zero point": (shifted_activation, "deit_tiny_patch16_224", "tensorrt", "zero-point"),
    "an unsigned activation": (unsigned_activation, "deit_tiny_patch16_224", "tensorrt", "activation-type"),
    "a scale a channel": (activation_by_channel, "deit_tiny_patch16_224", "tensorrt", "per-channel-activation"),
    "a quantised bias": (quantised_bias, "deit_tiny_patch16_224", "tensorrt", "bias"),
    "a float bias": (float_bias, "deit_tiny_patch16_224", "onnxruntime", "bias"),
    "a bias in another unit": (bias_in_another_unit, "deit_tiny_patch16_224", "onnxruntime", "bias-scale"),
    "a quantised residual": (quantised_residual, "deit_tiny_patch16_224", "tensorrt", "residual"),
    "a quantised softmax": (quantised_softmax, "levit_128s", "openvino", "float-op"),
    "a Q alone": (lonely_quantize, "deit_tiny_patch16_224", "openvino", "unpaired"),
    "a DQ alone": (lonely_dequantize, "deit_tiny_patch16_224", "openvino", "unpaired"),
    "an unequal pair": (unequal_pair, "deit_tiny_patch16_224", "openvino", "mismatch"),
    "a scale for the whole weight": (weight_by_tensor, "deit_tiny_patch16_224", "tensorrt", "per-tensor-weight"),
    "an unsigned weight": (unsigned_weight, "deit_tiny_patch16_224", "tensorrt", "weight-type"),
    "a weight's zero point": (shifted_weight, "deit_tiny_patch16_224", "tensorrt", "weight-zero-point"),
    "a weight of 8 bits": (wide_weight, "deit_tiny_patch16_224", "onnxruntime-avx2", "weight-peak"),
    "a scale of zero": (zero_scale, "deit_tiny_patch16_224", "openvino", "scale"),
    "a float weight": (float_weight, "deit_tiny_patch16_224", "openvino", "half"),
    "a Conv that writes float": (float_conv_output, "levit_128s", "onnxruntime", "output"),
    "a product's quantised output": (quantised_output, "deit_tiny_patch16_224", "tensorrt", "output"),
    "a bias apart": (separate_bias, "deit_tiny_patch16_224", "onnxruntime", "linear-form"),
    "an integer op": (integer_product, "deit_tiny_patch16_224", "tensorrt", "integer-op"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_at_its_node(fault: str) -> None:
    seed, name, scheme, rule = FAULTS[fault]
    model = graph_of(name, scheme)
    node = seed(model)
    found = lint(model, get(scheme))
    assert (rule, node.name or node.outputs[0].name) in {(f.rule, f.node) for f in found}, [str(f) for f in found]
    assert len({f.rule for f in found}) <= 3, "one fault is not the whole list"


def test_other_runtimes_graph_is_refused_with_the_reasons() -> None:
    rules = {
        found.rule: found.reason for found in lint(graph_of("deit_tiny_patch16_224", "onnxruntime"), get("tensorrt"))
    }
    assert {"activation-type", "bias", "zero-point"} <= set(rules)
    assert "parser" in rules["bias"]


def test_command_prints_the_faults_and_ends_with_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from vitdeploy.cli import app

    (path,) = save(graph_of("deit_tiny_patch16_224", "onnxruntime"), tmp_path / "model.onnx")
    runner = CliRunner()
    clean = runner.invoke(app, ["inspect", str(path), "--scheme", "onnxruntime"])
    assert clean.exit_code == 0
    assert "keeps to the scheme onnxruntime" in clean.output
    bad = runner.invoke(app, ["inspect", str(path), "--scheme", "tensorrt", "--json"])
    assert bad.exception is not None
    assert getattr(bad.exception, "exit_code", None) == 7
    faults = json.loads(bad.output)["findings"]
    assert {"rule", "node", "message", "reason"} == set(faults[0])

"""What we write for TensorRT, held against NVIDIA's own parser and builder: it loads, builds, and runs as planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from rtx_builder import engine, float_products, runs_in
from test_fp16 import DYNAMIC, Batch, images, traced
from test_lint import (
    graph_of,
    own_cache,  # noqa: F401 -- a fixture
    quantised_bias,
    quantised_gemm,
    shifted_activation,
    source,
    unsigned_weight,
    wrong_axis,
)

from vitdeploy.errors import BackendError
from vitdeploy.quantize.fp16 import to_fp16
from vitdeploy.quantize.lint import PRODUCTS, lint, weight_of
from vitdeploy.quantize.schemes import get

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vitdeploy[tensorrt-rtx]'")

NAMES = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs")


def planned(model: ir.Model) -> set[str]:
    """Names of the products whose weights are quantised."""
    return {node.name or "" for node in model.graph if node.op_type in PRODUCTS and weight_of(node, 1) is not None}


@pytest.mark.parametrize("batch", [2, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", [*NAMES, "mobilevitv2_050"])
def test_engine_multiplies_in_int8_what_was_planned_and_the_rest_in_fp16(
    name: str, batch: Batch, tmp_path: Path
) -> None:
    model = graph_of(name, "tensorrt", batch)
    layers = engine(model, tmp_path)
    wanted = planned(model)
    assert len(wanted) >= 7
    assert {node for node in wanted if not runs_in("int8", layers, node)} == set()
    others = {node.name or "" for node in model.graph if node.op_type in PRODUCTS} - wanted
    assert {node for node in others if runs_in("int8", layers, node)} == set()
    assert float_products(layers) == {"fp16"}


@pytest.mark.parametrize("capability", ["SM75", "SM80", "SM86", "SM120"])
def test_engine_multiplies_in_int8_when_it_is_for_another_gpu(capability: str, tmp_path: Path) -> None:
    model = graph_of("levit_128s", "tensorrt")
    layers = engine(model, tmp_path, capability=capability)
    convolutions = {node.name for node in model.graph if node.op_type == "Conv"}
    # On Turing, TensorRT-RTX 1.7 has no int8 convolution: that they then run in fp16 is for docs/int8.md.
    wanted = planned(model) - convolutions if capability == "SM75" else planned(model)
    assert {node for node in wanted if not runs_in("int8", layers, node)} == set()


@pytest.mark.parametrize("batch", [2, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", NAMES)
def test_engine_multiplies_in_the_graphs_own_float_type(name: str, batch: Batch, tmp_path: Path) -> None:
    model = traced(name, batch)
    assert float_products(engine(model, tmp_path)) == {"fp32"}
    to_fp16(model, [images(name, 2, seed=0)])
    assert float_products(engine(model, tmp_path)) == {"fp16"}


def unquantised_activation(model: ir.Model) -> ir.Node:
    gemm = quantised_gemm(model)
    gemm.replace_input_with(0, source(source(gemm)).inputs[0])
    return gemm


def test_product_is_not_counted_as_int8_when_its_activation_is_in_float(tmp_path: Path) -> None:
    model = graph_of("deit_tiny_patch16_224", "tensorrt")
    node = unquantised_activation(model)
    layers = engine(model, tmp_path)
    assert {name for name in planned(model) if not runs_in("int8", layers, name)} == {node.name}


def unsigned_pair(model: ir.Model) -> ir.Node:
    """Q and DQ by the standard's default, which is uint8 with zero point 0."""
    dq = source(quantised_gemm(model))
    q = source(dq)
    for node in (q, dq):
        node.resize_inputs(2)
    q.outputs[0].dtype = ir.DataType.UINT8
    return q


REFUSED: dict[str, tuple[Callable[[ir.Model], ir.Node], str]] = {
    "a weight is uint8": (unsigned_weight, "weight-type"),
    "a zero point is not 0": (shifted_activation, "zero-point"),
    "a bias is int32": (quantised_bias, "bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parser_and_linter_refuse_when(case: str, tmp_path: Path) -> None:
    seed, rule = REFUSED[case]
    model = graph_of("deit_tiny_patch16_224", "tensorrt")
    seed(model)
    with pytest.raises(BackendError, match="parser refuses"):
        engine(model, tmp_path)
    assert rule in {found.rule for found in lint(model, get("tensorrt"))}


# What the parser misreads in silence: a scale belongs to another channel, or the upper half of a range is cut off.
MISREAD: dict[str, tuple[Callable[[ir.Model], ir.Node], str]] = {
    "a weight has the wrong axis": (wrong_axis, "weight-axis"),
    "an activation is uint8 with zero point 0": (unsigned_pair, "activation-type"),
}


@pytest.mark.parametrize("case", MISREAD)
def test_linter_refuses_what_the_parser_takes_when(case: str, tmp_path: Path) -> None:
    seed, rule = MISREAD[case]
    model = graph_of("deit_tiny_patch16_224", "tensorrt")
    node = seed(model)
    layers = engine(model, tmp_path)
    assert {name for name in planned(model) if not runs_in("int8", layers, name)} == set()
    assert (node.name, rule) in {(found.node, found.rule) for found in lint(model, get("tensorrt"))}

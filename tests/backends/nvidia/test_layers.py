"""Layers as NVIDIA's tools tell of them, in the forms that were seen; and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.backends.nvidia.engine import Facts
from vitdeploy.backends.nvidia.gpus import Driver, Gpu
from vitdeploy.backends.nvidia.layers import Layer, count, from_inspector, from_log, precision_of, precisions
from vitdeploy.errors import BackendError, UsageError

# As TensorRT-RTX 1.7's builder logs it.
LINE = (
    "Name: fc1_myl0_7, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,197,192], Strides: [37824,192,1], "
    "StrideOrder: [2,1,0], Datatype: Int8, Format: (Linear) Row major linear format }, { Name: b, Dimensions: [768], "
    "Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: w, Dimensions: [192,768], "
    "Datatype: Int8, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [1,197,768], "
    "Datatype: Half, Format: (Linear) Row major linear format }], TacticName: sm89_xmma, StreamId: 0, Metadata: "
    "[ONNX Layer: blocks.0.mlp.fc1][ONNX Layer: blocks.0.mlp.act]"
)


def test_from_log_reads_a_layer_and_passes_over_other_lines() -> None:
    (layer,) = from_log(["Detected 1 inputs and 1 output network tensors.", LINE, "LayerType: of something else"])
    assert layer == Layer(
        "fc1_myl0_7",
        "gemm",
        ("int8", "fp16"),
        ("int8",),
        ("fp16",),
        "sm89_xmma",
        ("blocks.0.mlp.fc1", "blocks.0.mlp.act"),
    )
    assert layer.multiplies
    assert layer.precision == "int8"


def inspected(**entry: Any) -> Layer:
    (layer,) = from_inspector(json.dumps({"Layers": [{"Name": "n", "LayerType": "gemm", **entry}]}))
    return layer


def tensors(*kinds: str) -> list[dict[str, str]]:
    return [{"Name": "t", "Format/Datatype": kind} for kind in kinds]


def test_from_inspector_reads_names_joined_by_plus_when_there_is_no_metadata() -> None:
    assert inspected(Name="conv1 + relu1", Metadata="").nodes == ("conv1", "relu1")
    assert inspected(Name="x", Metadata="[ONNX Layer: a b]\x1f[ONNX Layer: c]").nodes == ("a b", "c")


def test_from_inspector_tells_nothing_of_types_when_the_engine_has_names_alone() -> None:
    (layer,) = from_inspector(json.dumps({"Layers": ["conv1 + relu1"], "Bindings": ["x"]}))
    assert (layer.nodes, layer.inputs, layer.precision) == (("conv1", "relu1"), (), "unknown")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 4 == 0", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("BFloat16", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Int8", "int8"),
        ("Float8", "fp8"),
        ("FP8 E4M3", "fp8"),
        ("Int64", "int64"),
        ("Bool", "bool"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_precision_of_reads_every_way_that_nvidia_writes_a_type(text: str, kind: str) -> None:
    assert precision_of(text) == kind


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        (("Half",), ("Half", "Float"), "fp16"),
        (("Int8", "Half"), ("Int8", "Float"), "int8"),
        (("Int8", "Int8"), (), "int8"),  # two activations
        (("Half",), ("Int8",), "fp16"),  # weights alone
        (("Int8",), ("Half",), "fp16"),  # the activation alone
        (("Float8",), ("Float8",), "fp8"),
        (("Float", "Half"), ("Float",), "fp32"),  # a half residual is added
        (("Half", "Float"), ("Half",), "fp16"),
        ((), (), "unknown"),
    ],
)
def test_precision_of_a_product_is_that_of_its_operands(
    inputs: tuple[str, ...], constants: tuple[str, ...], precision: str
) -> None:
    assert inspected(Inputs=tensors(*inputs), Constants=tensors(*constants)).precision == precision


def layer(name: str, kind: str, precision: str, *nodes: str) -> Layer:
    return Layer(name, kind, (precision,), (precision,), (precision,), "", nodes)


def test_count_takes_each_product_from_the_layer_that_multiplies_it() -> None:
    found = [
        layer("__myl_Quant", "kgen", "fp16", "fc1", "norm"),
        layer("fc1", "gemm", "int8", "fc1"),
        layer("fc2", "gemm", "fp16", "fc2", "add"),
        layer("softmax", "kgen", "fp16", "softmax"),
        layer("reformat of conv", "Reformat", "fp32", "conv"),
        layer("x", "CaskConvolution", "fp16", "conv"),
    ]
    products = {"fc1": "Gemm", "fc2": "Gemm", "conv": "Conv", "folded": "MatMul"}
    assert precisions(found, products) == {"fc1": "int8", "fc2": "fp16", "conv": "fp16", "folded": "unknown"}
    census = count(found, products, "here")
    assert census.compute == {"int8": 1, "fp16": 2}
    assert census.ops["kgen"] == {"fp16": 2}
    assert count(found, {}, "here").compute == {"int8": 1, "fp16": 2}


def test_precision_of_a_product_in_generated_code_is_that_of_its_weights() -> None:
    norm = Layer(
        "__myl_AddSqrtDivMulCastMulSumAdd", "kgen", ("fp32", "fp32"), ("fp16", "fp16"), ("fp16",), "", ("head",)
    )
    assert precisions([norm], {"head": "Gemm"}) == {"head": "fp16"}
    wide = Layer("__myl_AddSqrtDivMulSumAdd", "kgen", ("fp32", "fp32"), ("fp32",), ("fp16",), "", ("head",))
    assert precisions([wide], {"head": "Gemm"}) == {"head": "fp32"}


def test_count_tells_casts_from_other_generated_code() -> None:
    cast = Layer("__myl_Cast_myl0_0", "kgen", ("fp32",), (), ("fp16",))
    more = Layer("__myl_CastMul_myl0_0", "kgen", ("fp32",), (), ("fp16",))
    assert count([cast, more, Layer("r", "Reformat", ("fp16",), (), ("fp32",))], {}, "").casts == 2


FACTS = Facts("tensorrt", "11.4.0.106", ("8.9",), "NVIDIA L4", layers=tuple(from_log([LINE])))
HERE = Driver("13.0", "580", (Gpu("NVIDIA L4", (8, 9), 0), Gpu("NVIDIA H100", (9, 0), 0), Gpu("NVIDIA T4", (7, 5), 0)))


@pytest.mark.parametrize(
    ("options", "version", "index", "says"),
    [
        ({}, "11.4.0.106", 0, ""),
        ({}, "11.4.0.200", 0, ""),
        ({}, "11.3.0.99", 0, "was built by TensorRT 11.4.0.106, and here is 11.3.0.99"),
        ({"version_compatible": True}, "11.5.0.1", 0, ""),
        ({}, "11.4.0.106", 1, "compute capability 8.9 (NVIDIA L4), and here is 9.0 (NVIDIA H100)"),
        ({"hardware_compatibility_level": "ampere_plus"}, "11.4.0.106", 1, ""),
        ({"hardware_compatibility_level": "ampere_plus"}, "11.4.0.106", 2, "here is 7.5 (NVIDIA T4)"),
        ({"hardware_compatibility_level": "same_compute_capability"}, "11.4.0.106", 1, "here is 9.0"),
    ],
)
def test_check_fits_refuses_another_version_or_gpu(
    options: dict[str, Any], version: str, index: int, says: str, tmp_path: Path
) -> None:
    facts = Facts(**{**FACTS.__dict__, "options": options})
    if not says:
        facts.check_fits(tmp_path / "model.plan", version, HERE, index)
        return
    with pytest.raises(BackendError) as caught:
        facts.check_fits(tmp_path / "model.plan", version, HERE, index)
    assert says in caught.value.message
    assert "Export it again" in str(caught.value.fix)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', "\x00"])
def test_facts_that_are_damaged_are_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(UsageError, match=r"engine\.json is damaged"):
        Facts.read(tmp_path / "model.plan")


def test_facts_survive_being_written(tmp_path: Path) -> None:
    FACTS.write(tmp_path / "model.plan")
    assert Facts.read(tmp_path / "model.plan") == FACTS
    assert Facts.read(tmp_path / "elsewhere" / "model.plan") is None

"""fp8 files held against NVIDIA's own parser and builder: they load, build for GPUs with fp8, and run as planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from rtx_builder import engine, float_products, runs_in
from test_fp8 import PLAIN, e5m2_pair, int8_pair, scale_a_channel, shifted, unsaturated
from test_fp16 import DYNAMIC, Batch, traced
from test_int8 import photos
from test_lint import graph_of, own_cache  # noqa: F401 -- a fixture

from vitdeploy.backends.nvidia.layers import Layer
from vitdeploy.errors import BackendError
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.quantize.lint import PRODUCTS, activation_of, lint, weight_of
from vitdeploy.quantize.ptq import Images, to_int8
from vitdeploy.quantize.schemes import Scheme, get

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vitdeploy[tensorrt-rtx]'")

NAMES = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs", "mobilevitv2_050")
SCHEME = get("tensorrt-fp8")


def planned(model: ir.Model) -> set[str]:
    """Names of the products whose operands are quantised."""
    products = [node for node in model.graph if node.op_type in PRODUCTS and activation_of(node) is not None]
    return {
        node.name or "" for node in products if weight_of(node, 1) is not None or activation_of(node, 1) is not None
    }


def in_float(layers: list[Layer], names: Iterable[str]) -> set[str]:
    return {name for name in names if not runs_in("fp8", layers, name)}


def quantised(name: str, scheme: Scheme, **options: object) -> ir.Model:
    """A graph with random weights, calibrated on two images."""
    model, images = traced(name, 2), photos(name, 2, seed=0)
    how = replace(PLAIN, **options)  # type: ignore[arg-type]
    to_int8(model, Images(lambda _: [images], 2, f"builder {name}", "test"), scheme, how)
    return model


@pytest.mark.parametrize("batch", [2, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize("capability", ["SM89", "SM120"])
@pytest.mark.parametrize("name", NAMES)
def test_engine_multiplies_in_fp8_what_was_planned_and_the_rest_in_fp16(
    name: str, capability: str, batch: Batch, tmp_path: Path
) -> None:
    model = graph_of(name, "tensorrt-fp8", batch)
    layers = engine(model, tmp_path, capability=capability)
    wanted = planned(model)
    assert len(wanted) >= 6
    assert in_float(layers, wanted) == set()
    others = {node.name or "" for node in model.graph if node.op_type in PRODUCTS} - wanted
    assert in_float(layers, others) == others
    assert float_products(layers) == {"fp16"}


@pytest.mark.parametrize("capability", ["SM75", "SM80", "SM86"])
def test_builder_refuses_a_gpu_without_fp8(capability: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"{capability.lower()}.*HW-specific datatypes: fp8_e4m3"):
        engine(graph_of("deit_tiny_patch16_224", "tensorrt-fp8"), tmp_path, capability=capability)


@pytest.mark.parametrize("capability", ["SM89", "SM120"])
def test_attention_multiplies_in_fp8_when_its_products_are_quantised_too(capability: str, tmp_path: Path) -> None:
    model = quantised("deit_tiny_patch16_224", SCHEME, attention=True)
    own = [node for node in model.graph if node.op_type == "MatMul" and activation_of(node, 1) is not None]
    assert len(own) == 2
    assert in_float(engine(model, tmp_path, capability=capability), planned(model)) == set()


def test_fused_attention_reads_fp8_when_there_are_many_tokens(tmp_path: Path) -> None:
    """197 tokens make it one kernel, 17 do not."""
    model = trace(build("vit_tiny_patch16_224", BuildOptions(seed=0)).module, (3, 224, 224), batch=2)
    optimise(model)
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    to_int8(model, Images(lambda _: [images], 2, "builder 224", "test"), SCHEME, replace(PLAIN, attention=True))
    layers = engine(model, tmp_path)
    fused = [layer for layer in layers if layer.name.startswith("_gemm_mha")]
    assert len(fused) == 11  # and in the last block the class token alone asks
    assert {layer.inputs for layer in fused} == {("fp8", "fp8", "fp8")}
    assert in_float(layers, planned(model)) == set()


# --- why the scheme is as it is -----------------------------------------------------------------------------------


def convolutions(layers: list[Layer]) -> set[tuple[str, ...]]:
    """What the fp8 convolutions of an engine write."""
    return {layer.outputs for layer in layers if layer.kind == "correlation" and "fp8" in layer.constants}


def test_convolutions_write_fp32_when_weights_have_a_scale_a_channel(tmp_path: Path) -> None:
    by_channel = replace(SCHEME, weight_scales="channel")
    found = [convolutions(engine(quantised("levit_128s", s), tmp_path)) for s in (SCHEME, by_channel)]
    assert found == [{("fp16",)}, {("fp32",)}]


def test_patch_embedding_is_computed_in_fp16_when_it_is_quantised(tmp_path: Path) -> None:
    """The builder dequantises first: it has no fp8 convolution with such a window."""
    model = quantised("deit_tiny_patch16_224", replace(SCHEME, smallest_conv=0, largest_kernel=0))
    (conv,) = [node.name or "" for node in model.graph if node.op_type == "Conv"]
    assert conv in planned(model)
    assert in_float(engine(model, tmp_path), planned(model)) == {conv}


def test_builder_takes_scales_in_fp32_where_the_graph_is_fp32(tmp_path: Path) -> None:
    model = quantised("deit_tiny_patch16_224", replace(SCHEME, rest="fp32"))
    layers = engine(model, tmp_path)
    assert in_float(layers, planned(model)) == set()
    assert float_products(layers) == {"fp32"}


# --- faults -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[ir.Model], ir.Node], str]] = {
    "an activation is E5M2": (e5m2_pair, "activation-type"),
    "an activation is int8": (int8_pair, "activation-type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_builder_and_linter_refuse_when(case: str, tmp_path: Path) -> None:
    seed, rule = REFUSED[case]
    model = graph_of("deit_tiny_patch16_224", "tensorrt-fp8")
    seed(model)
    assert rule in {found.rule for found in lint(model, SCHEME)}
    with pytest.raises(BackendError, match="refuses"):
        engine(model, tmp_path)


# What the builder takes, and we do not write: it is slow, or other numbers than the file says.
TAKEN: dict[str, tuple[Callable[[ir.Model], ir.Node], str]] = {
    "a weight has a scale a channel": (scale_a_channel, "per-channel-weight"),
    "a zero point is not 0": (shifted, "zero-point"),
    "a Q does not saturate": (unsaturated, "saturate"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_linter_refuses_what_the_builder_takes_when(case: str, tmp_path: Path) -> None:
    seed, rule = TAKEN[case]
    model = graph_of("deit_tiny_patch16_224", "tensorrt-fp8")
    node = seed(model)
    assert in_float(engine(model, tmp_path), planned(model)) == set()
    assert (node.name, rule) in {(found.node, found.rule) for found in lint(model, SCHEME)}


def test_weights_cover_the_range_of_fp8() -> None:
    model = graph_of("levit_128s", "tensorrt-fp8")
    weights = [w for node in model.graph if node.op_type in PRODUCTS and (w := weight_of(node, 1)) is not None]
    assert {float(np.abs(w.content.astype(np.float32)).max()) for w in weights} == {448.0}

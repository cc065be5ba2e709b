"""Channels are followed from the weights that write them to those that read them, and to no others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from onnx_ir import serde
from test_fp16 import traced

from vitdeploy.quantize.channels import find_sites, reshaped
from vitdeploy.quantize.targets import to_gemm


def labels(name: str) -> list[tuple[list[str], list[str]]]:
    """Writers and readers of each site, by their weights' names."""
    model = traced(name)
    to_gemm(model)
    return [
        tuple(
            [(end.node.inputs[1].name or "").removesuffix(".T").removesuffix(".weight") for end in ends]
            for ends in both
        )  # type: ignore[union-attr, misc]
        for both in ((site.writers, site.readers) for site in find_sites(model))
    ]


def test_sites_are_norms_and_values_of_attention_when_the_model_is_a_deit() -> None:
    found = labels("deit_tiny_patch16_224")
    block = "blocks.0."
    qkv = f"{block}attn.qkv."
    assert ([f"{block}norm1"], [f"{qkv}q", f"{qkv}k", f"{qkv}v"]) in found
    assert ([f"{qkv}v"], [f"{block}attn.proj"]) in found
    assert ([f"{block}norm2"], [f"{block}mlp.fc1"]) in found
    assert len(found) == 3 * 2 + 1
    assert not any("mlp.fc2" in readers for _, readers in found)  # GELU stands before it


def test_each_stage_of_levit_is_one_site_when_its_residual_stream_has_no_norms() -> None:
    found = labels("levit_128s")
    assert len(found) == 3
    assert "stem.conv4.linear" in found[0][0]
    assert all(any(name.endswith("mlp.ln1.linear") for name in readers) for _, readers in found)
    assert not any("proj" in reader for _, readers in found for reader in readers)  # HardSwish stands before it


def test_values_are_followed_through_the_patches_of_mobilevit() -> None:
    found = labels("mobilevit_xxs")
    assert any(w[0].endswith("attn.qkv.v") and len(r) == 1 and r[0].endswith("attn.proj") for w, r in found)
    assert not any("conv2_kxk" in reader for _, readers in found for reader in readers)  # SiLU stands before it


def test_a_shift_is_allowed_only_where_the_whole_way_carries_it() -> None:
    for site in find_sites(traced("levit_128s")):
        assert not site.movable  # several writers add up
    assert all(site.movable for site in find_sites(traced("deit_tiny_patch16_224")) if len(site.writers) == 1)


def model_of(body: str, weights: dict[str, np.ndarray]) -> ir.Model:
    head = "<ir_version: 9, opset_import: ['' : 20]> g (float[2, 4] x) => (float[2, 3] y)"
    proto = parser.parse_model(head.replace("'", '"') + " {" + body + "}")
    from onnx import numpy_helper, shape_inference

    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    return serde.deserialize_model(shape_inference.infer_shapes(proto))


W = {"a": np.ones((4, 5), np.float32), "b": np.ones((5, 3), np.float32)}


@pytest.mark.parametrize(
    ("between", "free", "movable"),
    [
        ("h = Identity(g)", True, True),
        ("h = Relu(g)", True, False),
        ("h = Gelu(g)", False, False),
        ("h = Sigmoid(g)", False, False),
        ("t = Transpose(g) h = Transpose(t)", True, True),
        ("h = Softmax(g)", False, False),
    ],
)
def test_pair_is_free_only_when_the_function_between_is_homogeneous(between: str, free: bool, movable: bool) -> None:
    (site, *_) = [*find_sites(model_of(f"g = MatMul(x, a) {between} y = MatMul(h, b)", W)), None]
    assert (site is not None) == free
    if site is not None:
        assert site.movable == movable
        assert site.size == 5


def test_nothing_is_free_when_the_graph_gives_it_out() -> None:
    model = model_of("g = MatMul(x, a) y = MatMul(g, b)", W)
    model.graph.outputs.append(model.graph[0].outputs[0])
    assert not find_sites(model)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.data())
def test_reshaped_numbers_are_those_of_the_whole_tensor(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    numbers = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    target = data.draw(st.permutations(shape))
    found = reshaped(numbers, shape, target)
    assert found is not None
    assert np.array_equal(np.broadcast_to(found, target), np.broadcast_to(numbers, shape).reshape(target))


def test_reshape_of_a_symbolic_batch_keeps_channels_and_gives_up_on_what_it_cannot_read() -> None:
    numbers = np.arange(6).reshape(1, 6)
    found = reshaped(numbers, ("4*batch", 6), ("batch", 4, 2, 3))
    assert found is not None
    assert np.array_equal(found, np.arange(6).reshape(1, 1, 2, 3))
    assert reshaped(numbers, ("a+b", 6), ("a+b", 2, 3)) is None

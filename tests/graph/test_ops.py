from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.graph.load import load
from vitdeploy.graph.ops import macs, op_counts, parameter_dtypes, parameters, summarize
from vitdeploy.graph.save import save
from vitdeploy.graph.shapes import infer


def parsed(body: str, inputs: str, outputs: str = "float[] y", weights: str = "") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        g ({inputs}) => ({outputs}) {f"<{weights}>" if weights else ""} {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


# Each expectation is counted by hand: output elements times terms in each one's sum.
CASES = {
    "conv": ("y = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w)", "float[N,3,8,8] x, float[4,3,3,3] w", 4 * 4 * 4 * 27),
    "depthwise": ("y = Conv <group=6> (x, w)", "float[1,6,5,5] x, float[6,1,3,3] w", 6 * 3 * 3 * 9),
    "dilated": ("y = Conv <dilations=[2,2]> (x, w)", "float[1,1,7,7] x, float[1,1,3,3] w", 3 * 3 * 9),
    "transposed": ("y = ConvTranspose (x, w)", "float[1,2,5,5] x, float[2,3,2,2] w", 50 * 3 * 4),
    "matmul": ("y = MatMul (x, w)", "float[N,7,5] x, float[5,3] w", 7 * 3 * 5),
    "broadcast": ("y = MatMul (x, w)", "float[2,1,4,5] x, float[3,5,6] w", 2 * 3 * 4 * 6 * 5),
    "vector": ("y = MatMul (x, w)", "float[5] x, float[5,3] w", 15),
    "gemm": ("y = Gemm <transB=1> (x, w)", "float[N,8] x, float[10,8] w", 80),
    "gemm A": ("y = Gemm <transA=1> (x, w)", "float[8,2] x, float[8,10] w", 2 * 10 * 8),
    "einsum": ('y = Einsum <equation="b h i d, b h j d -> b h i j"> (x, w)', "float[2,3,4,5] x, float[2,3,6,5] w", 720),
    "ellipsis": ('y = Einsum <equation="...ij,jk->...ik"> (x, w)', "float[2,3,4,5] x, float[5,6] w", 2 * 3 * 4 * 5 * 6),
    "transpose only": ('y = Einsum <equation="ij->ji"> (x)', "float[2,3] x", 0),
    "attention": ("y = Attention (x, w, v)", "float[2,3,4,8] x, float[2,3,5,8] w, float[2,3,5,6] v", 24 * 5 * 14),
    "attention 3d": (
        "y = Attention <q_num_heads=4, kv_num_heads=2> (x, w, v)",
        "float[1,4,32] x, float[1,5,16] w, float[1,5,16] v",
        4 * 4 * 5 * (8 + 8),
    ),
    "fused conv": ("y = com.microsoft.FusedConv <pads=[1,1,1,1]> (x, w)", "float[1,3,8,8] x, float[4,3,3,3] w", 6912),
    "fused matmul": ("y = com.microsoft.FusedMatMul <transB=1> (x, w)", "float[2,7,5] x, float[2,3,5] w", 210),
    "fused A": ("y = com.microsoft.FusedMatMul <transA=1> (x, w)", "float[2,5,7] x, float[2,5,3] w", 210),
    "heads": (
        "y = com.microsoft.MultiHeadAttention <num_heads=2> (x, w, v)",
        "float[1,4,16] x, float[1,5,16] w, float[1,5,16] v",
        4 * 5 * 32,
    ),
    "packed": (
        "y = com.microsoft.Attention <num_heads=2> (x, w)",
        "float[1,4,16] x, float[16,48] w",
        4 * 16 * 48 + 2 * 4 * 4 * 16,
    ),
    "integer": ("y = MatMulInteger (x, w)", "uint8[2,5] x, int8[5,3] w", 30),
    "block": ("y = com.microsoft.MatMulNBits <K=32, N=6, bits=4, block_size=32> (x)", "float[2,32] x", 2 * 32 * 6),
}


@pytest.mark.parametrize("case", list(CASES))
def test_macs_equal_the_count_by_hand_when_shapes_are_known(case: str) -> None:
    body, inputs, expected = CASES[case]
    found = macs(parsed(body, inputs))
    assert (found.total, found.nodes, found.unknown) == (expected, {"y": expected}, ())


@pytest.mark.parametrize(
    "body",
    [
        "z = com.microsoft.Strange (x) y = MatMul (x, z)",
        'y = Einsum <equation="ij,jk,kl->il"> (x, x, x)',
        "y, h, c = LSTM <hidden_size=4> (x, x, x)",
    ],
)
def test_macs_name_the_node_as_unknown_when_they_cannot_be_told(body: str) -> None:
    found = macs(parsed(body, "float[5,5] x"))
    assert found.nodes == {}
    assert found.unknown == ("y",)


def test_macs_follow_shapes_through_reshapes_when_the_batch_is_symbolic() -> None:
    body = """n = Shape <start=0, end=1> (x)
        s = Concat <axis=0> (n, tail)
        r = Reshape (x, s)
        y = MatMul (r, w)"""
    graph = parsed(body, "float[batch,12] x, float[4,2] w", weights="int64[2] tail = {3, 4}")
    assert macs(graph).nodes == {"y": 3 * 4 * 2}
    assert infer(graph, {"x": (5, 12)})["y"].shape == (5, 3, 2)


def test_parameters_count_weights_and_not_shapes(tmp_path: Path) -> None:
    half = np.zeros((40, 16), np.float16)
    graph = parsed(
        "r = Reshape (x, s) y = Add (r, w)", "float[6] x", weights="int64[2] s = {2,3}, float[3] w = {1,2,3}"
    )
    graph.graph.register_initializer(ir.Value(name="half", const_value=ir.tensor(half, name="half")))
    assert parameters(graph) == (3 + 640, 12 + 1280)
    assert parameter_dtypes(graph) == {"fp16": 1280, "fp32": 12}
    path = save(graph, tmp_path / "m.onnx", external_above=0)[0]
    assert summarize(load(path))["external_data"] == ["m.onnx.data"]


def test_op_counts_name_the_domain_when_it_is_not_onnx() -> None:
    graph = parsed("a = Relu (x) b = Relu (a) y = com.microsoft.Gelu (b)", "float[5] x")
    assert op_counts(graph) == {"Relu": 2, "com.microsoft::Gelu": 1}


def test_summarize_is_json_and_complete() -> None:
    graph = parsed("y = MatMul (x, w)", "float[batch,5] x", "float[batch,2] y", "float[5,2] w = {1,2,3,4,5,6,7,8,9,0}")
    graph.metadata_props["key"] = "value"
    found = json.loads(json.dumps(summarize(graph)))
    assert found["inputs"] == [{"name": "x", "dtype": "fp32", "shape": ["batch", 5]}]
    assert found["outputs"] == [{"name": "y", "dtype": "fp32", "shape": ["batch", 2]}]
    assert (found["macs"], found["parameters"], found["nodes"]) == (10, 10, 1)
    assert found["opset"][""] == 23
    assert found["metadata"] == {"key": "value"}


def test_macs_match_the_textbook_when_the_model_is_an_attention_block() -> None:
    tokens, width, heads = 17, 32, 4
    body = """q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
        a = Attention <q_num_heads=4, kv_num_heads=4> (q, k, v)
        y = MatMul (a, wo)"""
    square = f"float[{width},{width}]"
    inputs = f"float[N,{tokens},{width}] x, {square} wq, {square} wk, {square} wv, {square} wo"
    per_head = 2 * tokens * tokens * (width // heads)
    assert macs(parsed(body, inputs)).total == 4 * tokens * width * width + heads * per_head

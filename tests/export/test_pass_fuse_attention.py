"""fuse_attention: the ops between q, k, v and the projection become ONNX's Attention, where nothing else needs them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes.fuse_attention import fuse_attention

TOKENS, KEYS, HEADS, WIDTH, OUT = 5, 6, 2, 3, 4
BODY = """
    q1 = Reshape(q0, qs)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Reshape(k0, ks)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v1 = Reshape(v0, vs)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    s = MatMul(q, k)
    m = Add(s, mask)
    a = Softmax <axis = -1> (m)
    o = MatMul(a, v)
    o1 = Transpose <perm = [0, 2, 1, 3]> (o)
    o2 = Reshape(o1, flat)
    y = Relu(o2)
"""
Y = f"float[N,{HEADS * OUT}] y"
SHAPES = {
    "qs": np.array([-1, TOKENS, HEADS, WIDTH]),
    "ks": np.array([-1, KEYS, HEADS, WIDTH]),
    "vs": np.array([-1, KEYS, HEADS, OUT]),
    "flat": np.array([-1, HEADS * OUT]),
    "apart": np.array([-1, TOKENS, HEADS * OUT]),
    "mask": weights(HEADS, TOKENS, KEYS),
}


def attention(body: str = BODY, outputs: str = Y, opset: int = 23, **more: np.ndarray) -> ir.Model:
    """Queries, keys and values of unlike lengths and widths, with a bias on the scores."""
    inputs = (
        f"float[B,{TOKENS},{HEADS * WIDTH}] q0, float[B,{KEYS},{HEADS * WIDTH}] k0, float[B,{KEYS},{HEADS * OUT}] v0"
    )
    used = {name: value for name, value in {**SHAPES, **more}.items() if name in body}
    model = graph(inputs, outputs, body, **used)
    model.graph.opset_imports[""] = opset
    model.ir_version = 11
    return model


def only(model: ir.Model, op_type: str) -> ir.Node:
    (found,) = (node for node in model.graph if node.op_type == op_type)
    return found


def test_attention_is_one_node_without_transposes() -> None:
    done = apply_and_compare(attention(), fuse_attention)
    assert done.count == 1
    assert done.ops == {"Attention": 1, "Reshape": 1, "Relu": 1}
    node = only(done.model, "Attention")
    assert [value.name for value in node.inputs] == ["q0", "k0", "v0", "mask/4d"]
    assert node.attributes["q_num_heads"].as_int() == node.attributes["kv_num_heads"].as_int() == HEADS


@pytest.mark.parametrize("shape", [(TOKENS, KEYS), (1, TOKENS, KEYS), (1, HEADS, TOKENS, KEYS), (1, 1, TOKENS, KEYS)])
def test_mask_of_any_rank_is_kept(shape: tuple[int, ...]) -> None:
    assert apply_and_compare(attention(mask=weights(*shape)), fuse_attention).count == 1


def test_attention_without_mask_is_fused() -> None:
    done = apply_and_compare(attention(BODY.replace("m = Add(s, mask)", "").replace("(m)", "(s)")), fuse_attention)
    assert done.count == 1
    assert only(done.model, "Attention").inputs[3:] in ((), (None,))


def test_readers_of_separate_heads_get_them_back() -> None:
    outputs = f"{Y}, float[B,{TOKENS},{HEADS},{OUT}] o1"
    done = apply_and_compare(attention(outputs=outputs), fuse_attention)
    assert done.count == 1
    assert done.ops["Reshape"] == 2


def test_inputs_that_are_not_joined_are_reshaped() -> None:
    body = BODY.replace("q1 = Reshape(q0, qs)", "q2 = Reshape(q0, qs)\n q1 = Relu(q2)")
    done = apply_and_compare(attention(body), fuse_attention)
    assert done.count == 1
    assert done.ops["Reshape"] == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("axis = -1", "axis = 2", id="Softmax is over queries"),
        pytest.param("o = MatMul(a, v)", "r = Relu(a)\n o = MatMul(r, v)", id="something stands in between"),
        pytest.param("m = Add(s, mask)", "t = Relu(s)\n m = Add(s, t)", id="the mask is computed"),
        pytest.param("mask", "column", id="the mask is smaller than the scores"),
        pytest.param(
            "o1 = Transpose <perm = [0, 2, 1, 3]> (o)\n    o2 = Reshape(o1, flat)",
            "o2 = Reshape(o, flat)",
            id="heads are not joined",
        ),
    ],
)
def test_graph_stays_when(old: str, new: str) -> None:
    body = BODY.replace(old, new)
    assert body != BODY
    assert_untouched(attention(body, column=weights(HEADS, 1, KEYS)), fuse_attention)


@pytest.mark.parametrize("value", ["s", "m", "a"])
def test_graph_stays_when_scores_are_read_elsewhere(value: str) -> None:
    outputs = f"{Y}, float[B,{HEADS},{TOKENS},{KEYS}] {value}"
    assert_untouched(attention(outputs=outputs), fuse_attention)


def test_graph_stays_when_the_opset_has_no_attention() -> None:
    assert_untouched(attention(opset=22), fuse_attention)


def test_graph_stays_when_scores_are_quantised() -> None:
    body = BODY.replace(
        "o = MatMul(a, v)", "aq = QuantizeLinear(a, u, z)\n ad = DequantizeLinear(aq, u, z)\n o = MatMul(ad, v)"
    )
    constants = {"u": np.array(1 / 255), "z": np.array(0, np.uint8)}
    assert_untouched(attention(body, **constants), fuse_attention)

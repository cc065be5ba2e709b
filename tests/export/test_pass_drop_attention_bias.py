"""drop_attention_bias: key biases go, value biases move into the projection, where attention's algebra allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import drop_attention_bias

TOKENS, HEADS, WIDTH = 5, 2, 3
DIM = HEADS * WIDTH

LINEARS = """
    qm = MatMul(x, wq)
    qb = Add(qm, bq)
    km = MatMul(x, wk)
    kb = Add(km, bk)
    vm = MatMul(x, wv)
    vb = Add(bv, vm)
"""
HEADED = """
    q1 = Reshape(qb, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k1 = Reshape(kb, heads)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v1 = Reshape(vb, heads)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
ATTEND = "s = MatMul(q, k); a = Softmax <axis = -1> (s); o = MatMul(a, v)"
MERGE = "o1 = Transpose <perm = [0, 2, 1, 3]> (o); o2 = Reshape(o1, merged)"
PROJECT = "pm = MatMul(o2, wp); y = Add(pm, bp)"
WHOLE = [LINEARS, HEADED, ATTEND, MERGE, PROJECT]


def constants(**more: np.ndarray) -> dict[str, np.ndarray]:
    linears = {f"w{n}": weights(DIM, DIM, seed=i) for i, n in enumerate("qkvp")}
    biases = {f"b{n}": weights(DIM, seed=i) for i, n in enumerate("qkvp")}
    shapes = {"heads": np.array([-1, TOKENS, HEADS, WIDTH]), "merged": np.array([-1, TOKENS, DIM])}
    return {**linears, **biases, **shapes, **more}


def attention(body: list[str], outputs: str = f"float[B,{TOKENS},{DIM}] y", **more: np.ndarray) -> ir.Model:
    text = "\n".join(body)
    used = {
        k: v
        for k, v in constants(**more).items()
        if k in text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    return graph(f"float[B,{TOKENS},{DIM}] x", outputs, text, **used)


def edited(old: str, new: str, **more: Any) -> ir.Model:
    body = "\n".join(WHOLE)
    assert old in body
    return attention([body.replace(old, new)], **more)


def test_both_biases_of_an_attention_go() -> None:
    result = apply_and_compare(attention(WHOLE), drop_attention_bias)
    assert result.count == 2
    assert result.ops["Add"] == 2, "the query's, and the projection's"


def test_value_bias_becomes_the_projections_when_that_has_none() -> None:
    result = apply_and_compare(attention([*WHOLE[:-1], "y = MatMul(o2, wp)"]), drop_attention_bias)
    assert result.count == 2
    assert result.ops["Add"] == 2


def test_key_bias_goes_under_a_position_bias_and_a_factor() -> None:
    scores = "s0 = MatMul(q, k); s1 = Mul(s0, half); s2 = Add(table, s1); s = Div(s2, half)"
    table = weights(HEADS, TOKENS, TOKENS)
    model = edited("s = MatMul(q, k)", scores, table=table, half=np.array(0.5))
    assert apply_and_compare(model, drop_attention_bias).count == 2


def test_value_bias_moves_into_a_gemm() -> None:
    body = [*WHOLE[:-1], "o3 = Reshape(o2, flat); y = Gemm <transB = 1> (o3, wt, bp)"]
    flat, wt = np.array([-1, DIM]), weights(DIM, DIM, seed=9)
    result = apply_and_compare(attention(body, f"float[R,{DIM}] y", flat=flat, wt=wt), drop_attention_bias)
    assert result.count == 2


def test_values_of_one_head_without_any_layout_work() -> None:
    keys = "kt = Transpose <perm = [0, 2, 1]> (kb); s = MatMul(qb, kt)"
    rest = "a = Softmax(s); o2 = MatMul(a, vb)"
    result = apply_and_compare(attention([LINEARS, keys, rest, PROJECT]), drop_attention_bias)
    assert result.count == 2


def test_names_change_with_the_numbers() -> None:
    model = attention(WHOLE)
    apply_and_compare(model, drop_attention_bias)
    names = {out.name for node in model.graph for out in node.outputs}
    assert names >= {"a", "y", "q"}
    assert not names & {"s", "o", "o1", "o2", "v", "k"}, "these hold other numbers now"


# What must keep the key's bias; the value's may go.
KEPT_KEYS = {
    "a Softmax over the queries": edited("Softmax <axis = -1>", "Softmax <axis = 2>"),
    "a constant divided by the scores": edited(
        "s = MatMul(q, k)", "s0 = MatMul(q, k); s1 = Exp(s0); s = Div(one, s1)", one=np.array(1.0)
    ),
    "the quotient of a constant and the scores": edited(
        "s = MatMul(q, k)", "s0 = MatMul(q, k); s = Div(one, s0)", one=np.array(1.0)
    ),
    "a second user of the scores": attention(
        [*WHOLE, "z = ReduceMax <keepdims = 0> (s)"], f"float[B,{TOKENS},{DIM}] y, float z"
    ),
    "a second user of the keys": attention(
        [*WHOLE, "z = ReduceMax <keepdims = 0> (k)"], f"float[B,{TOKENS},{DIM}] y, float z"
    ),
    "a second user of the key's Linear": attention(
        [*WHOLE, "z = ReduceMax <keepdims = 0> (kb)"], f"float[B,{TOKENS},{DIM}] y, float z"
    ),
    "scores that are a graph output": attention(
        WHOLE, f"float[B,{TOKENS},{DIM}] y, float[B,{HEADS},{TOKENS},{TOKENS}] s"
    ),
    "a nonlinear step on the keys": edited(
        "k = Transpose <perm = [0, 2, 3, 1]> (k1)", "k2 = Relu(k1); k = Transpose <perm = [0, 2, 3, 1]> (k2)"
    ),
    "a factor per key": edited("s = MatMul(q, k)", "s0 = MatMul(q, k); s = Mul(s0, row)", row=weights(TOKENS)),
    "a learned mask that is computed": edited(
        "s = MatMul(q, k)", "s0 = MatMul(q, k); m = ReduceMean <keepdims = 0> (x); s = Mul(s0, m)"
    ),
}


@pytest.mark.parametrize("case", KEPT_KEYS)
def test_key_bias_stays_when_there_is(case: str) -> None:
    model = KEPT_KEYS[case]
    apply_and_compare(model, drop_attention_bias)
    assert "k/unbiased" not in str(model.graph)
    assert np.array_equal(bias_of(model, "kb"), constants()["bk"].astype(np.float32))


def bias_of(model: ir.Model, name: str) -> np.ndarray:
    node = next(node for node in model.graph if node.outputs[0].name == name)
    tensor = next(
        t for t in (ir.convenience.get_const_tensor(v) for v in node.inputs if v is not None) if t is not None
    )
    return tensor.numpy()


# What must keep the value's bias; the key's may go.
KEPT_VALUES = {
    "a Softmax over the queries": edited("Softmax <axis = -1>", "Softmax <axis = 2>"),
    "a second user of the values": attention(
        [*WHOLE, "z = ReduceMax <keepdims = 0> (v)"], f"float[B,{TOKENS},{DIM}] y, float z"
    ),
    "weights that are no longer a Softmax's": edited(
        "a = Softmax <axis = -1> (s)", "a0 = Softmax <axis = -1> (s); a = Relu(a0)"
    ),
    "weights that are a graph output": attention(
        WHOLE, f"float[B,{TOKENS},{DIM}] y, float[B,{HEADS},{TOKENS},{TOKENS}] a"
    ),
    "an output before the projection": attention(WHOLE, f"float[B,{TOKENS},{DIM}] y, float[B,{TOKENS},{DIM}] o2"),
    "a nonlinear step before the projection": attention(
        [*WHOLE[:-1], "o3 = Relu(o2); pm = MatMul(o3, wp); y = Add(pm, bp)"]
    ),
    "a projection that is computed": attention(
        [
            *WHOLE[:-1],
            "xt = Transpose <perm = [0, 2, 1]> (x); xx = MatMul(xt, x); wx = ReduceMean <keepdims = 0> (xx, first)",
            "pm = MatMul(o2, wx); y = Add(pm, bp)",
        ],
        first=np.array([0]),
    ),
    "a second user of the projection's product": attention(
        [*WHOLE, "z = ReduceMax <keepdims = 0> (pm)"], f"float[B,{TOKENS},{DIM}] y, float z"
    ),
}


@pytest.mark.parametrize("case", KEPT_VALUES)
def test_value_bias_stays_or_moves_correctly_when_there_is(case: str) -> None:
    apply_and_compare(KEPT_VALUES[case], drop_attention_bias)


def test_bias_along_the_softmax_axis_stays_when_channels_attend_to_channels() -> None:
    """DaViT's and XCiT's attention: the scores' last axis are channels, and each has a bias of its own."""
    layout = """
        q = Transpose <perm = [0, 2, 1]> (qb)
        s = MatMul(q, kb)
        a = Softmax(s)
        v = Transpose <perm = [0, 2, 1]> (vb)
        o = MatMul(a, v)
        o2 = Transpose <perm = [0, 2, 1]> (o)
    """
    assert_untouched(attention([LINEARS, layout, PROJECT]), drop_attention_bias)


def test_bias_along_the_softmax_axis_stays_when_classes_are_pooled() -> None:
    body = """
        xt = Transpose <perm = [0, 2, 1]> (x)
        p = MatMul(x, xt)
        km = MatMul(x, wk)
        kb = Add(km, bk)
        s = MatMul(p, kb)
        y = Softmax(s)
    """
    assert_untouched(attention([body]), drop_attention_bias)


@pytest.mark.parametrize("merge", ["[0, 2, 3, 1]", "[0, 2, 1, 3]"])
def test_value_bias_follows_the_channels_or_stays_when_heads_are_merged_in_another_order(merge: str) -> None:
    model = edited("o1 = Transpose <perm = [0, 2, 1, 3]> (o)", f"o1 = Transpose <perm = {merge}> (o)")
    result = apply_and_compare(model, drop_attention_bias)
    assert result.count == (2 if merge == "[0, 2, 1, 3]" else 1)


def test_value_bias_stays_when_tokens_and_channels_change_places() -> None:
    """As many tokens as channels, so that no size gives it away."""
    body = (
        "xt = Transpose <perm = [0, 2, 1]> (x); s = MatMul(x, xt); a = Softmax(s); vm = MatMul(x, wv); vb = Add(vm, bv)"
    )
    moved = "v = Transpose <perm = [0, 2, 1]> (vb); o2 = MatMul(a, v); pm = MatMul(o2, wp); y = Add(pm, bp)"
    used = {k: v for k, v in constants().items() if k in ("wv", "bv", "wp", "bp")}
    model = graph(f"float[B,{DIM},{DIM}] x", f"float[B,{DIM},{DIM}] y", f"{body}\n{moved}", **used)
    assert_untouched(model, drop_attention_bias)


def test_value_bias_stays_when_the_output_is_transposed_before_the_projection() -> None:
    body = (
        "xt = Transpose <perm = [0, 2, 1]> (x); s = MatMul(x, xt); a = Softmax(s); vm = MatMul(x, wv); vb = Add(vm, bv)"
    )
    moved = "o = MatMul(a, vb); o2 = Transpose <perm = [0, 2, 1]> (o); pm = MatMul(o2, wp); y = Add(pm, bp)"
    used = {k: v for k, v in constants().items() if k in ("wv", "bv", "wp", "bp")}
    model = graph(f"float[B,{DIM},{DIM}] x", f"float[B,{DIM},{DIM}] y", f"{body}\n{moved}", **used)
    assert_untouched(model, drop_attention_bias)


def test_nothing_happens_without_biases() -> None:
    bare = LINEARS.replace("qm =", "qb =").replace("km =", "kb =").replace("vm =", "vb =")
    lines = [line for line in bare.splitlines() if "Add" not in line]
    assert_untouched(attention(["\n".join(lines), *WHOLE[1:]]), drop_attention_bias)

"""fold_scale: constant factors go into the linear map before them, where they can."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import fold_scale

SCALAR = np.array(0.25)


@pytest.mark.parametrize("body", ["y = Mul(a, s)", "y = Mul(s, a)", "y = Div(a, s)"])
@pytest.mark.parametrize("factor", [SCALAR, np.array([0.25]), np.array([[[0.25]]])], ids=["0d", "1d", "3d"])
def test_scalar_goes_into_a_matmul(body: str, factor: np.ndarray) -> None:
    model = graph("float[B,4,8] x", "float[B,4,6] y", f"a = MatMul(x, w); {body}", w=weights(8, 6), s=factor)
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 1}


def test_scalar_goes_into_weight_and_bias() -> None:
    body = "m = MatMul(x, w); a = Add(b, m); y = Mul(a, s)"
    model = graph("float[B,4,8] x", "float[B,4,6] y", body, w=weights(8, 6), b=weights(6), s=SCALAR)
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("factor", [SCALAR, weights(6), weights(1, 6)], ids=["scalar", "vector", "row"])
def test_factor_goes_into_a_gemm_of_either_layout(trans: int, factor: np.ndarray) -> None:
    w = weights(6, 8) if trans else weights(8, 6)
    body = f"a = Gemm <transB = {trans}> (x, w, b); y = Mul(a, s)"
    model = graph("float[B,8] x", "float[B,6] y", body, w=w, b=weights(6), s=factor)
    assert apply_and_compare(model, fold_scale).ops == {"Gemm": 1}


def test_layer_scale_goes_into_a_linear_with_bias() -> None:
    body = "m = MatMul(x, w); a = Add(m, b); y = Mul(a, gamma)"
    model = graph("float[B,4,8] x", "float[B,4,6] y", body, w=weights(8, 6), b=weights(6), gamma=weights(6, seed=3))
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("factor", [SCALAR, weights(6, 1, 1), weights(1, 6, 1, 1)], ids=["scalar", "c11", "1c11"])
def test_factor_goes_into_a_padded_or_grouped_convolution(groups: int, factor: np.ndarray) -> None:
    body = f"a = Conv <pads = [1,1,1,1], group = {groups}> (x, w, b); y = Mul(a, s)"
    w = weights(6, 4 // groups, 3, 3)
    model = graph("float[B,4,5,5] x", "float[B,6,5,5] y", body, w=w, b=weights(6), s=factor)
    assert apply_and_compare(model, fold_scale).ops == {"Conv": 1}


def test_scalar_goes_through_a_layout_chain() -> None:
    body = """
        m = MatMul(x, w)
        r = Reshape(m, heads)
        t = Transpose <perm = [0, 2, 1, 3]> (r)
        y = Mul(t, s)
    """
    heads = np.array([-1, 4, 2, 3])
    model = graph("float[B,4,8] x", "float[B,2,4,3] y", body, w=weights(8, 6), heads=heads, s=SCALAR)
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 1, "Reshape": 1, "Transpose": 1}


def test_chain_of_factors_goes_whole() -> None:
    body = "m = MatMul(x, w); a = Mul(m, s); b = Mul(a, gamma); y = Div(b, s)"
    model = graph("float[B,4,8] x", "float[B,4,6] y", body, w=weights(8, 6), s=SCALAR, gamma=weights(6))
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 1}


def test_other_user_of_the_weight_keeps_it() -> None:
    body = "a = MatMul(x, w); y = Mul(a, s); z = MatMul(x, w)"
    model = graph("float[B,4,8] x", "float[B,4,6] y, float[B,4,6] z", body, w=weights(8, 6), s=SCALAR)
    assert apply_and_compare(model, fold_scale).ops == {"MatMul": 2}


def test_renamed_only_what_changed() -> None:
    body = "m = MatMul(x, w); r = Reshape(m, shape); y = Mul(r, s); z = Relu(y)"
    model = graph("float[B,4,8] x", "float[B,4,2,3] z", body, w=weights(8, 6), shape=np.array([-1, 4, 2, 3]), s=SCALAR)
    fold_scale(model)
    names = {out.name for node in model.graph for out in node.outputs}
    assert names >= {"y", "z"}
    assert not names & {"m", "r"}, "their numbers are others now"


UNTOUCHED = {
    "a second user of the product": graph(
        "float[B,4,8] x",
        "float[B,4,6] y, float[B,4,6] z",
        "a = MatMul(x, w); y = Mul(a, s); z = Relu(a)",
        w=weights(8, 6),
        s=SCALAR,
    ),
    "the product is a graph output": graph(
        "float[B,4,8] x", "float[B,4,6] y, float[B,4,6] a", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6), s=SCALAR
    ),
    "a graph output inside the layout chain": graph(
        "float[B,4,8] x",
        "float[B,24] y, float[B,24] r",
        "a = MatMul(x, w); r = Flatten(a); y = Mul(r, s)",
        w=weights(8, 6),
        s=SCALAR,
    ),
    "a weight that is computed": graph(
        "float[B,4,8] x, float[8,6] w", "float[B,4,6] y", "a = MatMul(x, w); y = Mul(a, s)", s=SCALAR
    ),
    "a factor that is computed": graph(
        "float[B,4,8] x, float[1] s", "float[B,4,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6)
    ),
    "a factor per token": graph(
        "float[B,4,8] x", "float[B,4,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6), s=weights(4, 1)
    ),
    "a factor per element": graph(
        "float[B,6,8] x", "float[B,6,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6), s=weights(6, 6)
    ),
    "a vector after the channels moved": graph(
        "float[B,6,8] x",
        "float[B,6,6] y",
        "a = MatMul(x, w); t = Transpose <perm = [0,2,1]> (a); y = Mul(t, s)",
        w=weights(8, 6),
        s=weights(6),
    ),
    "a vector along the width of a map": graph(
        "float[B,4,6,6] x", "float[B,6,6,6] y", "a = Conv(x, w); y = Mul(a, s)", w=weights(6, 4, 1, 1), s=weights(6)
    ),
    "a constant divided by the product": graph(
        "float[B,4,8] x",
        "float[B,4,6] y",
        "a = MatMul(x, w); r = Relu(a); e = Add(r, one); y = Div(s, e)",
        w=weights(8, 6),
        s=SCALAR,
        one=np.array(1.0),
    ),
    "the direct quotient of a constant": graph(
        "float[B,4,8] x",
        "float[B,4,6] z",
        "a = MatMul(x, w); y = Div(s, a); z = Tanh(y)",
        w=weights(8, 6),
        s=SCALAR,
    ),
    "a Gemm with alpha": graph(
        "float[B,8] x",
        "float[B,6] y",
        "a = Gemm <alpha = 2.0> (x, w, b); y = Mul(a, s)",
        w=weights(8, 6),
        b=weights(6),
        s=SCALAR,
    ),
    "a Gemm with transA": graph(
        "float[8,B] x", "float[B,6] y", "a = Gemm <transA = 1> (x, w); y = Mul(a, s)", w=weights(8, 6), s=SCALAR
    ),
    "a Gemm whose C is a matrix": graph(
        "float[3,8] x",
        "float[3,6] y",
        "a = Gemm (x, w, b); y = Mul(a, s)",
        w=weights(8, 6),
        b=weights(3, 6),
        s=SCALAR,
    ),
    "a constant of three dimensions": graph(
        "float[3,4,8] x", "float[3,4,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(3, 8, 6), s=SCALAR
    ),
    "a factor of more dimensions than the product": graph(
        "float[B,8] x", "float[1,B,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6), s=np.array([[[0.25]]])
    ),
    "a vector of more dimensions than the product": graph(
        "float[B,8] x", "float[1,B,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(8, 6), s=weights(1, 1, 6)
    ),
    "a factor per image of a one-dimensional convolution": graph(
        "float[6,4,5] x", "float[6,6,5] y", "a = Conv(x, w); y = Mul(a, s)", w=weights(6, 4, 1), s=weights(6, 1, 1)
    ),
    "a factor along the depth of a volume": graph(
        "float[B,4,6,5,5] x",
        "float[B,6,6,5,5] y",
        "a = Conv(x, w); y = Mul(a, s)",
        w=weights(6, 4, 1, 1, 1),
        s=weights(6, 1, 1),
    ),
    "integers": graph(
        "int64[B,4,8] x", "int64[B,4,6] y", "a = MatMul(x, w); y = Mul(a, s)", w=np.ones((8, 6), int), s=np.array(3)
    ),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    model = UNTOUCHED[case]
    if case == "integers":
        before = [node.op_type for node in model.graph]
        assert fold_scale(model) == 0
        assert [node.op_type for node in model.graph] == before
        return
    assert_untouched(model, fold_scale)


def test_weights_stay_unread_until_they_are_written() -> None:
    model = graph(
        "float[B,4,256] x", "float[B,4,256] y", "a = MatMul(x, w); y = Mul(a, s)", w=weights(256, 256), s=SCALAR
    )
    fold_scale(model)
    folded = next(v for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) == 2)
    assert isinstance(folded.const_value, ir.LazyTensor)

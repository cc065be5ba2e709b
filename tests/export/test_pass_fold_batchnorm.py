"""fold_batchnorm: a BatchNorm beside a linear map goes into it, where its channels are the map's."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import apply_and_compare, assert_untouched, batch_norm, graph, weights

from vitdeploy.export.passes import fold_batchnorm

MAP = "float[B,4,5,5] x"
TOKENS = "float[B,4,8] x"
BN = batch_norm(6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "attributes",
    ["pads = [1,1,1,1]", "pads = [1,1,1,1], group = 2", "strides = [2,2], pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"'],
)
def test_batch_norm_goes_into_the_convolution_before_it(attributes: str, bias: bool) -> None:
    side = 3 if "strides" in attributes else 5
    w = weights(6, 2 if "group" in attributes else 4, 3, 3)
    more = {"b": weights(6)} if bias else {}
    conv = f"c = Conv <{attributes}> (x, w{', b' if bias else ''})"
    body = f"{conv}; y = BatchNormalization <epsilon = 0.01> (c, g, o, m, v)"
    model = graph(MAP, f"float[B,6,{side},{side}] y", body, w=w, **more, **BN)
    assert apply_and_compare(model, fold_batchnorm).ops == {"Conv": 1}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 1])
def test_batch_norm_goes_into_the_convolution_behind_it(padding: int, group: int, bias: bool) -> None:
    """Where that sees zeros beyond the border, which BatchNorm would have left alone, an Add remains."""
    attributes = f"group = {group}, pads = [{padding},{padding},{padding},{padding}]"
    body = f"n = BatchNormalization(x, g, o, m, v); y = Conv <{attributes}> (n, w{', b' if bias else ''})"
    side = 3 + 2 * padding
    more = {"b": weights(8)} if bias else {}
    model = graph(MAP, f"float[B,8,{side},{side}] y", body, w=weights(8, 4 // group, 3, 3), **more, **batch_norm(4))
    assert apply_and_compare(model, fold_batchnorm).ops == ({"Add": 1, "Conv": 1} if padding else {"Conv": 1})


def test_batch_norm_stays_before_a_convolution_that_is_not_its_only_reader() -> None:
    body = "n = BatchNormalization(x, g, o, m, v); c = Conv(n, w); y = Add(c, n)"
    assert_untouched(graph(MAP, "float[B,4,5,5] y", body, w=weights(4, 4, 1, 1), **batch_norm(4)), fold_batchnorm)


def test_default_epsilon_is_the_operators() -> None:
    tiny = {**BN, "v": np.full(6, 1e-5)}
    model = graph(
        MAP, "float[B,6,5,5] y", "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)", w=weights(6, 4, 1, 1), **tiny
    )
    assert apply_and_compare(model, fold_batchnorm).ops == {"Conv": 1}


def test_batch_norm_goes_into_one_and_three_dimensional_convolutions() -> None:
    line = graph(
        "float[B,4,9] x",
        "float[B,6,9] y",
        "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)",
        w=weights(6, 4, 1),
        **BN,
    )
    assert apply_and_compare(line, fold_batchnorm).ops == {"Conv": 1}
    body = "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)"
    volume = graph("float[B,4,3,3,3] x", "float[B,6,3,3,3] y", body, w=weights(6, 4, 1, 1, 1), **BN)
    assert apply_and_compare(volume, fold_batchnorm).ops == {"Conv": 1}


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_norm_goes_into_the_gemm_before_it(trans: int) -> None:
    w = weights(6, 8) if trans else weights(8, 6)
    body = f"c = Gemm <transB = {trans}> (x, w, b); y = BatchNormalization(c, g, o, m, v)"
    model = graph("float[B,8] x", "float[B,6] y", body, w=w, b=weights(6), **BN)
    assert apply_and_compare(model, fold_batchnorm).ops == {"Gemm": 1}


def test_batch_norm_of_flattened_tokens_goes_into_the_matmul_before_it() -> None:
    """How a LeViT Linear and its BatchNorm1d are traced."""
    body = "a = MatMul(x, w); f = Reshape(a, flat); n = BatchNormalization(f, g, o, m, v); y = Reshape(n, back)"
    shapes = {"flat": np.array([-1, 6]), "back": np.array([-1, 4, 6])}
    model = graph(TOKENS, "float[B,4,6] y", body, w=weights(8, 6), **shapes, **BN)
    assert apply_and_compare(model, fold_batchnorm).ops == {"MatMul": 1, "Add": 1, "Reshape": 2}


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_norm_goes_into_the_gemm_behind_it(trans: int) -> None:
    w = weights(3, 6) if trans else weights(6, 3)
    body = f"n = BatchNormalization(x, g, o, m, v); y = Gemm <transB = {trans}> (n, w, b)"
    model = graph("float[B,6] x", "float[B,3] y", body, w=w, b=weights(3), **BN)
    assert apply_and_compare(model, fold_batchnorm).ops == {"Gemm": 1}


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_goes_into_the_matmul_behind_it(bias: bool) -> None:
    body = "n = BatchNormalization(x, g, o, m, v); a = MatMul(n, w); y = Add(a, b)"
    body = body if bias else body.replace("a = MatMul", "y = MatMul").replace("; y = Add(a, b)", "")
    model = graph("float[B,6] x", "float[B,3] y", body, w=weights(6, 3), **({"b": weights(3)} if bias else {}), **BN)
    assert apply_and_compare(model, fold_batchnorm).ops == {"MatMul": 1, "Add": 1}


def test_two_batch_norms_in_a_row_both_go() -> None:
    second = {f"{k}2": v for k, v in batch_norm(6, seed=5).items()}
    body = "c = Conv(x, w); n = BatchNormalization(c, g, o, m, v); y = BatchNormalization(n, g2, o2, m2, v2)"
    model = graph(MAP, "float[B,6,5,5] y", body, w=weights(6, 4, 1, 1), **BN, **second)
    assert apply_and_compare(model, fold_batchnorm).ops == {"Conv": 1}


def test_two_heads_behind_one_batch_normed_vector_each_get_their_own() -> None:
    second = {f"{k}2": v for k, v in batch_norm(6, seed=5).items()}
    body = """
        n = BatchNormalization(x, g, o, m, v)
        y = Gemm(n, w, b)
        n2 = BatchNormalization(x, g2, o2, m2, v2)
        z = Gemm(n2, w, b)
    """
    model = graph("float[B,6] x", "float[B,3] y, float[B,3] z", body, w=weights(6, 3), b=weights(3), **BN, **second)
    assert apply_and_compare(model, fold_batchnorm).ops == {"Gemm": 2}


UNTOUCHED = {
    "a second user of the convolution": graph(
        MAP,
        "float[B,6,5,5] y, float[B,6,5,5] z",
        "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v); z = Relu(c)",
        w=weights(6, 4, 1, 1),
        **BN,
    ),
    "a convolution that is a graph output": graph(
        MAP,
        "float[B,6,5,5] y, float[B,6,5,5] c",
        "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)",
        w=weights(6, 4, 1, 1),
        **BN,
    ),
    "an activation in between": graph(
        MAP,
        "float[B,6,5,5] y",
        "c = Conv(x, w); r = Relu(c); y = BatchNormalization(r, g, o, m, v)",
        w=weights(6, 4, 1, 1),
        **BN,
    ),
    "a weight that is computed": graph(
        f"{MAP}, float[6,4,1,1] w", "float[B,6,5,5] y", "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)", **BN
    ),
    "a gain that is computed": graph(
        f"{MAP}, float[6] g",
        "float[B,6,5,5] y",
        "c = Conv(x, w); y = BatchNormalization(c, g, o, m, v)",
        w=weights(6, 4, 1, 1),
        **{k: v for k, v in BN.items() if k != "g"},
    ),
    "a BatchNorm over tokens": graph(
        "float[B,6,8] x",
        "float[B,6,6] y",
        "a = MatMul(x, w); y = BatchNormalization(a, g, o, m, v)",
        w=weights(8, 6),
        **BN,
    ),
    "a transposed map": graph(
        "float[B,4,6,6] x",
        "float[B,6,6,6] y",
        "c = Conv(x, w); t = Transpose <perm = [0,2,1,3]> (c); y = BatchNormalization(t, g, o, m, v)",
        w=weights(6, 4, 1, 1),
        **BN,
    ),
    "a transposed product": graph(
        "float[6,8] x",
        "float[6,6] y",
        "a = MatMul(x, w); t = Transpose <perm = [1,0]> (a); y = BatchNormalization(t, g, o, m, v)",
        w=weights(8, 6),
        **BN,
    ),
    "channels that a reshape cut up": graph(
        "float[B,8] x",
        "float[B,6,2] y",
        "a = MatMul(x, w); h = Reshape(a, heads); y = BatchNormalization(h, g, o, m, v)",
        w=weights(8, 12),
        heads=np.array([-1, 6, 2]),
        **BN,
    ),
    "channels that a reshape moved to rows": graph(
        "float[6,8] x",
        "float[12,6] y",
        "a = MatMul(x, w); h = Reshape(a, rows); y = BatchNormalization(h, g, o, m, v)",
        w=weights(8, 12),
        rows=np.array([-1, 6]),
        **BN,
    ),
    "a Gemm that reads it as its C": graph(
        "float[3,6] x, float[3,8] z",
        "float[3,6] y",
        "n = BatchNormalization(x, g, o, m, v); y = Gemm(z, w, n)",
        w=weights(8, 6),
        **BN,
    ),
    "a Gemm with alpha behind it": graph(
        "float[B,6] x",
        "float[B,3] y",
        "n = BatchNormalization(x, g, o, m, v); y = Gemm <alpha = 2.0> (n, w, b)",
        w=weights(6, 3),
        b=weights(3),
        **BN,
    ),
    "a transposed Gemm behind it": graph(
        "float[6,6] x",
        "float[6,3] y",
        "n = BatchNormalization(x, g, o, m, v); y = Gemm <transA = 1> (n, w)",
        w=weights(6, 3),
        **BN,
    ),
    "two readers behind it": graph(
        "float[B,6] x",
        "float[B,3] y, float[B,3] z",
        "n = BatchNormalization(x, g, o, m, v); y = MatMul(n, w); z = MatMul(n, u)",
        w=weights(6, 3),
        u=weights(6, 3, seed=1),
        **BN,
    ),
    "the right operand of a product": graph(
        "float[6,6] x, float[2,6] z",
        "float[2,6] y",
        "n = BatchNormalization(x, g, o, m, v); y = MatMul(z, n)",
        **BN,
    ),
    "a map in front of a product": graph(
        "float[B,6,3,3] x",
        "float[B,6,3,2] y",
        "n = BatchNormalization(x, g, o, m, v); y = MatMul(n, w)",
        w=weights(3, 2),
        **BN,
    ),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    assert_untouched(UNTOUCHED[case], fold_batchnorm)


def test_batch_norm_on_its_own_statistics_stays() -> None:
    """training_mode measures the batch itself: BatchNorm2d(track_running_stats=False)."""
    body = "c = Conv(x, w); y, m1, v1 = BatchNormalization <training_mode = 1> (c, g, o, m, v)"
    model = graph(MAP, "float[B,6,5,5] y", body, w=weights(6, 4, 1, 1), **BN)
    result = apply_and_compare(model, fold_batchnorm)
    assert result.count == 0

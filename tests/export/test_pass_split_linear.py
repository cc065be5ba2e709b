"""split_linear: a Split of a linear map's channels becomes one linear map a piece."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import split_linear

X = "float[B,4,8] x"
W, B = weights(8, 6), weights(6)
PIECES = "float[B,4,2] q, float[B,4,2] k, float[B,4,2] v"


@pytest.mark.parametrize(
    "split", ["q, k, v = Split <axis = -1> (a, sizes)", "q, k, v = Split <axis = 2, num_outputs = 3> (a)"]
)
def test_split_goes_into_weight_and_bias(split: str) -> None:
    sizes = {"sizes": np.array([2, 2, 2])} if "sizes" in split else {}
    model = graph(X, PIECES, f"m = MatMul(x, w); a = Add(m, b); {split}", w=W, b=B, **sizes)
    assert apply_and_compare(model, split_linear).ops == {"MatMul": 3, "Add": 3}


def test_pieces_of_unequal_size_keep_their_channels() -> None:
    model = graph(
        X,
        "float[B,4,1] q, float[B,4,3] k, float[B,4,2] v",
        "a = MatMul(x, w); q, k, v = Split <axis = -1> (a, sizes)",
        w=W,
        sizes=np.array([1, 3, 2]),
    )
    assert apply_and_compare(model, split_linear).ops == {"MatMul": 3}


def test_last_piece_is_smaller_when_the_pieces_do_not_divide() -> None:
    model = graph(
        "float[B,4,8] x",
        "float[B,4,3] q, float[B,4,3] k, float[B,4,1] v",
        "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a)",
        w=weights(8, 7),
    )
    assert apply_and_compare(model, split_linear).ops == {"MatMul": 3}


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_of_either_layout_is_split(trans: int) -> None:
    w = weights(6, 8) if trans else W
    body = f"a = Gemm <transB = {trans}> (x, w, b); q, v = Split <axis = 1, num_outputs = 2> (a)"
    model = graph("float[B,8] x", "float[B,3] q, float[B,3] v", body, w=w, b=B.reshape(1, 6))
    assert apply_and_compare(model, split_linear).ops == {"Gemm": 2}


@pytest.mark.parametrize(("heads", "width"), [(2, 6), (3, 4), (1, 12)])
def test_split_inside_each_head_takes_interleaved_channels(heads: int, width: int) -> None:
    """LeViT's layout: (q | k | v) of one head, then of the next."""
    size = width - 2
    body = "m = MatMul(x, w); a = Add(m, b); h = Reshape(a, heads); q, v = Split <axis = -1> (h, sizes)"
    model = graph(
        X,
        f"float[B,4,{heads},2] q, float[B,4,{heads},{size}] v",
        body,
        w=weights(8, 12),
        b=weights(12),
        heads=np.array([0, 0, heads, width]),
        sizes=np.array([2, size]),
    )
    result = apply_and_compare(model, split_linear)
    assert result.ops == {"MatMul": 2, "Add": 2, "Reshape": 2}


def test_piece_that_nobody_reads_is_not_computed() -> None:
    model = graph(
        X, "float[B,4,2] y", "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a); y = Relu(k)", w=W
    )
    assert apply_and_compare(model, split_linear).ops == {"MatMul": 1, "Relu": 1}


def test_weight_keeps_its_name_in_the_pieces() -> None:
    model = graph(X, PIECES, "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a)", w=W)
    split_linear(model)
    assert set(model.graph.initializers) == {"w.q.weight", "w.k.weight", "w.v.weight"}


UNTOUCHED = {
    "a second user of the product": graph(
        X,
        f"{PIECES}, float[B,4,6] z",
        "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a); z = Relu(a)",
        w=W,
    ),
    "a product that is a graph output": graph(
        X, f"{PIECES}, float[B,4,6] a", "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a)", w=W
    ),
    "a second user of the product before the heads": graph(
        X,
        "float[B,4,2,1] q, float[B,4,2,2] v, float[B,4,6] z",
        "a = MatMul(x, w); h = Reshape(a, heads); q, v = Split <axis = -1> (h, sizes); z = Relu(a)",
        w=W,
        heads=np.array([0, 0, 2, 3]),
        sizes=np.array([1, 2]),
    ),
    "a weight that is computed": graph(
        f"{X}, float[8,6] w", PIECES, "a = MatMul(x, w); q, k, v = Split <axis = -1, num_outputs = 3> (a)"
    ),
    "a constant of three dimensions": graph(
        "float[3,4,8] x",
        "float[3,4,3] q, float[3,4,3] v",
        "a = MatMul(x, w); q, v = Split <axis = -1, num_outputs = 2> (a)",
        w=weights(3, 8, 6),
    ),
    "a split of tokens": graph(
        X, "float[B,2,6] q, float[B,2,6] v", "a = MatMul(x, w); q, v = Split <axis = 1, num_outputs = 2> (a)", w=W
    ),
    "a split of heads": graph(
        X,
        "float[B,4,1,3] q, float[B,4,1,3] v",
        "a = MatMul(x, w); h = Reshape(a, heads); q, v = Split <axis = 2, num_outputs = 2> (h)",
        w=W,
        heads=np.array([0, 0, 2, 3]),
    ),
    "a reshape that mixes tokens and channels": graph(
        X,
        "float[B,6,2] q, float[B,6,2] v",
        "a = MatMul(x, w); h = Reshape(a, mixed); q, v = Split <axis = -1, num_outputs = 2> (h)",
        w=W,
        mixed=np.array([0, 6, 4]),
    ),
    "a reshape that keeps the rank": graph(
        X,
        "float[B,8,1] q, float[B,8,2] v",
        "a = MatMul(x, w); h = Reshape(a, mixed); q, v = Split <axis = -1> (h, sizes)",
        w=W,
        mixed=np.array([0, 8, 3]),
        sizes=np.array([1, 2]),
    ),
    "a convolution": graph(
        "float[B,4,5,6] x",
        "float[B,6,5,3] q, float[B,6,5,3] v",
        "a = Conv(x, w); q, v = Split <axis = 3, num_outputs = 2> (a)",
        w=weights(6, 4, 1, 1),
    ),
    "a Gemm with alpha": graph(
        "float[B,8] x",
        "float[B,3] q, float[B,3] v",
        "a = Gemm <alpha = 0.5> (x, w, b); q, v = Split <axis = 1, num_outputs = 2> (a)",
        w=W,
        b=B,
    ),
    "a bias for each token": graph(
        X,
        "float[B,4,3] q, float[B,4,3] v",
        "m = MatMul(x, w); a = Add(m, b); q, v = Split <axis = -1, num_outputs = 2> (a)",
        w=W,
        b=weights(4, 6),
    ),
    "an activation in between": graph(
        X,
        "float[B,4,3] q, float[B,4,3] v",
        "m = MatMul(x, w); a = Relu(m); q, v = Split <axis = -1, num_outputs = 2> (a)",
        w=W,
    ),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    assert_untouched(UNTOUCHED[case], split_linear)


def test_graph_stays_valid_with_two_dynamic_dimensions() -> None:
    body = "a = MatMul(x, w); h = Reshape(a, heads); q, v = Split <axis = -1> (h, sizes)"
    model = graph(
        "float[B,M,8] x",
        "float[B,M,2,1] q, float[B,M,2,2] v",
        body,
        w=W,
        heads=np.array([0, 0, 2, 3]),
        sizes=np.array([1, 2]),
    )
    apply_and_compare(model, split_linear)


def test_bias_that_adds_a_dimension_is_left_alone() -> None:
    body = "m = MatMul(x, w); a = Add(m, b); q, v = Split <axis = -1, num_outputs = 2> (a)"
    model = graph("float[B,8] x", "float[1,B,3] q, float[1,B,3] v", body, w=W, b=B.reshape(1, 1, 6))
    apply_and_compare(model, split_linear)

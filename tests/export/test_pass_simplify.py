"""simplify: shape arithmetic and dead code go; and the passes together come to rest."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import apply_and_compare, batch_norm, graph, weights

from vitdeploy.export.passes import PASSES, optimise, simplify
from vitdeploy.graph.ops import op_counts

RESHAPE = """
    s = Shape(x)
    b = Gather <axis = 0> (s, zero)
    u = Unsqueeze(b, axis)
    t = Concat <axis = 0> (u, rest)
    y = Reshape(x, t)
"""


def test_shape_arithmetic_goes_when_the_shape_is_static() -> None:
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([12])}
    model = graph("float[2,3,4] x", "float[2,12] y", RESHAPE, **constants)
    assert apply_and_compare(model, simplify).ops == {"Reshape": 1}


def test_shape_chain_goes_when_only_the_batch_is_dynamic() -> None:
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([12])}
    model = graph("float[B,3,4] x", "float[B,12] y", RESHAPE, **constants)
    optimise(model)
    assert op_counts(model) == {"Reshape": 1}


def test_dead_code_and_nested_constants_go() -> None:
    body = "k = Add(a, c); d = Mul(x, a); unused = Exp(d); y = Add(x, k)"
    model = graph("float[B,4] x", "float[B,4] y", body, a=weights(4), c=weights(4, seed=1))
    assert apply_and_compare(model, simplify).ops == {"Add": 1}


@pytest.mark.parametrize("name", sorted({apply.__name__ for apply in PASSES}))
def test_every_pass_leaves_an_empty_graph_alone(name: str) -> None:
    model = graph("float[B,4] x", "float[B,4] y", "y = Identity(x)")
    next(apply for apply in PASSES if apply.__name__ == name)(model)
    assert set(op_counts(model)) <= {"Identity"}
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_passes_find_nothing_more_in_an_optimised_graph() -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, k)
        n = BatchNormalization(c, g, o, m, v)
        f = Reshape(n, flat)
        t = Transpose <perm = [0, 2, 1]> (f)
        q = MatMul(t, w)
        r = Add(q, b)
        e = Mul(r, half)
        y = MatMul(e, w2)
    """
    constants = {"k": weights(4, 3, 3, 3), **batch_norm(4), "flat": np.array([0, 4, 25]), "w": weights(4, 6)}
    constants |= {"b": weights(6), "half": np.array(0.5), "w2": weights(6, 2)}
    model = graph("float[2,3,5,5] x", "float[2,25,2] y", body, **constants)
    optimise(model)
    before = op_counts(model)
    assert not {"BatchNormalization", "Mul"} & set(before)
    assert all(result.rewrites == 0 for result in optimise(model) if result.name != "simplify")
    assert op_counts(model) == before

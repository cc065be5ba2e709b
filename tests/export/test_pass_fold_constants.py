"""fold_constants and simplify: what depends on no input is computed once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import fold_constants, simplify

X = "float[B,4,8] x"


@pytest.mark.parametrize("apply", [fold_constants, simplify])
def test_transposed_weight_is_computed(apply) -> None:  # type: ignore[no-untyped-def]
    model = graph(X, "float[B,4,6] y", "t = Transpose <perm = [1,0]> (w); y = MatMul(x, t)", w=weights(6, 8))
    assert apply_and_compare(model, apply).ops == {"MatMul": 1}


def test_transposed_weight_stays_a_recipe_and_keeps_the_weights_name() -> None:
    model = graph("float[B,256] x", "float[B,256] y", "t = Transpose(w); y = MatMul(x, t)", w=weights(256, 256))
    assert apply_and_compare(model, fold_constants).count == 1
    assert set(model.graph.initializers) == {"w.T"}
    assert isinstance(model.graph.initializers["w.T"].const_value, ir.LazyTensor)


def test_whole_chain_of_constants_goes() -> None:
    body = """
        i = Range(zero, four, one)
        r = Unsqueeze(i, axes)
        d = Sub(i, r)
        a = Abs(d)
        table = Gather <axis = 0> (biases, a)
        y = Add(x, table)
    """
    scalars = {"zero": np.array(0), "four": np.array(4), "one": np.array(1), "axes": np.array([1])}
    model = graph("float[B,4,4] x", "float[B,4,4] y", body, biases=weights(4), **scalars)
    result = apply_and_compare(model, fold_constants)
    assert result.ops == {"Add": 1}
    assert result.count == 5


def test_node_of_many_outputs_is_folded_whole() -> None:
    body = "a, b = Split <axis = 0, num_outputs = 2> (w); c = Add(x, a); y = Mul(c, b)"
    model = graph("float[B,3,8] x", "float[B,3,8] y", body, w=weights(6, 8))
    assert apply_and_compare(model, fold_constants).ops == {"Add": 1, "Mul": 1}


def test_scalar_stays_a_scalar() -> None:
    model = graph(X, "float[B,4,8] y", "s = Sqrt(c); y = Mul(x, s)", c=np.array(4.0))
    apply_and_compare(model, fold_constants)
    (scalar,) = model.graph.initializers.values()
    assert scalar.const_value is not None
    assert list(scalar.const_value.shape) == []


def test_integer_type_is_kept() -> None:
    body = "s = Concat <axis = 0> (a, b); y = Reshape(x, s)"
    model = graph(X, "float[B,8,4] y", body, a=np.array([-1]), b=np.array([8, 4]))
    apply_and_compare(model, fold_constants)
    (target,) = model.graph.initializers.values()
    assert target.dtype == ir.DataType.INT64


def test_constant_that_is_a_graph_output_stays_a_node() -> None:
    model = graph(X, "float[B,4,8] y, float[8,6] t", "y = Relu(x); t = Transpose <perm = [1,0]> (w)", w=weights(6, 8))
    assert_untouched(model, fold_constants)


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormalLike <seed = 1.0> (w); z = Mul(r, zero); y = Add(x, z)",
        "p = Sigmoid(x); r = Bernoulli <seed = 1.0> (w); z = Mul(r, zero); y = Add(p, z)",
        "r = RandomUniform <shape = [8], seed = 1.0> (); z = Mul(r, zero); y = Add(x, z)",
    ],
)
def test_random_numbers_stay_random(body: str) -> None:
    constants = {"w": np.full(8, 0.5)} if "w)" in body else {}
    model = graph(X, "float[B,4,8] y", body, zero=np.array(0.0), **constants)
    assert_untouched(model, fold_constants)


def test_branches_stay() -> None:
    body = """
        y = If (c) <
            then_branch = then_graph () => (float[8] a) { a = Identity(w) },
            else_branch = else_graph () => (float[8] b) { b = Neg(w) }
        >
        z = Add(x, y)
    """
    model = graph(X, "float[B,4,8] z", body.replace("\n", " ").replace("> z", ">\nz"), c=np.array(True), w=weights(8))
    assert_untouched(model, fold_constants)


def test_node_that_cannot_be_computed_here_stays() -> None:
    """An operator that the reference implementation lacks, or gets wrong, is the runtime's to run."""
    body = "s = Add(a, a); y = Foreign(x, s)"
    model = graph(X, "float[B,4,8] y", body.replace("Foreign", "Add"), a=weights(8))
    broken = ir.node("Scatterer", [model.graph.initializers["a"]], name="broken")
    broken.outputs[0].name = "broken"
    model.graph.insert_before(model.graph[0], broken)
    last = model.graph[-1]
    last.replace_input_with(0, broken.outputs[0])
    fold_constants(model)
    assert "Scatterer" in [node.op_type for node in model.graph]


def test_simplify_settles_shape_arithmetic_of_a_static_graph() -> None:
    body = """
        s = Shape(x)
        n = Gather <axis = 0> (s, zero)
        t = Concat <axis = 0> (n, rest)
        f = Reshape(x, t)
        y = Relu(f)
    """
    model = graph("float[2,4,8] x", "float[2,32] y", body, zero=np.array([0]), rest=np.array([32]))
    result = apply_and_compare(model, simplify)
    assert result.ops == {"Reshape": 1, "Relu": 1}
    assert result.count == 3


def test_simplify_counts_nothing_where_nothing_is_to_do() -> None:
    model = graph(X, "float[B,4,6] y", "m = MatMul(x, w); y = Relu(m)", w=weights(8, 6))
    assert apply_and_compare(model, simplify).count == 0

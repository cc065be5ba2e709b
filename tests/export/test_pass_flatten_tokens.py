"""flatten_tokens: biased Linears on tokens become one Gemm each, and what lies between them is flat too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import flatten_tokens

N, C = 4, 6
MAP = "float[B,6,2,2] x"
TOKENS = "r = Reshape(x, tokens); t = Transpose <perm = [0, 2, 1]> (r)"  # (B, N, C)
SHAPES = {"tokens": np.array([0, 6, 4])}
Y = f"float[B,{N},{C}] y"


def linear(name: str, x: str, out: str) -> tuple[str, dict[str, np.ndarray]]:
    """A MatMul and an Add, and their constants."""
    seed = sum(map(ord, name))
    constants = {f"w{name}": weights(C, C, seed=seed), f"b{name}": weights(C, seed=seed)}
    return f"m{name} = MatMul({x}, w{name}); {out} = Add(m{name}, b{name})", constants


A, A_C = linear("a", "t", "a")
B, B_C = linear("b", "g", "b")


def test_linear_becomes_a_gemm() -> None:
    model = graph(MAP, Y, f"{TOKENS}; {A}; y = Identity(a)", **SHAPES, **A_C)
    result = apply_and_compare(model, flatten_tokens)
    assert result.count == 1
    assert (result.ops["Gemm"], result.ops["MatMul"], result.ops["Add"]) == (1, 0, 0)


@pytest.mark.parametrize("order", ["Add(ma, ba)", "Add(ba, ma)"])
@pytest.mark.parametrize("bias", [(C,), (1, C), (1, 1, C)])
def test_bias_may_stand_on_either_side_and_have_any_leading_ones(order: str, bias: tuple[int, ...]) -> None:
    body = f"{TOKENS}; ma = MatMul(t, wa); a = {order}; y = Identity(a)"
    model = graph(MAP, Y, body, **SHAPES, wa=A_C["wa"], ba=weights(*bias))
    assert apply_and_compare(model, flatten_tokens).ops["Gemm"] == 1


def test_stretch_between_two_linears_is_flat() -> None:
    norm = "n = LayerNormalization <axis = 2> (t, s, o)"
    body = f"{TOKENS}; {norm}; {A.replace('(t,', '(n,')}; g = Gelu(a); {B}; y = Add(b, t)"
    model = graph(MAP, Y, body, s=weights(C, seed=1), o=weights(C, seed=2), **SHAPES, **A_C, **B_C)
    result = apply_and_compare(model, flatten_tokens)
    assert result.count == 2
    assert result.ops == {"Reshape": 3, "Transpose": 1, "LayerNormalization": 1, "Gemm": 2, "Gelu": 1, "Add": 1}


def test_heads_are_cut_from_the_flat_form() -> None:
    body = f"{TOKENS}; {A}; h = Reshape(a, heads); y = Transpose <perm = [0, 2, 1, 3]> (h)"
    model = graph(MAP, "float[B,2,4,3] y", body, heads=np.array([-1, 4, 2, 3]), **SHAPES, **A_C)
    result = apply_and_compare(model, flatten_tokens)
    assert result.ops == {"Reshape": 3, "Transpose": 2, "Gemm": 1}


def test_linear_without_bias_follows_a_flat_input() -> None:
    body = f"{TOKENS}; {A}; g = Relu(a); y = MatMul(g, wb)"
    model = graph(MAP, Y, body, **SHAPES, **A_C, wb=B_C["wb"])
    result = apply_and_compare(model, flatten_tokens)
    assert result.ops == {"Reshape": 3, "Transpose": 1, "Gemm": 1, "Relu": 1, "MatMul": 1}


@pytest.mark.parametrize(
    "step",
    [
        "g = Mul(a, v)",
        "g = Sub(v, a)",
        "g = Div(a, s)",
        "g = Add(s, a)",
        "g = Mul(a, row)",
        "g = Mul(a, a)",
        "g = Div(s, a)",
    ],
)
def test_constants_that_treat_tokens_alike_are_flat(step: str) -> None:
    constants = {"v": weights(C), "s": np.array([[2.0]]), "row": weights(1, 1, C)}
    used = {
        k: c for k, c in constants.items() if k in step.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    body = f"{TOKENS}; {A}; {step}; h = Tanh(g); {B.replace('(g,', '(h,')}; y = Relu(b)"
    result = apply_and_compare(graph(MAP, Y, body, **SHAPES, **A_C, **B_C, **used), flatten_tokens)
    assert result.ops["Gemm"] == 2
    assert result.ops["Reshape"] == 3


@pytest.mark.parametrize(
    ("step", "constants"),
    [
        ("g = Add(a, table)", {"table": weights(N, C)}),
        ("g = Mul(a, perToken)", {"perToken": weights(N, 1)}),
        ("g = Softmax <axis = 1> (a)", {}),
        ("g = LayerNormalization <axis = 1> (a, table)", {"table": weights(N, C)}),
        ("q = Transpose <perm = [0, 2, 1]> (a); s = MatMul(a, q); g = MatMul(s, a)", {}),
        ("q = ReduceMean <keepdims = 1> (a, one); g = Sub(a, q)", {"one": np.array([1])}),
        ("q = Gather <axis = 1> (a, first); g = Add(a, q)", {"first": np.array([0])}),
        ("g = Gather <axis = 1> (a, turned)", {"turned": np.array([3, 2, 1, 0])}),
        ("g = MatMul(mix, a)", {"mix": weights(N, N)}),
        ("g = CumSum(a, one)", {"one": np.array(1)}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_tells_tokens_apart_gets_its_shape_back(step: str, constants: dict[str, np.ndarray]) -> None:
    body = f"{TOKENS}; {A}; {step}; {B}; y = Relu(b)"
    result = apply_and_compare(graph(MAP, Y, body, **SHAPES, **A_C, **B_C, **constants), flatten_tokens)
    assert result.ops["Gemm"] == 2


def test_output_in_the_middle_keeps_name_and_shape() -> None:
    body = f"{TOKENS}; {A}; g = Gelu(a); {B}; y = Relu(b)"
    model = graph(MAP, f"{Y}, float[B,{N},{C}] a, float[B,{N},{C}] g", body, **SHAPES, **A_C, **B_C)
    assert apply_and_compare(model, flatten_tokens).count == 2


def test_map_of_four_dimensions_is_flattened_too() -> None:
    """A channels-last map is a map of tokens."""
    body = f"t = Transpose <perm = [0, 2, 3, 1]> (x); {A}; g = Gelu(a); {B}; y = Transpose <perm = [0, 3, 1, 2]> (b)"
    result = apply_and_compare(graph(MAP, "float[B,6,2,2] y", body, **A_C, **B_C), flatten_tokens)
    assert result.ops == {"Transpose": 2, "Reshape": 2, "Gemm": 2, "Gelu": 1}


def test_products_are_not_made_twice() -> None:
    """Attention of one head without a projection: its values are read by a MatMul whose sum is flat."""
    q, q_c = linear("q", "t", "q")
    v, v_c = linear("v", "t", "v")
    body = f"""
        {TOKENS}
        {q}
        {v}
        k = Transpose <perm = [0, 2, 1]> (t)
        s = MatMul(q, k)
        p = Softmax(s)
        o = MatMul(p, v)
        z = Add(o, t)
        {linear("b", "z", "y")[0]}
    """
    model = graph(MAP, Y, body, **SHAPES, **q_c, **v_c, **B_C)
    result = apply_and_compare(model, flatten_tokens)
    assert result.ops["Gemm"] == 3
    assert result.ops["MatMul"] == 2
    assert result.ops["Add"] == 1


def test_graph_input_of_tokens_is_flattened_before_its_first_reader() -> None:
    """A reader that becomes flat only for the sake of a later one stands before the first Linear."""
    p, p_c = linear("p", "x", "z")
    q, q_c = linear("q", "r", "y")
    model = graph(f"float[B,{N},{C}] x", f"{Y}, float[B,{N},{C}] z", f"r = Relu(x); {p}; {q}", **p_c, **q_c)
    assert apply_and_compare(model, flatten_tokens).count == 2


def test_value_read_before_the_linear_that_flattens_it_keeps_its_order() -> None:
    body = f"{TOKENS}; e = Erf(t); {A}; {linear('q', 'e', 'q')[0]}; y = Add(a, q)"
    model = graph(MAP, Y, body, **SHAPES, **A_C, **linear("q", "e", "q")[1])
    assert apply_and_compare(model, flatten_tokens).count == 2


UNTOUCHED = {
    "no bias": graph(MAP, Y, f"{TOKENS}; a = MatMul(t, wa); y = Relu(a)", **SHAPES, wa=A_C["wa"]),
    "a matrix": graph("float[B,6] t", "float[B,6] a", A, **A_C),
    "a weight that is computed": graph(
        f"{MAP}, float[6,6] w", Y, f"{TOKENS}; m = MatMul(t, w); y = Add(m, b)", **SHAPES, b=weights(C)
    ),
    "a constant of three dimensions": graph(
        "float[3,6,2,2] x",
        "float[3,4,6] y",
        f"{TOKENS}; m = MatMul(t, w); y = Add(m, b)",
        **SHAPES,
        w=weights(3, C, C),
        b=weights(C),
    ),
    "a bias for each token": graph(
        MAP, Y, f"{TOKENS}; m = MatMul(t, w); y = Add(m, b)", **SHAPES, w=weights(C, C), b=weights(N, C)
    ),
    "a second user of the product": graph(
        MAP,
        f"{Y}, float[B,{N},{C}] z",
        f"{TOKENS}; m = MatMul(t, w); y = Add(m, b); z = Relu(m)",
        **SHAPES,
        w=weights(C, C),
        b=weights(C),
    ),
    "two dynamic dimensions": graph("float[B,M,6] t", "float[B,M,6] a", A, **A_C),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    assert_untouched(UNTOUCHED[case], flatten_tokens)


def test_one_weight_may_serve_two_linears() -> None:
    body = f"{TOKENS}; {A}; g = Relu(a); mb = MatMul(g, wa); y = Add(mb, ba)"
    result = apply_and_compare(graph(MAP, Y, body, **SHAPES, **A_C), flatten_tokens)
    assert result.count == 2
    assert (
        sorted(result.model.graph.initializers) == ["ba", "g/flat/shape", "wa"] or len(weight_names(result.model)) == 2
    )


def weight_names(model: ir.Model) -> list[str]:
    return [name for name, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT]

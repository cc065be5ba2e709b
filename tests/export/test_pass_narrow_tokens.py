"""narrow_tokens: rows that nobody reads are not computed; every other row stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import narrow_tokens

N, C = 5, 6
W = {"w": weights(C, C), "b": weights(C)}
FIRST = {"zero": np.array(0)}
INPUT = f"float[B,{N},{C}] x"


def rows(model: ir.Model, op_type: str) -> list[object]:
    """Tokens that each node of a kind works on."""
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type == op_type]
    return [shape[1] for shape in shapes if shape is not None]


def test_one_row_is_computed_when_one_row_is_read() -> None:
    body = "m = MatMul(x, w); a = Add(m, b); g = Gelu(a); y = Gather <axis = 1> (g, zero)"
    result = apply_and_compare(graph(INPUT, f"float[B,{C}] y", body, **W, **FIRST), narrow_tokens)
    assert result.count == 3
    assert rows(result.model, "MatMul") == rows(result.model, "Gelu") == [1]
    assert result.ops["Slice"] == 1


@pytest.mark.parametrize(
    "select",
    [
        "y = Slice(g, zero1, two, one)",
        "y = Slice(g, zero1, two, one, one)",
        "y = Slice(g, zero1, two, minus2)",
        "y = Gather <axis = 1> (g, first_two)",
        "y = Gather <axis = -2> (g, swapped)",
    ],
)
def test_two_rows_are_computed_when_the_first_two_are_read(select: str) -> None:
    picks = {
        "zero1": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "minus2": np.array([-2]),
        "first_two": np.array([0, 1]),
        "swapped": np.array([1, 0]),
    }
    used = {k: v for k, v in picks.items() if k in select.replace(")", "").replace(",", "").replace("(", " ").split()}
    model = graph(INPUT, f"float[B,2,{C}] y", f"m = MatMul(x, w); g = Relu(m); {select}", w=W["w"], **used)
    result = apply_and_compare(model, narrow_tokens)
    assert rows(result.model, "MatMul") == [2]


def test_every_second_row_needs_the_rows_up_to_the_last() -> None:
    body = "m = MatMul(x, w); y = Slice(m, zero1, four, one, two)"
    picks = {"zero1": np.array([0]), "four": np.array([4]), "one": np.array([1]), "two": np.array([2])}
    result = apply_and_compare(graph(INPUT, f"float[B,2,{C}] y", body, w=W["w"], **picks), narrow_tokens)
    assert rows(result.model, "MatMul") == [4]


def test_queries_alone_are_narrowed_in_the_last_attention() -> None:
    body = """
        q = MatMul(x, w)
        kt = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul(q, kt)
        a = Softmax <axis = -1> (s)
        o = MatMul(a, x)
        r = Add(o, x)
        n = LayerNormalization <axis = -1> (r, gain, b)
        y = Gather <axis = 1> (n, zero)
    """
    model = graph(INPUT, f"float[B,{C}] y", body, gain=weights(C, seed=4), **W, **FIRST)
    result = apply_and_compare(model, narrow_tokens)
    assert rows(result.model, "MatMul") == [1, 1, 1]
    assert rows(result.model, "Transpose") == [C], "the keys stay whole"


def test_heads_and_layout_are_followed() -> None:
    body = """
        m = MatMul(x, w)
        h = Reshape(m, heads)
        t = Transpose <perm = [0, 2, 1, 3]> (h)
        r = Relu(t)
        u = Transpose <perm = [0, 2, 1, 3]> (r)
        v = Reshape(u, merged)
        y = Gather <axis = 1> (v, zero)
    """
    shapes = {"heads": np.array([0, 0, 2, 3]), "merged": np.array([0, 0, C])}
    model = graph(INPUT, f"float[B,{C}] y", body, w=W["w"], **shapes, **FIRST)
    result = apply_and_compare(model, narrow_tokens)
    assert rows(result.model, "MatMul") == [1]
    assert result.count == 6


def test_table_of_positions_is_cut_too() -> None:
    body = "m = MatMul(x, w); a = Add(m, table); y = Gather <axis = 1> (a, zero)"
    model = graph(INPUT, f"float[B,{C}] y", body, w=W["w"], table=weights(1, N, C), **FIRST)
    result = apply_and_compare(model, narrow_tokens)
    assert not any(t.shape == (1, N, C) for t in result.model.graph.initializers.values())


def test_readers_of_different_lengths_agree_with_the_longest() -> None:
    body = "m = MatMul(x, w); y = Gather <axis = 1> (m, zero); z = Gather <axis = 1> (m, first)"
    model = graph(INPUT, f"float[B,{C}] y, float[B,3,{C}] z", body, w=W["w"], first=np.array([0, 1, 2]), **FIRST)
    assert rows(apply_and_compare(model, narrow_tokens).model, "MatMul") == [3]


def test_branch_that_needs_fewer_rows_than_its_trunk_still_adds_up() -> None:
    body = """
        m = MatMul(x, w)
        r = Relu(m)
        p = Add(r, table)
        y = Gather <axis = 1> (p, two)
        z = Gather <axis = 1> (m, three)
    """
    picks = {"two": np.array([0, 1]), "three": np.array([0, 1, 2]), "table": weights(N, C)}
    model = graph(INPUT, f"float[B,2,{C}] y, float[B,3,{C}] z", body, w=W["w"], **picks)
    result = apply_and_compare(model, narrow_tokens)
    assert rows(result.model, "MatMul") == [3]


def test_branches_of_different_lengths_on_two_trunks_still_add_up() -> None:
    body = """
        m = MatMul(x, w)
        n = MatMul(x, u)
        s = Add(m, n)
        y = Gather <axis = 1> (s, two)
        z = Gather <axis = 1> (m, three)
        v = Gather <axis = 1> (n, four)
    """
    picks = {"two": np.array([0, 1]), "three": np.array([0, 1, 2]), "four": np.array([0, 1, 2, 3])}
    outputs = f"float[B,2,{C}] y, float[B,3,{C}] z, float[B,4,{C}] v"
    model = graph(INPUT, outputs, body, w=W["w"], u=weights(C, C, seed=2), **picks)
    apply_and_compare(model, narrow_tokens)


def test_reads_along_two_axes_of_one_tensor_stay_what_they_are() -> None:
    """Beside a model that is narrowed, so that the pass has reason to run."""
    narrow = "m = MatMul(x, w); y = Gather <axis = 1> (m, zero)"
    model = graph(
        f"{INPUT}, float[B,4,3,7] image",
        f"float[B,{C}] y, float[B,3,7] z, float[B,4,2,7] v",
        f"{narrow}; z = Gather <axis = 1> (image, zero); v = Gather <axis = 2> (image, two)",
        w=W["w"],
        two=np.array([0, 1]),
        **FIRST,
    )
    result = apply_and_compare(model, narrow_tokens)
    assert result.ops["Slice"] == 1, "nothing is cut in front of a Gather that reads an input"


def test_constant_that_is_read_along_two_axes_is_cut_along_each() -> None:
    body = """
        m = MatMul(x, w)
        a = Add(m, table)
        y = Gather <axis = 1> (a, zero)
        n = MatMul(x, u)
        c = Add(n, table)
        z = Gather <axis = 2> (c, two)
    """
    side = {"table": weights(4, 4, 3), "u": weights(6, 3, seed=2), "two": np.array([0, 1])}
    model = graph("float[B,4,4,6] x", "float[B,4,3] y, float[B,4,2,3] z", body, w=weights(6, 3), **side, **FIRST)
    apply_and_compare(model, narrow_tokens)


UNTOUCHED = {
    "a reader of all rows": graph(
        INPUT,
        f"float[B,{C}] y, float[B,{N},{C}] z",
        "m = MatMul(x, w); y = Gather <axis = 1> (m, zero); z = Relu(m)",
        w=W["w"],
        **FIRST,
    ),
    "a graph output": graph(
        INPUT,
        f"float[B,{C}] y, float[B,{N},{C}] m",
        "m = MatMul(x, w); y = Gather <axis = 1> (m, zero)",
        w=W["w"],
        **FIRST,
    ),
    "a read from the end": graph(
        INPUT, f"float[B,{C}] y", "m = MatMul(x, w); y = Gather <axis = 1> (m, last)", w=W["w"], last=np.array(-1)
    ),
    "a read of the last row": graph(
        INPUT, f"float[B,{C}] y", "m = MatMul(x, w); y = Gather <axis = 1> (m, last)", w=W["w"], last=np.array(N - 1)
    ),
    "a read of channels": graph(
        INPUT, f"float[B,{N}] y", "m = MatMul(x, w); y = Gather <axis = 2> (m, zero)", w=W["w"], **FIRST
    ),
    "a read of images": graph(
        INPUT, f"float[{N},{C}] y", "m = MatMul(x, w); y = Gather <axis = 0> (m, zero)", w=W["w"], **FIRST
    ),
    "an index that is computed": graph(
        f"{INPUT}, int64 i", f"float[B,{C}] y", "m = MatMul(x, w); y = Gather <axis = 1> (m, i)", w=W["w"]
    ),
    "tokens of unknown number": graph(
        f"float[B,M,{C}] x", f"float[B,{C}] y", "m = MatMul(x, w); y = Gather <axis = 1> (m, zero)", w=W["w"], **FIRST
    ),
    "an average over the rows": graph(
        INPUT,
        f"float[B,{C}] y",
        "m = MatMul(x, w); a = ReduceMean <keepdims = 1> (m, one); d = Add(a, x); y = Gather <axis = 1> (d, zero)",
        w=W["w"],
        one=np.array([1]),
        **FIRST,
    ),
    "two slices that meet in the middle": graph(
        INPUT,
        f"float[B,2,{C}] y, float[B,3,{C}] z",
        "m = MatMul(x, w); y = Slice(m, zero1, two, one); z = Slice(m, two, five, one)",
        w=W["w"],
        zero1=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        five=np.array([N]),
    ),
    "reads along two axes": graph(
        "float[B,4,4,6] x",
        f"float[B,4,{C}] y, float[B,4,{C}] z",
        "m = MatMul(x, w); y = Gather <axis = 1> (m, zero); z = Gather <axis = 2> (m, zero)",
        w=W["w"],
        **FIRST,
    ),
    "no product to save": graph(INPUT, f"float[B,{C}] y", "r = Relu(x); y = Gather <axis = 1> (r, zero)", **FIRST),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    model = UNTOUCHED[case]
    if case == "an index that is computed":
        assert narrow_tokens(model) == 0
        assert [node.op_type for node in model.graph] == ["MatMul", "Gather"]
        return
    assert_untouched(model, narrow_tokens)


@pytest.mark.parametrize(
    ("mixing", "more"),
    [
        ("a = Softmax <axis = 1> (m)", {}),
        ("a = LayerNormalization <axis = 1> (m, gain)", {"gain": weights(N, C, seed=7)}),
        ("a = CumSum <reverse = 1> (m, one)", {"one": np.array(1)}),
        ("a = Gather <axis = 1> (m, turned)", {"turned": np.array([4, 3, 2, 1, 0])}),
        ("t = MatMul(mix, m); a = Relu(t)", {"mix": weights(N, N)}),
        (
            "t = Reshape(m, turned); a = Reshape(t, back)",
            {"turned": np.array([-1, C, N]), "back": np.array([-1, N, C])},
        ),
        ("t = Transpose <perm = [0, 2, 1]> (m); a = Reshape(t, back)", {"back": np.array([-1, N, C])}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_are_all_computed_before_an_op_that_mixes_them(mixing: str, more: dict[str, np.ndarray]) -> None:
    body = f"m = MatMul(x, w); {mixing}; e = Erf(a); n = MatMul(e, w); y = Gather <axis = 1> (n, zero)"
    result = apply_and_compare(graph(INPUT, f"float[B,{C}] y", body, w=W["w"], **more, **FIRST), narrow_tokens)
    assert rows(result.model, "MatMul")[0] == N
    assert rows(result.model, "MatMul")[-1] == 1


def test_broadcast_operand_of_one_row_is_left_alone() -> None:
    body = "p = MatMul(z, w); m = MatMul(x, w); a = Mul(m, p); y = Gather <axis = 1> (a, zero)"
    result = apply_and_compare(
        graph(f"{INPUT}, float[B,1,{C}] z", f"float[B,{C}] y", body, w=W["w"], **FIRST), narrow_tokens
    )
    assert result.ops["Slice"] == 1


def test_operand_that_only_broadcasting_makes_long_is_left_alone() -> None:
    """All rows of the output come from one: there is nothing to cut."""
    body = "p = MatMul(z, w); a = Add(p, x); y = Gather <axis = 1> (a, zero)"
    model = graph(f"{INPUT}, float[B,1,{C}] z", f"float[B,{C}] y", body, w=W["w"], **FIRST)
    assert rows(apply_and_compare(model, narrow_tokens).model, "MatMul") == [1]


def test_unknown_dimensions_on_both_sides_of_a_reshape_stop_the_walk() -> None:
    """Two dynamic dimensions cannot be written into one Reshape target."""
    body = "m = MatMul(x, w); h = Reshape(m, heads); r = Relu(h); y = Gather <axis = 2> (r, zero)"
    model = graph(f"float[B,M,4,{C}] x", "float[B,M,2,3] y", body, w=W["w"], heads=np.array([0, 0, 4, 2, 3]), **FIRST)
    apply_and_compare(model, narrow_tokens)

"""tidy_layout: what only moves, or copies, goes."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, run, weights

from vitdeploy.export.passes import tidy_layout

X = "float[B,4,6] x"


@pytest.mark.parametrize(
    ("idle", "constants"),
    [
        ("a = Identity(x)", {}),
        ("a = Dropout(x)", {}),
        ("a = Dropout(x, half)", {"half": np.array(0.5)}),
        ("a = Transpose <perm = [0, 1, 2]> (x)", {}),
        ("a = Reshape(x, same)", {"same": np.array([0, 4, 6])}),
        ("a = Expand(x, ones)", {"ones": np.array([1, 4, 1])}),
        ("t = Transpose <perm = [0, 2, 1]> (x); a = Transpose <perm = [0, 2, 1]> (t)", {}),
        ("t = Transpose <perm = [2, 0, 1]> (x); a = Transpose <perm = [1, 2, 0]> (t)", {}),
        ("t = Reshape(x, flat); a = Reshape(t, same)", {"flat": np.array([0, 24]), "same": np.array([-1, 4, 6])}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_idle_nodes_go(idle: str, constants: dict[str, np.ndarray]) -> None:
    model = graph("float[3,4,6] x", "float[3,4,6] y", f"{idle}; y = Relu(a)", **constants)
    assert apply_and_compare(model, tidy_layout, batches=(3,)).ops == {"Relu": 1}


def test_idle_node_that_makes_the_output_goes_and_the_output_keeps_its_name() -> None:
    model = graph(X, "float[B,4,6] y", "a = Relu(x); b = Identity(a); y = Identity(b)")
    assert apply_and_compare(model, tidy_layout).ops == {"Relu": 1}


def test_two_transposes_become_the_one_that_does_both() -> None:
    body = "t = Transpose <perm = [0, 2, 3, 1]> (x); y = Transpose <perm = [2, 0, 1, 3]> (t)"
    model = graph("float[2,3,4,5] x", "float[5,2,4,3] y", body)
    assert apply_and_compare(model, tidy_layout).ops == {"Transpose": 1}


def test_reshapes_become_one_with_a_dynamic_batch() -> None:
    body = "a = Reshape(x, one); b = Reshape(a, two); y = Reshape(b, three)"
    shapes = {"one": np.array([-1, 6]), "two": np.array([-1, 2, 2, 6]), "three": np.array([-1, 4, 2, 3])}
    model = graph(X, "float[B,4,2,3] y", body, **shapes)
    assert apply_and_compare(model, tidy_layout).ops == {"Reshape": 1}


def test_first_of_two_reshapes_stays_for_its_other_reader() -> None:
    body = "a = Reshape(x, one); y = Reshape(a, two); z = Relu(a)"
    model = graph(X, "float[B,4,2,3] y, float[R,6] z", body, one=np.array([-1, 6]), two=np.array([-1, 4, 2, 3]))
    result = apply_and_compare(model, tidy_layout)
    assert result.ops == {"Reshape": 2, "Relu": 1}
    assert all(node.inputs[0] is model.graph.inputs[0] for node in model.graph if node.op_type == "Reshape")


def test_reshape_to_another_tensors_shape_gets_a_constant_target() -> None:
    """What a traced GroupNorm leaves behind when the batch is dynamic."""
    body = "f = Reshape(x, groups); n = InstanceNormalization(f, g, o); s = Shape(x); b = Reshape(n, s); y = Mul(b, c)"
    constants = {"groups": np.array([0, 1, -1]), "g": np.ones(1), "o": np.zeros(1), "c": weights(4, 1, 1)}
    model = graph("float[B,4,5,5] x", "float[B,4,5,5] y", body, **constants)
    result = apply_and_compare(model, tidy_layout)
    assert result.ops == {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1}
    shapes = {node.op_type: node.outputs[0].shape for node in model.graph}
    assert str(shapes["Mul"]) == "[B,4,5,5]"


UNTOUCHED = {
    "a copy from input to output": graph(X, "float[B,4,6] y", "y = Identity(x)"),
    "a copy of an output": graph(X, "float[B,4,6] y, float[B,4,6] z", "y = Relu(x); z = Identity(y)"),
    "a transpose that moves": graph(X, "float[B,6,4] y", "y = Transpose <perm = [0,2,1]> (x)"),
    "a transpose without perm": graph(X, "float[6,4,B] y", "y = Transpose(x)"),
    "an expand that repeats": graph(
        "float[B,1,6] x", "float[B,4,6] y", "y = Expand(x, shape)", shape=np.array([1, 4, 1])
    ),
    "a reshape that reshapes": graph(X, "float[B,24] y", "y = Reshape(x, flat)", flat=np.array([0, 24])),
    "two dynamic dimensions": graph(
        "float[B,M,6] x",
        "float[B,M,3,2] y",
        "a = Reshape(x, one); y = Reshape(a, two)",
        one=np.array([0, 0, 2, 3]),
        two=np.array([0, 0, 3, 2]),
    ),
    "a shape of two dynamic dimensions": graph(
        "float[B,M,6] x, float[B,M,6] z",
        "float[B,M,6] y",
        "a = Flatten(z); r = Relu(a); s = Shape(x); t = Reshape(r, s); y = Relu(t)",
    ),
    "a part of a shape": graph(
        "float[B,4,6] x, float[B,24] z",
        "float[B,4,6] y",
        "s = Shape <start = 1> (x); t = Concat <axis = 0> (free, s); r = Reshape(z, t); y = Relu(r)",
        free=np.array([-1]),
    ),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    assert_untouched(UNTOUCHED[case], tidy_layout)


def test_mask_of_a_dropout_stays_when_it_is_read() -> None:
    model = graph(X, "float[B,4,6] y, bool[B,4,6] mask", "a, mask = Dropout(x); y = Relu(a)")
    apply_and_compare(model, tidy_layout)


def test_reshape_of_equal_size_but_unknown_sides_stays() -> None:
    """(B, M) -> (M, B) would look alike with both dimensions unknown."""
    body = "s = Shape(x); t = Gather <axis = 0> (s, turned); r = Reshape(x, t); y = Relu(r)"
    model = graph("float[B,M] x", "float[M,B] y", body, turned=np.array([1, 0]))
    feeds = np.arange(6, dtype=np.float32).reshape(2, 3)
    tidy_layout(model)
    (got,) = run(model, {"x": feeds})
    assert got.shape == (3, 2)


def test_no_value_loses_its_users_in_a_branch() -> None:
    """A value that an If's branch reads from outside is read, too."""
    yes, no = "yes () => (float[B,4,6] p) { p = Relu(a) }", "no () => (float[B,4,6] q) { q = Neg(a) }"
    body = f"a = Identity(x)\ny = If (c) < then_branch = {yes}, else_branch = {no} >"
    model = graph(f"{X}, bool c", "float[B,4,6] y", body)
    tidy_layout(model)
    x = weights(2, 4, 6).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x, "c": np.array(False)})[0], -x)

"""fold_affine: gains and offsets per channel go into the convolution behind them, where no padding sees them."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import apply_and_compare, assert_untouched, graph, weights

from vitdeploy.export.passes import fold_affine

X, Y = "float[B,4,5,5] x", "float[B,6,5,5] y"
W = {"w": weights(6, 4, 1, 1)}
GAIN, OFFSET = weights(4, 1, 1), weights(1, 4, 1, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_gain_and_offset_go_into_the_convolution(bias: bool) -> None:
    body = f"a = Mul(x, g); c = Add(o, a); y = Conv(c, w{', b' if bias else ''})"
    model = graph(X, Y, body, g=GAIN, o=OFFSET, **W, **({"b": weights(6)} if bias else {}))
    assert apply_and_compare(model, fold_affine).ops == {"Conv": 1}


@pytest.mark.parametrize("steps", ["Mul Add", "Add Mul", "Mul Mul", "Add Add", "Add Mul Add Mul"])
def test_steps_in_any_order_go_whole(steps: str) -> None:
    lines, value, constants = [], "x", {}
    for i, op in enumerate(steps.split()):
        lines.append(f"t{i} = {op}({value}, c{i})")
        constants[f"c{i}"] = weights(4, 1, 1, seed=i)
        value = f"t{i}"
    model = graph(X, Y, "; ".join([*lines, f"y = Conv({value}, w)"]), **constants, **W)
    assert apply_and_compare(model, fold_affine).ops == {"Conv": 1}


@pytest.mark.parametrize("scalar", [np.array(0.5), np.array([0.5]), np.array([[[[0.5]]]])], ids=["0d", "1d", "4d"])
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_scalars_go_too(op: str, scalar: np.ndarray) -> None:
    model = graph(X, Y, f"a = {op}(x, s); y = Conv(a, w)", s=scalar, **W)
    assert apply_and_compare(model, fold_affine).ops == {"Conv": 1}


@pytest.mark.parametrize(
    "attributes", ["strides = [2,2]", "dilations = [2,2]", "pads = [0,0,0,0]", 'auto_pad = "VALID"']
)
def test_any_kernel_without_padding_takes_them(attributes: str) -> None:
    side = {"strides = [2,2]": 2, "dilations = [2,2]": 1}.get(attributes, 3)
    body = f"a = Mul(x, g); c = Add(a, o); y = Conv <{attributes}> (c, w)"
    model = graph(X, f"float[B,6,{side},{side}] y", body, w=weights(6, 4, 3, 3), g=GAIN, o=OFFSET)
    assert apply_and_compare(model, fold_affine).ops == {"Conv": 1}


def test_steps_that_another_node_reads_stay_and_those_behind_them_go() -> None:
    model = graph(
        X, f"{Y}, float[B,4,5,5] z", "a = Mul(x, g); c = Add(a, o); y = Conv(c, w); z = Relu(a)", g=GAIN, o=OFFSET, **W
    )
    assert apply_and_compare(model, fold_affine).ops == {"Mul": 1, "Relu": 1, "Conv": 1}


UNTOUCHED = {
    "padding": graph(X, Y, "a = Add(x, o); y = Conv <pads = [1,1,1,1]> (a, w)", o=OFFSET, w=weights(6, 4, 3, 3)),
    "padding at one side": graph(
        X, "float[B,6,3,4] y", "a = Add(x, o); y = Conv <pads = [0,0,0,1]> (a, w)", o=OFFSET, w=weights(6, 4, 3, 3)
    ),
    "automatic padding": graph(
        X, Y, 'a = Add(x, o); y = Conv <auto_pad = "SAME_UPPER"> (a, w)', o=OFFSET, w=weights(6, 4, 3, 3)
    ),
    "a grouped convolution": graph(X, Y, "a = Mul(x, g); y = Conv <group = 2> (a, w)", g=GAIN, w=weights(6, 2, 1, 1)),
    "a depthwise convolution": graph(
        X, "float[B,4,5,5] y", "a = Mul(x, g); y = Conv <group = 4> (a, w)", g=GAIN, w=weights(4, 1, 1, 1)
    ),
    "a second user of the sum": graph(
        X, f"{Y}, float[B,4,5,5] z", "a = Add(x, o); y = Conv(a, w); z = Relu(a)", o=OFFSET, **W
    ),
    "a sum that is a graph output": graph(X, f"{Y}, float[B,4,5,5] a", "a = Add(x, o); y = Conv(a, w)", o=OFFSET, **W),
    "an offset for each pixel": graph(X, Y, "a = Add(x, o); y = Conv(a, w)", o=weights(5, 5), **W),
    "an offset along the width": graph(
        "float[B,4,5,4] x", "float[B,6,5,4] y", "a = Add(x, o); y = Conv(a, w)", o=weights(4), **W
    ),
    "an offset along the height": graph(
        "float[B,4,4,5] x", "float[B,6,4,5] y", "a = Add(x, o); y = Conv(a, w)", o=weights(4, 1), **W
    ),
    "an offset for each channel and row": graph(X, Y, "a = Add(x, o); y = Conv(a, w)", o=weights(4, 5, 1), **W),
    "an offset for each image": graph(
        "float[4,4,5,5] x", "float[4,6,5,5] y", "a = Add(x, o); y = Conv(a, w)", o=weights(4, 1, 1, 1), **W
    ),
    "an offset that is computed": graph(f"{X}, float[4,1,1] o", Y, "a = Add(x, o); y = Conv(a, w)", **W),
    "a weight that is computed": graph(f"{X}, float[6,4,1,1] w", Y, "a = Add(x, o); y = Conv(a, w)", o=OFFSET),
    "a gain that makes the map": graph("float[B,1,5,5] x", Y, "a = Mul(x, g); y = Conv(a, w)", g=GAIN, **W),
    "an offset for a line": graph(
        "float[4,4,5] x", "float[4,6,5] y", "a = Add(x, o); y = Conv(a, w)", o=weights(4, 1, 1), w=weights(6, 4, 1)
    ),
    "a division": graph(X, Y, "a = Div(g, x); y = Conv(a, w)", g=GAIN, **W),
    "a map that is its own gain": graph(X, Y, "a = Mul(x, x); y = Conv(a, w)", **W),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_nothing_happens_when_there_is(case: str) -> None:
    assert_untouched(UNTOUCHED[case], fold_affine)

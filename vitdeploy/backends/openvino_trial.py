"""Whether OpenVINO quantises what a linear layer multiplies, found out by what it computes: it tells nobody.

The kernel is chosen by the widths of the weights and by the properties, so a product of ones that has the same of both
shows what the whole model's does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

SMALL = 2.0**-10  # beside a one, less than half a step of 8 bits


def trial(core: Any, device: str, settings: dict[str, str]) -> Callable[[int, int], bool]:
    """Tells whether a product with int8 weights (outputs, inner) loses what 8 bits of its input cannot hold."""

    @cache
    def quantises(outputs: int, inner: int) -> bool:
        x = np.full((1, inner), SMALL, np.float32)
        x[0, 0] = 1
        found = core.compile_model(_product(outputs, inner), device, settings)([x])[0]
        exact = 1 + SMALL * (inner - 1)
        return bool(np.abs(found - exact).max() > SMALL / 2)

    return quantises


def _product(outputs: int, inner: int) -> Any:
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([1, inner], np.float32)
    packed = ops.convert(ops.constant(np.full((outputs, inner), 64, np.int8)), "f32")
    weights = ops.multiply(packed, ops.constant(np.full((outputs, 1), 1 / 64, np.float32)))
    return openvino.Model([ops.matmul(x, weights, False, True)], [x], "trial")

"""store_half: weights stay in fp16, all else becomes fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import graph, weights

from vitdeploy.export.passes.store_half import store_half
from vitdeploy.graph.run import values

W, B = weights(8, 6).astype(np.float16), weights(6).astype(np.float16)


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_only_weights_and_borders_are_fp16_after_it(kind: str) -> None:
    body = "h = Cast <to = 10> (x); m = MatMul(h, w); a = Add(m, b); y = Cast <to = 1> (a)"
    if kind == "float16":
        body = "m = MatMul(x, w); y = Add(m, b)"
    model = graph(f"{kind}[2,8] x", f"{kind}[2,6] y", body, w=W, b=B)
    assert store_half(model) == 2
    assert {value.dtype.name for value in model.graph.initializers.values() if value.dtype} == {"FLOAT16"}
    borders = {*model.graph.inputs, *model.graph.outputs}
    assert {value.dtype.name for value in borders if value.dtype} == {kind.upper()}
    inner = {v.dtype for node in model.graph for v in node.outputs if v not in borders}
    assert inner == {ir.DataType.FLOAT}
    x = weights(2, 8).astype(np.float16 if kind == "float16" else np.float32)
    (name,) = (value.name for value in model.graph.outputs)
    got = dict(values(model, {"x": x}, [name]))[name]
    assert name == "y"
    wanted = x.astype(np.float32) @ W.astype(np.float32) + B.astype(np.float32)
    np.testing.assert_allclose(got, wanted, rtol=1e-3 if kind == "float16" else 1e-5, atol=1e-3)

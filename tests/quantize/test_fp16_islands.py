"""Each reason for an fp32 island, on the smallest graph that has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vitdeploy.errors import UsageError, VerificationFailed
from vitdeploy.quantize.fp16 import Fp16Report, to_fp16

RNG = np.random.default_rng(0)


def graph(*nodes: NodeProto, shape: tuple[int | str, ...], opset: int = 20, **weights: Any) -> ir.Model:
    """image -> nodes -> logits."""
    proto = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [f"d{i}" for i in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return ir.from_proto(helper.make_model(proto, opset_imports=opsets, ir_version=10 if opset < 23 else 11))


def op(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"node_{output}", **attributes)


def f32(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def kept(report: Fp16Report) -> dict[str, str]:
    return {island.output: island.reason for island in report.islands}


def test_overflow_keeps_all_nodes_that_touch_it_when_headroom_is_used_up() -> None:
    x = np.array([[1, -2, 4]], np.float32)
    model = graph(
        op("Mul", "image big", "a"),
        op("Neg", "a", "b"),
        op("Mul", "b small", "c"),
        op("Softmax", "c", "d"),
        op("MatMul", "d eye", "logits"),
        shape=("n", 3),
        eye=np.eye(3, dtype=np.float32),
        big=np.float32(5000),
        small=np.float32(1 / 5000),
    )
    report = to_fp16(model, [x])
    reasons = kept(report)
    assert set(reasons) == {"a", "b", "c"}
    assert reasons["a"] == "overflow: |a| reaches 2e4; fp16 ends at 65504, less than 4 times that"
    assert report.islands[0].figures == {"peak": 20000.0}
    model = graph(op("Mul", "image big", "logits"), shape=("n", 3), big=np.float32(4000))
    assert not kept(to_fp16(model, [x]))


NORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "LayerNormalization": ("image one zero", {"axis": -1, "epsilon": 1e-6}, 20),
    "InstanceNormalization": ("image two two", {"epsilon": 1e-6}, 20),
    "GroupNormalization": ("image two two", {"epsilon": 1e-6, "num_groups": 1}, 21),
    "RMSNormalization": ("image one", {"axis": -1, "epsilon": 1e-6}, 23),
    "LpNormalization": ("image", {"axis": -1, "p": 2}, 20),
}
VECTORS: dict[str, Any] = {
    "one": np.ones(8, np.float32),
    "zero": np.zeros(8, np.float32),
    "two": np.ones(2, np.float32),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("scale", "word"), [(2e-3, "norm: {} falls to"), (1.0, None), (300.0, "norm: |x| reaches")])
def test_norm_stays_fp32_when_its_statistics_leave_fp16(norm: str, scale: float, word: str | None) -> None:
    inputs, attributes, opset = NORMS[norm]
    weights: dict[str, Any] = {name: VECTORS[name] for name in inputs.split()[1:]}
    x = np.tile(np.array([-1, 1], np.float32), (3, 2, 4)) * np.float32(scale)
    model = graph(op(norm, inputs, "logits", **attributes), shape=("n", 2, 8), opset=opset, **weights)
    reasons = list(kept(to_fp16(model, [x])).values())
    if word is None:
        assert not reasons
    else:
        (reason,) = reasons
        what = {"RMSNormalization": "mean square + epsilon", "LpNormalization": "sum of squares"}
        assert reason.startswith(word.format(what.get(norm, "variance + epsilon")))


def test_layer_norm_reason_names_the_smallest_row_when_only_one_is_flat() -> None:
    x = f32(4, 8)
    x[2] *= 1e-4
    least = x[2].astype(np.float64).var() + 1e-6
    model = graph(op("LayerNormalization", "image one zero", "logits", epsilon=1e-6), shape=("n", 8), **VECTORS)
    (island,) = to_fp16(model, [x[:2], x]).islands
    assert island.figures["least"] == pytest.approx(least, rel=1e-5)
    assert (island.op_type, island.node) == ("LayerNormalization", "node_logits")


def test_long_norm_stays_fp32_when_its_sum_overflows() -> None:
    ones = np.ones(1, np.float32)
    model = graph(op("InstanceNormalization", "image one one", "logits"), shape=("n", 1, 20000), one=ones)
    (reason,) = kept(to_fp16(model, [f32(1, 1, 20000)])).values()
    assert reason.startswith("norm: 20000 elements add up to 2e4")
    model = graph(op("InstanceNormalization", "image one one", "logits"), shape=("n", 1, 4000), one=ones)
    assert not kept(to_fp16(model, [f32(1, 1, 4000)]))


def written_out(x: str = "image") -> list[NodeProto]:
    """LayerNormalization in single operators, as exporters before opset 17 give it."""
    return [
        op("ReduceMean", f"{x} axes", "mean"),
        op("Sub", f"{x} mean", "centred"),
        op("Mul", "centred centred", "squares"),
        op("ReduceMean", "squares axes", "variance"),
        op("Add", "variance eps", "safe"),
        op("Sqrt", "safe", "deviation"),
        op("Div", "centred deviation", "logits"),
    ]


def test_norm_written_out_keeps_its_chain_when_a_variance_is_small() -> None:
    weights = {"axes": np.array([-1]), "eps": np.float32(1e-6)}
    x = f32(4, 8)
    assert not kept(to_fp16(graph(*written_out(), shape=("n", 8), **weights), [x]))
    x[1] *= 1e-4
    reasons = kept(to_fp16(graph(*written_out(), shape=("n", 8), **weights), [x]))
    assert set(reasons) == {"squares", "variance", "safe", "deviation", "logits"}
    assert reasons["deviation"].startswith("norm: variance + epsilon falls to 1e-6")


def test_unit_length_keeps_norm_clip_and_division_when_a_row_is_zero() -> None:
    nodes = [
        op("ReduceL2", "image axes", "len"),
        op("Clip", "len eps", "safe"),
        op("Div", "image safe", "logits"),
    ]
    x = f32(4, 8)
    weights = {"axes": np.array([-1]), "eps": np.float32(1e-12)}
    assert not kept(to_fp16(graph(*nodes, shape=("n", 8), **weights), [x]))
    x[0] = 0
    assert set(kept(to_fp16(graph(*nodes, shape=("n", 8), **weights), [x]))) == {"len", "safe", "logits"}


def test_batch_norm_stays_fp32_when_a_running_variance_is_small() -> None:
    node = op("BatchNormalization", "image one zero zero var", "logits")
    x = f32(2, 8, 3)
    vectors: dict[str, Any] = {"one": VECTORS["one"], "zero": VECTORS["zero"]}
    assert not kept(to_fp16(graph(node, shape=("n", 8, 3), var=np.ones(8, np.float32), **vectors), [x]))
    small = np.array([1] * 7 + [1e-7], np.float32)
    (reason,) = kept(to_fp16(graph(node, shape=("n", 8, 3), var=small, **vectors), [x])).values()
    assert reason.startswith("norm: variance + epsilon falls to 1e-5")


def attention(scale: float) -> ir.Model:
    return graph(
        op("MatMul", "image wk", "k"),
        op("Transpose", "k", "kt", perm=[0, 2, 1]),
        op("MatMul", "image kt", "product"),
        op("Mul", "product scale", "scores"),
        op("Softmax", "scores", "p", axis=-1),
        op("MatMul", "p image", "logits"),
        shape=("n", 6, 8),
        wk=np.eye(8, dtype=np.float32),
        scale=np.float32(scale),
    )


def test_softmax_keeps_its_scores_fp32_when_rounding_them_moves_probabilities() -> None:
    x = np.ones((1, 6, 8), np.float32) * 2 + f32(1, 6, 8, scale=0.01)
    reasons = kept(to_fp16(attention(40), [x]))  # scores near 1280, which differ by less than fp16's step of 1
    assert set(reasons) == {"product", "scores", "p"}
    assert reasons["p"].startswith("softmax: scores reach 1.3e3, and rounding them to fp16 moves a probability by 0.")
    assert not kept(to_fp16(attention(1), [x]))


def test_softmax_is_converted_when_large_scores_decide_clearly() -> None:
    x = np.zeros((1, 6, 8), np.float32)
    x[0, np.arange(6), np.arange(6)] = 10
    assert not kept(to_fp16(attention(13), [x]))  # 1300 for the own token, 0 for all others


def test_attention_node_stays_fp32_when_queries_and_keys_are_long() -> None:
    node = op("Attention", "image image image", "logits", q_num_heads=2, kv_num_heads=2)
    assert not kept(to_fp16(graph(node, shape=("n", 6, 8), opset=23), [f32(1, 6, 8)]))
    (reason,) = kept(to_fp16(graph(node, shape=("n", 6, 8), opset=23), [f32(1, 6, 8, scale=100)])).values()
    assert reason.startswith("softmax: |q| |k| reaches")


def test_mean_stays_fp32_when_its_sum_passes_fp16() -> None:
    x = np.full((1, 1, 64, 64), 8, np.float32)
    for node in (op("GlobalAveragePool", "image", "logits"), op("ReduceMean", "image axes", "logits")):
        weights: dict[str, Any] = {"axes": np.array([2, 3])} if node.op_type == "ReduceMean" else {}
        (reason,) = kept(to_fp16(graph(node, shape=("n", 1, 64, 64), **weights), [x])).values()
        assert reason == "sum: |x| over 4096 elements adds up to 3.3e4; fp16 ends at 65504, less than 4 times that"
        assert not kept(to_fp16(graph(node, shape=("n", 1, 64, 64), **weights), [x / 4]))


@pytest.mark.parametrize(
    ("weight", "word"),
    [(1e5, "weight: |w| reaches 1e5; fp16 ends at 65504"), (2e-8, "weight: fp16 would lose"), (1e-3, None)],
)
def test_weight_keeps_its_node_fp32_when_fp16_cannot_hold_it(weight: float, word: str | None) -> None:
    nodes = [op("MatMul", "image w", "y"), op("Mul", "y back", "logits")]
    w = np.full((4, 4), weight, np.float32)
    report = to_fp16(graph(*nodes, shape=("n", 4), w=w, back=np.float32(0.01 / weight)), [f32(2, 4, scale=0.01)])
    assert kept(report).get("y", "").startswith(word or "")
    assert ("y" in kept(report)) is (word is not None)


def test_tiny_bias_is_converted_when_the_sum_does_not_feel_it() -> None:
    node = op("Gemm", "image w b", "logits")
    w, b = f32(4, 4), np.full(4, 1e-8, np.float32)
    assert not kept(to_fp16(graph(node, shape=("n", 4), w=w, b=b), [f32(2, 4)]))
    # The same bias is all that there is when the input is as small.
    assert "logits" in kept(to_fp16(graph(node, shape=("n", 4), w=w, b=b), [f32(2, 4, scale=1e-8)]))


def test_difference_stays_fp32_when_nearly_all_of_it_cancels() -> None:
    nodes = [op("Add", "image large", "a"), op("Relu", "a", "b"), op("Sub", "b large", "logits")]
    report = to_fp16(graph(*nodes, shape=("n", 64), large=np.float32(1000)), [f32(2, 64, scale=0.1)])
    assert set(kept(report)) == {"a", "b", "logits"}
    assert kept(report)["logits"].startswith("rounding: fp16 would lose")
    assert not kept(to_fp16(graph(*nodes, shape=("n", 64), large=np.float32(3)), [f32(2, 64)]))


def test_node_stays_fp32_when_its_name_or_a_value_or_weight_of_it_is_forced() -> None:
    def model() -> ir.Model:
        nodes = [op("MatMul", "image w", "h"), op("MatMul", "h v", "logits")]
        return graph(*nodes, shape=("n", 4), w=f32(4, 4), v=f32(4, 4))

    for name in ("node_h", "h", "w", "image"):
        assert kept(to_fp16(model(), [f32(1, 4)], force_fp32={name})) == {
            "h": f"forced: '{name}' was named to stay in fp32"
        }


def test_range_and_celu_stay_fp32_when_onnx_has_no_float16_form() -> None:
    nodes = [op("Celu", "image", "a"), op("Range", "zero four one", "r"), op("Add", "a r", "logits")]
    weights = {"zero": np.float32(0), "four": np.float32(4), "one": np.float32(1)}
    reasons = kept(to_fp16(graph(*nodes, shape=("n", 4), **weights), [f32(1, 4)]))
    assert set(reasons) == {"a", "r", "logits"}
    assert reasons["a"] == "unsupported: ONNX has no float16 form of Celu at opset 20"
    assert reasons["logits"].startswith("between:")


def quantised_product(**forced: Any) -> tuple[ir.Model, Fp16Report]:
    """relu(image) @ weight, both factors in int8, then a sum."""
    model = graph(
        op("Relu", "image", "x"),
        op("QuantizeLinear", "x scale zero", "q"),
        op("DequantizeLinear", "q scale zero", "dq"),
        op("DequantizeLinear", "weight steps", "w", axis=1),
        op("MatMul", "dq w", "y"),
        op("Add", "y bias", "logits"),
        shape=("n", 8),
        scale=np.float32(1 / 64),
        zero=np.int8(0),
        weight=RNG.integers(-127, 128, (8, 4)).astype(np.int8),
        steps=np.float32([1 / 128, 1 / 256, 2.0**-20, 1 / 64]),
        bias=f32(4),
    )
    return model, to_fp16(model, [f32(16, 8)], **forced)


def dtypes(model: ir.Model) -> dict[str, str]:
    found = {value.name or "": str(value.dtype) for node in model.graph for value in node.outputs}
    return found | {name: str(value.dtype) for name, value in model.graph.initializers.items()}


def test_scales_become_fp16_and_weights_stay_int8_when_products_are_quantised() -> None:
    model, report = quantised_product()
    assert kept(report) == {}
    found = dtypes(model)
    assert {found[name] for name in ("x", "scale", "dq", "steps", "w", "y", "bias")} == {"FLOAT16"}
    assert found["q"] == found["weight"] == "INT8"
    assert report.casts == 2  # of the graph's input and output


def test_dequantize_stays_fp32_with_its_product_when_that_is_an_island() -> None:
    model, report = quantised_product(force_fp32={"y"})
    assert set(kept(report)) == {"y", "dq", "w", "logits"}
    assert kept(report)["dq"].startswith("between")
    found = dtypes(model)
    assert {found[name] for name in ("dq", "w", "steps", "y")} == {"FLOAT"}
    assert found["x"] == found["scale"] == "FLOAT16"
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert [value.name for value in product.inputs if value is not None] == ["dq", "w"]  # no Cast stands between


def test_nan_in_fp32_is_a_verification_failure_that_names_the_value() -> None:
    nodes = [op("Log", "image", "log"), op("Relu", "log", "logits")]
    with pytest.raises(VerificationFailed, match=r"'log' holds NaN or Inf on sample 1"):
        to_fp16(graph(*nodes, shape=("n", 4)), [np.ones((1, 4), np.float32), -np.ones((1, 4), np.float32)])


def test_samples_are_refused_when_they_do_not_fit() -> None:
    def model(batch: int | str = "n") -> ir.Model:
        return graph(op("Relu", "image", "logits"), shape=(batch, 4))

    for samples in ([], [np.ones((1, 4))], [np.ones((1, 5), np.float32)]):
        with pytest.raises(UsageError):
            to_fp16(model(), samples)
    with pytest.raises(UsageError, match="3 images; this graph takes 2"):
        to_fp16(model(2), [np.ones((3, 4), np.float32)])
    assert to_fp16(model(2), [np.ones((4, 4), np.float32)]).converted == 1


def test_every_sample_counts_when_the_batch_is_fixed() -> None:
    model = graph(op("Mul", "image k", "logits"), shape=(1, 2), k=np.float32(100))
    x = np.ones((3, 2), np.float32)
    x[2] = 1000
    assert kept(to_fp16(model, [x])) == {"logits": "overflow: |logits| reaches 1e5; fp16 ends at 65504"}

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vitdeploy.errors import UsageError
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.models.random_weights import random_weights
from vitdeploy.models.vision_transformer import VisionTransformer
from vitdeploy.verify.bisect import Departure, bisect

Feeds = dict[str, np.ndarray]
RNG = np.random.default_rng(0)
BOUND = 1e-5


def copy_of(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


@pytest.fixture(scope="module")
def vit() -> tuple[ir.Model, ir.Model, Feeds]:
    """A small DeiT: traced, optimised, an image."""
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10).eval()
    random_weights(module, 0, (3, 32, 32))
    traced = trace(module, (3, 32, 32))
    optimised = copy_of(traced)
    optimise(optimised)
    return traced, optimised, {"image": RNG.standard_normal((1, 3, 32, 32), dtype=np.float32)}


@pytest.fixture(scope="module")
def mobilevit() -> tuple[ir.Model, ir.Model, Feeds]:
    traced = trace(build("mobilevit_xxs", BuildOptions(image_size=(64, 64), num_classes=10)).module, (3, 64, 64))
    optimised = copy_of(traced)
    optimise(optimised)
    return traced, optimised, {"image": RNG.standard_normal((1, 3, 64, 64), dtype=np.float32)}


@pytest.fixture(params=["vit", "mobilevit"])
def case(request: pytest.FixtureRequest) -> tuple[ir.Model, ir.Model, Feeds]:
    found: tuple[ir.Model, ir.Model, Feeds] = request.getfixturevalue(request.param)
    return found


def change(model: ir.Model, name: str, edit: Callable[[np.ndarray], None]) -> None:
    """Edit a weight's numbers in place."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    edit(array)
    value.const_value = ir.Tensor(array, name=name)


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def weight_of(node: ir.Node) -> str:
    value = node.inputs[1]
    assert value is not None
    assert value.name is not None
    return value.name


def position(model: ir.Model, node: ir.Node) -> int:
    return list(model.graph).index(node) + 1


# --- graphs of real models


def test_bisect_finds_nothing_when_graphs_are_equal_or_optimised(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    traced, optimised, feeds = case
    assert bisect(optimised, copy_of(optimised), feeds, rel_bound=BOUND) is None
    assert bisect(traced, copy_of(traced), feeds, rel_bound=BOUND) is None
    assert bisect(traced, optimised, feeds, rel_bound=1e-4) is None
    assert bisect(optimised, traced, feeds, rel_bound=1e-4) is None


@pytest.mark.parametrize(("name", "chunk_bytes"), [("vit", 1 << 14), ("vit", 256 << 20), ("mobilevit", 256 << 20)])
def test_bisect_names_node_and_weight_when_one_element_is_perturbed(
    request: pytest.FixtureRequest, name: str, chunk_bytes: int
) -> None:
    _, optimised, feeds = request.getfixturevalue(name)
    candidate = copy_of(optimised)
    linears = [
        node for node in nodes(candidate, "Gemm") + nodes(candidate, "MatMul") if "mlp.fc1" in str(node.inputs[1])
    ]
    node = linears[-1]
    name = weight_of(node)

    def perturb(array: np.ndarray) -> None:
        array[12, 7] += 0.5

    change(candidate, name, perturb)
    found = bisect(optimised, candidate, feeds, rel_bound=BOUND, chunk_bytes=chunk_bytes)
    assert found is not None
    assert (found.node, found.op_type, found.output) == (node.name, node.op_type, node.outputs[0].name)
    assert found.position == position(candidate, node)
    assert found.nodes == len(list(candidate.graph))
    size = candidate.graph.initializers[name].const_value.size  # type: ignore[union-attr]
    assert found.cause == f"initializer '{name}' differs: 1 of {size} values, by up to 0.5 at [12, 7]."
    assert found.index[-1] == 7
    assert found.metrics is not None
    assert found.metrics.rel_max > BOUND
    assert found.reference is not None
    assert abs(found.candidate - found.reference) == pytest.approx(found.metrics.max_abs)
    assert next(iter(found.inputs.values())).max_abs == 0
    assert found.suspects == ()


def test_bisect_names_the_axis_when_a_softmax_has_another(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    traced, optimised, feeds = case
    for reference in (optimised, traced):
        candidate = copy_of(optimised)
        node = nodes(candidate, "Softmax")[1]
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
        found = bisect(reference, candidate, feeds, rel_bound=BOUND if reference is optimised else 1e-4)
        assert found is not None
        assert found.node == node.name
        assert found.cause == "Softmax axis is 1, the reference has -1."


def test_bisect_finds_nothing_when_the_same_axis_is_written_otherwise(vit: tuple[ir.Model, ir.Model, Feeds]) -> None:
    _, optimised, feeds = vit
    candidate = copy_of(optimised)
    for node in nodes(candidate, "Softmax"):
        node.attributes["axis"] = ir.AttrInt64("axis", 3)
    assert bisect(optimised, candidate, feeds, rel_bound=BOUND) is None


def test_bisect_names_the_weight_when_it_holds_a_nan(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    _, optimised, feeds = case
    candidate = copy_of(optimised)
    conv = nodes(candidate, "Conv")[0]
    name = weight_of(conv)

    def poison(array: np.ndarray) -> None:
        array[5, 0, 1, 2] = np.nan

    change(candidate, name, poison)
    found = bisect(optimised, candidate, feeds, rel_bound=BOUND)
    assert found is not None
    assert found.node == conv.name
    assert found.index[:2] == (0, 5)
    assert np.isnan(found.candidate)
    assert f"initializer '{name}' differs: 1 of " in found.cause
    assert found.cause.endswith("nan at [5, 0, 1, 2].")


def test_bisect_names_the_weight_when_the_reference_does_not_know_it(vit: tuple[ir.Model, ir.Model, Feeds]) -> None:
    """Against the traced graph, the q weight and the value behind it are new: the first value in common is later."""
    traced, optimised, feeds = vit
    candidate = copy_of(optimised)
    guilty = next(node for node in nodes(candidate, "Gemm") if "blocks.1.attn.qkv.q" in weight_of(node))

    def poison(array: np.ndarray) -> None:
        array[3, 7] = np.nan

    change(candidate, weight_of(guilty), poison)
    found = bisect(traced, candidate, feeds, rel_bound=1e-4)
    assert found is not None
    assert found.node == guilty.name
    assert found.metrics is None
    assert found.cause == f"initializer '{weight_of(guilty)}' holds 1 NaN, the first at [3, 7]."

    def perturb(array: np.ndarray) -> None:
        array[3, 7] = 5

    change(candidate, weight_of(guilty), perturb)
    found = bisect(traced, candidate, feeds, rel_bound=1e-4)
    assert found is not None
    assert guilty.name in found.suspects
    assert f"something between '{guilty.name}' and '{found.node}'" in found.cause


def test_cause_is_not_a_weight_that_a_pass_changed(mobilevit: tuple[ir.Model, ir.Model, Feeds]) -> None:
    """The traced graph has a weight of the same name, all of whose numbers differ: BatchNorm is folded into ours."""
    traced, optimised, feeds = mobilevit
    candidate = copy_of(optimised)
    conv = nodes(candidate, "Conv")[0]
    assert weight_of(conv) in traced.graph.initializers

    def perturb(array: np.ndarray) -> None:
        array[5, 0, 1, 2] += 1

    change(candidate, weight_of(conv), perturb)
    found = bisect(traced, candidate, feeds, rel_bound=1e-4)
    assert found is not None
    assert found.node == conv.name
    assert found.cause == "Conv makes this value, BatchNormalization does in the reference."


def test_bisect_names_the_perm_when_a_transpose_of_equal_axes_is_wrong(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    """(1, a, b, c) with two equal axes: the wrong perm gives the same shape, so nothing else notices."""
    _, optimised, feeds = case
    shapes = {v.name: v.shape for node in optimised.graph for v in node.outputs}
    candidate = copy_of(optimised)
    for node in nodes(candidate, "Transpose"):
        source, perm = node.inputs[0], list(node.attributes["perm"].as_ints())
        shape = shapes.get(source.name) if source is not None else None
        sizes = [] if shape is None else [shape[i] for i in perm]
        twins = [(i, j) for i in range(len(sizes)) for j in range(i) if sizes[i] == sizes[j] != 1]
        if twins:
            i, j = twins[0]
            right = list(perm)
            perm[i], perm[j] = perm[j], perm[i]
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
            break
    else:
        pytest.fail("no Transpose has two equal axes")
    found = bisect(optimised, candidate, feeds, rel_bound=BOUND)
    assert found is not None
    assert found.node == node.name
    assert found.cause == f"Transpose perm is {perm}, the reference has {right}."


def test_bisect_names_the_first_node_when_the_error_heals_downstream(vit: tuple[ir.Model, ir.Model, Feeds]) -> None:
    """A constant added to every attention score is undone by Softmax: the logits agree, and a later error distracts."""
    _, optimised, feeds = vit
    candidate = copy_of(optimised)
    softmax = nodes(candidate, "Softmax")[0]
    scores = softmax.inputs[0]
    assert scores is not None
    product = scores.producer()
    assert product is not None
    name, scores.name = scores.name, "scores_before"
    offset = ir.Value(name="offset", const_value=ir.Tensor(np.full(1, 3, np.float32), name="offset"))
    candidate.graph.register_initializer(offset)
    shifted = ir.node("Add", [scores, offset], name="shift")
    shifted.outputs[0].name = name
    candidate.graph.insert_after(product, shifted)
    softmax.replace_input_with(0, shifted.outputs[0])
    found = bisect(optimised, candidate, feeds, rel_bound=1e-4)
    assert found is not None
    assert (found.node, found.op_type) == ("shift", "Add")
    assert found.suspects == (product.name,)

    nodes(candidate, "Softmax")[2].attributes["axis"] = ir.AttrInt64("axis", 1)
    later = bisect(optimised, candidate, feeds, rel_bound=1e-4)
    assert later is not None
    assert later.node == "shift"


def test_bisect_finds_nothing_when_an_fp16_copy_is_within_its_bound(case: tuple[ir.Model, ir.Model, Feeds]) -> None:
    fp16 = pytest.importorskip("vitdeploy.quantize.fp16")
    _, optimised, feeds = case
    for io_precision in ("fp32", "fp16"):
        candidate = copy_of(optimised)
        fp16.to_fp16(candidate, [feeds["image"]], io_precision=io_precision)
        assert bisect(optimised, candidate, feeds, rel_bound=3e-2) is None
    found = bisect(optimised, candidate, feeds, rel_bound=1e-6)
    assert found is not None
    assert found.position <= 5


# --- small graphs


def graph(
    made: Sequence[NodeProto],
    weights: dict[str, Any] | None = None,
    half: bool = False,
    outputs: str = "y",
    kind: int = TensorProto.FLOAT,
) -> ir.Model:
    """x (4, 4) -> the named outputs; with `half` all floats are fp16."""
    kind = TensorProto.FLOAT16 if half else kind
    arrays = {k: v.astype(np.float16) if half and v.dtype.kind == "f" else v for k, v in (weights or {}).items()}
    proto = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, [4, 4])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()],
    )
    return ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def op(op_type: str, reads: str, makes: str, **attributes: Any) -> NodeProto:
    return helper.make_node(
        op_type, [n.strip("_") for n in reads.split()], makes.split(), name=f"n_{makes}", **attributes
    )


X: Feeds = {"x": np.arange(16, dtype=np.float32).reshape(4, 4) / 4 - 1}
W = RNG.standard_normal((4, 4)).astype(np.float32)


def found_in(reference: ir.Model, candidate: ir.Model, feeds: Feeds = X, bound: float = BOUND) -> Departure:
    found = bisect(reference, candidate, feeds, rel_bound=bound)
    assert found is not None
    return found


def test_cause_is_the_op_when_it_differs() -> None:
    found = found_in(graph([op("Relu", "x", "y")]), graph([op("Sigmoid", "x", "y")]))
    assert found.cause == "Sigmoid makes this value, Relu does in the reference."
    assert (found.position, found.nodes) == (1, 1)


def test_cause_is_the_input_when_one_is_missing_or_another() -> None:
    b = {"b": np.ones(4, np.float32), "w": W}
    whole = graph([op("Gemm", "x w b", "y")], b)
    assert (
        found_in(whole, graph([op("Gemm", "x w", "y")], b)).cause
        == "Gemm has 2 inputs, the reference's 3: 'b' is missing."
    )
    assert (
        found_in(graph([op("Gemm", "x w", "y")], b), whole).cause
        == "Gemm has 3 inputs, the reference's 2: 'b' is extra."
    )
    two = [op("Relu", "x", "p"), op("Neg", "x", "q")]
    found = found_in(graph([*two, op("Add", "x p", "y")]), graph([*two, op("Add", "x q", "y")]))
    assert found.cause == "input 1 of Add is 'q', the reference reads 'p'."
    clips = {"low": np.float32(0), "high": np.float32(1)}
    found = found_in(graph([op("Clip", "x low high", "y")], clips), graph([op("Clip", "x _ high", "y")], clips))
    assert found.cause == "input 1 of Clip is left out, the reference has 'low'."


def test_cause_is_the_attribute_when_a_default_takes_its_place() -> None:
    found = found_in(graph([op("LeakyRelu", "x", "y", alpha=0.25)]), graph([op("LeakyRelu", "x", "y")]))
    assert found.cause == "LeakyRelu alpha is 0.01, the reference has 0.25."
    same = graph([op("LeakyRelu", "x", "y", alpha=0.01)])
    assert bisect(same, graph([op("LeakyRelu", "x", "y")]), X, rel_bound=BOUND) is None
    found = found_in(graph([op("Gelu", "x", "y")]), graph([op("Gelu", "x", "y", approximate="tanh")]))
    assert found.cause == "Gelu approximate is tanh, the reference has none."


def test_cause_is_the_weight_when_it_has_another_name() -> None:
    found = found_in(graph([op("MatMul", "x w", "y")], {"w": W}), graph([op("MatMul", "x v", "y")], {"v": W * 2}))
    assert "initializer 'v' differs from 'w': 16 of 16 values" in found.cause


def test_cause_is_the_weight_when_a_constant_was_folded_wrongly() -> None:
    reference = graph([op("Add", "w w", "ww"), op("MatMul", "x ww", "y")], {"w": W})
    wrong = W * 2
    wrong[2, 3] += 1
    found = found_in(reference, graph([op("MatMul", "x ww", "y")], {"ww": wrong}))
    assert found.cause == "initializer 'ww' differs: 1 of 16 values, by up to 1 at [2, 3]."


def test_bisect_looks_at_what_the_reference_folded() -> None:
    reference = graph([op("MatMul", "x ww", "y")], {"ww": W * 2})
    found = found_in(reference, graph([op("Sub", "w w", "ww"), op("MatMul", "x ww", "y")], {"w": W}))
    assert found.output == "ww"


def test_cause_is_the_shape_when_sizes_differ() -> None:
    found = found_in(
        graph([op("ReduceMax", "x a", "y", keepdims=0)], {"a": np.array([0])}),
        graph([op("Identity", "x", "y")]),
    )
    assert found.metrics is None
    found = found_in(
        graph([op("Slice", "x s e a", "y")], {"s": np.array([0]), "e": np.array([2]), "a": np.array([0])}),
        graph([op("Slice", "x s e a", "y")], {"s": np.array([0]), "e": np.array([3]), "a": np.array([0])}),
    )
    assert found.cause == "initializer 'e' differs: 1 of 1 values, by up to 1 at [0]."


def test_flat_value_is_compared_with_the_value_in_its_other_shape() -> None:
    shape = {"s": np.array([8, 2]), "t": np.array([4, 4])}
    reference = graph([op("Relu", "x", "r"), op("Neg", "r", "y")])
    flat = [op("Reshape", "x s", "f"), op("Relu", "f", "r/flat"), op("Neg", "r/flat", "n"), op("Reshape", "n t", "y")]
    assert bisect(reference, graph(flat, shape), X, rel_bound=BOUND) is None
    flat[1] = op("Softplus", "f", "r/flat")
    found = found_in(reference, graph(flat, shape))
    assert found.output == "r/flat"
    assert len(found.index) == 2
    assert found.index[0] > 3 or found.metrics is not None


def test_cause_is_overflow_when_fp16_cannot_hold_the_value() -> None:
    steps = [op("Mul", "x k", "a"), op("Mul", "a k", "b"), op("Div", "b k", "y")]
    k = {"k": np.float32(180)}
    reference, candidate = graph(steps, k), graph(steps, k, half=True)
    found = found_in(reference, candidate, bound=1e-2)
    assert found.output == "b"
    assert found.cause == "output is not finite: |x| reaches 8.9e+04 and fp16 ends at 65504."
    assert found.candidate == np.inf
    assert found.reference is not None
    assert 65504 < found.reference <= 2.75 * 180 * 180

    def one_more(names: str) -> list[NodeProto]:
        return [op("Mul", "x k", "a"), op("Mul", "a k", names), op("Div", f"{names} k", "y")]

    found = found_in(graph(one_more("c"), k), graph(one_more("b"), k, half=True), bound=1e-2)
    assert found.output == "b"
    assert found.metrics is None
    assert found.reference is None
    assert "not finite though its inputs are, up to |x| = 5e+02: fp16 ends at 65504" in found.cause


def test_cause_is_overflow_when_a_cast_to_fp16_cannot_hold_the_value() -> None:
    k = {"k": np.float32(1e5)}
    cast = [op("Mul", "x k", "a"), op("Cast", "a", "a/fp16", to=TensorProto.FLOAT16), op("Cast", "a/fp16", "c", to=1)]
    candidate = graph([*cast, op("Div", "c k", "y")], k)
    found = found_in(graph([op("Mul", "x k", "a"), op("Div", "a k", "y")], k), candidate, bound=1e-2)
    assert found.output == "a/fp16"
    assert found.cause == "output is not finite: |x| reaches 2.8e+05 and fp16 ends at 65504."


def test_infinity_is_no_departure_when_both_graphs_mean_it() -> None:
    mask = np.where(np.eye(4) > 0, 0, -np.inf).astype(np.float32)
    steps = [op("Add", "x m", "a"), op("Softmax", "a", "y")]
    assert bisect(graph(steps, {"m": mask}), graph(steps, {"m": mask}), X, rel_bound=BOUND) is None
    renamed = [op("Add", "x m", "b"), op("Softmax", "b", "y")]
    assert bisect(graph(steps, {"m": mask}), graph(renamed, {"m": mask}), X, rel_bound=BOUND) is None
    found = found_in(graph(steps, {"m": mask}), graph(steps, {"m": -mask}))
    assert found.output == "a"
    assert "initializer 'm' differs" in found.cause


def test_departure_is_where_nan_starts_when_the_reference_has_no_such_value() -> None:
    reference = graph([op("Relu", "x", "y")])
    candidate = graph([op("Sqrt", "x", "root"), op("Neg", "root", "n"), op("Relu", "x", "y")], outputs="n y")
    found = found_in(reference, candidate)
    assert found.output == "root"
    assert found.index == (0, 0)
    assert found.cause == "output is not finite though its inputs are, up to |x| = 2.8."
    with_nan = {"x": np.where(X["x"] == 0, np.nan, X["x"]).astype(np.float32)}
    safe = graph([op("Abs", "x", "root"), op("Relu", "x", "y")], outputs="root y")
    assert bisect(reference, safe, with_nan, rel_bound=BOUND) is None


def test_cause_is_rounding_when_the_error_grows_over_many_equal_nodes() -> None:
    made = [op("Mul", f"{'x' if i == 0 else f'v{i - 1}'} k", f"v{i}") for i in range(40)]
    made.append(op("Neg", "v39", "y"))
    k = {"k": np.float32(1.0003)}
    bound = 4e-3
    found = found_in(graph(made, k), graph(made, k, half=True), bound=bound)
    assert found.position > 5
    assert found.cause == "rounding: the error grows gradually, no single node stands out."
    assert max(m.rel_max for m in found.inputs.values()) <= bound


def test_cause_is_precision_when_one_equal_node_loses_it() -> None:
    made = [op("Add", "x c", "a"), op("Sub", "a c", "y")]
    exact = graph(made, {"c": np.float64(1e6)}, kind=TensorProto.DOUBLE)
    found = found_in(exact, graph(made, {"c": np.float32(1e6)}), {"x": X["x"] + np.float32(0.01)}, bound=1e-3)
    assert found.output == "y"
    assert found.cause.startswith("precision: the error grows ")
    assert found.metrics is not None
    times = found.metrics.rel_max / found.inputs["a"].rel_max
    assert f"grows {times:.2g} times" in found.cause


def test_integers_are_compared_exactly_and_sequences_passed_over() -> None:
    made = [
        op("Shape", "x", "s"),
        op("SplitToSequence", "x one", "parts", axis=0, keepdims=1),
        op("SequenceAt", "parts zero", "first"),
        op("Expand", "first s", "y"),
    ]
    weights = {"one": np.array(1), "zero": np.array(0)}
    assert bisect(graph(made, weights), graph(made, weights), X, rel_bound=BOUND) is None
    found = found_in(graph(made, weights), graph(made, weights | {"zero": np.array(1)}))
    assert found.output == "first"
    assert found.cause == "initializer 'zero' differs: 1 of 1 values, by up to 1 at []."


def test_bisect_refuses_when_nothing_can_be_compared() -> None:
    with pytest.raises(UsageError, match="no value in common"):
        bisect(graph([op("Relu", "x", "y")]), graph([op("Relu", "x", "z")], outputs="z"), X, rel_bound=BOUND)
    with pytest.raises(UsageError, match="takes the inputs"):
        bisect(graph([op("Relu", "x", "y")]), graph([op("Relu", "x", "y")]), {"q": X["x"]}, rel_bound=BOUND)


def test_departure_reads_in_a_few_lines_and_as_json() -> None:
    found = found_in(graph([op("MatMul", "x w", "y")], {"w": W}), graph([op("MatMul", "x v", "y")], {"v": W * np.nan}))
    lines = str(found).splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[0] == "MatMul 'n_y', node 1 of 1, departs first: 'y'."
    assert lines[-1].startswith("Likely cause: initializer 'v' differs from 'w'")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["candidate"] is None
    assert data["metrics"]["nan_count"] == 16
    assert data["index"] == [0, 0]

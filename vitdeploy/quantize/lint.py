"""Hold any Q/DQ graph, whoever made it, against a scheme, and name the nodes that the runtime would trip over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UnsupportedModel
from vitdeploy.graph.edit import constant, integer, is_constant
from vitdeploy.quantize.int8 import TYPES
from vitdeploy.quantize.schemes import Scheme
from vitdeploy.quantize.targets import misfit, weight_axis

PRODUCTS = ("Conv", "Gemm", "MatMul")
# What stays in float in a vision transformer, whatever the runtime: 8 bits ruin it or gain nothing.
FLOAT_OPS = {"LayerNormalization", "Softmax", "Gelu", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
INTEGER_OPS = {
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
    *("QGemm", "QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearAdd"),
}
SLACK = 1e-3  # relative, between a bias's scale and the accumulator's


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        rule: its short name.
        node: the node at fault.
        message: what is wrong, and what it should be.
        reason: why the runtime minds; empty where it is plain.
    """

    rule: str
    node: str
    message: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.message}" + (f" ({self.reason})" if self.reason else "")

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def lint(model: ir.Model, scheme: Scheme) -> list[Finding]:
    """Everything in a graph's Q/DQ that the scheme forbids, in the graph's order. Weights are read one at a time."""
    found = []
    for node in model.graph:
        for rule in RULES:
            found += list(rule(node, scheme))
    return found


def check_garbage(model: ir.Model, scheme: Scheme, what: str) -> None:
    """Raise UnsupportedModel, beginning with `what`, where the runtime loads a graph and gives wrong numbers for it."""
    found = [finding for node in model.graph for finding in before_norm(node, scheme)]
    if found:
        more = f", and {len(found) - 1} more" if found[1:] else ""
        raise UnsupportedModel(f"{what}: {found[0]}{more}.")


def kind(dtype: ir.DataType | None) -> str:
    """A type's name in ONNX, in small letters."""
    return "of no known type" if dtype is None else dtype.name.lower()


def name_of(node: ir.Node) -> str:
    """The node's name, or its output's where it has none."""
    return node.name or node.outputs[0].name or node.op_type


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, if it is of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def readers(value: ir.Value) -> list[ir.Node]:
    return [node for node, _ in value.uses()]


class Weight:
    """The constant behind a DequantizeLinear: a weight or a bias."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        self.scale = constant(node.inputs[1])

    @cached_property
    def content(self) -> np.ndarray:
        found = constant(self.node.inputs[0])
        assert found is not None
        return found

    @property
    def zero_point(self) -> np.ndarray | None:
        return constant(self.node.inputs[2]) if len(self.node.inputs) > 2 else None

    @property
    def axis(self) -> int:
        attribute = self.node.attributes.get("axis")
        axis = 1 if attribute is None else attribute.as_int()
        return axis % max(self.content.ndim, 1)


def weight_of(node: ir.Node, slot: int) -> Weight | None:
    """The quantised constant that a node reads in a slot."""
    if len(node.inputs) <= slot:
        return None
    dq = producer(node.inputs[slot], "DequantizeLinear")
    return Weight(dq) if dq is not None and is_constant(dq.inputs[0]) else None


def activation_of(node: ir.Node, slot: int = 0) -> ir.Node | None:
    """The DequantizeLinear of a quantised activation that a node reads in a slot, perhaps through a Squeeze."""
    read = node.inputs[slot] if len(node.inputs) > slot else None
    squeeze = producer(read, "Squeeze")
    dq = producer(squeeze.inputs[0] if squeeze is not None else read, "DequantizeLinear")
    return dq if dq is not None and not is_constant(dq.inputs[0]) else None


# --- pairs --------------------------------------------------------------------------------------------------------


def unpaired(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type == "QuantizeLinear":
        others = [user.op_type for user in readers(node.outputs[0]) if user.op_type != "DequantizeLinear"]
        if others or not readers(node.outputs[0]):
            who = f"is read by {others[0]}" if others else "is read by nothing"
            yield Finding("unpaired", name_of(node), f"its output {who}, not by a DequantizeLinear")
    if node.op_type == "DequantizeLinear" and not is_constant(node.inputs[0]):
        q = producer(node.inputs[0], "QuantizeLinear")
        if q is None:
            yield Finding("unpaired", name_of(node), "no QuantizeLinear makes what it reads")
            return
        for slot, what in ((1, "scale"), (2, "zero point")):
            ours, theirs = (constant(n.inputs[slot]) if len(n.inputs) > slot else None for n in (node, q))
            if not np.array_equal(0 if ours is None else ours, 0 if theirs is None else theirs):
                yield Finding("mismatch", name_of(node), f"its {what} is not that of {name_of(q)}")


def scales(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = constant(node.inputs[1])
    if scale is None:
        yield Finding("scale", name_of(node), "its scale is computed at run time")
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield Finding("scale", name_of(node), "its scale is not positive and finite")


def integer_ops(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type in INTEGER_OPS:
        why = f"{node.op_type} belongs to one runtime; Q/DQ around a plain op means the same to all"
        yield Finding("integer-op", name_of(node), why)


# --- activations --------------------------------------------------------------------------------------------------


def activations(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type != "QuantizeLinear" or is_constant(node.inputs[0]):
        return
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    dtype = node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] is not None else ir.DataType.UINT8
    if dtype != TYPES[scheme.activation]:
        text = f"it makes {kind(dtype)}, where {kind(TYPES[scheme.activation])} is wanted"
        yield Finding("activation-type", name_of(node), text, scheme.reasons.get("activation", ""))
    if scheme.precision == "fp8" and integer(node, "saturate", 1) == 0:
        yield Finding("saturate", name_of(node), "its saturate is 0: what lies beyond the range becomes NaN")
    if scheme.symmetric and zero_point is not None and np.any(zero_point):
        text = f"its zero point is {zero_point.reshape(-1)[0]}, not 0"
        yield Finding("zero-point", name_of(node), text, scheme.reasons.get("symmetric", ""))
    scale = constant(node.inputs[1])
    if scale is not None and scale.size > 1:
        yield Finding("per-channel-activation", name_of(node), "an activation has one scale, not one a channel")


def float_ops(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type in FLOAT_OPS and _stray(node, 0, scheme):
        yield Finding("float-op", name_of(node), f"{node.op_type} reads a quantised value: it belongs in float")
    is_sum = node.op_type == "Add" and not any(is_constant(value) for value in node.inputs)
    if is_sum and "Add" not in scheme.follow and any(_stray(node, slot, scheme) for slot in (0, 1)):
        yield Finding("residual", name_of(node), "a sum of two activations reads a quantised one: keep it in float")


def _stray(node: ir.Node, slot: int, scheme: Scheme) -> bool:
    """Whether a node reads a value that was quantised for no need: some ops write 8 bits and nothing else."""
    dq = activation_of(node, slot)
    q = producer(dq.inputs[0], "QuantizeLinear") if dq is not None else None
    written = q.inputs[0].producer() if q is not None and q.inputs[0] is not None else None
    forced = written is not None and written.op_type in (*scheme.outputs, *scheme.follow)
    return dq is not None and not forced


# --- products -----------------------------------------------------------------------------------------------------


def weights(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    weight = weight_of(node, 1) if node.op_type in PRODUCTS else None
    if weight is None or weight.scale is None:
        return
    name, wanted = name_of(weight.node), TYPES[scheme.precision]
    if weight.dtype != wanted and activation_of(node) is None:
        text = f"the weight is {kind(weight.dtype)} for storage alone: its product runs in float"
        yield Finding("weight-only", name, text, f"{scheme.name} is about products in {scheme.precision}")
        return
    yield from weight_scales(node, weight, scheme)
    if weight.dtype != wanted:
        yield Finding("weight-type", name, f"the weight is {kind(weight.dtype)}, not {kind(wanted)}")
    elif weight.zero_point is not None and np.any(weight.zero_point):
        yield Finding("weight-zero-point", name, "the weight's zero point is not 0")
    elif not np.isfinite(weight.content.astype(np.float32)).all():
        yield Finding("weight-nan", name, "the weight holds NaN: numbers beyond the range were not cut off")
    elif scheme.weight_peak < 127 and np.abs(weight.content.astype(np.int16)).max(initial=0) > scheme.weight_peak:
        text = f"weights reach beyond {scheme.weight_peak}"
        yield Finding("weight-peak", name, text, scheme.reasons.get("weight_peak", ""))
    rule = misfit(node, weight.content.shape, scheme)
    if rule:
        text = f"a {node.op_type} with a weight of {list(weight.content.shape)} is quantised"
        yield Finding(rule.replace("_", "-"), name_of(node), text, scheme.reasons.get(rule, ""))


def weight_scales(node: ir.Node, weight: Weight, scheme: Scheme) -> Iterator[Finding]:
    if weight.scale is None or weight.content.ndim < 2:
        return
    name, expected, reason = name_of(weight.node), _expected_axis(node), scheme.reasons.get("weight_scales", "")
    if scheme.weight_scales == "tensor" and weight.scale.size > 1:
        yield Finding("per-channel-weight", name, "a scale a channel, where one for the whole weight is wanted", reason)
    elif scheme.weight_scales == "channel" and weight.scale.size == 1 and weight.content.shape[expected] > 1:
        text = "one scale for the whole weight, where one an output channel is wanted"
        yield Finding("per-tensor-weight", name, text, reason)
    if weight.scale.ndim == 1 and weight.scale.size > 1 and weight.axis != expected:
        yield Finding("weight-axis", name, f"its axis is {weight.axis}, and output channels are along {expected}")


def _expected_axis(node: ir.Node) -> int:
    if node.op_type == "MatMul":
        return 1
    axis = weight_axis(node)
    if axis is not None:
        return axis
    return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1


def halves(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type not in PRODUCTS or is_constant(node.inputs[0]):
        return
    weight, activation = weight_of(node, 1), activation_of(node)
    if activation is not None and weight is None and activation_of(node, 1) is None:
        yield Finding(
            "half", name_of(node), "its activation is quantised and its other factor is not: it runs in float"
        )


def biases(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    weight, activation = (weight_of(node, 1), activation_of(node)) if node.op_type in PRODUCTS else (None, None)
    if weight is None or weight.scale is None or len(node.inputs) < 3 or node.inputs[2] is None:
        return
    bias, reason = weight_of(node, 2), scheme.reasons.get("bias", "")
    if bias is None:
        if scheme.bias == "int32" and activation is not None:
            yield Finding("bias", name_of(node), "its bias is float, where int32 is wanted", reason)
        return
    if scheme.bias == "float":
        yield Finding("bias", name_of(node), "its bias is quantised, where float is wanted", reason)
    elif activation is not None and bias.scale is not None:
        unit = constant(activation.inputs[1])
        wanted = None if unit is None else unit.astype(np.float64) * weight.scale
        if wanted is not None and not np.allclose(bias.scale, wanted, rtol=SLACK, atol=0):
            text = "its bias is in another unit than activation scale x weight scale"
            yield Finding("bias-scale", name_of(bias.node), text)


def outputs(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    quantised = node.op_type in PRODUCTS and activation_of(node) is not None
    if not quantised or (weight_of(node, 1) is None and activation_of(node, 1) is None):
        return
    users = readers(node.outputs[0])
    behind = [user for user in users if user.op_type == "QuantizeLinear"]
    if (
        node.op_type in scheme.outputs
        and (len(behind) < len(users) or not users)
        and not node.outputs[0].is_graph_output()
    ):
        yield Finding(
            "output", name_of(node), "its output is not quantised: it runs in float", scheme.reasons["outputs"]
        )
    if node.op_type not in scheme.outputs:
        if scheme.apart and behind and len(behind) < len(users):
            text = "a QuantizeLinear and a float op read its output: it is not fused"
            yield Finding("apart", name_of(node), text, scheme.reasons.get("apart", ""))
        for q in behind:
            plain = [u for dq in readers(q.outputs[0]) for u in readers(dq.outputs[0]) if u.op_type not in PRODUCTS]
            if plain:
                text = f"a product's output is quantised for {plain[0].op_type}, which runs in float"
                yield Finding("output", name_of(q), text, scheme.reasons.get("outputs", ""))


def before_norm(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if node.op_type not in PRODUCTS or not scheme.not_before or weight_of(node, 1) is None:
        return
    users = readers(node.outputs[0])
    reached = [*users, *(user for r in users if r.op_type == "Reshape" for user in readers(r.outputs[0]))]
    if activation_of(node) is not None and any(user.op_type in scheme.not_before for user in reached):
        text = "a quantised product stands before a norm that must not follow one"
        yield Finding("not-before", name_of(node), text, scheme.reasons["not_before"])


def linear_form(node: ir.Node, scheme: Scheme) -> Iterator[Finding]:
    if scheme.linear != "Gemm" or node.op_type != "MatMul" or weight_of(node, 1) is None:
        return
    for user in readers(node.outputs[0]):
        if user.op_type == "Add" and any(is_constant(value) for value in user.inputs):
            text = "its bias is a separate Add: write both as one Gemm"
            yield Finding("linear-form", name_of(node), text, scheme.reasons.get("linear", ""))


Rule = Callable[[ir.Node, Scheme], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    unpaired,
    scales,
    integer_ops,
    activations,
    float_ops,
    weights,
    halves,
    biases,
    outputs,
    before_norm,
    linear_form,
)

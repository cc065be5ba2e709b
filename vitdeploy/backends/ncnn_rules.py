"""What each ONNX op becomes in ncnn: a function a kind of op, from a node to layers of a Converter's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from vitdeploy.backends.ncnn_graph import attribute, named, natural, numbers_of, weight, whole_numbers
from vitdeploy.backends.ncnn_writer import MOST, Blob, Shape, collapsed, merged, order, sizes
from vitdeploy.errors import UnsupportedModel

if TYPE_CHECKING:
    from vitdeploy.backends.ncnn_convert import Converter

ADD, SUB, MUL, DIV, MAX, MIN, POW, RSUB, RDIV, RPOW = range(10)
BINARY = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Div": DIV, "Pow": POW, "Max": MAX, "Min": MIN, "Sum": ADD}
SWAPPED = {ADD: ADD, MUL: MUL, MAX: MAX, MIN: MIN, SUB: RSUB, DIV: RDIV, POW: RPOW}
UNARY = ("Abs", "Neg", "Floor", "Ceil", "Square", "Sqrt", "Rsqrt", "Exp", "Log", "Sin", "Cos")
REDUCE = {"ReduceSum": 0, "ReduceSumSquare": 2, "ReduceMean": 3, "ReduceMax": 4, "ReduceMin": 5, "ReduceL2": 8}
ALIASES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast")
Rule = Callable[["Converter", ir.Node], None]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


# --- products -------------------------------------------------------------------------------------------------------


@rule("Conv")
def conv(c: Converter, node: ir.Node) -> None:
    """Convolution, or ConvolutionDepthWise where channels are in groups."""
    x, w = c.shape(node.inputs[0]), c.shape(node.inputs[1])
    if len(w) != 4 or x[0] != 1:
        what = f"of {len(w) - 2} dimensions" if len(w) != 4 else f"over {x[0]} maps at once"
        raise UnsupportedModel(f"ncnn's Convolution is of one map in two dimensions, and {named(node)} is {what}.")
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        raise UnsupportedModel(f"The padding of {named(node)} is left to the runtime, which ncnn does not do.")
    group = attribute(node, "group", 1)
    (top, left, bottom, right), strides = attribute(node, "pads", (0,) * 4), attribute(node, "strides", (1, 1))
    dilations, bias = attribute(node, "dilations", (1, 1)), weight(node, 2)
    params = {0: w[0], 1: w[3], 11: w[2], 2: dilations[1], 12: dilations[0], 3: strides[1], 13: strides[0]}
    params |= {4: left, 15: right, 14: top, 16: bottom, 5: int(bias is not None), 6: math.prod(w)}
    params |= {7: group} if group > 1 else {}
    kind = "ConvolutionDepthWise" if group > 1 else "Convolution"
    blob = c.need(node.inputs[0], x[1:])
    c.give(node, c.writer.add(kind, [blob], c.shape(node.outputs[0])[1:], str(node.outputs[0].name), params))
    c.writer.tagged(*c.kernel(node, 1))
    if bias is not None:
        c.writer.raw(bias)


@rule("Gemm", "MatMul")
def product(c: Converter, node: ir.Node) -> None:
    a, b = node.inputs[0], node.inputs[1]
    if weight(node, 1) is not None and len(c.shape(b)) == 2:
        linear(c, node)
        return
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or alpha != 1 or (len(node.inputs) > 2 and beta != 1)):
        raise UnsupportedModel(f"ncnn's MatMul has no factors, and {named(node)} has.")
    m, n = c.shape(a), c.shape(b)
    if len(m) < 2 or len(n) < 2:
        raise UnsupportedModel(f"{named(node)} multiplies a vector, which is not written for ncnn.")
    outer = c.shape(node.outputs[0])[:-2]
    one = math.prod(outer) == 1
    sides = []
    for value, whole in ((a, m), (b, n)):
        count = math.prod(whole[:-2])
        if not one and count not in (1, math.prod(outer)):
            raise UnsupportedModel(f"{named(node)} repeats a part of its matrices, which ncnn's MatMul does not.")
        sides.append(c.need(value, whole[-2:] if one else (count, *whole[-2:])))
    shape = (m[-2], c.shape(node.outputs[0])[-1])
    trans = {0: 1} if attribute(node, "transB", 0) else {}
    name = str(node.outputs[0].name)
    c.give(node, c.writer.add("MatMul", sides, shape if one else (math.prod(outer), *shape), name, trans))
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        held = c.held.pop(name)
        other = c.need(node.inputs[2], (1,) * (len(held.shape) - 1) + c.shape(node.inputs[2])[-1:])
        c.give(node, c.writer.add("BinaryOp", [held, other], held.shape, name, {0: ADD}))


def linear(c: Converter, node: ir.Node) -> None:
    """Gemm over rows, and InnerProduct over one, each with weights (outputs, inputs)."""
    w, storage = c.kernel(node, 1)
    alpha, beta = (attribute(node, key, 1.0) for key in ("alpha", "beta"))
    w = (w if attribute(node, "transB", 0) else w.T) * np.float32(alpha)
    bias = None if len(node.inputs) < 3 or node.inputs[2] is None else weight(node, 2)
    if attribute(node, "transA", 0) or (len(node.inputs) > 2 and node.inputs[2] is not None and bias is None):
        raise UnsupportedModel(f"{named(node)} has a form that ncnn's Gemm does not.")
    outputs, inputs = w.shape
    shape = c.shape(node.inputs[0])
    rows, name = math.prod(shape[:-1]), str(node.outputs[0].name)
    given = None if bias is None else np.broadcast_to(bias.reshape(-1) * np.float32(beta), (outputs,))
    if rows == 1:
        params = {0: outputs, 1: int(given is not None), 2: w.size}
        blob = c.writer.add("InnerProduct", [c.need(node.inputs[0], (inputs,))], (outputs,), name, params)
        c.writer.tagged(w, storage)
    else:
        params = {3: 1, 5: 1, 6: 1, 8: outputs, 9: inputs, 10: -1 if given is None else 4}
        blob = c.writer.add("Gemm", [c.need(node.inputs[0], (rows, inputs))], (rows, outputs), name, params)
        c.writer.tagged(w, storage)
        c.writer.weights.write(b"" if given is None else bytes(4))
    if given is not None:
        c.writer.raw(given)
    c.give(node, blob)


# --- norms and functions --------------------------------------------------------------------------------------------


@rule("LayerNormalization")
def layer_norm(c: Converter, node: ir.Node) -> None:
    shape = c.shape(node.inputs[0])
    axis = attribute(node, "axis", -1) % len(shape)
    width = math.prod(shape[axis:])
    scale, bias = weight(node, 1), weight(node, 2)
    if scale is None or scale.size != width:
        raise UnsupportedModel(f"The weights of {named(node)} are not constants, as ncnn's LayerNorm wants them.")
    blob = c.blob(node.inputs[0])
    if blob.shape[-1] != width:
        blob = c.need(node.inputs[0], (math.prod(shape[:axis]), width))
    params = {0: width, 1: float(attribute(node, "epsilon", 1e-5))}
    c.give(node, c.writer.add("LayerNorm", [blob], blob.shape, str(node.outputs[0].name), params))
    c.writer.raw(scale)
    c.writer.raw(np.zeros(width, np.float32) if bias is None else bias)


@rule("BatchNormalization")
def batch_norm(c: Converter, node: ir.Node) -> None:
    shape = c.shape(node.inputs[0])
    numbers = [weight(node, i) for i in range(1, 5)]
    if shape[0] != 1 or any(one is None for one in numbers):
        raise UnsupportedModel(f"{named(node)} is not over one map with constants, as ncnn's BatchNorm is.")
    scale, bias, mean, variance = numbers
    blob = (
        c.need(node.inputs[0], (shape[1], math.prod(shape[2:])))
        if len(shape) > 2
        else c.need(node.inputs[0], shape[1:])
    )
    params = {0: shape[1], 1: float(attribute(node, "epsilon", 1e-5))}
    c.give(node, c.writer.add("BatchNorm", [blob], blob.shape, str(node.outputs[0].name), params))
    for one in (scale, mean, variance, bias):
        assert one is not None
        c.writer.raw(one)


@rule("InstanceNormalization")
def instance_norm(c: Converter, node: ir.Node) -> None:
    shape, scale, bias = c.shape(node.inputs[0]), weight(node, 1), weight(node, 2)
    if shape[0] != 1 or scale is None or bias is None:
        raise UnsupportedModel(f"{named(node)} is not over one map with constants, as ncnn's InstanceNorm is.")
    blob = c.need(node.inputs[0], (shape[1], 1, math.prod(shape[2:])))
    params = {0: shape[1], 1: float(attribute(node, "epsilon", 1e-5))}
    c.give(node, c.writer.add("InstanceNorm", [blob], blob.shape, str(node.outputs[0].name), params))
    c.writer.raw(scale)
    c.writer.raw(bias)


@rule("Softmax")
def softmax(c: Converter, node: ir.Node) -> None:
    shape = c.shape(node.inputs[0])
    axis = attribute(node, "axis", -1) % len(shape)
    blob = c.blob(node.inputs[0])
    place = len(blob.shape) - 1
    if axis != len(shape) - 1 or blob.shape[-1] != shape[-1]:
        blob, place = c.around(node.inputs[0], axis)
    c.give(node, c.writer.add("Softmax", [blob], blob.shape, str(node.outputs[0].name), {0: place, 1: 1}))


@rule("Gelu")
def gelu(c: Converter, node: ir.Node) -> None:
    c.map(node, "GELU", {0: int(attribute(node, "approximate", "none") in ("tanh", b"tanh"))})


@rule("HardSwish", "HardSigmoid")
def hard(c: Converter, node: ir.Node) -> None:
    swish = node.op_type == "HardSwish"
    alpha = 1 / 6 if swish else float(attribute(node, "alpha", 0.2))
    c.map(node, node.op_type, {0: alpha, 1: 0.5 if swish else float(attribute(node, "beta", 0.5))})


@rule("Relu", "LeakyRelu")
def relu(c: Converter, node: ir.Node) -> None:
    slope = float(attribute(node, "alpha", 0.01)) if node.op_type == "LeakyRelu" else 0.0
    c.map(node, "ReLU", {0: slope} if slope else {})


@rule("Elu")
def elu(c: Converter, node: ir.Node) -> None:
    c.map(node, "ELU", {0: float(attribute(node, "alpha", 1.0))})


@rule("Clip")
def clip(c: Converter, node: ir.Node) -> None:
    low, high = weight(node, 1), weight(node, 2)
    params = {0: float(low)} if low is not None else {}
    c.map(node, "Clip", params | ({1: float(high)} if high is not None else {}))


@rule("Sigmoid")
def sigmoid(c: Converter, node: ir.Node) -> None:
    """Nothing where it only is a part of x * sigmoid(x), which `binary` writes as Swish."""
    if not all(swish_of(user) is not None for user, _ in node.outputs[0].uses()) or node.outputs[0].is_graph_output():
        c.map(node, "Sigmoid")


@rule("Tanh", "Erf", "Softplus")
def same_name(c: Converter, node: ir.Node) -> None:
    c.map(node, {"Tanh": "TanH"}.get(node.op_type, node.op_type))


@rule(*(op for op in UNARY if op not in ("Square", "Rsqrt")))
def unary(c: Converter, node: ir.Node) -> None:
    c.map(node, "UnaryOp", {0: UNARY.index(node.op_type)})


@rule("Reciprocal")
def reciprocal(c: Converter, node: ir.Node) -> None:
    c.map(node, "UnaryOp", {0: 15})


@rule(*BINARY)
def binary(c: Converter, node: ir.Node) -> None:
    inner = swish_of(node)
    if inner is not None:
        c.map(node, "Swish", value=inner)
        return
    op, name = BINARY[node.op_type], str(node.outputs[0].name)
    first, *rest = node.inputs
    if not rest:
        c.give(node, c.blob(first))
        return
    if len(rest) > 1:
        raise UnsupportedModel(f"{named(node)} has {len(node.inputs)} inputs, and ncnn's BinaryOp has two.")
    (second,) = rest
    for value, other, way in ((first, second, op), (second, first, SWAPPED[op])):
        scalar = numbers_of(other)
        if scalar is not None and scalar.size == 1 and numbers_of(value) is None:
            blob, number = c.blob(value), float(scalar.reshape(()))
            if (way, number) == (POW, 2.0):  # BinaryOp's is exp(2 log x), for x > 0 alone
                c.map(node, "UnaryOp", {0: UNARY.index("Square")}, value)
                return
            params = {0: way, 1: 1, 2: number}
            c.give(node, c.writer.add("BinaryOp", [blob], blob.shape, name, params))
            return
    sides, shape = aligned(c, node, first, second)
    c.give(node, c.writer.add("BinaryOp", sides, shape, name, {0: op}))


def aligned(c: Converter, node: ir.Node, first: ir.Value | None, second: ir.Value | None) -> tuple[list[Blob], Shape]:
    """Two tensors as blobs of as many dimensions, which then broadcast as in NumPy; and what they broadcast to."""
    out = c.shape(node.outputs[0])
    shapes = [(1,) * (len(out) - len(c.shape(value))) + c.shape(value) for value in (first, second)]
    if shapes[0] == shapes[1]:
        for value in (first, second):
            found = c.held.get(str(value.name if value is not None else ""))
            if found is not None:
                return [c.need(first, found.shape), c.need(second, found.shape)], found.shape
    lead = len(out) - len(natural(out))
    if len(out) - lead <= MOST:
        plain = [shape[lead:] for shape in shapes]
    else:
        plain = list(collapsed(*shapes))
        if len(plain[0]) > MOST:
            raise UnsupportedModel(f"{named(node)} broadcasts over more dimensions than ncnn's blobs have.")
    sides = [c.need(value, shape) for value, shape in zip((first, second), plain, strict=True)]
    return sides, tuple(max(m, n) for m, n in zip(*plain, strict=True))


def swish_of(node: ir.Node) -> ir.Value | None:
    """x, where the node is x * sigmoid(x)."""
    if node.op_type != "Mul":
        return None
    for value, gate in (node.inputs, tuple(node.inputs)[::-1]):
        made = gate.producer() if gate is not None else None
        if made is not None and made.op_type == "Sigmoid" and made.inputs[0] is value:
            return value
    return None


# --- shapes ---------------------------------------------------------------------------------------------------------


@rule(*ALIASES)
def alias(c: Converter, node: ir.Node) -> None:
    c.give(node, c.blob(node.inputs[0]))


@rule("Expand")
def expand(c: Converter, node: ir.Node) -> None:
    """An addition of zeros, where it does anything."""
    whole, shape = c.shape(node.inputs[0]), c.shape(node.outputs[0])
    if math.prod(whole) == math.prod(shape):
        alias(c, node)
        return
    given, wide = collapsed((1,) * (len(shape) - len(whole)) + whole, shape)
    if len(wide) > MOST:
        raise UnsupportedModel(f"{named(node)} repeats over more dimensions than ncnn's blobs have.")
    name = str(node.outputs[0].name)
    zeros = c.writer.add("MemoryData", [], wide, f"{name}_zeros", sizes(wide))
    c.writer.raw(np.zeros(wide, np.float32))
    c.give(node, c.writer.add("BinaryOp", [zeros, c.need(node.inputs[0], given)], wide, name, {0: ADD}))


@rule("Transpose")
def transpose(c: Converter, node: ir.Node) -> None:
    """One Permute, or where more than four axes change places several, each of which brings one to its place."""
    whole, name = c.shape(node.inputs[0]), str(node.outputs[0].name)
    shape, perm = merged(attribute(node, "perm", range(len(whole))[::-1]), whole)
    if len(perm) < 2:
        c.give(node, c.blob(node.inputs[0]))
        return
    if len(perm) <= MOST:
        blob = c.need(node.inputs[0], shape)
        c.give(node, c.writer.add("Permute", [blob], tuple(shape[i] for i in perm), name, {0: order(perm)}))
        return
    axes, blob = list(range(len(perm))), c.blob(node.inputs[0])
    for place, axis in enumerate(perm):
        at = axes.index(axis)
        if at == place:
            continue
        parts = [axes[:place], axes[place:at], [axis], axes[at + 1 :]]
        lengths = [math.prod(shape[i] for i in part) for part in parts]
        blob = c.reshaped(blob, tuple(lengths))
        moved = (lengths[0], lengths[2], lengths[1], lengths[3])
        blob = c.writer.add("Permute", [blob], moved, name, {0: order((0, 2, 1, 3))})
        axes = [*parts[0], axis, *parts[1], *parts[3]]
    c.give(node, blob)


@rule("Slice")
def cut(c: Converter, node: ir.Node) -> None:
    starts, ends, axes, steps = (whole_numbers(node, i) for i in range(1, 5))
    if starts is None or ends is None:
        raise UnsupportedModel(f"{named(node)} cuts at places that are not known before it runs.")
    shape = c.shape(node.inputs[0])
    value, blob = node.inputs[0], c.blob(node.inputs[0])
    name = str(node.outputs[0].name)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes is not None else i) % len(shape)
        step = 1 if steps is None else steps[i]
        places = range(*slice(start, end, step).indices(shape[axis])) if step > 0 else range(0)
        if not places:
            raise UnsupportedModel(f"{named(node)} goes backwards or leaves nothing.")
        if len(places) == shape[axis]:
            continue
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        blob = strided(c, blob, (outer, shape[axis], inner), places, name)
        shape = (*shape[:axis], len(places), *shape[axis + 1 :])
    assert value is not None
    c.give(node, blob)


def strided(c: Converter, blob: Blob, view: Shape, places: range, name: str) -> Blob:
    """Some of the middle axis of (outer, all, inner).

    With a step, steps are laid out as rows, of which the beginnings are cut.
    """
    outer, _, inner = view
    lead = () if outer == 1 else (outer,)
    axis = len(lead)
    first, last = places[0], places[-1] + 1
    blob = c.crop(c.reshaped(blob, (*lead, view[1], inner)), axis, first, last, name)
    if places.step == 1:
        return blob
    rows, step = len(places), places.step
    if rows * step > last - first:
        blob = pad(c, blob, axis, 0, rows * step - (last - first), 0.0, name)
    return c.crop(c.reshaped(blob, (*lead, rows, step * inner)), axis + 1, 0, inner, name)


@rule("Split")
def split(c: Converter, node: ir.Node) -> None:
    blob, axis = c.around(node.inputs[0], attribute(node, "axis", 0))
    at = 0
    for out in node.outputs:
        width = c.shape(out)[attribute(node, "axis", 0)]
        if out.uses() or out.is_graph_output():
            c.held[str(out.name)] = c.crop(blob, axis, at, at + width, str(out.name))
        at += width


@rule("Gather")
def gather(c: Converter, node: ir.Node) -> None:
    """Rows that follow each other are cut out at once."""
    places = whole_numbers(node, 1)
    if places is None:
        raise UnsupportedModel(f"{named(node)} takes places that are not known before it runs.")
    shape = c.shape(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    lead = () if outer == 1 else (outer,)
    blob, name = c.need(node.inputs[0], (*lead, shape[axis], inner)), str(node.outputs[0].name)
    runs: list[list[int]] = []
    for place in (one % shape[axis] for one in places):
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    parts = [c.crop(blob, len(lead), start, end, name) for start, end in runs]
    whole = (*lead, len(places), inner)
    c.give(node, parts[0] if len(parts) == 1 else c.writer.add("Concat", parts, whole, name, {0: len(lead)}))


@rule("Concat")
def concat(c: Converter, node: ir.Node) -> None:
    shape = c.shape(node.outputs[0])
    axis = attribute(node, "axis", 0) % len(shape)
    lead = len(shape) - len(natural(shape))
    if len(shape) - lead <= MOST and axis >= lead:
        parts = [c.need(value, c.shape(value)[lead:]) for value in node.inputs]
        whole, place = shape[lead:], axis - lead
    else:
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        before = () if outer == 1 else (outer,)
        parts = [c.need(value, (*before, c.shape(value)[axis], inner)) for value in node.inputs]
        whole, place = (*before, shape[axis], inner), len(before)
    c.give(node, c.writer.add("Concat", parts, whole, str(node.outputs[0].name), {0: place}))


@rule("Pad")
def pads(c: Converter, node: ir.Node) -> None:
    amounts, value = whole_numbers(node, 1), weight(node, 2)
    shape, mode = c.shape(node.inputs[0]), attribute(node, "mode", "constant")
    axes = whole_numbers(node, 3)
    if amounts is None or mode not in ("constant", b"constant"):
        raise UnsupportedModel(f"{named(node)} pads in a way that is not written for ncnn.")
    blob, name = c.blob(node.inputs[0]), str(node.outputs[0].name)
    places = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    for i, axis in enumerate(places):
        before, behind = amounts[i], amounts[i + len(places)]
        if before < 0 or behind < 0:
            raise UnsupportedModel(f"{named(node)} pads by less than nothing, which is not written for ncnn.")
        if before or behind:
            outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
            lead = () if outer == 1 else (outer,)
            view = c.reshaped(blob, (*lead, shape[axis], inner))
            blob = pad(c, view, len(lead), before, behind, 0.0 if value is None else float(value.reshape(())), name)
            shape = (*shape[:axis], shape[axis] + before + behind, *shape[axis + 1 :])
    c.give(node, blob)


def pad(c: Converter, blob: Blob, axis: int, before: int, behind: int, value: float, name: str) -> Blob:
    """More of an axis that is the last but one."""
    shape = (*blob.shape[:axis], blob.shape[axis] + before + behind, *blob.shape[axis + 1 :])
    return c.writer.add("Padding", [blob], shape, name, {0: before, 1: behind, 5: value})


@rule(*REDUCE, "GlobalAveragePool")
def reduce(c: Converter, node: ir.Node) -> None:
    shape, name = c.shape(node.inputs[0]), str(node.outputs[0].name)
    axes = range(2, len(shape)) if node.op_type == "GlobalAveragePool" else whole_numbers(node, 1)
    axes = attribute(node, "axes", range(len(shape))) if axes is None else axes
    places = sorted(axis % len(shape) for axis in axes)
    if places != list(range(places[0], places[-1] + 1)):
        raise UnsupportedModel(f"{named(node)} reduces axes apart from each other, which is not written for ncnn.")
    outer, inner = math.prod(shape[: places[0]]), math.prod(shape[places[-1] + 1 :])
    middle = math.prod(shape[places[0] : places[-1] + 1])
    view = (*((outer,) if outer > 1 else ()), middle, *((inner,) if inner > 1 else ()))
    params: dict[int, Any] = {0: REDUCE.get(node.op_type, 3), 1: 0, 3: [int(outer > 1)], 4: 0, 5: 1}
    rest = tuple(n for n in (outer, inner) if n > 1) or (1,)
    c.give(node, c.writer.add("Reduction", [c.need(node.inputs[0], view)], rest, name, params))


@rule("MaxPool", "AveragePool")
def pool(c: Converter, node: ir.Node) -> None:
    shape = c.shape(node.inputs[0])
    square = len(shape) == 4 and shape[0] == 1
    odd = attribute(node, "ceil_mode", 0) or set(attribute(node, "dilations", (1,))) != {1}
    if not square or odd or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        raise UnsupportedModel(f"{named(node)} has a form that ncnn's Pooling does not.")
    kernel_shape, strides = attribute(node, "kernel_shape", (1, 1)), attribute(node, "strides", (1, 1))
    top, left, bottom, right = attribute(node, "pads", (0,) * 4)
    params = {0: int(node.op_type == "AveragePool"), 1: kernel_shape[1], 11: kernel_shape[0]}
    params |= {2: strides[1], 12: strides[0], 3: left, 14: right, 13: top, 15: bottom, 5: 1}
    params |= {6: attribute(node, "count_include_pad", 0)}
    blob = c.need(node.inputs[0], shape[1:])
    c.give(node, c.writer.add("Pooling", [blob], c.shape(node.outputs[0])[1:], str(node.outputs[0].name), params))

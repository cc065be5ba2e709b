"""Scaled dot-product attention as ONNX's Attention, which opset 23 brought.

Between the projections a runtime then reads q, k and v as they come, (batch, tokens, heads * width): the Transposes
that put heads first and those that put them back are gone. Only what is fp32 throughout is fused, so this runs after
the graph was converted to its precision."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.export.trace import ATTENTION_OPSET
from vitdeploy.graph.edit import (
    add_node,
    array,
    constant,
    dims,
    integer,
    ints,
    length,
    only_user,
    reshape_target,
    sweep,
    take_over,
)

HEADS_FIRST, HEADS_FIRST_TURNED = [0, 2, 1, 3], [0, 2, 3, 1]


@dataclass(frozen=True)
class _Attention:
    """softmax(q @ k + mask) @ v, with 4 dimensions each: (batch, heads, tokens, width), k turned."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    last: ir.Node


def fuse_attention(model: ir.Model) -> int:
    """Fuse every attention whose scores nothing else reads. Returns how many; none before opset 23."""
    if model.opset_imports.get("", 0) < ATTENTION_OPSET:
        return 0
    count = 0
    for node in list(model.graph):
        if node.op_type == "Softmax" and node.domain == "" and integer(node, "axis", -1) in (-1, 3):
            found = _attention_at(node)
            count += 0 if found is None else _fuse(found)
    sweep(model)
    return count


def _attention_at(softmax: ir.Node) -> _Attention | None:
    scores, mask = softmax.inputs[0], None
    node = _alone(scores)
    if node is not None and node.op_type == "Add":
        pair = [v for v in node.inputs if v is not None]
        masks = [v for v in pair if constant(v) is not None]
        if len(masks) != 1:
            return None
        mask = masks[0]
        node = _alone(next(v for v in pair if v is not mask))
    last = only_user(softmax.outputs[0])
    if node is None or node.op_type != "MatMul" or last is None or last.op_type != "MatMul":
        return None
    (q, k), v = node.inputs, last.inputs[1]
    if last.inputs[0] is not softmax.outputs[0] or q is None or k is None or v is None or v is softmax.outputs[0]:
        return None
    values = (q, k, v, last.outputs[0])
    if any(len(dims(value) or ()) != 4 or value.dtype not in (ir.DataType.FLOAT, None) for value in values):
        return None
    if mask is not None and not _fits(mask, node.outputs[0]):
        return None
    return _Attention(q, k, v, mask, last)


def _alone(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value which one node reads."""
    return None if value is None or only_user(value) is None else value.producer()


def _fits(mask: ir.Value, scores: ir.Value) -> bool:
    """Whether a mask's last two dimensions are those of the scores, and its heads too or 1."""
    shape, wanted = dims(mask) or (), dims(scores) or ()
    if not 2 <= len(shape) <= 4 or shape[-2:] != wanted[-2:]:
        return False
    return len(shape) == 2 or (shape[-3] in (1, wanted[1]) and (len(shape) == 3 or shape[0] == 1))


def _fuse(found: _Attention) -> int:
    """Where heads are cut out of channels and joined again: elsewhere the one kernel is no faster than the others."""
    wanted = (found.q, HEADS_FIRST), (found.k, HEADS_FIRST_TURNED), (found.v, HEADS_FIRST)
    sources = [_turned(value, perm) for value, perm in wanted]
    join = only_user(found.last.outputs[0])
    if join is None or join.op_type != "Transpose" or ints(join, "perm") != HEADS_FIRST:
        return 0
    if any(source is None or not _is_written(source) for source in (*sources, join.outputs[0])):
        return 0
    inputs: list[ir.Value | None] = [_joined(source, found.last) for source in sources if source is not None]
    out = join.outputs[0]
    batch, tokens, *_ = dims(out) or ()
    heads, width = length(out, 2), length(out, 3)
    fused = add_node(
        join,
        "Attention",
        [*inputs, _mask(found)],
        f"{out.name}/joined",
        out,
        (batch, tokens, heads * width),
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=1.0,
    )
    for user, index in list(out.uses()):
        shape = dims(user.outputs[0])
        if user.op_type == "Reshape" and index == 0 and shape and sum(isinstance(d, str) for d in shape) <= 1:
            user.replace_input_with(0, fused)
            user.replace_input_with(1, reshape_target(_graph(user), shape, f"{user.outputs[0].name}"))
            user.attributes.pop("allowzero", None)
    if out.uses() or out.is_graph_output():
        target = reshape_target(_graph(join), dims(out) or (), f"{out.name}/split")
        take_over(out, add_node(join, "Reshape", [fused, target], f"{out.name}/split", out))
    return 1


def _turned(value: ir.Value, perm: list[int]) -> ir.Value | None:
    """What a Transpose with this permutation reads, if one makes the value."""
    node = value.producer()
    made = node is not None and node.op_type == "Transpose" and ints(node, "perm") == perm
    return node.inputs[0] if node is not None and made else None


def _is_written(value: ir.Value) -> bool:
    """Whether heads and width are known, and no more than one of the other dimensions is not."""
    shape = dims(value) or ()
    return all(isinstance(d, int) for d in shape[2:]) and sum(isinstance(d, str) for d in shape) <= 1


def _joined(value: ir.Value, before: ir.Node) -> ir.Value:
    """(batch, tokens, heads, width) as (batch, tokens, heads * width)."""
    shape = (*(dims(value) or ())[:2], length(value, 2) * length(value, 3))
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Reshape" else value
    assert source is not None
    known = dims(source) or ()
    unknown = sum(isinstance(d, str) for d in known)
    if len(known) == 3 and sum(a == b for a, b in zip(known, shape, strict=True)) >= 3 - unknown and unknown <= 1:
        return source  # as many numbers as `shape` has, and so the same shape
    target = reshape_target(_graph(before), shape, f"{value.name}/joined")
    return add_node(before, "Reshape", [source, target], f"{value.name}/joined", value, shape)


def _mask(found: _Attention) -> ir.Value | None:
    """With 4 dimensions, in which no runtime can mistake heads for images."""
    if found.mask is None or len(dims(found.mask) or ()) == 4:
        return found.mask
    data = constant(found.mask)
    assert data is not None
    return array(_graph(found.last), f"{found.mask.name}/4d", data.reshape((1,) * (4 - data.ndim) + data.shape))


def _graph(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph

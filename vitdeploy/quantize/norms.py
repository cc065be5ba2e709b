"""LayerNormalization of matrices in front of a QuantizeLinear, seen as of three axes: OpenVINO's norms then quantise
what they write, while one over the last of two axes leaves that to a kernel of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import add_node, array, dims, integer, only_user


def lift_norms(model: ir.Model) -> int:
    """Write `Unsqueeze, LayerNormalization, Q, DQ, Squeeze` in place of `LayerNormalization, Q, DQ`; returns how often.

    Only where the norm is over the last of two axes, and nothing but the Q reads it.
    """
    graph, count = model.graph, 0
    axis: ir.Value | None = None
    for norm in [node for node in graph if node.op_type == "LayerNormalization"]:
        x, out = norm.inputs[0], norm.outputs[0]
        shape, q = dims(out), only_user(out)
        if x is None or shape is None or len(shape) != 2 or integer(norm, "axis", -1) not in (-1, 1):
            continue
        if q is None or q.op_type != "QuantizeLinear" or any(user.op_type != "DequantizeLinear" for user in readers(q)):
            continue
        axis = axis or array(graph, "lifted/axis", np.array([0], np.int64))
        lifted = (1, *shape)
        norm.replace_input_with(0, add_node(norm, "Unsqueeze", [x, axis], f"{out.name}/rows", x, lifted))
        norm.attributes["axis"] = ir.AttrInt64("axis", -1)
        for made in (out, q.outputs[0]):
            made.shape = ir.Shape(lifted)
        for dq in readers(q):
            wide, users = dq.outputs[0], list(dq.outputs[0].uses())
            wide.shape = ir.Shape(lifted)
            flat = add_node(users[0][0], "Squeeze", [wide, axis], f"{wide.name}/flat", wide, shape)
            for user, slot in users:
                user.replace_input_with(slot, flat)
        out.name = f"{out.name}/lifted"
        count += 1
    return count


def readers(node: ir.Node) -> list[ir.Node]:
    return [user for user, _ in node.outputs[0].uses()]

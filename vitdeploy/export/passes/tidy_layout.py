"""Reshape and Transpose that do nothing, or undo each other, and copies (Identity, Dropout in inference).

A Reshape to another tensor's run-time shape is written with a constant, where that shape is known but for the batch."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.export.passes.narrow_tokens import BINARY
from vitdeploy.graph.edit import dims, integer, ints, reshape_target, sweep, take_over


def tidy_layout(model: ir.Model) -> int:
    """Remove what only moves or copies. Returns how many nodes went."""
    before = model.graph.num_nodes()
    changed = True
    while changed:
        changed = False
        for node in list(model.graph):
            if node.domain == "" and node.graph is not None:
                changed |= tidy_one(node)
        sweep(model)
    return before - model.graph.num_nodes()


def tidy_one(node: ir.Node) -> bool:
    source, out = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
    if source is None or out is None:
        return False
    if node.op_type in ("Identity", "Dropout") or (node.op_type in ("Reshape", "Expand") and same_shape(source, out)):
        return bypass(source, out)
    if restore_shape(node, out):
        return True
    above = source.producer()
    if node.op_type == "Transpose":
        perm = ints(node, "perm")
        if perm == sorted(perm or [-1]):
            return bypass(source, out)
        if above is not None and above.op_type == "Transpose" and above.domain == "" and perm:
            first = ints(above, "perm")
            if first and above.inputs[0] is not None:
                node.replace_input_with(0, above.inputs[0])
                node.attributes["perm"] = ir.AttrInt64s("perm", [first[i] for i in perm])
                return True
    if node.op_type == "Reshape" and above is not None and above.op_type == "Reshape" and above.domain == "":
        return merge_reshapes(node, above)
    return False


def restore_shape(node: ir.Node, out: ir.Value) -> bool:
    """Note a shape that the exporter left open, and write the target of a Reshape to Shape(y) as a constant."""
    if node.op_type in BINARY and "None" in (dims(out) or ()):
        shapes = [dims(value) or ("None",) for value in node.inputs]
        full = next((s for s in shapes if "None" not in s and all(broadcasts(other, s) for other in shapes)), None)
        out.shape = out.shape if full is None else ir.Shape(list(full))
        return full is not None
    if node.op_type != "Reshape" or node.inputs[1] is None:
        return False
    maker = node.inputs[1].producer()
    if maker is None or maker.op_type != "Shape" or maker.domain != "" or "end" in maker.attributes:
        return False
    shape = dims(maker.inputs[0])
    if (
        shape is None
        or "None" in shape
        or integer(maker, "start", 0) != 0
        or sum(isinstance(d, str) for d in shape) > 1
    ):
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.replace_input_with(1, reshape_target(graph, shape, f"{out.name}"))
    node.attributes.pop("allowzero", None)
    out.shape = ir.Shape(list(shape))
    return True


def broadcasts(shape: tuple[int | str, ...], to: tuple[int | str, ...]) -> bool:
    """Whether `shape` broadcasts to `to` by ONNX's rules, without changing it."""
    return len(shape) <= len(to) and all(a in (b, 1) for a, b in zip(reversed(shape), reversed(to), strict=False))


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    first = dims(a)
    return first is not None and first == dims(b) and all(d != "None" for d in first)


def bypass(source: ir.Value, out: ir.Value) -> bool:
    """Let the users of `out` read `source`, unless that would rename an input or output of the graph."""
    if out.is_graph_output() and (source.is_graph_input() or source.is_graph_output() or source.is_initializer()):
        return False
    if not out.uses() and not out.is_graph_output():
        return False  # nobody to bypass it for: a Dropout whose mask alone is read
    if out.is_graph_output():
        take_over(out, source)
    else:
        ir.convenience.replace_all_uses_with(out, source)
    return True


def merge_reshapes(node: ir.Node, above: ir.Node) -> bool:
    """Reshape(Reshape(x)) is one Reshape, if its target shape can be written down without looking at x."""
    shape = dims(node.outputs[0])
    if shape is None or above.inputs[0] is None or sum(not isinstance(d, int) for d in shape) > 1:
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    node.replace_input_with(0, above.inputs[0])
    node.replace_input_with(1, reshape_target(graph, shape, f"{node.outputs[0].name}"))
    node.attributes.pop("allowzero", None)
    return True

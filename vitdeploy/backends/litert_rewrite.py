"""A PyTorch program as LiteRT's converter should see it: it folds no weights, and scales both sides of attention."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def fold_constants(graph: fx.GraphModule) -> int:
    """Compute once, in place of the graph, what is made of weights alone; returns how many constants that made.

    Args:
        graph: of a program with no changes in place, its weights as attributes.
    """
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = attrgetter(node.target)(graph)
            if isinstance(value, Tensor):
                known[node] = value.detach()
        elif node.op == "call_function" and all(one in known for one in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    made = 0
    for node, value in known.items():
        needed = any(user not in known for user in node.users)
        if node.op == "get_attr" or not needed or not isinstance(value, Tensor):
            continue
        name = f"folded_{made}"
        graph.register_buffer(name, value.contiguous())
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        made += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return made


def spell_attention(graph: fx.GraphModule) -> int:
    """Write attention out, in place of the graph, only queries scaled; returns how often that was done."""
    spelled = 0
    for node in graph.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        given = dict(zip(("query", "key", "value", "mask", "dropout_p", "is_causal"), node.args, strict=False))
        query, key, value = (given[name] for name in ("query", "key", "value"))
        mask = node.kwargs.get("attn_mask", given.get("mask"))
        shapes = {tuple(one.meta["val"].shape[:-2]) for one in (query, key, value)}
        known = mask is None or mask.meta["val"].dtype == query.meta["val"].dtype
        if len(shapes) > 1 or not known or node.kwargs.get("is_causal", given.get("is_causal")):
            continue
        scale = node.kwargs.get("scale") or query.meta["val"].shape[-1] ** -0.5
        with graph.graph.inserting_before(node):
            call = graph.graph.call_function
            scaled = call(aten.mul.Tensor, (query, scale))
            scores = call(aten.matmul.default, (scaled, call(aten.transpose.int, (key, -2, -1))))
            if mask is not None:
                scores = call(aten.add.Tensor, (scores, mask))
            made = call(aten.matmul.default, (call(aten.softmax.int, (scores, -1)), value))
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)
        spelled += 1
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default  # attention's own output lies in memory as its user wants to view it
    graph.recompile()
    return spelled

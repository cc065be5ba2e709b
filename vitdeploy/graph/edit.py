"""Small verbs for rewriting an `onnx_ir` graph.

One rule holds in every rewrite: **what a node makes keeps its name only while it keeps its numbers.** A tensor whose
contents a pass changes (a bias folded away, fewer rows) gets a new name. So a name found both in the traced program and
in a finished graph means the same numbers, and `verify.bisect` may compare them. Weights are not bound by it: a weight
with a BatchNorm folded into it is still called after its layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

INLINE_BYTES = 1 << 16  # larger derived constants are computed when the graph is written, one at a time


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is known before the graph runs."""
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant value, or None when it is not constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The shape with symbolic dimensions as strings, or None when the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)


def length(value: ir.Value, axis: int) -> int:
    """A static dimension of a value whose shape is known."""
    assert value.shape is not None
    found = value.shape[axis]
    assert isinstance(found, int)
    return found


# By graph, and not in its `meta`: clones share what lies there.
_taken: WeakKeyDictionary[ir.Graph, set[str | None]] = WeakKeyDictionary()


def fresh_name(graph: ir.Graph, base: str) -> str:
    """`base`, or `base_2`, ... when a value of the graph has that name already."""
    taken = _taken.get(graph)
    if taken is None:
        taken = {v.name for v in graph.inputs} | set(graph.initializers)
        taken |= {v.name for node in graph.all_nodes() for v in node.outputs}
        _taken[graph] = taken
    name, i = base, 1
    while name in taken:
        i += 1
        name = f"{base}_{i}"
    taken.add(name)
    return name


def forget_names(graph: ir.Graph) -> None:
    """After values were named or removed without `fresh_name`."""
    _taken.pop(graph, None)


def weight(
    graph: ir.Graph, name: str, like: ir.DataType, shape: Sequence[int], compute: Callable[[], np.ndarray]
) -> ir.Value:
    """A new initializer. Large ones stay recipes until they are written or asked for."""
    size = int(np.prod(shape, dtype=np.int64)) * like.bitwidth // 8
    name = fresh_name(graph, name)

    def tensor() -> ir.Tensor:
        array = np.asarray(compute(), dtype=like.numpy(), order="C")
        return ir.Tensor(array, dtype=like, name=name)

    content: Any = (
        tensor() if size <= INLINE_BYTES else ir.LazyTensor(tensor, dtype=like, shape=ir.Shape(shape), name=name)
    )
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(like), const_value=content)
    graph.register_initializer(value)
    return value


def copy_of(model: ir.Model) -> ir.Model:
    """A clone that shares nothing but the numbers of its weights: not its values' types either, which are mutable."""
    copy = model.clone()
    values = [*copy.graph.inputs, *copy.graph.initializers.values()]
    values += [out for node in copy.graph.all_nodes() for out in node.outputs]
    for value in values:
        if isinstance(value.type, ir.TensorType):
            value.type = ir.TensorType(value.type.dtype)
    return copy


def array(graph: ir.Graph, name: str, data: np.ndarray) -> ir.Value:
    """A new initializer with these numbers."""
    return weight(graph, name, ir.DataType.from_numpy(data.dtype), data.shape, lambda: data)


def reshape_target(graph: ir.Graph, shape: Sequence[int | str], name: str) -> ir.Value:
    """The shape input of a Reshape to `shape`, of whose dimensions at most one may be symbolic."""
    return array(graph, f"{name}/shape", np.array([d if isinstance(d, int) else -1 for d in shape], dtype=np.int64))


def add_node(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    like: ir.Value,
    shape: Iterable[int | str] | None = None,
    **attributes: Any,
) -> ir.Value:
    """Insert one node of one output before `before`; its output has `like`'s dtype, and `like`'s shape unless given."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    out = ir.Value(
        name=fresh_name(graph, name),
        shape=like.shape if shape is None else ir.Shape(list(shape)),
        type=ir.TensorType(like.dtype) if like.dtype is not None else None,
    )
    node = ir.node(op_type, inputs, attributes or None, outputs=[out], name=fresh_name(graph, f"{op_type}:{out.name}"))
    node.metadata_props.update(before.metadata_props)
    graph.insert_before(before, node)
    return out


def take_over(old: ir.Value, new: ir.Value) -> None:
    """`new` holds the same numbers: it takes `old`'s users, place among the graph's outputs, and name."""
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if new.producer() is not None and not new.is_initializer():
        old.name = f"{name}/replaced"
        new.name = name
    if new.shape is None or (old.shape is not None and any(isinstance(d, int) for d in old.shape)):
        new.shape = old.shape


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value; None when there are more, or when it is a graph output."""
    if value.is_graph_output():
        return None
    users = {id(node): node for node, _ in value.uses()}
    return next(iter(users.values())) if len(users) == 1 else None


def ints(node: ir.Node, name: str) -> list[int] | None:
    """An INTS attribute as a list, or None."""
    attribute = node.attributes.get(name)
    return None if attribute is None else list(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def settle_names(model: ir.Model) -> None:
    """Give initializers called `name_2`, because an older `name` was in the way, that name now that it is free."""
    initializers = model.graph.initializers
    taken = {out.name for node in model.graph.all_nodes() for out in node.outputs}
    for value in list(initializers.values()):
        base = re.sub(r"_\d+$", "", value.name or "")
        if base and base != value.name and base not in initializers and base not in taken:
            value.name = base
            if value.const_value is not None:
                value.const_value.name = base
    forget_names(model.graph)


def sweep(model: ir.Model) -> None:
    """Drop nodes and initializers that reach no output."""
    graph = model.graph
    for node in reversed(list(graph)):
        if all(not out.uses() and not out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]

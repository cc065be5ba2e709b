"""The type and shape of every tensor of a graph, for given input shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy.graph.save import described, movable, skeleton_of, weights

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


@dataclass(frozen=True)
class TensorInfo:
    """Element type (as in onnx.TensorProto.DataType; 0: unknown) and shape (None: unknown, the whole or a part)."""

    dtype: int
    shape: tuple[int | None, ...] | None

    @property
    def known(self) -> bool:
        return self.shape is not None and None not in self.shape

    @property
    def size(self) -> int | None:
        """Number of elements."""
        return math.prod(n for n in self.shape or () if n is not None) if self.known else None


def infer(model: ir.Model, inputs: Mapping[str, Sequence[int]] | None = None) -> dict[str, TensorInfo]:
    """Type and shape of each tensor in the main graph by name, initializers included.

    Args:
        model: the graph; its weights are not read.
        inputs: concrete shapes of the graph's inputs. Where one is not given, its symbolic dimensions count as 1.

    ONNX shape inference knows no other domains' operators: past one of them only what the graph itself notes is known.
    """
    import onnx

    proto = light_proto(model)
    sizes = _fix_inputs(proto.graph, inputs or {})
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                _set_dim(dim, sizes.get(dim.dim_param))
    with suppress(Exception):  # Of an invalid model, what the graph notes is all there is.
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    found = {t.name: TensorInfo(t.data_type, tuple(t.dims)) for t in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        found[value.name] = _info(value)
    return found


def light_proto(model: ir.Model) -> onnx.ModelProto:
    """The model with small initializers, which may be shapes, and only the description of large ones."""
    from onnx_ir import serde

    proto = skeleton_of(model)
    for tensor in weights(model):
        place = {"location": "not-here"}
        proto.graph.initializer.append(described(tensor, place) if movable(tensor) else serde.serialize_tensor(tensor))
    return proto


def _fix_inputs(graph: onnx.GraphProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Give every input a concrete shape; return the size that each symbolic dimension took."""
    sizes: dict[str, int] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        given = inputs.get(value.name)
        if given is not None and len(given) != len(dims):
            continue
        for position, dim in enumerate(dims):
            size = int(given[position]) if given is not None else dim.dim_value or 1
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, size)
            _set_dim(dim, size)
    return sizes


def _set_dim(dim: onnx.TensorShapeProto.Dimension, size: int | None) -> None:
    dim.ClearField("dim_param")
    if size is not None:
        dim.dim_value = size


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return TensorInfo(kind.elem_type, None)
    return TensorInfo(kind.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim))

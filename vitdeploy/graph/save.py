"""Write a graph to disk: the same graph gives the same bytes, and no weight is held in memory twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vitdeploy.errors import UsageError
from vitdeploy.graph import wire

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    Places = Mapping[str, Mapping[str, str]]

INLINE_BELOW = 1024
ALIGNMENT = 4096
# What is left under that limit for nodes, headers and the tensors in attributes.
HEADROOM = 1 << 28


def save(model: ir.Model, path: Path, *, external_above: int = 1 << 30) -> list[Path]:
    """Write `model` to `path`, streaming the weights one tensor at a time.

    Weights that total `external_above` bytes or more go to one file beside it, `<name>.data`, each tensor aligned to
    4096 bytes; tensors under 1 KiB stay in the model file.

    Returns:
        The files written, the model file first.

    Raises:
        UsageError: the file cannot be written (full disk, no permission, no such folder), an initializer has no value,
            or the weights are read from the very file that would be replaced. Nothing is left behind.
    """
    path = Path(path)
    tensors = weights(model)
    large = [tensor.nbytes for tensor in tensors if movable(tensor)]
    external = bool(large) and sum(large) >= min(external_above, wire.PROTOBUF_LIMIT - HEADROOM)
    data = path.with_name(path.name + ".data")
    files = [path, data] if external else [path]
    _refuse_own_source(tensors, files)
    skeleton = skeleton_of(model)
    with _written_whole(files) as parts:
        places = write_data(tensors, parts[1], data.name) if external else {}
        write_model(skeleton, tensors, parts[0], places)
    return files


def weights(model: ir.Model) -> list[ir.TensorProtocol]:
    """The main graph's initializers in order, each named as its value. Raises UsageError on one without a value."""
    tensors = []
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            raise UsageError(f"Initializer '{name}' has no value.")
        value.const_value.name = name
        tensors.append(value.const_value)
    return tensors


def skeleton_of(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf message without the main graph's initializers.

    Raises UsageError when an attribute or a subgraph reads its tensor from another file: `load` brings those in.
    """
    import onnx_ir as ir
    from onnx_ir import serde

    for tensor in _inner_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            raise UsageError(f"Tensor '{tensor.name}' inside a node is stored in another file ({tensor.location}).")
    graph = _Instead(model.graph, initializers={})
    return serde.serialize_model(_Instead(model, graph=graph))


def write_data(tensors: Sequence[ir.TensorProtocol], path: Path, location: str) -> dict[str, dict[str, str]]:
    """Write the tensors of 1 KiB and more to one file; return each one's external-data entries by name."""
    places = {}
    with path.open("wb") as file:
        for tensor in tensors:
            if not movable(tensor):
                continue
            offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(bytes(offset - file.tell()))
            _write_raw(tensor, file)
            places[tensor.name or ""] = {"location": location, "offset": str(offset), "length": str(tensor.nbytes)}
    return places


def write_model(skeleton: onnx.ModelProto, tensors: Sequence[ir.TensorProtocol], path: Path, places: Places) -> None:
    """Write one ONNX file: `skeleton` with `tensors` as its initializers; those named in `places` only by reference."""
    import onnx

    graph = skeleton.graph.SerializeToString(deterministic=True)
    rest = onnx.ModelProto()
    rest.CopyFrom(skeleton)
    rest.ClearField("graph")
    heads = [_head(tensor, places.get(tensor.name or "")) for tensor in tensors]
    sizes = [len(head) + raw for head, raw in heads]
    fields = [wire.opening(wire.GRAPH_INITIALIZER, size) for size in sizes]
    length = len(graph) + sum(len(field) + size for field, size in zip(fields, sizes, strict=True))
    with path.open("wb") as file:
        file.write(rest.SerializeToString(deterministic=True))
        file.write(wire.opening(wire.MODEL_GRAPH, length) + graph)
        for tensor, field, (head, raw) in zip(tensors, fields, heads, strict=True):
            file.write(field + head)
            if raw:
                _write_raw(tensor, file)


def described(tensor: ir.TensorProtocol, place: Mapping[str, str] | None = None) -> onnx.TensorProto:
    """Name, type and shape of a tensor without its data; with `place`, as an external one that lies there."""
    import onnx

    proto = onnx.TensorProto(name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    proto.doc_string = tensor.doc_string or ""
    for key, value in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=value)
    if place is not None:
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            proto.external_data.add(key=key, value=value)
    return proto


def movable(tensor: ir.TensorProtocol) -> bool:
    """Whether the tensor is large enough, and of a kind, to lie outside the model file."""
    return tensor.nbytes >= INLINE_BELOW and not _is_string(tensor)


def _head(tensor: ir.TensorProtocol, place: Mapping[str, str] | None) -> tuple[bytes, int]:
    """A TensorProto's bytes up to its raw data, and how many bytes of raw data must follow."""
    from onnx_ir import serde

    if _is_string(tensor):
        return serde.serialize_tensor(tensor).SerializeToString(deterministic=True), 0
    head = described(tensor, place).SerializeToString(deterministic=True)
    if place is not None:
        return head, 0
    return head + wire.opening(wire.TENSOR_RAW_DATA, tensor.nbytes), tensor.nbytes


def _write_raw(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    start = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    if file.tell() - start != tensor.nbytes:
        raise UsageError(f"Weight '{tensor.name}' gave {file.tell() - start} bytes; its shape needs {tensor.nbytes}.")


@contextmanager
def _written_whole(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Lend a `.part` path for each of `files`; move them all into place at the end, or remove them all on any error."""
    parts = [file.with_name(file.name + ".part") for file in files]
    try:
        yield parts
        for part, file in reversed(list(zip(parts, files, strict=True))):
            part.replace(file)
    except OSError as error:
        # numpy's tofile gives no errno when a write comes up short.
        reason = error.strerror or f"the disk took only part of it ({error})"
        raise UsageError(f"Cannot write {files[0]}: {reason}.") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _refuse_own_source(tensors: Sequence[ir.TensorProtocol], files: Sequence[Path]) -> None:
    """A replaced data file would leave the graph's lazily read weights pointing at other bytes."""
    import onnx_ir as ir

    targets = {file.resolve() for file in files}
    sources = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    for source in sources:
        if source.resolve() in targets:
            raise UsageError(f"{source} holds the weights of the graph being saved: save it to another folder.")


def _inner_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors that are not the main graph's initializers: in attributes, subgraphs and functions."""
    import onnx_ir as ir

    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()
                elif attribute.type == ir.AttributeType.GRAPH:
                    inner = attribute.as_graph().initializers.values()
                    yield from (value.const_value for value in inner if value.const_value is not None)


class _Instead:
    """An object seen through some other attributes; lets serde leave the weights out without touching the graph."""

    def __init__(self, seen: Any, **instead: Any) -> None:
        self.__dict__.update(instead, _seen=seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)


def _is_string(tensor: ir.TensorProtocol) -> bool:
    import onnx_ir as ir

    return tensor.dtype == ir.DataType.STRING

"""Read an ONNX file that nobody vouches for. Whatever is wrong with it is a UsageError of one sentence.

External data is checked before any library opens it: paths that leave the model's folder have been a way to read
foreign files again and again (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187).
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import UsageError
from vitdeploy.graph import wire

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


def load(path: Path) -> ir.Model:
    """Read an ONNX file. Weights in a data file beside it are mapped into memory when they are first read.

    Raises:
        UsageError: the file is missing, cut short, corrupt, no ONNX model, or refers to data outside its folder.
    """
    import onnx_ir as ir

    path = Path(path)
    size = _regular_file(path)
    if size > wire.PROTOBUF_LIMIT:
        raise UsageError(f"{path} is larger than 2 GiB, which ONNX allows only with the weights in a separate file.")
    try:
        proto = _parse(path.read_bytes(), path)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    _check_graph(proto, path)
    _check_tensors(proto, path, whole=True)
    _bring_in_inner_tensors(proto, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise UsageError(f"{path} is not a valid ONNX model: {_last_cause(error)}.") from error
    ir.external_data.set_base_dir(model.graph, _folder(path))
    return model


def check_external_data(path: Path) -> onnx.ModelProto:
    """Check an ONNX file before its path goes to a runtime, and return it without its weights, which are not read.

    Raises UsageError as `load` does.
    """
    path = Path(path)
    _regular_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            data = wire.without_weights(content)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not an ONNX model, or is damaged: {error}.") from error
    proto = _parse(data, path)
    _check_graph(proto, path)
    _check_tensors(proto, path, whole=False)
    return proto


def external_files(path: Path) -> list[Path]:
    """The data files that an ONNX file refers to, sorted. Checks it as `check_external_data` does."""
    locations = {e.value for t in _tensors(check_external_data(path)) for e in t.external_data if e.key == "location"}
    return [_folder(path) / location for location in sorted(locations)]


def _regular_file(path: Path) -> int:
    """The file's size in bytes."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"No such model file: {path}.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read {path}: {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is a folder or a device, not an ONNX file.")
    if status.st_size == 0:
        raise UsageError(f"{path} is empty.")
    return status.st_size


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not an ONNX model, or is damaged.") from error
    if not proto.HasField("graph") or not proto.opset_import or proto.ir_version < 1 or not proto.graph.output:
        raise UsageError(f"{path} is not an ONNX model: it has no graph, no outputs or no opset.")
    return proto


def _check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Names in the main graph: each made once, each that is read also made."""
    made = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not tensor.name:
            raise UsageError(f"{path} has a weight without a name.")
        made.add(tensor.name)
    made |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    for node in proto.graph.node:
        for name in filter(None, node.output):
            if name in made:
                raise UsageError(f"{path} is not a valid ONNX model: '{name}' is made twice.")
            made.add(name)
    for node in proto.graph.node:
        for name in node.input:
            if name and name not in made:
                raise UsageError(
                    f"{path} is not a valid ONNX model: {node.op_type} reads '{name}', which nothing makes."
                )
    for value in proto.graph.output:
        if value.name not in made:
            raise UsageError(f"{path} is not a valid ONNX model: nothing makes its output '{value.name}'.")


def _check_tensors(proto: onnx.ModelProto, path: Path, *, whole: bool) -> None:
    """Hold every tensor's type, shape and place against what is there. `whole`: the weights were read as well."""
    import onnx

    folder = _folder(path)
    for tensor in _tensors(proto):
        size = _size(tensor, path)
        # A tensor with stray entries is checked too: libraries differ in which field they believe.
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _check_place(tensor, size, path, folder)
        elif whole and size is not None and tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise UsageError(f"{path} is damaged: weight '{tensor.name}' does not hold the bytes its shape needs.")
    if whole and proto.graph.sparse_initializer:
        raise UsageError(f"{path} has sparse weights, which vitdeploy does not read.")


def _tensors(message: Any, besides: str = "") -> Iterator[onnx.TensorProto]:
    """Every TensorProto under `message`, wherever the format allows one, `besides` those in that field of it."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != besides:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)


def _size(tensor: onnx.TensorProto, path: Path) -> int | None:
    """Bytes of the tensor's data; None for strings."""
    import onnx_ir as ir

    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise UsageError(f"{path} is damaged: tensor '{tensor.name}' has the type {tensor.data_type}.") from None
    if any(n < 0 for n in tensor.dims):
        raise UsageError(f"{path} is damaged: tensor '{tensor.name}' has the shape {list(tensor.dims)}.")
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return -(-math.prod(tensor.dims) * dtype.bitwidth // 8)


def _check_place(tensor: onnx.TensorProto, size: int | None, path: Path, folder: Path) -> None:
    keys = [entry.key for entry in tensor.external_data]
    place = {entry.key: entry.value for entry in tensor.external_data}
    wrong = f"{path}: the data of tensor '{tensor.name}'"
    if len(keys) != len(set(keys)) or "location" not in place or size is None:
        raise UsageError(f"{wrong} has no one place.")
    location = place["location"]
    file = folder / location if _stays_inside(location) else None
    if file is None or not _resolves_inside(file, folder):
        raise UsageError(f"{wrong} lies outside the model's folder ({location!r}).")
    numbers = {key: place.get(key, "0") for key in ("offset", "length")}
    if any(not (text.isascii() and text.isdigit() and len(text) < 20) for text in numbers.values()):
        raise UsageError(f"{wrong} has no valid offset and length ({numbers}).")
    offset, length = int(numbers["offset"]), int(numbers["length"]) if "length" in place else size
    if length != size:
        raise UsageError(f"{wrong} is {length} bytes long; its shape needs {size}.")
    try:
        status = file.stat()
    except OSError:
        raise UsageError(f"{wrong} is missing: there is no file {file}.") from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UsageError(f"{wrong} is not in a plain file: {file} is a folder, a device or has a second hard link.")
    if offset + length > status.st_size:
        raise UsageError(f"{wrong} is cut short: {file} has {status.st_size} bytes of the {offset + length} needed.")


def _stays_inside(location: str) -> bool:
    """Whether `location` is a plain relative path on every operating system."""
    plain = location.isprintable() and not set(location) & set('\\:*?"<>|')
    parts = location.split("/")
    return bool(location) and plain and not PureWindowsPath(location).anchor and not {"", ".", ".."} & set(parts)


def _resolves_inside(file: Path, folder: Path) -> bool:
    """Whether `file` is under `folder` once every symbolic link on the way is followed."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False


def _bring_in_inner_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Read external tensors of attributes, subgraphs and functions, so that only the main graph's weights are lazy."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    for tensor in (*_tensors(proto, besides="graph"), *_tensors(proto.graph, besides="initializer")):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(_folder(path)))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _folder(path: Path) -> Path:
    return Path(os.path.abspath(path)).parent  # noqa: PTH100 (resolve() would follow a link to the model elsewhere)


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__

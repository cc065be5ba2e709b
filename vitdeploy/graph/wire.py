"""The little of protobuf's wire format that lets an ONNX file be written in a stream and read without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_RAW_DATA = 9
TENSOR_DATA = (4, 5, 7, TENSOR_RAW_DATA, 10, 11)

SMALL = 1024
PROTOBUF_LIMIT = (1 << 31) - 1  # bytes of one message


def varint(number: int) -> bytes:
    """A non-negative integer in protobuf's base-128 form."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def opening(field: int, length: int) -> bytes:
    """What stands before `length` bytes of a message, string or bytes field."""
    return varint(field << 3 | BYTES) + varint(length)


def without_weights(buffer: bytes | mmap) -> bytes:
    """A serialised ModelProto without the main graph's initializer data above 1 KiB; that data is not even read.

    Raises ValueError when `buffer` is cut short or is no protobuf message.
    """
    return _copied(buffer, 0, len(buffer), (MODEL_GRAPH, GRAPH_INITIALIZER))


def _copied(buffer: bytes | mmap, start: int, end: int, descend: tuple[int, ...]) -> bytes:
    """The message at buffer[start:end]. `descend` names the fields that lead to the tensors; empty: this is one."""
    out = []
    for field, kind, first, payload, last in _fields(buffer, start, end):
        if kind == BYTES and descend and field == descend[0]:
            inner = _copied(buffer, payload, last, descend[1:])
            out.append(opening(field, len(inner)) + inner)
        elif not (kind == BYTES and not descend and field in TENSOR_DATA and last - payload > SMALL):
            out.append(buffer[first:last])
    return b"".join(out)


def _fields(buffer: bytes | mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field as (number, wire type, where it starts, where its payload starts, where it ends)."""
    at = start
    while at < end:
        tag, payload = _read_varint(buffer, at, end)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, last = _read_varint(buffer, payload, end)
        elif kind == FIXED64:
            last = payload + 8
        elif kind == FIXED32:
            last = payload + 4
        elif kind == BYTES:
            length, payload = _read_varint(buffer, payload, end)
            last = payload + length
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if not field or last > end:
            raise ValueError(f"a field at byte {at} runs past its end")
        yield field, kind, at, payload, last
        at = last


def _read_varint(buffer: bytes | mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"an integer at byte {at} does not end")

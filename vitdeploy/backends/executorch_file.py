"""What is in a .pte file, by its two schemas: ExecuTorch's `program.fbs` and the XNNPACK delegate's `schema.fbs`.

Nothing here needs ExecuTorch. A file is a flatbuffer of the identifier 'ET12' with an extended header behind its first
eight bytes; a delegate's graph is a flatbuffer of its own within.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.backends.base import Census, TensorSpec
from vitdeploy.errors import UsageError

IDENTIFIER = b"ET"  # from the fifth byte on; two digits of a version follow
EXTENDED = b"eh00"
XNNPACK, XNN_HEADER = "XnnpackBackend", b"XH00"
FORWARD, INPUTS, OUTPUTS, REPORT = "forward", "input_names", "output_names", "vitdeploy.report"
# Numbers of ExecuTorch's scalar types.
TYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64"}
TYPES |= {5: "float16", 6: "float32", 7: "float64", 11: "bool"}
SHORT = {"float32": "fp32", "float16": "fp16"}
KERNEL_CALL, DELEGATE_CALL, IN_SEGMENT, TENSOR, STRING = 1, 2, 1, 5, 6  # tags of unions, and a location
# Numbers of XNNPACK's data types.
FLOATS = {1: "fp32", 2: "fp16", 13: "fp32", 14: "bf16"}
INTEGERS = dict.fromkeys((3, 4, 6, 9, 11), "int8") | dict.fromkeys((8, 10), "int4") | dict.fromkeys((5, 7, 12), "int32")
# Names of XNNPACK's nodes, by their number in the union from 1 on, and their fields that hold what they read and make.
PAIR, ONE, CONV, POOL, CAT = ((0, 1), 2), ((0,), 1), ((15, 16), 18), ((10,), 11), ((1, 2, 3, 4), 5)
NODES: Sequence[tuple[str, tuple[tuple[int, ...], int]]] = (
    ("Add", PAIR),
    ("FullyConnected", ((0, 1), 3)),
    ("Softmax", ONE),
    ("Sigmoid", ONE),
    ("StaticTranspose", ((2,), 3)),
    ("Clamp", ONE),
    ("Conv2d", CONV),
    ("Div", PAIR),
    ("StaticResizeBilinear2D", ((2,), 3)),
    ("StaticConstantPad", ((3,), 4)),
    ("AvgPooling2d", POOL),
    ("Minimum", PAIR),
    ("DepthwiseConv2d", CONV),
    ("MaxPooling2d", POOL),
    ("Multiply", PAIR),
    ("Subtract", PAIR),
    ("Floor", ONE),
    ("Convert", ONE),
    ("GlobalAvgPooling2d", ONE),
    ("StaticReshape", ((2,), 3)),
    ("ArgMaxPooling2d", ((6,), 7)),
    ("SquareRoot", ONE),
    ("Ceiling", ONE),
    ("Hardswish", ONE),
    ("LeakyReLU", ((1,), 2)),
    ("Maximum", PAIR),
    ("Negate", ONE),
    ("Square", ONE),
    ("ELU", ((1,), 2)),
    ("Abs", ONE),
    ("PReLU", PAIR),
    ("Concatenate2", CAT),
    ("Concatenate3", CAT),
    ("Concatenate4", CAT),
    ("StaticSlice", ((3,), 4)),
    ("ScaledDotProductAttention", ((0, 1, 2), 5)),
    ("BatchMatrixMultiply", PAIR),
    ("Concatenate5", CAT),
    ("ConvTranspose2d", CONV),
    ("ReciprocalSquareRoot", ONE),
    ("Log", ONE),
    ("Gelu", ONE),
    ("Tanh", ONE),
    ("Exp", ONE),
    ("Sin", ONE),
    ("Copy", ONE),
    ("Cos", ONE),
)
PRODUCTS = ("FullyConnected", "Conv2d", "DepthwiseConv2d", "ConvTranspose2d", "BatchMatrixMultiply")
# Of the portable kernels.
PORTABLE_PRODUCTS = ("mm", "bmm", "addmm", "linear", "convolution", "matmul")
PORTABLE_CASTS = ("_to_copy", "_to_dim_order_copy", "quantize_per_tensor", "dequantize_per_tensor")


@dataclass(frozen=True)
class Table:
    """A table of a flatbuffer. Numbers are little-endian; raises struct.error or IndexError on what is none."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> Table:
        return cls(data, unpack("<I", data, 0))

    def place(self, slot: int) -> int:
        """Where a field lies; 0 where it is absent."""
        vtable = self.at - unpack("<i", self.data, self.at)
        if 4 + 2 * slot >= unpack("<H", self.data, vtable):
            return 0
        offset = unpack("<H", self.data, vtable + 4 + 2 * slot)
        return self.at + offset if offset else 0

    def number(self, slot: int, form: str = "<I") -> int:
        place = self.place(slot)
        return unpack(form, self.data, place) if place else 0

    def table(self, slot: int) -> Table | None:
        place = self.place(slot)
        return Table(self.data, place + unpack("<I", self.data, place)) if place else None

    def vector(self, slot: int) -> tuple[int, int]:
        """(where its items begin, how many there are)."""
        place = self.place(slot)
        if not place:
            return 0, 0
        start = place + unpack("<I", self.data, place)
        size = unpack("<I", self.data, start)
        if start + size > len(self.data):
            raise IndexError("a vector is longer than the file")
        return start + 4, size

    def numbers(self, slot: int, form: str = "<i") -> list[int]:
        start, size = self.vector(slot)
        width = struct.calcsize(form)
        return [unpack(form, self.data, start + i * width) for i in range(size)]

    def tables(self, slot: int) -> list[Table]:
        start, size = self.vector(slot)
        places = [start + 4 * i for i in range(size)]
        return [Table(self.data, place + unpack("<I", self.data, place)) for place in places]

    def bytes(self, slot: int) -> bytes:
        start, size = self.vector(slot)
        return self.data[start : start + size]

    def text(self, slot: int) -> str:
        return self.bytes(slot).decode("utf-8", "replace")


@dataclass(frozen=True)
class Op:
    """An op that runs.

    Attributes:
        name: XNNPACK's, or ATen's for a portable kernel.
        kinds: precisions of what it reads and, the last, of what it makes.
        shapes: the same.
        portable: whether one of ExecuTorch's own kernels runs it, and not XNNPACK.
    """

    name: str
    kinds: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    portable: bool = False

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices; a linear layer to one number is a sum (see executorch_rewrite.weighted)."""
        names = PORTABLE_PRODUCTS if self.portable else PRODUCTS
        return self.name in names and not (self.name == "FullyConnected" and self.shapes[-1][-1:] == (1,))

    @property
    def is_cast(self) -> bool:
        return self.name in PORTABLE_CASTS if self.portable else self.name == "Convert"

    @property
    def precision(self) -> str:
        return "int8" if self.is_product and "int8" in self.kinds[:2] else self.kinds[-1]

    @property
    def macs(self) -> int:
        weight = self.shapes[1]
        depth = weight[-2] if self.name == "BatchMatrixMultiply" or self.portable else math.prod(weight[1:])
        if self.name == "BatchMatrixMultiply":
            depth = self.shapes[0][-1]
        if self.name == "DepthwiseConv2d":
            depth = math.prod(weight[1:3])
        return math.prod(self.shapes[-1]) * depth


@dataclass(frozen=True)
class Found:
    """What is in a file.

    Attributes:
        inputs, outputs: of its method `forward`.
        ops: what runs, in order.
        others: delegates that are not XNNPACK's, by name, with how often each is called.
        constants: texts that its other methods return.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    ops: Sequence[Op]
    others: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)

    @property
    def census(self) -> Census:
        """Every op by what it makes, products by what they multiply; names of portable kernels end in '(portable)'."""
        ops: dict[str, Counter[str]] = defaultdict(Counter)
        compute: Counter[str] = Counter()
        for op in self.ops:
            ops[f"{op.name} (portable)" if op.portable else op.name][op.precision] += 1
            compute[op.precision] += op.is_product
        for name, count in self.others.items():
            ops[name]["unknown"] += count
        named = {op: dict(kinds) for op, kinds in sorted(ops.items())}
        casts = sum(op.is_cast for op in self.ops)
        return Census("ExecuTorch's program and XNNPACK's graphs in it", named, dict(+compute), casts, self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What runs on portable kernels."""
        portable = Counter(op.name for op in self.ops if op.portable)
        taken = sum(not op.portable for op in self.ops)
        if not portable:
            return (f"XNNPACK runs all {taken} ops",)
        which = ", ".join(f"{name} {count}" for name, count in sorted(portable.items()))
        return (f"XNNPACK runs {taken} ops, portable kernels {sum(portable.values())} ({which})",)


def unpack(form: str, data: bytes, at: int) -> int:
    if at < 0:
        raise IndexError("an offset points before the file")
    return int(struct.unpack_from(form, data, at)[0])


def check_whole(model: Path) -> None:
    """Raises UsageError on what is no .pte file, and on one whose end is missing."""
    try:
        with model.open("rb") as file:
            head = file.read(40)
    except OSError as error:
        raise UsageError(f"{model} cannot be read: {error.strerror}.") from None
    if head[4:6] != IDENTIFIER or not head[6:8].isdigit():
        raise UsageError(f"{model} is not an ExecuTorch program.")
    if head[8:12] == EXTENDED and len(head) >= 40:
        length, program, start = struct.unpack_from("<IQQ", head, 12)
        segments = struct.unpack_from("<Q", head, 32)[0] if length >= 32 else 0
        if model.stat().st_size < max(program, start + segments):
            raise UsageError(f"{model} is not a whole ExecuTorch program: its end is missing.")


def read(model: Path) -> Found:
    """Raises UsageError on what is no .pte file."""
    check_whole(model)
    try:
        return parse(model.read_bytes())
    except (struct.error, IndexError, KeyError, ValueError, RecursionError) as error:
        raise UsageError(f"{model} is not an ExecuTorch program that can be read: {error}.") from None


def parse(data: bytes) -> Found:
    program = Table.root(data)
    plans = {plan.text(0): plan for plan in program.tables(1)}
    forward = plans.get(FORWARD) or next(iter(plans.values()))
    constants = dict(texts(plans))
    values = forward.tables(2)
    sides = []
    for slot, key, word in ((3, INPUTS, "input"), (4, OUTPUTS, "output")):
        numbers = forward.numbers(slot)
        names = json.loads(constants[key]) if key in constants else [f"{word}_{i}" for i in range(len(numbers))]
        tensors = [tensor(values[number]) for number in numbers]
        sides.append([TensorSpec(str(name), *one) for name, one in zip(names, tensors, strict=True)])
    ops: list[Op] = []
    others: Counter[str] = Counter()
    graphs = forward.tables(7)
    for instruction in (one for chain in forward.tables(5) for one in chain.tables(2)):
        kind, call = instruction.number(0, "<B"), instruction.table(1)
        if call is None:
            continue
        if kind == KERNEL_CALL:
            ops.append(portable(forward.tables(6)[call.number(0)], [values[i] for i in call.numbers(1)]))
        elif kind == DELEGATE_CALL:
            delegate = graphs[call.number(0)]
            if delegate.text(0) == XNNPACK:
                ops.extend(delegated(payload(data, program, delegate)))
            else:
                others[delegate.text(0)] += 1
    return Found(sides[0], sides[1], ops, dict(others), constants)


def texts(plans: Mapping[str, Table]) -> Iterator[tuple[str, str]]:
    """Methods that return a constant text, each with that."""
    for name, plan in plans.items():
        values, outputs = plan.tables(2), plan.numbers(4)
        if not plan.numbers(3) and len(outputs) == 1 and values[outputs[0]].number(0, "<B") == STRING:
            held = values[outputs[0]].table(1)
            yield name, "" if held is None else held.text(0)


def tensor(value: Table) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape."""
    held = value.table(1)
    if value.number(0, "<B") != TENSOR or held is None:
        raise ValueError("an input or output is no tensor")
    kind = held.number(0, "<b")
    return TYPES.get(kind, f"type {kind}"), tuple(held.numbers(2))


def portable(operator: Table, arguments: Sequence[Table]) -> Op:
    tensors = [tensor(one) for one in arguments if one.number(0, "<B") == TENSOR]
    name = operator.text(0).rpartition("::")[2]
    kinds = [SHORT.get(kind, kind) for kind, _ in tensors]
    return Op(name, kinds or ["none"], [shape for _, shape in tensors] or [()], portable=True)


def payload(data: bytes, program: Table, delegate: Table) -> bytes:
    """What a delegate was given, from within the flatbuffer or from behind it."""
    where = delegate.table(1)
    if where is None:
        raise ValueError("a delegate is empty")
    index = where.number(1)
    if where.number(0, "<b") != IN_SEGMENT:
        return program.tables(3)[index].bytes(0)
    segment, start = program.tables(4)[index], unpack("<Q", data, 24)
    return data[start + segment.number(0, "<Q") :][: segment.number(1, "<Q")]


def delegated(data: bytes) -> Iterator[Op]:
    """The nodes of a graph of XNNPACK's."""
    if data[4:8] == XNN_HEADER:
        start, size = unpack("<I", data, 10), unpack("<I", data, 14)
        data = data[start : start + size]
    graph = Table.root(data)
    known: dict[int, tuple[str, tuple[int, ...]]] = {}
    for value in graph.tables(2):
        held = value.table(1)
        if held is not None and value.number(0, "<B") == 2:
            held = held.table(0)
        if held is not None:
            kind = held.number(0, "<h")
            name = FLOATS.get(kind) or INTEGERS.get(kind) or f"type {kind}"
            known[held.number(6)] = (name, tuple(held.numbers(2, "<I")))
    for node in graph.tables(1):
        number, held = node.number(0, "<B"), node.table(1)
        if held is None:
            continue
        name, (reads, makes) = NODES[number - 1]
        ids = [held.number(slot) for slot in (*reads, makes)]
        if name.startswith("Concatenate"):
            ids = [*ids[: min(int(name[-1]), 4)], ids[-1]]
        found = [known[one] for one in ids]
        yield Op(name, [kind for kind, _ in found], [shape for _, shape in found])


def products(found: Found) -> list[dict[str, Any]]:
    """Every product: its op, precision, and its multiply-accumulates."""
    rows = []
    for number, op in enumerate(found.ops):
        if op.is_product:
            plan = op.precision if op.precision == "int8" else "float"
            row = {"label": f"{op.name.lower()}_{number}", "op_type": op.name, "precision": plan}
            rows.append({**row, "stored": op.kinds[1], "macs": op.macs})
    return rows

"""Ops by executed precision, read from the kernels that Inductor schedules, after all of its fusions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitdeploy.backends.base import Census

SOURCE = "Inductor's schedule, from which the package's code was generated"
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
WIDTH = {"fp64": 4, "fp32": 3, "bf16": 2, "fp16": 1}
PRODUCT = re.compile(r"(^|_)(mm|addmm|bmm|baddbmm|linear|conv[123]d|convolution|attention|template)(_|$)")
GENERATED, TEMPLATE = "generated", "template"
Ops = dict[str, dict[str, int]]


class Recorder:
    """Inductor's hook: is handed the schedule of every graph that it compiles, and changes nothing.

    Attributes:
        ops: {op: {precision: count}}: a library's kernel by its name, 'template' for products whose kernels Inductor
            writes itself, 'generated' for all else that it writes, with the product where one was small enough to be
            spelled out there ('generated, with aten.bmm').
        casts: generated kernels that change a type and nothing else.
    """

    def __init__(self) -> None:
        self.ops: Ops = {}
        self.casts = 0

    def __call__(self, schedule: Sequence[Any]) -> Sequence[Any]:
        # A graph may be scheduled again, with other choices: the last time counts.
        found: dict[str, Counter[str]] = defaultdict(Counter)
        self.casts = 0
        for node in schedule:
            for op, precision in kernels(node):
                found[op][precision] += 1
            self.casts += only_casts(node)
        self.ops = {op: dict(count) for op, count in sorted(found.items())}
        return schedule


def census(ops: Mapping[str, Mapping[str, int]], casts: int, emulated: Mapping[str, str]) -> Census:
    """What was recorded, as it runs here.

    Args:
        emulated: {precision of the operands: what the kernels really multiply in}, where this machine lacks it.
    """
    executed: dict[str, Counter[str]] = defaultdict(Counter)
    compute: Counter[str] = Counter()
    for op, found in ops.items():
        for precision, count in found.items():
            runs = emulated.get(precision, precision) if is_product(op) else precision
            executed[op][runs] += count
            compute[runs] += count if is_product(op) else 0
    return Census(SOURCE, {op: dict(count) for op, count in executed.items()}, dict(+compute), casts)


def is_product(op: str) -> bool:
    return not op.startswith(GENERATED) and PRODUCT.search(op.rpartition(".")[2]) is not None


def kernels(node: Any) -> Iterator[tuple[str, str]]:
    """(op, precision) of what a scheduled node runs: a library's kernel, a template's, or one generated kernel."""
    from torch._inductor import ir

    # An output of the kernel before, and a place for others to write to, run nothing.
    parts = [p.node for p in node.get_nodes() if not isinstance(p.node, ir.MultiOutput | ir.NopKernel)]
    whole = [part for part in parts if isinstance(part, ir.ExternKernel | ir.TemplateBuffer)]
    for part in whole:
        yield TEMPLATE if isinstance(part, ir.TemplateBuffer) else name_of(part), precision_of(operands(part))
    if parts and not whole:
        spelled = sorted({name for part in parts for name in spelled_out(part)})
        yield ", with ".join([GENERATED, *spelled]), precision_of([dtype_of(parts[-1])])


def name_of(kernel: Any) -> str:
    """'aten.addmm', 'mkldnn._linear_pointwise'."""
    name = getattr(kernel, "op_overload", None) or getattr(kernel, "python_kernel_name", None) or type(kernel).__name__
    return ".".join(str(name).replace("extern_kernels.", "aten.").split(".")[:2])


def spelled_out(part: Any) -> Iterator[str]:
    """The products of the program whose multiplication stands in a part of a generated kernel."""
    for origin in getattr(part, "origins", ()):
        name = ".".join(str(origin.meta.get("original_aten", "")).split(".")[:2])
        if is_product(name) and str(origin.target).startswith("aten.mul"):
            yield name


def operands(kernel: Any) -> list[str]:
    """The types of the first two float tensors that it reads: what a product multiplies."""
    found = [dtype_of(each) for each in kernel.inputs]
    return [dtype for dtype in found if dtype in SHORT][:2] or [dtype_of(kernel)]


def precision_of(dtypes: Sequence[str]) -> str:
    """The widest of them, which is what the others are converted to."""
    return max((SHORT.get(dtype, dtype) for dtype in dtypes), key=lambda short: WIDTH.get(short, 0))


def dtype_of(value: Any) -> str:
    """'float16'; 'unknown' of what is no tensor."""
    try:
        return str(value.get_dtype()).removeprefix("torch.")
    except Exception:  # Inductor has many kinds of nodes, and some have several outputs or none
        return "unknown"


def only_casts(node: Any) -> bool:
    origins = [str(origin.target) for part in node.get_nodes() for origin in getattr(part.node, "origins", ())]
    return bool(origins) and all(re.search(r"convert_element_type|_to_copy", name) for name in origins)

"""A PyTorch program in fp16 or bf16: products in 16 bits, everything that sums or bends in fp32.

A compiler of programs fuses what is not a product into few kernels, within which fp32 costs nothing. So nothing is left
to the inside of a kernel: norms, softmax, activations and means get fp32, and what lies in memory between the kernels
(operands of products, the sums of the residual stream) is in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from vitdeploy.export.program import PRODUCTS, op_name
from vitdeploy.export.program_norms import fold_norms
from vitdeploy.quantize.fp16_gauges import SAFE, near, short
from vitdeploy.quantize.fp16_islands import Island

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Every number of the result is one that went in: these take a tensor as it comes. Views are known by themselves.
MOVES = {"getitem", "cat", "stack", "clone", "contiguous", "reshape", "flatten", "chunk", "constant_pad_nd", "pad"}
MOVES |= {"roll", "flip", "index", "index_select", "gather", "repeat", "pixel_shuffle", "pixel_unshuffle"}


@dataclass(frozen=True)
class HalfReport:
    """What to_half did.

    Attributes:
        islands: products and sums kept in fp32, in order, each with its reason.
        storage: of the weights of products.
    """

    islands: Sequence[Island]
    storage: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def to_half(
    program: ExportedProgram, precision: str, samples: Sequence[np.ndarray], *, io_precision: str = "fp32"
) -> tuple[nn.Module, HalfReport]:
    """A module that computes what `program` does, in `precision` ('fp16' or 'bf16').

    Its input and output are of `io_precision`; the input's type is the caller's to keep.

    Args:
        program: in fp32, without changes in place (see export_program). It is used up.
        samples: float32 (B, C, H, W): in fp16, what comes near its largest number on them stays in fp32.
    """
    weights = dict(weights_of(program))
    fold_norms(program.graph_module, weights)
    graph = program.graph_module
    found = islands(graph, weights, samples) if precision == "fp16" else {}
    plan = {node.name: type_of(node, TYPES[precision]) for node in graph.graph.nodes}
    plan |= dict.fromkeys(found, torch.float32)
    return Mixed(graph, weights, plan, TYPES[io_precision]), HalfReport(list(found.values()), precision)


def type_of(node: fx.Node, half: torch.dtype) -> torch.dtype | None:
    """What a node computes in; None where it moves numbers, or has none of its own."""
    name = op_name(node)
    if node.op != "call_function" or name in MOVES or getattr(node.target, "is_view", False):
        return None
    summed = name == "add" and len(node.all_input_nodes) == 2
    return half if name in PRODUCTS or summed else torch.float32


class Mixed(nn.Module):
    """A program that runs node by node, each in its precision.

    Args:
        weights: float32, by the name of their placeholder; stored in the type that all who read them want.
        plan: by the node's name; see `type_of`.
        out: the output's type.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        weights: Mapping[str, Tensor],
        plan: Mapping[str, torch.dtype | None],
        out: torch.dtype,
    ) -> None:
        super().__init__()
        self._graph, self._plan, self._out = graph, plan, out
        self._slots: dict[str, str] = {}
        for i, node in enumerate(graph.graph.find_nodes(op="placeholder")):
            if node.name in weights and node.users:
                wanted = {plan[user.name] for user in node.users}
                stored = wanted.pop() if len(wanted) == 1 else None
                tensor = weights[node.name].detach()
                self._slots[node.name] = f"weight_{i}"
                self.register_buffer(f"weight_{i}", cast(tensor, stored or torch.float32))

    def forward(self, image: Tensor) -> Tensor:
        names = [node.name for node in self._graph.graph.find_nodes(op="placeholder")]
        values = [getattr(self, self._slots[name]) if name in self._slots else image for name in names]
        (out,) = Typed(self._graph, self._plan).run(*values, enable_io_processing=False)
        return out.to(self._out)


class Typed(fx.Interpreter):
    """Runs each node on arguments of its type."""

    def __init__(self, graph: fx.GraphModule, plan: Mapping[str, torch.dtype | None]) -> None:
        super().__init__(graph)
        self._plan = plan

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        arguments = self.fetch_args_kwargs_from_env(n)
        dtype = self._plan[n.name]
        if dtype is None:
            met = {leaf.dtype for leaf in pytree.tree_leaves(arguments) if is_float(leaf)}
            dtype = torch.float32 if len(met) > 1 else None
        args, kwargs = arguments if dtype is None else pytree.tree_map(lambda leaf: cast(leaf, dtype), arguments)
        return n.target(*args, **kwargs)  # type: ignore[operator]


class Peaks(fx.Interpreter):
    """Runs a program and keeps the largest finite |x| of each node, placeholders included."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.peaks: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for leaf in pytree.tree_leaves(value):
            if is_float(leaf) and leaf.numel():
                # A mask may hold -inf, which fp16 has.
                peak = torch.nan_to_num(leaf.detach().abs(), nan=0.0, posinf=0.0).max().item()
                self.peaks[n.name] = max(peak, self.peaks.get(n.name, 0.0))
        return value


def islands(graph: fx.GraphModule, weights: Mapping[str, Tensor], samples: Sequence[np.ndarray]) -> dict[str, Island]:
    """The products and sums that fp16 cannot hold, by name: an input or the output comes near its largest number."""
    probe = Peaks(graph)
    names = [node.name for node in graph.graph.find_nodes(op="placeholder")]
    with torch.inference_mode():
        for sample in samples:
            image = torch.from_numpy(np.ascontiguousarray(sample))
            probe.run(*(weights.get(name, image) for name in names), enable_io_processing=False)
    found = {}
    for node in graph.graph.nodes:
        if type_of(node, torch.float16) is not torch.float16:
            continue
        peak, name = max(
            (probe.peaks.get(near_by.name, 0.0), near_by.name) for near_by in (node, *node.all_input_nodes)
        )
        if peak > SAFE:
            reason = f"overflow: |{name}| reaches {short(peak)}; {near(peak)}"
            found[node.name] = Island(node.name, op_name(node), node.name, reason, {"peak": peak})
    return found


def weights_of(program: ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and constants, by the name of their placeholder."""
    signature = program.graph_signature
    for name, target in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        stored = program.state_dict if target in program.state_dict else program.constants
        yield name, stored[target]
    for name, target in signature.inputs_to_lifted_tensor_constants.items():
        yield name, program.constants[target]


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in TYPES.values()


def cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if is_float(value) else value

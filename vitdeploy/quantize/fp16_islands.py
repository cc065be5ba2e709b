"""Why a node stays in fp32 while the rest of its graph becomes fp16: one small function or class per reason.

Two things decide. What fp16 can hold: at most 65504, 11 bits, full precision only down to 6.1e-5. And what was measured
in fp32 on samples, which are few: hence the headroom. The rules assume the plainest runtime, one that keeps in fp16 all
that a node computes inside itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError, VerificationFailed
from vitdeploy.graph.edit import constant, is_constant
from vitdeploy.graph.feeds import feeds_of
from vitdeploy.graph.run import Probe
from vitdeploy.quantize.fp16_gauges import LARGEST, SAFE, Finding, Gauge, gauges_of, near, short
from vitdeploy.quantize.fp16_types import READS_ANY, Slot, convertible, input_slot, is_float32

LOSS = 0.01  # of a tensor's RMS (root mean square) that rounding may take
BLOCK = 1 << 20  # elements looked at at once
# Inputs that are added to something, by number: what rounding takes from them counts against the sum.
ADDED: dict[str, Container[int]] = {
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Clip"), range(100)),
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose", "BatchNormalization"), (2,)),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), (2,)),
}
# For these a bound beyond fp16 means no bound, and infinity serves as well.
BOUNDED = {"Clip", "Max", "Min"}
FLOATING = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
# Every number of the result is one that went in, or its size.
MOVES = {"Reshape", "Transpose", "Identity", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Split", "Gather"}
MOVES |= {"Relu", "Neg", "Abs", "DepthToSpace", "SpaceToDepth"}
HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"}


@dataclass(frozen=True)
class Island:
    """A node that stays in fp32.

    Attributes:
        node: its name.
        op_type: its operator.
        output: the name of its first output.
        reason: a sentence with the figures in it; its first word names the rule.
        figures: the same figures as numbers.
    """

    node: str
    op_type: str
    output: str
    reason: str
    figures: Mapping[str, float]


class Range:
    """Of one tensor over all samples: the largest |x|, its RMS, and the RMS of what rounding to fp16 takes from it."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._squares, self._errors, self._count = 0.0, 0.0, 0

    def see(self, x: np.ndarray) -> None:
        flat = x.reshape(-1)
        self._count += flat.size
        for start in range(0, flat.size, BLOCK):
            part = flat[start : start + BLOCK]
            self.peak = max(self.peak, float(np.abs(part).max()))
            # What fp16 cannot hold at all is for the rule on overflow, not for the one on rounding.
            part = np.clip(part, -LARGEST, LARGEST)
            error = part - part.astype(np.float16)
            self._squares += float(np.dot(part, part))
            self._errors += float(np.dot(error, error))

    @property
    def rms(self) -> float:
        return (self._squares / max(self._count, 1)) ** 0.5

    @property
    def error(self) -> float:
        return (self._errors / max(self._count, 1)) ** 0.5


class Survey:
    """The nodes that fp16 is about, and what the samples show of their tensors.

    Args:
        model: in fp32; it is not changed.
        opset: of the default ONNX domain.

    Attributes:
        nodes: those that compute with float32 data, in order. Arithmetic on shapes is not among them.
        ranges: by the name of the tensor, weights included.
        gauges: what looks at more than a tensor's range.
    """

    def __init__(self, model: ir.Model, opset: int) -> None:
        self.model, self.opset = model, opset
        self.nodes = float_nodes(model, opset)
        self.ranges: dict[str, Range] = {}
        self.gauges: list[Gauge] = [gauge for node in self.nodes for gauge in gauges_of(node)]

    def measure(self, samples: Sequence[np.ndarray]) -> None:
        """Run the samples. Raises VerificationFailed when a tensor has NaN or Inf in fp32 already."""
        watches: dict[str, list[Callable[[np.ndarray], None]]] = {}
        for value in (v for node in self.nodes for v in (*node.inputs, *node.outputs)):
            if value is None or not value.name or not is_float32(value) or value.name in self.ranges:
                continue
            range_ = self.ranges[value.name] = Range()
            numbers = constant(value)
            if numbers is None:
                watches[value.name] = [range_.see]
            else:
                range_.see(numbers[np.isfinite(numbers)])  # a mask may hold -inf, which fp16 has
        for gauge in self.gauges:
            for value, see in gauge.watches:
                watches[value.name or ""].append(see)
        with Probe(self.model, list(watches)) as probe:
            for number, feeds in enumerate(_feeds(self.model, samples)):
                for name, x in probe.run(feeds):
                    if not np.isfinite(x).all():
                        raise VerificationFailed(
                            f"'{name}' holds NaN or Inf on sample {number} in fp32 already: fp16 cannot be right."
                        )
                    for see in watches[name]:
                        see(x)


def find_islands(
    survey: Survey, force_fp32: Container[str], slow_in_fp16: Mapping[str, str], half_outputs: bool
) -> dict[ir.Node, Island]:
    """The nodes to keep in fp32; each has one reason, the first that holds."""
    measured = {node: found for gauge in survey.gauges if (found := gauge.finding()) for node in gauge.nodes}
    losses = Losses(survey)
    islands: dict[ir.Node, Island] = {}
    for node in survey.nodes:
        found = (
            forced(node, force_fp32)
            or slow(node, slow_in_fp16)
            or unsupported(node, survey.opset)
            or overflow(node, survey.ranges)
            or weight_overflow(node, survey.ranges)
            or measured.get(node)
            or rounding(node, losses)
        )
        if found:
            islands[node] = _island(node, found)
    while bridges := [node for node in survey.nodes if node not in islands and _is_bridge(node, islands, half_outputs)]:
        for node in bridges:
            islands[node] = _island(node, ("between: stands between fp32 nodes, so casts there and back are saved", {}))
    return {node: islands[node] for node in survey.nodes if node in islands}


def slow(node: ir.Node, reasons: Mapping[str, str]) -> Finding | None:
    """The runtime has no fp16 kernel worth having."""
    return (f"runtime: {reasons[node.op_type]}", {}) if node.domain == "" and node.op_type in reasons else None


def forced(node: ir.Node, names: Container[str]) -> Finding | None:
    """The user named the node, one of its outputs, or a weight or graph input that it reads."""
    read = [v for v in node.inputs if v is not None and v.producer() is None]
    for name in (node.name, *(v.name for v in (*node.outputs, *read))):
        if name and name in names:
            return f"forced: '{name}' was named to stay in fp32", {}
    return None


def unsupported(node: ir.Node, opset: int) -> Finding | None:
    """ONNX defines no float16 form of it, it is no ONNX operator, or it holds a subgraph."""
    if node.op_type in READS_ANY or convertible(node, opset):
        return None
    return f"unsupported: ONNX has no float16 form of {node.op_type} at opset {opset}", {"opset": opset}


def overflow(node: ir.Node, ranges: Mapping[str, Range]) -> Finding | None:
    """An input or output comes near the largest fp16 number."""
    names = [v.name or "" for v in (*node.inputs, *node.outputs) if v is not None and not is_constant(v)]
    peak, name = max(((ranges[n].peak, n) for n in names if n in ranges), default=(0.0, ""))
    if peak <= SAFE:
        return None
    return f"overflow: |{name}| reaches {short(peak)}; {near(peak)}", {"peak": peak}


def weight_overflow(node: ir.Node, ranges: Mapping[str, Range]) -> Finding | None:
    """A weight is larger than the largest fp16 number."""
    for name in (v.name or "" for v in node.inputs if is_constant(v) and v is not None):
        peak = ranges[name].peak if name in ranges and node.op_type not in BOUNDED else 0.0
        if peak > LARGEST:
            return f"weight: |{name}| reaches {short(peak)}; {near(peak)}", {"peak": peak}
    return None


def rounding(node: ir.Node, losses: Losses) -> Finding | None:
    """Rounding a tensor that it reads or writes takes more than 1 %: subnormals, zeros, or cancellation."""
    found = [(losses.of(value, node, i), value) for i, value in enumerate(node.inputs) if value is not None]
    found += [(losses.worst[value], value) for value in node.outputs if value in losses.worst]
    lost, value = max(found, default=(0.0, None), key=lambda pair: pair[0])
    if lost <= LOSS or value is None:
        return None
    rms = losses.ranges[value.name or ""].rms
    what = "weight" if is_constant(value) else "rounding"
    reason = f"{what}: fp16 would lose {min(lost, 1):.0%} of {value.name}, whose RMS is {short(rms)}"
    return reason, {"rms": rms, "lost": lost}


class Losses:
    """What rounding a tensor to fp16 takes from it, as a share of what its reader makes of it.

    A sum or difference is measured by its result: adding a tiny number to a large one loses nothing that counts, and
    the difference of two large ones may lose everything. What only moves numbers passes its own readers' loss on.

    Attributes:
        worst: of each node output, over all its readers.
    """

    def __init__(self, survey: Survey) -> None:
        self.ranges = survey.ranges
        self.worst: dict[ir.Value, float] = {}
        for node in reversed(survey.nodes):
            for value in node.outputs:
                readers = [self.of(value, user, i) for user, i in value.uses() if user.op_type not in READS_ANY]
                own = [self._share(value, value)] if value.is_graph_output() else []
                self.worst[value] = max(readers + own, default=0.0)

    def of(self, value: ir.Value, user: ir.Node, index: int) -> float:
        """Lost by `user`, which reads `value` as its input number `index`."""
        out = user.outputs[0]
        added = index in ADDED.get(user.op_type, ()) and out.name in self.ranges
        passed_on = max((self.worst.get(v, 0.0) for v in user.outputs), default=0.0) if user.op_type in MOVES else 0.0
        return max(self._share(value, out if added else value), passed_on if index == 0 else 0.0)

    def _share(self, value: ir.Value, total: ir.Value) -> float:
        found, whole = self.ranges.get(value.name or ""), self.ranges.get(total.name or "")
        if found is None or whole is None or found.error == 0:
            return 0.0
        return found.error / whole.rms if whole.rms else float("inf")


def float_nodes(model: ir.Model, opset: int) -> list[ir.Node]:
    """Nodes of the main graph through which float32 data flows, from an input or a weight to an output, in order.

    Arithmetic that only makes shapes, positions or scales is left out: fp16 counts no further than 2048. Data stays
    data while it is 8 bits wide, between a QuantizeLinear and its DequantizeLinear.
    """
    flows = {v for v in model.graph.inputs if v.dtype in FLOATING}
    wanted: set[ir.Node] = set()
    for node in model.graph:
        if any(v in flows for v in node.inputs):
            wanted.add(node)
            flows.update(v for v in node.outputs if v.dtype in FLOATING or node.op_type == "QuantizeLinear")
    nodes = [node for node in model.graph if _computes(node)]
    for node in reversed(nodes):
        for value in filter(is_float32, node.outputs):
            reaches = (u in wanted and input_slot(u, i, opset) is Slot.HALF for u, i in value.uses())
            if value.is_graph_output() or any(reaches):
                wanted.add(node)
    return [node for node in nodes if node in wanted]


def _computes(node: ir.Node) -> bool:
    """Whether float32 numbers matter to it or come from it; only their shape, or integers, is another thing."""
    values = node.outputs if node.op_type in READS_ANY else (*node.inputs, *node.outputs)
    return any(is_float32(value) for value in values)


def _is_bridge(node: ir.Node, islands: Container[ir.Node], half_outputs: bool) -> bool:
    """Whether a cheap node has fp32 nodes on all sides. A Q or DQ has one float side, and follows it."""
    sources = [v.producer() for v in node.inputs if v is not None and is_float32(v) and not is_constant(v)]
    if not sources and node.op_type != "DequantizeLinear":
        return False
    if node.op_type in HEAVY or any(s is None or s not in islands for s in sources):
        return False
    if half_outputs and any(v.is_graph_output() for v in node.outputs):
        return False
    floats = (v for v in node.outputs if is_float32(v))
    return all(user in islands or user.op_type in READS_ANY for v in floats for user, _ in v.uses())


def _island(node: ir.Node, found: Finding) -> Island:
    return Island(node.name or "", node.op_type, node.outputs[0].name or "", *found)


def _feeds(model: ir.Model, samples: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """The samples, cut to the graph's batch where that is fixed."""
    image = next((v for v in model.graph.inputs if not v.is_initializer()), None)
    if image is None or len(samples) == 0:
        raise UsageError("fp16 needs sample inputs, to measure what each tensor holds.")
    batch = image.shape[0] if image.shape is not None and len(image.shape) else None
    for sample in samples:
        plain = sample.dtype == np.float32 or sample.dtype.names is not None
        if not plain or sample.ndim == 0 or len(sample) == 0:
            raise UsageError(f"A sample is {sample.dtype} {sample.shape}: '{image.name}' takes float32 (N, C, H, W).")
        size = batch if isinstance(batch, int) else len(sample)
        if len(sample) % size:
            raise UsageError(f"A sample holds {len(sample)} images; this graph takes {size} at a time.")
        for start in range(0, len(sample), size):
            yield feeds_of(model, sample[start : start + size])

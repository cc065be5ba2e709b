"""What each op costs in float and in int8 on this device: a few are measured alone, the rest follows from a fit.

Seconds = a + b * MACs + c * elements moved, with none of the three negative, for each kind of op and each precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.bench.timer import measure_interleaved
from vitdeploy.errors import VitdeployError
from vitdeploy.export.metadata import PRECISION
from vitdeploy.graph.edit import array, ints
from vitdeploy.graph.shapes import infer
from vitdeploy.quantize.int8 import find_places, insert
from vitdeploy.quantize.schemes import Scheme, get
from vitdeploy.quantize.targets import Target, find_targets

MEASURED = 16  # distinct ops, the largest shares of the MACs first
WARMUP_S, DURATION_S, SETTLE_S = 0.03, 0.12, 0.005
RANGE = (-4.0, 4.0)  # of the noise that single ops are run on
WINDOW = ("strides", "pads", "dilations", "group")

Seconds = tuple[float, float]  # in float, in int8


@dataclass(frozen=True)
class OpShape:
    """What an op's cost depends on.

    Attributes:
        op_type: 'Conv', 'Gemm' or 'MatMul'.
        x, w: shapes of its input and of its weight, all known.
        out: elements of its output.
        window: attributes of a Conv, as sorted pairs; transB of a Gemm.
        bias: whether it has one.
    """

    op_type: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    out: int
    window: tuple[tuple[str, tuple[int, ...]], ...] = ()
    bias: bool = False

    @property
    def family(self) -> str:
        """Ops whose costs follow one law."""
        if self.op_type != "Conv":
            return "linear"
        return "depthwise" if dict(self.window).get("group", (1,))[0] > 1 else "conv"

    @property
    def macs(self) -> int:
        inner = math.prod(self.w[1:]) if self.op_type == "Conv" else self.x[-1]
        return self.out * inner

    @property
    def elements(self) -> int:
        return math.prod(self.x) + math.prod(self.w) + self.out


def shape_of(target: Target, known: Mapping[str, object]) -> OpShape | None:
    """The shape of a product with a constant weight; None where a dimension is not known.

    Args:
        known: from graph.shapes.infer, for the batch in mind.
    """
    node = target.node
    shapes = [getattr(known.get(v.name or ""), "shape", None) if v is not None else () for v in node.inputs[:2]]
    out = getattr(known.get(node.outputs[0].name or ""), "shape", None)
    if target.axis is None or any(shape is None or None in shape for shape in (*shapes, out)):
        return None
    x, w = shapes
    pairs: dict[str, tuple[int, ...]] = {}
    for name in WINDOW:
        attribute = node.attributes.get(name)
        if attribute is not None:
            pairs[name] = tuple(ints(node, name) or ()) if name != "group" else (attribute.as_int(),)
    if "transB" in node.attributes:
        pairs["transB"] = (node.attributes["transB"].as_int(),)
    assert out is not None
    bias = len(node.inputs) > 2 and node.inputs[2] is not None
    return OpShape(node.op_type, tuple(x), tuple(w), math.prod(out), tuple(sorted(pairs.items())), bias)  # type: ignore[arg-type]


@dataclass
class CostModel:
    """Predicts the seconds of single ops.

    Attributes:
        measured: of the ops that were run.
        laws: by family and precision (0: float, 1: int8): a, b, c.
    """

    measured: dict[OpShape, Seconds]
    laws: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @classmethod
    def fit(cls, measured: Mapping[OpShape, Seconds]) -> CostModel:
        laws = {}
        for family in {shape.family for shape in measured}:
            rows = [(shape, seconds) for shape, seconds in measured.items() if shape.family == family]
            features = np.array([[1.0, shape.macs, shape.elements] for shape, _ in rows])
            for precision in (0, 1):
                laws[family, precision] = law(features, np.array([seconds[precision] for _, seconds in rows]))
        return cls(dict(measured), laws)

    def seconds(self, shape: OpShape) -> Seconds | None:
        """In float and in int8; None for a kind of op that was never measured."""
        if shape in self.measured:
            return self.measured[shape]
        if (shape.family, 0) not in self.laws:
            return None
        features = np.array([1.0, shape.macs, shape.elements])
        return float(features @ self.laws[shape.family, 0]), float(features @ self.laws[shape.family, 1])

    def saving(self, shape: OpShape | None) -> float:
        """Seconds that int8 saves; negative where it costs. 0 where nothing is known."""
        found = None if shape is None else self.seconds(shape)
        return 0.0 if found is None else found[0] - found[1]


def law(features: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The non-negative coefficients with the least squares of relative errors; there are few enough to try all sets."""
    scale = 1 / np.maximum(seconds, 1e-9)
    best, least = np.zeros(features.shape[1]), math.inf
    columns = range(features.shape[1])
    for size in range(1, features.shape[1] + 1):
        for chosen in combinations(columns, size):
            part = features[:, chosen] * scale[:, None]
            norm = np.maximum(np.linalg.norm(part, axis=0), 1e-300)
            found = np.linalg.lstsq(part / norm, np.ones(len(seconds)), rcond=None)[0] / norm
            error = float(np.square(part @ found - 1).sum())
            if (found >= 0).all() and error < least - 1e-12:
                least, best = error, np.zeros(features.shape[1])
                best[list(chosen)] = found
    return best


def worth_measuring(shapes: Sequence[OpShape]) -> list[OpShape]:
    """Distinct ops, those with the largest share of the MACs first, each kind represented."""
    share = Counter[OpShape]()
    for shape in shapes:
        share[shape] += shape.macs
    ranked = [shape for shape, _ in share.most_common()]
    first = {shape.family: shape for shape in reversed(ranked)}
    return list(dict.fromkeys([*ranked[: MEASURED - len(first)], *first.values(), *ranked]))[:MEASURED]


def measure_ops(
    shapes: Sequence[OpShape],
    backend: str,
    options: RunOptions,
    scheme: str,
    precision: str = "int8",
    progress: Callable[[int, int], None] | None = None,
) -> dict[OpShape, Seconds]:
    """Run each op alone, in float and in the named scheme's int8 in turn. Made to run in a child process.

    Ops that the runtime refuses are left out.

    Args:
        precision: 'int8', or 'int8+bf16', whose float is bf16.
    """
    kinds = {("bf16" if "bf16" in precision else "fp32"): None, precision: get(scheme)}
    found = {}
    runtime = registry.get(backend)
    with TemporaryDirectory(prefix="vitdeploy-") as name:
        for done, shape in enumerate(shapes, 1):
            x = np.random.default_rng(0).standard_normal(shape.x, dtype=np.float32)
            calls, sessions = [], []
            try:
                for kind, dialect in kinds.items():
                    folder = Path(name) / f"{done}-{kind}"
                    folder.mkdir()
                    model = single(shape, dialect)
                    model.metadata_props[PRECISION] = kind  # backends open a file as it says
                    session = runtime.open(runtime.compile(model, folder, options, kind)[0], options)
                    sessions.append(session)
                    calls.append(lambda session=session, x=x: session.run({"x": x}))
                turns = measure_interleaved(calls, WARMUP_S, DURATION_S, settle_s=SETTLE_S)
            except VitdeployError:
                continue
            finally:
                for session in sessions:
                    session.close()
            one, other = (float(np.median([s for turn in each for s in turn])) for each in turns)
            found[shape] = (one, other)
            if progress is not None:
                progress(done, len(shapes))
    return found


def single(shape: OpShape, scheme: Scheme | None) -> ir.Model:
    """A graph of one op on noise, float32 in and out; in the scheme's int8 where there is one."""
    rng = np.random.default_rng(1)
    x = ir.Value(name="x", shape=ir.Shape(shape.x), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="single")
    width = shape.w[0] if shape.op_type == "Conv" or dict(shape.window).get("transB") == (1,) else shape.w[1]
    inputs = [x, array(graph, "w", rng.standard_normal(shape.w, dtype=np.float32))]
    if shape.bias:
        inputs.append(array(graph, "b", rng.standard_normal(width, dtype=np.float32)))
    attributes = {name: v[0] if name in ("group", "transB") else list(v) for name, v in shape.window}
    out = ir.Value(name="y", shape=ir.Shape(_output_shape(shape, width)), type=x.type)
    graph.append(ir.node(shape.op_type, inputs, attributes, outputs=[out], name="op"))
    graph.outputs.append(out)
    model = ir.Model(graph, ir_version=10)
    if scheme is not None:
        targets = find_targets(model, scheme)
        plan = {target.name: "int8" for target in targets}
        places = find_places(targets, plan, scheme)
        insert(model, targets, plan, places, dict.fromkeys((*places.inputs, *places.outputs), RANGE), scheme)
    return model


def _output_shape(shape: OpShape, width: int) -> list[int | str]:
    if shape.op_type == "Conv":
        return [shape.x[0], width, "height", "width"]
    return [*shape.x[:-1], width]


def op_shapes(model: ir.Model, targets: Sequence[Target], batch: int) -> dict[str, OpShape | None]:
    """The shapes of a graph's products by label, for a batch of so many images."""
    entry = model.graph.inputs[0]
    assert entry.shape is not None
    known = infer(model, {entry.name or "": (batch, *(int(n) for n in entry.shape[1:]))})  # type: ignore[arg-type]
    return {target.label: shape_of(target, known) for target in targets}

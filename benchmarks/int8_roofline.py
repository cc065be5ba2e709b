"""Where ONNX Runtime's time goes in fp32 and in int8, beside what this core could do at best.

Both files run in turns with ONNX Runtime's profiler on, one thread, batch 1. Of each node's time the shortest node's is
taken off, which is the profiler's own. The bound of an op is its roofline: its multiplications at the rate of a
1024-wide MatMul, or its bytes (inputs, weights, outputs) at the rate of a copy within the second-level cache, whichever
takes longer; both rates are measured here. The last column takes the faster of the two ways for each kind of op and
nothing for the conversions between them.

    python benchmarks/int8_roofline.py mobilevit_xs mobilevit_xxs@64
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from vitdeploy.models.build import BuildOptions
from vitdeploy.pipeline import ExportRequest, export

KINDS = {
    "convolutions": ("Conv", "FusedConv", "QLinearConv"),
    "linear layers": ("Gemm", "QGemm", "FusedGemm"),
    "attention": ("MatMul", "FusedMatMul", "QLinearMatMul", "Softmax", "MultiHeadAttention", "Attention"),
    "activation functions": ("QuickGelu", "Gelu", "HardSwish", "Sigmoid", "Mul", "QLinearSigmoid", "QLinearMul"),
    "LayerNorm": ("LayerNormalization", "SkipLayerNormalization"),
    "Add": ("Add", "QLinearAdd"),
    "Q and DQ": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
FLOAT = "float"
RUNS = 60


def options() -> onnxruntime.SessionOptions:
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = found.inter_op_num_threads = 1
    found.log_severity_level = 3
    return found


def fastest(call: Any, runs: int = 200) -> float:
    """Seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def rates() -> dict[str, float]:
    """Multiply-adds a second in float and int8, and bytes a second."""
    n = 1024
    found = {}
    for kind, op, left, right in ((FLOAT, "MatMul", "f4", "f4"), ("int8", "MatMulInteger", "u1", "i1")):
        rng = np.random.default_rng(0)
        x, w = (rng.integers(0, 9, (n, n)).astype(dtype) for dtype in (left, right))
        kinds = [onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for array in (x, w)]
        out = onnx.TensorProto.FLOAT if kind == FLOAT else onnx.TensorProto.INT32
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["x", "w"], ["y"])],
            "rate",
            [onnx.helper.make_tensor_value_info("x", kinds[0], [n, n])],
            [onnx.helper.make_tensor_value_info("y", out, [n, n])],
            [onnx.numpy_helper.from_array(w, "w")],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options(), ["CPUExecutionProvider"])
        found[kind] = n**3 / fastest(lambda session=session, x=x: session.run(None, {"x": x}))
    source = np.zeros(1 << 19, np.uint8)
    target = np.empty_like(source)
    found["bytes"] = 2 * source.size / fastest(lambda: np.copyto(target, source))
    return found


def open_profiled(path: Path, prefix: Path, packed: bool) -> onnxruntime.InferenceSession:
    own = options()
    own.enable_profiling = True
    own.profile_file_prefix = str(prefix)
    own.add_session_config_entry("session.disable_prepacking", "0" if packed else "1")
    return onnxruntime.InferenceSession(str(path), own, ["CPUExecutionProvider"])


def events_of(session: onnxruntime.InferenceSession) -> dict[str, list[Mapping[str, Any]]]:
    """What the profiler says of each node's runs, by the node's name."""
    found = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["name"]].append(event)
    return found


def profiled(paths: Sequence[Path], folder: Path) -> list[list[tuple[Mapping[str, Any], float]]]:
    """For each file its nodes, with shapes and sizes, and the median of each one's microseconds."""
    sessions = [open_profiled(path, folder / f"time{i}", packed=True) for i, path in enumerate(paths)]
    # Weights that were packed have no shape any more.
    plain = [open_profiled(path, folder / f"shape{i}", packed=False) for i, path in enumerate(paths)]
    (entry,) = sessions[0].get_inputs()
    image = np.random.default_rng(1).standard_normal(entry.shape, dtype=np.float32)
    for session in plain:
        session.run(None, {entry.name: image})
    for _ in range(RUNS // 10):
        for session in sessions:
            for _ in range(10):
                session.run(None, {entry.name: image})
    found = []
    for timed, shaped in zip(map(events_of, sessions), map(events_of, plain), strict=True):
        times = {name: float(np.median([event["dur"] for event in same])) for name, same in timed.items()}
        own = min(times.values())
        found.append([(shaped[name][0]["args"], time - own) for name, time in times.items()])
    return found


def kind_of(args: Mapping[str, Any]) -> str:
    if args["op_name"] == "MatMul" and int(args["parameter_size"]):
        return "linear layers"
    return next((kind for kind, ops in KINDS.items() if args["op_name"] in ops), "layout and the rest")


def bound(args: Mapping[str, Any], rate: Mapping[str, float]) -> float:
    """The least microseconds that this op can take."""
    shapes = [shape for entry in args["input_type_shape"] for shape in entry.values()]
    made = [int(np.prod(shape)) for entry in args["output_type_shape"] for shape in entry.values()]
    moved = sum(int(args[name]) for name in ("activation_size", "parameter_size", "output_size"))
    kind = kind_of(args)
    work = 0
    if kind == "convolutions":
        weight = next(shape for shape in shapes[1:] if len(shape) == 4)
        work = made[0] * int(np.prod(weight[1:]))
    elif kind == "linear layers" or "MatMul" in args["op_name"]:
        work = made[0] * shapes[0][-1]
    speed = rate["int8" if args["op_name"].startswith("Q") else FLOAT]
    return 1e6 * max(work / speed, moved / rate["bytes"])


def table(name: str, folder: Path, rate: Mapping[str, float]) -> list[str]:
    model, _, size = name.partition("@")
    build = BuildOptions(pretrained=False, image_size=(int(size), int(size)) if size else None)
    paths = []
    for precision in ("fp32", "int8"):
        request = ExportRequest(
            model, build, precision=precision, calib_random=precision == "int8", bench=False, out=folder / precision
        )
        artifact = export(request)
        paths.append(artifact.folder / artifact.manifest.model_file)
    spent: dict[str, list[float]] = {kind: [0.0] * 4 for kind in [*KINDS, "layout and the rest"]}
    counts = []
    for column, events in enumerate(profiled(paths, folder)):
        counts.append(len(events))
        for args, microseconds in events:
            own = spent[kind_of(args)]
            own[2 * column] += microseconds / 1e3
            own[2 * column + 1] += bound(args, rate) / 1e3
    best = {kind: 0.0 if kind == "Q and DQ" else min(own[0], own[2]) for kind, own in spent.items()}
    lines = [
        f"| {name} | fp32, ms | bound | int8, ms | bound | the faster |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, own in spent.items():
        lines.append(f"| {kind} | " + " | ".join(f"{value:.2f}" for value in (*own, best[kind])) + " |")
    total = [sum(own[i] for own in spent.values()) for i in range(4)]
    whole = sum(best.values())
    lines.append("| all | " + " | ".join(f"{value:.2f}" for value in (*total, whole)) + " |")
    lines.append(
        f"| over fp32 | 1 | {total[0] / total[1]:.2f} | {total[0] / total[2]:.2f} | {total[0] / total[3]:.2f} | "
        f"{total[0] / whole:.2f} |"
    )
    return [*lines, "", f"{counts[0]} nodes in fp32, {counts[1]} in int8."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names, or NAME@SIZE for images of SIZE pixels")
    parser.add_argument("--out", type=Path, help="also write the tables there")
    arguments = parser.parse_args()
    rate = rates()
    lines = [
        f"One core: {rate[FLOAT] / 1e9:.0f} G multiply-adds/s in fp32, {rate['int8'] / 1e9:.0f} in int8, "
        f"{rate['bytes'] / 1e9:.0f} GB/s. ONNX Runtime {onnxruntime.__version__}."
    ]
    print(lines[0], flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            found = ["", *table(name, Path(place), rate)]
        print("\n".join(found), flush=True)
        lines += found
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""vitdeploy's artifacts on a GPU beside eager PyTorch, torch.compile and each other.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --models levit_256 --batches 1 --contenders eager onnx
    python benchmarks/gpu.py --quick --device cpu          # a smoke run without a GPU, whose figures mean nothing

Every contender has the same random weights and the same fp32 images in the host's memory, and answers to eager PyTorch
in fp32 before it is timed: what differs by more than its precision explains is listed with its reason and not timed.
What cannot run is listed too, and the others go on; a native crash, though, takes the whole run down: leave the culprit
out with --contenders.

All are in one process and take turns (vitdeploy.bench.timer), by the host's clock, which waits for the device.
"resident" is a run of what already lies on the device, its outputs left there; "host to host" begins and ends with
arrays in the host's pageable memory. h2d, compute and d2h come from other runs, with a wait after each part. "of peak"
is the catalog's MACs x 2 x batch in the resident time, over what a large fp16 torch.matmul reaches here. TF32 is off
everywhere: fp32 is fp32. torch.compile runs in mode max-autotune, which records CUDA graphs; ONNX Runtime and TensorRT
are there with and without. TensorRT and AOTInductor take part where their backends can run.

It needs a CUDA build of PyTorch, and for ONNX Runtime the wheel onnxruntime-gpu of the same CUDA, which then finds
PyTorch's CUDA libraries. To a machine without network bring what it lacks in a folder, made where Python is the same:

    pip install --no-deps --target site onnxruntime-gpu onnx onnx-ir onnxscript einops safetensors ml_dtypes protobuf
    PYTHONPATH=$PWD:site python benchmarks/gpu.py --json gpu.json

in vitdeploy's source tree, which needs no installation. The table on stdout is Markdown; the JSON has every sample and
is written after each model and batch, so that a run cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {"vit_base_patch16_224": (1, 32, 128), "deit_small_patch16_224": (1, 32)}
MODELS |= {"levit_256": (1, 32), "mobilevit_s": (1, 32)}
QUICK = {"deit_tiny_patch16_224": (1, 2)}
BASE, COMPILED = "eager fp32", "torch.compile fp16"
PARITY = {"fp32": 1e-4, "fp16": 2e-2}  # relative L2 of the logits
PARITY_IMAGES = 32
GRAPH = {"onnxruntime": {"enable_cuda_graph": "1"}, "tensorrt": {"cuda_graph": "1"}}
ARTIFACTS = [("ONNX Runtime", "onnxruntime", "fp32"), ("ONNX Runtime", "onnxruntime", "fp16")]
ARTIFACTS += [("TensorRT", "tensorrt", "fp16")]
SMI = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")
PACKAGES = ("torch", "triton", "onnxruntime-gpu", "onnxruntime", "tensorrt", "numpy")
HEADS = ("model", "batch", "", "relative L2", "top-1", "resident p50 / p90 / p99", "host to host p50 / p90 / p99")
HEADS += ("images/s", "h2d + compute + d2h", "of peak", "x eager fp32", "x torch.compile")


@dataclass(frozen=True)
class Case:
    """What all contenders of a row are given: the built model, on the CPU; float32 (N, C, H, W) images to hold parity
    on, of which the first batch is timed; a folder for artifacts."""

    name: str
    batch: int
    built: Any
    images: np.ndarray
    device: str
    quick: bool
    work: Path

    @property
    def image(self) -> np.ndarray:
        return self.images[: self.batch]

    def logits(self, contender: Contender) -> np.ndarray:
        """Of all images, a batch at a time."""
        starts = range(0, len(self.images), self.batch)
        return np.concatenate([contender.host(self.images[i : i + self.batch]) for i in starts]).astype(np.float64)


@dataclass(frozen=True)
class Contender:
    """One thing to measure: a run of `case.image` on the device, which ends when it is done; logits of a batch, from
    array to array; seconds by part, as Session.parts has them."""

    precision: str
    resident: Callable[[], Any]
    host: Callable[[np.ndarray], np.ndarray]
    parts: Callable[[float], Mapping[str, Sequence[float]]]
    close: Callable[[], None] = lambda: None


def in_torch(case: Case, precision: str, *, compiled: bool = False) -> Contender:
    """PyTorch itself; inputs cross as fp32, as everyone's do, and are cast on the device."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.float32
    module = copy.deepcopy(case.built.module).to(case.device, dtype).eval()
    if compiled:
        module = torch.compile(module, mode=None if case.quick else "max-autotune")
    wait = partial(synchronize, case.device)

    def put(image: np.ndarray) -> Any:
        return torch.from_numpy(image).to(case.device).to(dtype)

    def compute(x: Any) -> Any:
        with torch.inference_mode():
            return module(x)

    def take(logits: Any) -> np.ndarray:
        return logits.float().cpu().numpy()

    def parts(seconds: float) -> dict[str, list[float]]:
        taken: dict[str, list[float]] = {name: [] for name in ("h2d", "compute", "d2h")}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken["d2h"]) < 3:
            value: Any = case.image
            for name, part in (("h2d", put), ("compute", compute), ("d2h", take)):
                start = time.perf_counter()
                value = part(value)
                wait()
                taken[name].append(time.perf_counter() - start)
        return taken

    there = put(case.image)
    return Contender(precision, lambda: (compute(there), wait()), lambda image: take(compute(put(image))), parts)


def in_session(case: Case, backend: str, precision: str, *, cuda_graph: bool = False) -> Contender:
    """An artifact of vitdeploy, proven when it was exported, opened by its backend."""
    from vitdeploy.backends import registry
    from vitdeploy.backends.base import RunOptions

    runtime = registry.get(backend)
    can = runtime.capabilities()
    if not can.installed or not can.devices:
        raise RuntimeError(can.reason or f"{backend} finds no device")
    if cuda_graph and case.device == "cpu":
        raise RuntimeError("there are no CUDA graphs on a CPU")
    device = "" if backend == "tensorrt" else case.device
    file = exported(case, backend, precision, device)
    session = runtime.open(file, RunOptions(device, provider_options=GRAPH[backend] if cuda_graph else {}))
    entry, out = session.inputs[0].name, session.outputs[0].name
    feeds = {entry: case.image}
    session.run(feeds)
    return Contender(
        precision,
        session.resident(feeds),
        lambda image: session.run({entry: image})[out],
        lambda seconds: session.parts(feeds, seconds),
        session.close,
    )


def exported(case: Case, backend: str, precision: str, device: str) -> Path:
    """The model file of the artifact, which is made where `work` does not have it."""
    import vitdeploy
    from vitdeploy.artifact import Artifact

    folder = case.work / f"{case.name}-{case.batch}-{backend}-{precision}"
    if not folder.exists():
        options = {"precision": precision, "backend": backend, "device": device, "batch": case.batch}
        vitdeploy.export(case.name, **options, bench=False, out=folder)
    return Artifact.load(folder).model_path


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    BASE: partial(in_torch, precision="fp32"),
    "eager fp16": partial(in_torch, precision="fp16"),
    COMPILED: partial(in_torch, precision="fp16", compiled=True),
    "AOTInductor fp16": partial(in_session, backend="inductor", precision="fp16"),
}
CONTENDERS |= {
    f"{name} {precision}{', CUDA graph' * graph}": partial(
        in_session, backend=backend, precision=precision, cuda_graph=graph
    )
    for name, backend, precision in ARTIFACTS
    for graph in (False, True)
}


def synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def parity(case: Case, contender: Contender, want: np.ndarray) -> tuple[float, float]:
    """(relative L2, share of images of the same class); raises where the precision does not explain the difference."""
    got = case.logits(contender)
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    if not error <= PARITY[contender.precision]:  # NaN too
        raise RuntimeError(f"no parity: relative L2 {error:.2e}, and {PARITY[contender.precision]:.0e} is the bound")
    return error, float((got.argmax(1) == want.argmax(1)).mean())


def enter(case: Case, labels: Sequence[str], refused: list[str]) -> dict[str, tuple[Contender, float, float]]:
    """The contenders that run and have parity; why the others do not goes into `refused`."""
    base = CONTENDERS[BASE](case)
    want = case.logits(base)
    entered: dict[str, tuple[Contender, float, float]] = {}
    for label in labels:
        told(f"{case.name}, batch {case.batch}: {label}")
        try:
            contender = base if label == BASE else CONTENDERS[label](case)
            for _ in range(3):
                contender.resident()
            entered[label] = (contender, *parity(case, contender, want))
        except Exception as error:  # whatever a contender dies of, the others go on
            refused.append(f"{case.name}, batch {case.batch}, {label}: {sentence(error)}")
            told(f"  {refused[-1]}")
    return entered


def sentence(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def measured(
    case: Case, labels: Sequence[str], seconds: float, peak: float, refused: list[str]
) -> list[dict[str, Any]]:
    """A row of the table for each contender with parity."""
    from vitdeploy.bench.stats import LatencyStats, ratio_of_interleaved
    from vitdeploy.bench.timer import measure_interleaved
    from vitdeploy.models import catalog

    flops = 2 * catalog.find(case.name)[0].macs * case.batch
    entered = enter(case, labels, refused)
    everyone = [contender for contender, _, _ in entered.values()]
    fewest = 3 if case.quick else 20
    resident = measure_interleaved([c.resident for c in everyone], seconds / 4, seconds, fewest)
    host = measure_interleaved([partial(c.host, case.image) for c in everyone], seconds / 4, seconds, fewest)
    of = dict(zip(entered, resident, strict=True))
    rows = []
    for (label, (contender, error, agree)), on_host in zip(entered.items(), host, strict=True):
        stats, whole = (LatencyStats.from_seconds(np.concatenate(t), case.batch) for t in (of[label], on_host))
        parts = contender.parts(min(seconds, 1.0))
        row = {"model": case.name, "batch": case.batch, "contender": label, "relative_l2": error, "top1": agree}
        row |= {"resident_ms": stats.to_dict(), "host_ms": whole.to_dict(), "of_peak": flops / stats.p50 * 1e3 / peak}
        row["parts_ms"] = {name: 1e3 * float(np.median(taken)) for name, taken in parts.items() if len(taken)}
        for name, other in (("ratio_to_eager_fp32", BASE), ("ratio_to_torch_compile_fp16", COMPILED)):
            row[name] = ratio_of_interleaved(of[other], of[label]).to_dict() if other in of else None
        rows.append(row | {"resident_s": of[label], "host_s": on_host})
    for contender in everyone:
        contender.close()
    return rows


def line(row: Mapping[str, Any]) -> str:
    """The row in Markdown; times in ms."""
    whole = (" / ".join(f"{row[key][p]:.3f}" for p in ("p50", "p90", "p99")) for key in ("resident_ms", "host_ms"))
    parts = " + ".join(f"{row['parts_ms'][name]:.3f}" for name in ("h2d", "compute", "d2h") if name in row["parts_ms"])
    ratios = [row["ratio_to_eager_fp32"], row["ratio_to_torch_compile_fp16"]]
    cells = [row["model"], str(row["batch"]), row["contender"], f"{row['relative_l2']:.1e}"]
    cells += [f"{row['top1']:.0%}", *whole, f"{row['resident_ms']['throughput']:.0f}", parts, f"{row['of_peak']:.1%}"]
    cells += [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" if r else "" for r in ratios]
    return f"| {' | '.join(cells)} |"


def matmul_peak(device: str, quick: bool) -> float:
    """Operations a second of a large square torch.matmul: fp16 on a GPU, fp32 on a CPU. The best run's."""
    import torch

    from vitdeploy.bench.timer import measure

    side, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.float16)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    runs = measure(lambda: (torch.matmul(a, b), synchronize(device)), 0.2, 0.2 if quick else 2.0)
    return 2 * side**3 / min(runs)


def facts(device: str) -> dict[str, Any]:
    """The device, its driver and clocks, and the versions: what the figures belong to."""
    from importlib import metadata

    import torch

    from vitdeploy import __version__
    from vitdeploy.bench.environment import environment

    installed = {(one.name or "").lower(): one.version for one in metadata.distributions()}
    found: dict[str, Any] = {"vitdeploy": __version__, "python": platform.python_version()}
    found |= {package: installed[package] for package in PACKAGES if package in installed}
    if device == "cpu":
        return found | {"device": environment()["cpu"]}
    return found | {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()} | clocks(device)


def clocks(device: str) -> dict[str, str]:
    """What nvidia-smi says of the GPU now; empty where it says nothing."""
    index = device.partition(":")[2] or "0"
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI, (value.strip() for value in done.stdout.strip().split(",")), strict=False))


def cases(arguments: argparse.Namespace, work: Path) -> Iterator[Case]:
    """Each model and batch; a model is built once."""
    from vitdeploy.data.synthetic import synthetic_images
    from vitdeploy.models.build import BuildOptions, build

    usual = QUICK if arguments.quick else MODELS
    for name in arguments.models or usual:
        built = build(name, BuildOptions(pretrained=False))
        for batch in arguments.batches or usual.get(name, (1, 32)):
            # Two batches at least: what gives the last run's output again must be seen.
            images = synthetic_images(built.spec.input, max(2, -(-PARITY_IMAGES // batch)) * batch)
            yield Case(name, batch, built, images, arguments.device, arguments.quick, work)


def forget(device: str) -> None:
    """Give back what the contenders of the last row held."""
    import torch

    gc.collect()
    torch._dynamo.reset()
    if device != "cpu":
        torch.cuda.empty_cache()


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="by default those of the table in docs/benchmarks.md")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--contenders", nargs="+", default=[""], help="parts of labels; eager fp32 always runs")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script")
    parser.add_argument("--seconds", type=float, default=5.0, help="of samples, a contender and kind of run")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one small model, short, little tuning")
    parser.add_argument("--work", type=Path, help="keep artifacts there, and use those that are there")
    parser.add_argument("--json", type=Path, help="write facts, rows and every sample there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(argv)
    import torch  # before ONNX Runtime, which then finds its CUDA libraries

    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here. --quick --device cpu tries the script without one.")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # as ONNX Runtime has
    wanted = [label for label in CONTENDERS if any(part.lower() in label.lower() for part in arguments.contenders)]
    labels = [BASE, *(label for label in wanted if label != BASE)]
    seconds = min(arguments.seconds, 0.3) if arguments.quick else arguments.seconds
    found: dict[str, Any] = {"facts": facts(arguments.device), "rows": [], "refused": []}
    peak = matmul_peak(arguments.device, arguments.quick)
    found["facts"]["matmul_tflops"] = peak / 1e12
    print("; ".join(f"{key} {value}" for key, value in found["facts"].items()))
    print(f"\n| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(arguments, arguments.work or Path(folder)):
            try:
                rows = measured(case, labels, seconds, peak, found["refused"])
            except Exception as error:  # such as memory that ran out
                found["refused"].append(f"{case.name}, batch {case.batch}: {sentence(error)}")
                continue
            print("".join(f"{line(row)}\n" for row in rows), end="", flush=True)
            found["rows"] += rows
            found["facts"] |= {f"{key} at the end": value for key, value in clocks(arguments.device).items()}
            if arguments.json:
                arguments.json.write_text(json.dumps(found), encoding="utf-8")
            forget(arguments.device)
    print("".join(f"\n- not measured: {reason}" for reason in found["refused"]))


if __name__ == "__main__":
    main()

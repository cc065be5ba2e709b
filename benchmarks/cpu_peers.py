"""Latency of vitdeploy's fp32 ONNX against the bare export of timm's model, both on ONNX Runtime's CPU provider.

Both sides have the same architecture and the same weights, the same session options, and take turns in one process; the
table gives medians and the median of the pairwise ratios (above 1: vitdeploy is faster). Needs timm:

    pip install --no-deps timm torchvision
    python benchmarks/cpu_peers.py --out docs/cpu_peers.md
    python benchmarks/cpu_peers.py --batches 1 --threads 1 --models cait_xxs24_224 xcit_nano_12_p16_224 ...
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from vitdeploy import __version__
from vitdeploy.bench.environment import environment
from vitdeploy.bench.stats import ratio_of_interleaved
from vitdeploy.bench.timer import measure_interleaved
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import reason, trace
from vitdeploy.graph.save import save
from vitdeploy.models.build import BuildOptions, build

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
from timm_import import import_timm

MODELS = ("mobilevit_xs", "mobilevit_s", "levit_256", "deit_tiny_patch16_224", "vit_small_patch16_224")


def export_pair(name: str, batch: int, folder: Path) -> tuple[Path, Path, np.ndarray]:
    """Write timm's bare export and ours, with the same weights; returns both and an input."""
    timm = import_timm()
    built = build(name, BuildOptions(pretrained=False))
    theirs = timm.create_model(name).eval()
    theirs.load_state_dict(built.module.state_dict())
    image = torch.randn(batch, *built.spec.input.shape, generator=torch.Generator().manual_seed(0))
    peer, ours = folder / f"{name}-{batch}-timm.onnx", folder / f"{name}-{batch}-vitdeploy.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            theirs, (image,), str(peer), dynamo=True, verbose=False, input_names=["image"], output_names=["logits"]
        )
    graph = trace(built.module, built.spec.input.shape, batch=batch)
    optimise(graph)
    save(graph, ours)
    return peer, ours, image.numpy()


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--seconds", type=float, default=6.0, help="of sampling a candidate")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    facts = environment()
    lines = [
        f"{facts['cpu']}, {facts['usable_cores']} cores; vitdeploy {__version__}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}; medians in ms",
        "",
        "| model | batch | threads | timm export | vitdeploy | ratio | 95 % | largest difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            for batch in arguments.batches:
                try:
                    peer, ours, image = export_pair(name, batch, Path(folder))
                except Exception as error:  # whatever stops the peer's export is told
                    lines.append(f"| {name} | {batch} | | {reason(error)} | | | | |")
                    print(lines[-1], flush=True)
                    continue
                for threads in arguments.threads:
                    sessions = [session(path, threads) for path in (peer, ours)]
                    outputs = [s.run(None, {"image": image})[0] for s in sessions]
                    difference = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
                    calls = [partial(s.run, None, {"image": image}) for s in sessions]
                    turns = measure_interleaved(calls, 1.0, arguments.seconds)
                    ratio = ratio_of_interleaved(*turns)
                    a, b = (1e3 * np.median([sample for turn in candidate for sample in turn]) for candidate in turns)
                    lines.append(
                        f"| {name} | {batch} | {threads} | {a:.2f} | {b:.2f} | "
                        f"**{ratio.median:.3f}** | {ratio.low:.3f} to {ratio.high:.3f} | {difference:.1e} |"
                    )
                    print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

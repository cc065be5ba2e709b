"""The zoo against vit-pytorch: parity, what is left in the graph, and latency beside torch.onnx.export of its class.

Both sides have the same weights and the same ONNX Runtime session options, and take turns in one process; a ratio is
the median of the interleaved rounds, above 1 where vitdeploy is faster. Needs vit-pytorch, and torchvision for it:

    pip install --no-deps vit-pytorch torchvision
    python benchmarks/zoo.py --out docs/zoo_table.md

An architecture that vit-pytorch's class cannot run or export has no ratio, and the table says why.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import sys
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from cpu_peers import session

from vitdeploy import __version__
from vitdeploy.bench.environment import environment
from vitdeploy.bench.stats import ratio_of_interleaved
from vitdeploy.bench.timer import measure_interleaved
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import reason, trace
from vitdeploy.graph.ops import summarize
from vitdeploy.graph.save import save
from vitdeploy.models import zoo
from vitdeploy.models.build import Built, build

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
from timm_import import import_timm

NEEDLESS = ("Einsum", "Shape", "Range", "BatchNormalization")
HEADS = ("name", "parameters, M", "GMACs", "nodes", "of theirs", "left over in theirs", "parity", "ms", "ratio", "95 %")


def peer(entry: zoo.Entry, built: Built, file: Path) -> torch.nn.Module:
    """vit-pytorch's module with the same weights, exported bare."""
    if built.spec.input.packing is not None:
        raise ValueError("takes lists of images")
    module, _, attribute = entry.target.partition(":")
    made = getattr(importlib.import_module(f"vit_pytorch.{module}"), attribute)
    theirs = made(**dict(built.spec.config)).eval()
    theirs.load_state_dict(built.module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, *built.spec.input.shape)
        with torch.no_grad():
            theirs(image)  # NaViT remembers its grids, and those of an export would be wrong
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
        torch.onnx.export(theirs, (image,), str(file), dynamo=True, verbose=False, **names)
    return theirs


def row(name: str, seconds: float, folder: Path) -> list[str]:
    entry, built = zoo.find(name), build(zoo.PREFIX + name)
    graph = trace(built.module, built.spec.input)
    optimise(graph)
    about = summarize(graph)
    (ours,) = save(graph, folder / "ours.onnx")[:1]
    cells = [name, f"{built.parameters / 1e6:.2f}", f"{about['macs'] / 1e9:.2f}", str(sum(about["ops"].values()))]
    image = torch.randn(1, *built.spec.input.shape, generator=torch.Generator().manual_seed(0))
    try:
        theirs = peer(entry, built, folder / "theirs.onnx")
        with torch.no_grad():
            want = theirs(image).numpy()
    except Exception as error:  # whatever stops them is told
        return [*cells, "", reason(error)[:80], *[""] * 4]
    sessions = [session(path, 1) for path in (folder / "theirs.onnx", ours)]
    calls = [partial(s.run, None, {"image": image.numpy()}) for s in sessions]
    far = max(float(np.abs(call()[0] - want).max() / np.abs(want).max()) for call in calls[1:])
    turns = measure_interleaved(calls, seconds / 4, seconds)
    ratio = ratio_of_interleaved(*turns)
    ops = Counter(node.op_type for node in onnx.load(folder / "theirs.onnx", load_external_data=False).graph.node)
    left = ", ".join(f"{op} {ops[op]}" for op in NEEDLESS if ops[op])
    cells += [str(sum(ops.values())), left, f"{far:.0e}"]
    cells += [f"{1e3 * np.median(np.concatenate(turns[1])):.1f}", f"**{ratio.median:.2f}**"]
    return [*cells, f"{ratio.low:.2f} to {ratio.high:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="by default all")
    parser.add_argument("--seconds", type=float, default=4.0, help="of sampling a side")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    import_timm()  # declares what torchvision lacks beside a CPU build of torch
    lines = [
        f"{environment()['cpu']}, 1 thread, batch 1; vitdeploy {__version__}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, vit-pytorch {importlib.metadata.version('vit-pytorch')}",
        "",
        f"| {' | '.join(HEADS)} |",
        f"|{' --- |' * len(HEADS)}",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.names or zoo.names():
        with tempfile.TemporaryDirectory() as folder:
            lines.append(f"| {' | '.join(row(name, arguments.seconds, Path(folder)))} |")
        print(lines[-1], flush=True)
        gc.collect()
        if arguments.out:
            arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

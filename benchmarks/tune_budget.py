"""Whether the choices of `vitdeploy tune` keep their word: each is scored and raced anew.

The checkpoints are timm folders trained on Fashion-MNIST (config.json, model.safetensors), the images two .npz files:

    python benchmarks/tune_budget.py --weights ../shared/weights --images ../shared/data --work tuned --out tune.md

For each model and each split of the labelled images `tune` chooses within --max-drop, with all backends that are
installed. The choice is then scored on the half that it never searched with, against eager PyTorch, and takes turns
with an fp32 export on ONNX Runtime. Artifacts that lie in --work already are not made again.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from int8_accuracy import MODELS, images_of

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.bench.environment import environment
from vitdeploy.bench.stats import ratio_of_interleaved
from vitdeploy.bench.timer import measure_interleaved
from vitdeploy.models.build import BuildOptions, build


def held_out(count: int, seed: int) -> np.ndarray:
    """The half that confirms, in the images' order."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return np.sort(order[count // 2 :])


def row(name: str, seed: int, arguments: argparse.Namespace) -> str:
    weights = str(arguments.weights / f"{name}.fashion_mnist")
    calib, test = (arguments.images / f"fashion_mnist_{part}.npz" for part in ("calib", "test"))
    chosen, plain = arguments.work / f"{name}-{seed}", arguments.work / f"{name}-fp32"
    common: dict[str, Any] = {"weights": weights, "threads": arguments.threads}
    if not chosen.exists():
        own = {"data": test, "calib": calib, "max_drop": arguments.max_drop, "split_seed": seed, "out": chosen}
        vitdeploy.tune(name, time_budget=arguments.time_budget, **own, **common)
    if not plain.exists():
        vitdeploy.export(name, bench=False, out=plain, **common)
    built = build(name, BuildOptions(weights=weights))
    images, labels = images_of(test, built.spec.input, sys.maxsize)
    half = held_out(len(images), seed)
    images, labels = images[half], labels[half]
    fp32, session = (vitdeploy.load(folder, threads=arguments.threads) for folder in (plain, chosen))
    (entry,) = session.inputs
    runs = [partial(each.run, {entry.name: images[:1]}) for each in (fp32, session)]
    ratio = ratio_of_interleaved(*measure_interleaved(runs, duration_s=arguments.seconds))
    got = np.concatenate([session.run({entry.name: image[None]})["logits"] for image in images]).argmax(1)
    with torch.inference_mode():
        want = np.concatenate([built.module(part).numpy() for part in torch.from_numpy(images).split(100)]).argmax(1)
    drop = float((want == labels).mean() - (got == labels).mean()) * 100
    manifest = Artifact.load(chosen).manifest
    record = manifest.applied["tune"]
    cost = sum(step["seconds"] for step in manifest.steps)
    race = record["last_race"][record["chosen"]]["median"]
    return (
        f"| {name} | {seed} | {record['chosen']} | {len(record['trials'])} | {cost:.0f} | {drop:+.2f} | "
        f"{(got != want).mean():.2%} | {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) | {race:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of MODEL.fashion_mnist folders")
    parser.add_argument("--images", type=Path, required=True, help="folder of the two .npz files")
    parser.add_argument("--work", type=Path, required=True, help="where artifacts go, and stay")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--max-drop", type=float, default=0.5, help="percentage points of top-1")
    parser.add_argument("--time-budget", type=float, default=600.0, help="seconds of search")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the race of each")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    facts = environment()
    lines = [
        f"{facts['cpu']}, {facts['usable_cores']} cores; vitdeploy {vitdeploy.__version__}; "
        f"{arguments.threads} thread, batch 1; at most {arguments.max_drop:g} pp of top-1",
        "",
        "| model | split | chosen | of | seconds | drop of top-1, pp | changes class | over fp32 | in tune's race |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        for seed in arguments.seeds:
            lines.append(row(name, seed, arguments))
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

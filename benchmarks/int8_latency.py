"""Latency of vitdeploy's int8 and tuned files beside those of quantize_static, quantize_dynamic and NNCF.

Everything runs on this CPU, one thread and batch 1 by default, and takes turns in one process; ratios are medians over
the rounds, above 1 for faster. Peers start from torch.onnx.export of timm's model with the same weights. Weights and
calibration images are random: latency does not depend on them. Needs timm, openvino and nncf:

    python benchmarks/int8_latency.py --models deit_tiny_patch16_224 levit_256 mobilevit_xs --out int8_latency.md

--tune adds what `vitdeploy tune` chooses, with ONNX Runtime alone and with OpenVINO too; that takes minutes a model.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from cpu_peers import import_timm
from int8_peers import PRODUCTS, nncf_quantize, quantize_static

from vitdeploy import __version__
from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.bench.environment import environment
from vitdeploy.bench.stats import ratio_of_interleaved
from vitdeploy.bench.timer import measure_interleaved
from vitdeploy.models.build import BuildOptions, build
from vitdeploy.pipeline import ExportRequest, TuneRequest, export, tune

MODELS = ("deit_tiny_patch16_224", "levit_256", "mobilevit_xs")
CALIB = 16
BASE, RIVAL = "ONNX Runtime fp32", "OpenVINO, NNCF int8 + bf16"
Call = Callable[[], Any]


def files_of(name: str, folder: Path, threads: int, seconds: float) -> dict[str, tuple[str, Path]]:
    """Our artifacts by name: backend and model file."""
    wanted = [("onnxruntime", p) for p in ("fp32", "int8", "int8-dynamic")]
    wanted += [("openvino", p) for p in ("bf16", "int8", "int8+bf16", "int8-dynamic")]
    titles = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    common = {"model": name, "build": BuildOptions(pretrained=False), "bench": False}
    found = {}
    for backend, precision in wanted:
        request = ExportRequest(
            **common,
            backend=backend,
            precision=precision,
            calib_random=precision in ("int8", "int8+bf16"),
            run=RunOptions(threads=threads),
            out=folder / f"{backend}-{precision}",
        )
        artifact = export(request)
        found[f"{titles[backend]} {precision}"] = (backend, artifact.folder / artifact.manifest.model_file)
    for title, backends in (("ONNX Runtime, tuned", ("onnxruntime",)), ("tuned", ())) if seconds else ():
        base = ExportRequest(**common, calib_random=True, run=RunOptions(threads=threads), out=folder / title)
        tuned = tune(TuneRequest(base, backends=backends, time_budget=seconds))
        plan = tuned.chosen.plan
        found[f"{title}: {plan.name}"] = (plan.backend, tuned.artifact.folder / tuned.artifact.manifest.model_file)
    return found


def peers_of(name: str, folder: Path) -> dict[str, tuple[str, Path]]:
    """The peers' files: an ONNX file for ONNX Runtime, or OpenVINO IR, with the precision hint behind it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    built = build(name, BuildOptions(pretrained=False))
    shape = built.spec.input.shape
    theirs = import_timm().create_model(name).eval()
    theirs.load_state_dict(built.module.state_dict())
    bare = folder / "timm.onnx"
    images = np.random.default_rng(0).standard_normal((CALIB, *shape), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            theirs, (torch.zeros(1, *shape),), str(bare), dynamo=True, verbose=False, input_names=["image"],
            output_names=["logits"],
        )  # fmt: skip
    quantize_static(bare, images, folder / "static.onnx", None, batch=1)
    quantize_static(bare, images, folder / "products.onnx", PRODUCTS, batch=1)
    prepared = folder / "static.prepared.onnx"
    quantize_dynamic(str(prepared), str(folder / "dynamic.onnx"), per_channel=True, weight_type=QuantType.QInt8)
    nncf_quantize(bare, images, folder / "nncf.xml", batch=1)
    return {
        "ONNX Runtime, bare export fp32": ("onnxruntime", bare),
        "ONNX Runtime, quantize_static, all ops": ("onnxruntime", folder / "static.onnx"),
        "ONNX Runtime, quantize_static, products": ("onnxruntime", folder / "products.onnx"),
        "ONNX Runtime, quantize_dynamic": ("onnxruntime", folder / "dynamic.onnx"),
        "OpenVINO, bare export bf16": ("bf16", bare),
        "OpenVINO, NNCF int8": ("f32", folder / "nncf.xml"),
        RIVAL: ("bf16", folder / "nncf.xml"),
    }


def call(runtime: str, path: Path, threads: int) -> Call:
    """One run on a random image: by a backend of ours, or on OpenVINO with a precision hint."""
    if runtime in registry.backends():
        session = registry.get(runtime).open(path, RunOptions(threads=threads))
        (entry,) = session.inputs
        image = np.random.default_rng(1).standard_normal([int(n) for n in entry.shape], dtype=np.float32)
        return partial(session.run, {entry.name: image})
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": runtime}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    image = np.random.default_rng(1).standard_normal(list(compiled.input(0).shape), dtype=np.float32)
    return partial(request.infer, [image], share_inputs=True, share_outputs=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of sampling a candidate")
    parser.add_argument("--tune", type=float, default=0.0, metavar="S", help="seconds of search for each tune")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    facts = environment()
    lines = [
        f"{facts['cpu']}, {facts['usable_cores']} cores; vitdeploy {__version__}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__.partition('-')[0]}; "
        f"{arguments.threads} thread, batch 1",
        "",
        f"| model | | median, ms | over {BASE} | 95 % | over {RIVAL} | 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            files = {**files_of(name, folder, arguments.threads, arguments.tune), **peers_of(name, folder)}
            calls = [call(runtime, path, arguments.threads) for runtime, path in files.values()]
            turns = dict(zip(files, measure_interleaved(calls, 1.0, arguments.seconds), strict=True))
        for title, own in turns.items():
            base, rival = (ratio_of_interleaved(turns[other], own) for other in (BASE, RIVAL))
            median = 1e3 * np.median([sample for turn in own for sample in turn])
            lines.append(
                f"| {name} | {title} | {median:.2f} | **{base.median:.2f}** | {base.low:.2f} to {base.high:.2f} | "
                f"{rival.median:.2f} | {rival.low:.2f} to {rival.high:.2f} |"
            )
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

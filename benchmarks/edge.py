"""Every backend of this machine x every precision, beside what others make for the same runtimes: size, error, latency.

All files of a model take turns in one process, batch 1 and one thread by default; ratios are medians over the rounds,
above 1 for faster. Both sides have the same random weights; int8 is calibrated on synthetic images. Errors are the
largest of four images, relative to the largest logit, against eager PyTorch. Needs the extras and timm:

    pip install 'vitdeploy[openvino,litert,executorch,ncnn]' nncf timm
    python benchmarks/edge.py --work edge --out edge.md            # what is made is kept in --work

--embed adds files with their preprocessing inside (a frame of 480 x 640), beside Pillow and the plain file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cpu_peers import import_timm
from edge_peers import PEERS, Peer
from PIL import Image

from vitdeploy import __version__
from vitdeploy.artifact import Artifact
from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.bench.environment import environment
from vitdeploy.bench.stats import ratio_of_interleaved
from vitdeploy.bench.timer import Turns, measure_interleaved
from vitdeploy.data.images import preprocess
from vitdeploy.data.synthetic import synthetic_frame, synthetic_images
from vitdeploy.export.options import EmbedOptions
from vitdeploy.models.build import BuildOptions, Built, build
from vitdeploy.pipeline import ExportRequest, export
from vitdeploy.spec import CALIBRATED, Frame

MODELS = ("mobilevit_xs", "levit_256", "deit_tiny_patch16_224")
BACKENDS = ("onnxruntime", "onnxruntime-mobile", "openvino", "litert", "executorch", "ncnn")
PACKAGES = ("onnxruntime", "openvino", "nncf", "ai-edge-litert", "litert-torch", "executorch", "ncnn", "torch", "timm")
FRAME = Frame("rgb", (480, 640))


@dataclass(frozen=True)
class Contender:
    """A file that takes part. `run` takes one image, float32 (1, C, H, W), or one frame where `frames`."""

    title: str
    runtime: str
    precision: str
    ours: bool
    size: int
    run: Callable[[np.ndarray], np.ndarray]
    frames: bool = False


def ours(built: Built, folder: Path, threads: int, embed: bool) -> Iterator[Contender]:
    """Our artifacts, each exported and so verified, unless it lies there already."""
    for backend in BACKENDS:
        can = registry.get(backend).capabilities()
        for precision in can.precisions if can.installed and can.devices else ():
            if precision == "fp8":
                continue  # written for TensorRT
            yield from attempt(partial(ours_one, built, folder, backend, precision, threads, embed=False))
        if embed and can.installed and registry.get(backend).embeds:
            yield from attempt(partial(ours_one, built, folder, backend, "fp32", threads, embed=True))


def ours_one(built: Built, folder: Path, backend: str, precision: str, threads: int, *, embed: bool) -> Contender:
    out = folder / f"{backend}-{precision}{'-embed' if embed else ''}"
    if not out.exists():
        export(
            ExportRequest(
                model=built.spec.name,
                build=BuildOptions(pretrained=False),
                backend=backend,
                precision=precision,
                calib_random=precision in CALIBRATED,
                bench=False,
                embed=EmbedOptions(embed_preprocessing=embed, frame_size=FRAME.size if embed else None),
                out=out,
            )
        )
    artifact = Artifact.load(out)
    session = registry.get(backend).open(artifact.model_path, RunOptions(threads=threads))
    name, first = session.inputs[0].name, session.outputs[0].name
    texts = (".md", ".html", ".config")
    size = sum(file["bytes"] for path, file in artifact.manifest.files.items() if not path.endswith(texts))
    title = "vitdeploy, preprocessing inside" if embed else "vitdeploy"
    return Contender(title, backend, precision, True, size, lambda x: session.run({name: x})[first], embed)


def peers(built: Built, folder: Path, threads: int) -> Iterator[Contender]:
    module = import_timm().create_model(built.spec.name).eval()
    module.load_state_dict(built.module.state_dict())
    images = synthetic_images(built.spec.input, 16, 1)
    place = folder / "peers"
    place.mkdir(parents=True, exist_ok=True)
    for peer in PEERS:
        yield from attempt(partial(peers_one, peer, module, images, place, threads))


def peers_one(peer: Peer, module: torch.nn.Module, images: np.ndarray, place: Path, threads: int) -> Contender:
    note = place / f"{peer.runtime}-{peer.title}.txt".replace(" ", "_")  # where its file is, once it is made
    file = Path(note.read_text()) if note.exists() else peer.make(module, images, place)
    note.write_text(str(file))
    parts = {file, file.with_name(f"{file.name}.data")}
    parts |= {file.with_suffix(".bin")} if file.suffix in (".xml", ".param") else set()
    size = sum(path.stat().st_size for path in parts if path.exists())
    return Contender(peer.title, peer.runtime, peer.precision, False, size, peer.open(file, threads))


def attempt(make: Callable[[], Contender]) -> Iterator[Contender]:
    """What cannot be made is told, and takes no part."""
    try:
        yield make()
    except Exception as error:
        print(f"left out: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}", flush=True)


def pillow(built: Built, plain: Contender) -> Contender:
    """What an app does without: Pillow and numpy, then the plain file."""
    spec = built.spec.input

    def run(frame: np.ndarray) -> np.ndarray:
        return plain.run(preprocess(Image.fromarray(frame), spec)[None])

    return Contender("Pillow, then vitdeploy", plain.runtime, plain.precision, True, plain.size, run, True)


def error_of(contender: Contender, built: Built) -> float:
    """The largest difference from eager PyTorch over four images, relative to the largest logit."""
    worst = 0.0
    for seed in range(4):
        frame = synthetic_frame(FRAME, seed)
        image = preprocess(Image.fromarray(frame), built.spec.input)[None]
        with torch.inference_mode():
            wanted = built.module(torch.from_numpy(image)).numpy()
        got = contender.run(frame if contender.frames else image)
        worst = max(worst, float(np.abs(got.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()))
    return worst


def rows(name: str, found: Sequence[Contender], errors: Sequence[float], turns: Sequence[Turns]) -> Iterator[str]:
    """One line a file; each of ours beside the fastest of the others' on its runtime, and all beside a bare export."""
    medians = [1e3 * float(np.median([sample for turn in own for sample in turn])) for own in turns]
    base = next(i for i, one in enumerate(found) if not one.ours and one.runtime == "onnxruntime")
    for i, (one, error, own) in enumerate(zip(found, errors, turns, strict=True)):
        rivals = [j for j, other in enumerate(found) if not other.ours and other.runtime == one.runtime]
        best = min(rivals, key=lambda j: medians[j], default=None)
        same = [j for j in rivals if found[j].precision == one.precision]
        cells = []
        for j in (base, min(same, key=lambda j: medians[j], default=None), best):
            if j is None or one.frames:  # theirs are not given frames
                cells.append("")
            else:
                ratio = ratio_of_interleaved(turns[j], own)
                cells.append(f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        yield (
            f"| {name} | {one.runtime} | {one.precision} | {one.title} | {one.size / 1e6:.1f} | {error:.1e} | "
            f"{medians[i]:.2f} | {' | '.join(cells)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of sampling a file")
    parser.add_argument("--work", type=Path, default=Path("edge"), help="where what is made is kept")
    parser.add_argument("--embed", action="store_true", help="also files with their preprocessing inside")
    parser.add_argument("--make-only", action="store_true", help="export and convert, and measure nothing")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = environment()
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    lines = [
        f"{facts['cpu']}, {facts['usable_cores']} cores; vitdeploy {__version__}, {versions}; "
        f"{arguments.threads} thread, batch 1",
        "",
        "| model | runtime | precision | made by | MB | error | median, ms | over the bare export on ONNX Runtime | "
        "over the same precision of others | over the best of others on this runtime |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        built = build(name, BuildOptions(pretrained=False))
        folder = arguments.work / name
        found = [*ours(built, folder, arguments.threads, arguments.embed), *peers(built, folder, arguments.threads)]
        if arguments.make_only:
            continue
        if arguments.embed:
            plain = [one for one in found if one.ours and one.precision == "fp32" and not one.frames]
            found += [pillow(built, one) for one in plain if registry.get(one.runtime).embeds]
        errors = [error_of(one, built) for one in found]
        frame = synthetic_frame(FRAME, 0)
        image = preprocess(Image.fromarray(frame), built.spec.input)[None]
        calls = [partial(one.run, frame if one.frames else image) for one in found]
        turns = measure_interleaved(calls, 1.0, arguments.seconds)
        for line in rows(name, found, errors, turns):
            lines.append(line)
            print(line, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

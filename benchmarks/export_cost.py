"""Wall time and peak memory of whole exports, as processes, taking turns with a bare export script.

    python benchmarks/export_cost.py                         # mobilevit_xs --fp16 --no-bench against the bare script
    python benchmarks/export_cost.py --memory vit_large_patch16_224      # peak memory over the weights
    python benchmarks/export_cost.py --calibrate vit_base_patch16_224 --photos FOLDER --images 100 1000

Linux and macOS only: times and memory come from the kernel's own account of the finished process and its children.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitdeploy.models import catalog

HERE = Path(__file__).parent


def run(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak resident bytes of the process or its largest child."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit(errors.decode())
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def export_command(name: str, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "vitdeploy", "export", name, "--no-bench", "--out", str(out), *flags]


def compare(name: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "ours"
        ours, bare = [], []
        for i in range(rounds + 1):
            bare.append(run([sys.executable, str(HERE / "bare_export.py"), name, f"{folder}/bare.onnx"])[0])
            ours.append(run(export_command(name, out, "--fp16"))[0])
            shutil.rmtree(out)
            print(f"round {i}: bare {bare[-1]:.1f} s, vitdeploy {ours[-1]:.1f} s", flush=True)
        ratios = [a / b for a, b in zip(ours[1:], bare[1:], strict=True)]  # the first round warms the disk cache
        print(f"vitdeploy / bare: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def memory(name: str, flags: list[str]) -> None:
    weights = catalog.find(name)[0].params * 4
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak = run(export_command(name, Path(folder) / "ours", *flags))
    print(
        f"{name}: {seconds:.0f} s, peak {peak / 1e9:.2f} GB, weights {weights / 1e9:.2f} GB, ratio {peak / weights:.2f}"
    )


def calibrate(name: str, photos: str, images: int) -> None:
    """int8 on so many images, with nothing kept from a sweep before."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITDEPLOY_CACHE"] = folder
        flags = ["--int8", "--calib", photos, "--calib-images", str(images)]
        seconds, peak = run(export_command(name, Path(folder) / "ours", *flags))
    print(f"{name}, int8 on {images} images: {seconds:.0f} s, peak {peak / 1e6:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilevit_xs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", nargs="+", metavar="MODEL", help="measure peak memory of these instead")
    parser.add_argument("--fp16", action="store_true", help="with --memory: export fp16")
    parser.add_argument("--calibrate", metavar="MODEL", help="measure time and peak memory of int8 instead")
    parser.add_argument("--photos", metavar="FOLDER", help="with --calibrate")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1000], help="with --calibrate: how many of them")
    arguments = parser.parse_args()
    if arguments.calibrate:
        if not arguments.photos:
            parser.error("--calibrate needs --photos")
        for images in arguments.images:
            calibrate(arguments.calibrate, arguments.photos, images)
    elif arguments.memory:
        for name in arguments.memory:
            memory(name, ["--fp16"] if arguments.fp16 else [])
    else:
        compare(arguments.model, arguments.rounds)


if __name__ == "__main__":
    main()

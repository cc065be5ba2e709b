"""The apps' Kotlin and Swift, compiled and run on pictures, against vitdeploy's own preprocessing.

Needs a compiler: kotlinc or VITDEPLOY_KOTLIN (the folder of npm's kotlin-compiler) with Java; swiftc or
VITDEPLOY_SWIFTC.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitdeploy.apps.contents import TEMPLATES, decimal, fill, resized
from vitdeploy.data.frames import to_frame
from vitdeploy.data.images import preprocess
from vitdeploy.data.synthetic import synthetic_frame
from vitdeploy.spec import CROP_MODES, INTERPOLATIONS, Frame, InputSpec

HERE = Path(__file__).parent
PURE = ("Pixels", "Resize", "Tensor", "Frame", "Answers")
SIZES = ((335, 503), (480, 360), (90, 61), (224, 224), (37, 400))
Run = Callable[[list[str]], None]

INPUTS = [
    *(InputSpec((3, 224, 224), interpolation=name) for name in INTERPOLATIONS),
    *(InputSpec((3, 96, 128), crop_mode=mode, crop_pct=0.95) for mode in CROP_MODES),
    InputSpec((3, 128, 128), (0.5,), (0.5,), 1.0, "bilinear"),
    InputSpec((1, 28, 28), (0.13,), (0.31,), 0.875),
    InputSpec(
        (3, 64, 64), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 1.0, "bicubic", "border"
    ),
]
FRAMES = [Frame(name, size) for name in ("rgb", "rgba", "bgra", "nv21") for size in (None, (120, 160), (96, 64))]


@pytest.fixture(scope="session", params=["kotlin", "swift"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Compile the program once; run it on cases."""
    folder, language = tmp_path_factory.mktemp(request.param), request.param
    kind, platform = ("kt", "android") if language == "kotlin" else ("swift", "ios")
    sources = [*(TEMPLATES / platform / f"{name}.{kind}" for name in PURE), HERE / f"Check.{kind}"]
    command = request.getfixturevalue(language)(sources, folder / "check.jar")

    def call(cases: list[str]) -> None:
        (folder / "cases.txt").write_text("\n".join(cases) + "\n")
        done = subprocess.run([*command, str(folder / "cases.txt")], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

    return call


def picture(index: int, folder: Path) -> tuple[Image.Image, str]:
    """A picture, and the first words of its case: its RGBA bytes, width and height."""
    pixels = synthetic_frame(Frame("rgba", SIZES[index]), seed=index)
    file = folder / f"{index}.rgba"
    file.write_bytes(pixels.tobytes())
    height, width = SIZES[index]
    return Image.fromarray(pixels[..., :3].copy()), f"{file} {width} {height}"


def test_tensors_are_vitdeploys_bit_by_bit(run: Run, tmp_path: Path) -> None:
    cases, wanted = [], []
    for index in range(len(SIZES)):
        image, words = picture(index, tmp_path)
        for spec in INPUTS:
            lists = (map(str, fill(spec)), map(decimal, spec.mean), map(decimal, spec.std))
            sizes = (
                *spec.size,
                *resized(spec),
                spec.crop_mode,
                spec.interpolation,
                *(",".join(each) for each in lists),
            )
            cases.append(f"tensor {words} {tmp_path / str(len(cases))} {' '.join(map(str, sizes))}")
            wanted.append(preprocess(image, spec, across_first=True))
    run(cases)
    for k, want in enumerate(wanted):
        found = np.fromfile(tmp_path / str(k), np.float32)
        assert np.array_equal(found, want.ravel()), f"{cases[k]}: {np.abs(found - want.ravel()).max()}"


def test_frames_are_vitdeploys(run: Run, tmp_path: Path) -> None:
    cases, wanted = [], []
    for index in range(len(SIZES)):
        image, words = picture(index, tmp_path)
        for frame in FRAMES:
            height, width = frame.size or (0, 0)
            cases.append(f"frame {words} {tmp_path / str(len(cases))} {frame.format} {height} {width}")
            wanted.append((frame, to_frame(image, frame)))
    run(cases)
    for k, (frame, want) in enumerate(wanted):
        found = np.fromfile(tmp_path / str(k), np.uint8).reshape(want.shape).astype(int)
        # Where it is resized Pillow may begin with the height, and round differently.
        assert np.abs(found - want).max() <= (0 if frame.size is None else 2), cases[k]
        assert np.abs(found - want).mean() < 0.1, cases[k]


def test_swift_turns_pictures_as_pillow_does(run: Run, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "kotlin" in request.node.name:
        pytest.skip("Android's decoder turns them")
    image, words = picture(2, tmp_path)
    run([f"upright {words} {tmp_path / f'turned{k}'} {k}" for k in range(1, 9)])
    for k in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = k
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
        assert np.array_equal(np.fromfile(tmp_path / f"turned{k}", np.uint8), turned.ravel()), k

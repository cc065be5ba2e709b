"""What the options of the command line mean: their types, and how their texts are read."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitdeploy.errors import UsageError


def finite(seconds: float) -> float:
    """Refuse 'nan', which is in no range, and 'inf', which never ends."""
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is not a number of seconds.")
    return seconds


ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Catalog name, zoo:NAME, timm:NAME, hf-hub:ORG/NAME, package.module:factory or file.py:factory.",
    ),
]
Weights = Annotated[str | None, typer.Option(help="Checkpoint FILE, timm-style FOLDER, or hf-hub:ORG/NAME.")]
PretrainedOpt = Annotated[
    bool | None,
    typer.Option("--pretrained/--no-pretrained", help="Published weights; the default where MODEL has a tag."),
]
NumClasses = Annotated[int | None, typer.Option(help="Width of the logits.")]
ImageSize = Annotated[str | None, typer.Option(help="Input size: 256 or 256x320 (height x width).")]
InChans = Annotated[int | None, typer.Option(help="Image channels.")]
Shape = Annotated[
    str | None,
    typer.Option(metavar="CxHxW|CxFxHxW", help="Channels, height and width of an image; with frames, of a video."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ARGUMENT=VALUE", help="Of a zoo: model's constructor, such as dim=256; repeatable."),
]
Config = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The same from a file.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of random weights.")]
Mean = Annotated[str | None, typer.Option(help="Preprocessing mean: one number or one a channel, by commas.")]
Std = Annotated[str | None, typer.Option(help="Preprocessing standard deviation, likewise.")]
CropPct = Annotated[float | None, typer.Option(help="Centre crop as a fraction of the resized image.")]
Interpolation = Annotated[
    str | None, typer.Option(help="Resize filter: bicubic, bilinear, nearest, lanczos, box, hamming.")
]
BackendOpt = Annotated[str, typer.Option(help="Runtime; see vitdeploy doctor.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; by default the backend's usual one.")]
Provider = Annotated[str | None, typer.Option(help="ONNX Runtime execution provider: cpu, cuda, tensorrt, coreml, ...")]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend-option",
        metavar="KEY=VALUE",
        help="Passed to the backend or its provider; repeatable.",
    ),
]
Optimization = Annotated[str, typer.Option(help="The runtime's own graph optimisation: all, extended, basic, off.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 leaves it to the runtime.")]
Warmup = Annotated[float, typer.Option(min=0, callback=finite, help="Seconds of runs before the first sample.")]
Duration = Annotated[float, typer.Option(min=0, callback=finite, help="Seconds of sampling.")]
Tolerance = Annotated[float | None, typer.Option(help="Largest error allowed, relative to the largest logit.")]
Data = Annotated[Path | None, typer.Option(help="Folder of images to verify on, beside the synthetic ones.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


def parse_size(text: str | None, what: str = "Image size") -> tuple[int, int] | None:
    """'256' or '256x320' as (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(p.isdecimal() and len(p) < 9 and int(p) > 0 for p in parts):
        raise UsageError(f"{what} '{text}' is not a number such as 256, or height x width such as 256x320.")
    return int(parts[0]), int(parts[-1])


def parse_shape(
    shape: str | None, image_size: str | None, in_chans: int | None
) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """(height, width), channels and frames, of '3x224x224', '3x16x128x128', or of the options for some of these."""
    if shape is None:
        return parse_size(image_size), in_chans, None
    if image_size is not None or in_chans is not None:
        raise UsageError("--shape says what --image-size and --in-chans do: give one or the others.")
    parts = shape.lower().replace(",", "x").split("x")
    if len(parts) not in (3, 4) or not all(p.isdecimal() and len(p) < 9 for p in parts):
        raise UsageError(f"Shape '{shape}' is not channels x height x width, or channels x frames x height x width.")
    channels, *frames, height, width = (int(p) for p in parts)
    return (height, width), channels, frames[0] if frames else None


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """'4' as a fixed batch, '1:8:32' as (min, opt, max)."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(p.isdecimal() and len(p) < 9 for p in parts):
        raise UsageError(f"Batch '{text}' is not a number such as 4, or min:opt:max such as 1:8:32.")
    sizes = [int(p) for p in parts]
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])


def parse_numbers(text: str | None, what: str) -> tuple[float, ...] | None:
    """'0.5' or '0.5,0.5,0.5' as floats."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{what} '{text}' is not a number, or numbers with commas between.") from None


def run_options(
    device: str, threads: int, provider: str | None, provider_option: list[str] | None, optimization: str = "all"
) -> Any:
    from vitdeploy.backends.base import RunOptions

    pairs = {}
    for text in provider_option or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--backend-option '{text}' is not KEY=VALUE.")
        pairs[key] = value
    if optimization not in ("all", "extended", "basic", "off"):
        raise UsageError(f"Unknown optimization '{optimization}': one of all, extended, basic, off.")
    return RunOptions(device, threads, optimization, provider, pairs)


def read_arguments(config: Path | None, given: list[str] | None) -> dict[str, Any]:
    """Constructor arguments: a TOML file's, then those of `--set`, whose values are TOML's or else plain texts."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    found: dict[str, Any] = {}
    if config is not None:
        try:
            found = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{config} is not a TOML file that can be read: {error}.") from None
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{text}' is not ARGUMENT=VALUE.")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            found[key] = value
    return found

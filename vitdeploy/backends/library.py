"""What backends share that are made by and run with another library, which has few options."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from vitdeploy.backends.base import Program, RunOptions
from vitdeploy.errors import UnsupportedModel, UsageError


def installed(package: str) -> str | None:
    """The version of a package that is installed, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def words(error: BaseException) -> str:
    """An error of a library on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def check_options(options: RunOptions, name: str, optimises: str, devices: Sequence[str] = ("cpu",)) -> None:
    """Raises UsageError on options that the library has no use for.

    Args:
        name: of the library, for people.
        optimises: how it does, as the rest of a sentence.
    """
    if options.device not in devices:
        fix = f"Use --device {' or '.join(devices)}."
        raise UsageError(f"{name} does not run on '{options.device}' here.", fix=fix)
    if options.threads < 0:
        raise UsageError(f"threads is {options.threads}: give 0 ({name}'s own number) or more.")
    if options.provider is not None:
        raise UsageError(f"{name} has no provider '{options.provider}'.")
    if options.optimization != "all":
        raise UsageError(f"{name} {optimises}: it has no '{options.optimization}'.")
    if options.provider_options:
        raise UsageError(f"{name} does not take the option {next(iter(options.provider_options))}.")


def check_program(program: Program, name: str, precision: str, precisions: Iterable[str]) -> None:
    """Raises UnsupportedModel where a file of this library cannot be made as asked."""
    if precision not in precisions:
        raise UnsupportedModel(f"{name} has no {precision} here.")
    if not isinstance(program.batch, int):
        raise UnsupportedModel(f"Files of {name} are made with a fixed batch.", fix="Export with --batch 1, or 4.")
    if program.io_precision != "fp32":
        raise UnsupportedModel(f"Inputs and outputs of {name}'s files are fp32 here, not {program.io_precision}.")


def save_program(program: Program, file: Path) -> None:
    """Trace a module of a fixed batch with torch.export, and write the program for a converter in a child process."""
    import torch

    from vitdeploy.export.program import export_program
    from vitdeploy.export.trace import quiet

    batch = program.batch
    assert isinstance(batch, int)
    with quiet():
        exported = export_program(
            program.module, program.shape, batch=batch, frame=program.frame, outputs=len(program.gives)
        )
        torch.export.save(exported, file)


def whole(batches: Iterable[np.ndarray], size: int) -> np.ndarray:
    """All of the images, float32 (N, C, H, W), the last batch filled up with its first ones."""
    return np.concatenate([batch[np.arange(size) % len(batch)] for batch in batches])

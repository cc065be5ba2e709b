"""`vitdeploy` in a process of its own, and a tiny model for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Traced in a second or two; its weights are the same in every process.
TINY = """
import torch
from torch import nn


class Tiny(nn.Module):
    image_size = 16

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        attention = (x @ x.transpose(1, 2)).softmax(-1)
        return self.head((x + attention @ self.mix(x)).mean(1))


def make(width=8):
    torch.manual_seed(0)
    return Tiny(width)


def wide():
    return make(512)


def chatty():
    print("hello from user code")
    return make()


def leaves():
    raise SystemExit(3)


def raises():
    raise RuntimeError("no such luck")
"""


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "vitdeploy", *map(str, args)]


def environment(cwd: Path, **extra: str) -> dict[str, str]:
    """One thread, temporary files beside the working folder, and no hub to reach."""
    temporary = cwd.parent / f"{cwd.name}-tmp"
    temporary.mkdir(exist_ok=True)
    mine = {
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
        "HF_HOME": str(temporary / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONWARNINGS": "",
    }
    return {**os.environ, **mine, **extra}


def run_cli(*args: object, cwd: Path, env: Mapping[str, str] | None = None, **options: Any) -> Run:
    """Run `vitdeploy ARGS` in `cwd`."""
    done = subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(cwd, **(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    return Run(done.returncode, done.stdout, done.stderr)

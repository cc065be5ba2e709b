"""How compilers are called."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def succeed(command: Sequence[object]) -> None:
    """Run a command that has to go well."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""What this machine's CPU does with int8."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # Linux


def saturates() -> bool:
    """Whether it adds two products of u8 and s8 in 16 bits, where weights of 8 bits overflow: x86 without VNNI.

    Where that cannot be read, it is taken to.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        flags = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "avx512_vnni" not in flags and "avx_vnni" not in flags

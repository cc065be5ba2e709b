"""The machine and the versions that a latency belongs to. Every figure that cannot be read here is None."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vitdeploy import __version__

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "onnx-ir", "numpy", "einops")

# What the kernels of inference runtimes choose by.
ISA_FLAGS = (
    *("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)

MACOS_FEATURES = {"FEAT_DotProd": "asimddp", "FEAT_FP16": "asimdhp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
MACOS_FEATURES |= {"FEAT_SME": "sme", "AdvSIMD": "asimd"}


def environment() -> dict[str, Any]:
    """JSON values: the processor, memory, operating system and the packages that matter. Never raises.

    Keys: cpu, physical_cores, logical_cores, usable_cores (this process may run on), isa (list), governor, mhz,
    memory_bytes, os, machine, python, versions ({package: version}, None where it is not installed).
    """
    cpu = _cpu()
    return {
        "cpu": cpu["model"],
        "physical_cores": cpu["physical_cores"],
        "logical_cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "isa": cpu["isa"],
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "mhz": _current_mhz() or cpu["mhz"],
        "memory_bytes": memory_bytes(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {"vitdeploy": __version__} | {package: _version(package) for package in PACKAGES},
    }


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held resident, in bytes; None where the system does not tell."""
    status = _read("/proc/self/status")
    if status is not None and (match := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)):
        return int(match[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Read Linux's /proc/cpuinfo: model, physical_cores, isa and mhz (of the first processor); None where absent."""
    fields: dict[str, str] = {}
    cores: set[tuple[str, str]] = set()
    for block in re.split(r"\n\s*\n", text):
        entries = dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", block, re.MULTILINE))
        if "core id" in entries:
            cores.add((entries.get("physical id", "0"), entries["core id"]))
        for key, value in entries.items():
            fields.setdefault(key.lower(), value)  # ARM boards add a 'Hardware' block of their own
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    megahertz = fields.get("cpu mhz", "")
    return {
        "model": fields.get("model name") or fields.get("hardware") or fields.get("cpu model"),
        "physical_cores": len(cores) or None,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "mhz": float(megahertz) if re.fullmatch(r"\d+(\.\d+)?", megahertz) else None,
    }


def _cpu() -> dict[str, Any]:
    text = _read("/proc/cpuinfo")
    if text is not None:
        cpu = parse_cpuinfo(text)
        # ARM Linux names no model in cpuinfo, but its boards name themselves in the device tree.
        cpu["model"] = cpu["model"] or _read("/proc/device-tree/model") or platform.processor() or None
        return cpu
    if sys.platform == "darwin":
        physical = _sysctl("hw.physicalcpu")
        return {
            "model": _sysctl("machdep.cpu.brand_string") or platform.processor() or None,
            "physical_cores": int(physical) if physical and physical.isdigit() else None,
            "isa": _macos_isa(),
            "mhz": None,
        }
    return {"model": platform.processor() or None, "physical_cores": None, "isa": [], "mhz": None}


def _macos_isa() -> list[str]:
    found = {ours for theirs, ours in MACOS_FEATURES.items() if _sysctl(f"hw.optional.arm.{theirs}") == "1"}
    intel = f"{_sysctl('machdep.cpu.features') or ''} {_sysctl('machdep.cpu.leaf7_features') or ''}"
    found |= {name.lower().replace(".", "_") for name in intel.split()}
    return [flag for flag in ISA_FLAGS if flag in found or (flag == "avx" and "avx1_0" in found)]


def _current_mhz() -> float | None:
    kilohertz = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return int(kilohertz) / 1000 if kilohertz and kilohertz.isdigit() else None


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """This machine's memory; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _sysctl(name: str) -> str | None:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

"""A .pt2 file: how one is compiled, what vitdeploy writes into it, and whether it can run on this machine.

It is a zip archive with native code in it. What is told here is read before any of that code is loaded.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError, MissingDependency, UsageError

CACHE = "TORCHINDUCTOR_CACHE_DIR"
FACTS = "extra/vitdeploy.json"
SCHEMA = 1
AGAIN = "Export it again here."
# Of the processor's flags, those that say what a compiler may use.
ISA = r"(s?sse|avx|fma|f16c|bmi|amx|vaes|gfni|vpclmul|adx|sha_|popcnt|lzcnt|abm|movbe|asimd|sve|sme|i8mm|bf16|fphp)"


@dataclass(frozen=True)
class Facts:
    """What a package says of itself.

    Attributes:
        device: 'cpu' or 'cuda'.
        capability: (major, minor) of the GPU that it was compiled for; None on a CPU.
        system, machine: sys.platform and platform.machine().
        isa: the CPU's features that the compiler may have used; empty where the system does not tell.
        torch: version that compiled it.
        precision: that was asked for.
        io: numpy's type of input and output.
        shape: (C, H, W).
        batch: a fixed size, or (min, opt, max).
        classes: width of the logits.
        ops, casts: see inductor_census.Recorder.
        report: what the conversion to the precision did.
    """

    device: str
    torch: str
    precision: str
    io: str
    shape: tuple[int, ...]
    batch: int | tuple[int, ...]
    classes: int
    capability: tuple[int, ...] | None = None
    system: str = sys.platform
    machine: str = field(default_factory=platform.machine)
    isa: tuple[str, ...] = ()
    ops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    casts: int = 0
    report: Mapping[str, Any] = field(default_factory=dict)


def write_facts(package: Path, facts: Facts) -> None:
    with zipfile.ZipFile(package, "a") as archive:
        # Torch's archives have all their entries in one folder.
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{FACTS}", json.dumps({"schema": SCHEMA, **asdict(facts)}, sort_keys=True))


def read_facts(package: Path) -> Facts:
    """Raises UsageError when the file is damaged, is no package, or is one that vitdeploy did not write."""
    try:
        with zipfile.ZipFile(package) as archive:
            damaged = archive.testzip()
            names = [name for name in archive.namelist() if name.partition("/")[2] == FACTS]
            text = archive.read(names[0]) if names else None
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{package} is not a .pt2 package that can be read: {error}.") from None
    if damaged is not None:
        raise UsageError(f"{package} is damaged: its entry {damaged} is not what was written.", fix=AGAIN)
    if text is None:
        raise UsageError(f"{package} does not say what it takes: vitdeploy did not write it.")
    try:
        record = json.loads(text)
        if record.pop("schema") != SCHEMA:
            raise ValueError("it was written by another version of vitdeploy")
        listed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return Facts(**listed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"What {package} says of itself cannot be read: {error}.", fix=AGAIN) from None


def check_machine(package: Path, facts: Facts, device: str) -> None:
    """Refuse a package that was compiled for something else, before its code is loaded.

    Args:
        device: that it is to run on: 'cpu', 'cuda', 'cuda:1'.

    Raises:
        UsageError: it is for another kind of device.
        MissingDependency: this machine, its GPU or its torch is another than the package needs.
    """
    import torch

    kind = device.partition(":")[0]
    if kind != facts.device:
        fix = f"Use --device {facts.device}, or export it again with --device {kind}."
        raise UsageError(f"{package} was compiled for {facts.device}, not for {kind}.", fix=fix)
    if version(facts.torch) != version(torch.__version__):
        needs, has = ".".join(version(facts.torch)), torch.__version__
        fix = f"pip install 'torch=={needs}.*', or export it again here."
        raise MissingDependency(f"{package} was compiled by torch {needs}, and this is torch {has}.", fix=fix)
    here = (sys.platform, platform.machine())
    if here != (facts.system, facts.machine):
        other, ours = f"{facts.system} on {facts.machine}", " on ".join(here)
        raise MissingDependency(f"{package} was compiled for {other}, and this is {ours}.", fix=AGAIN)
    if lacks := sorted(set(facts.isa) - set(cpu_features() or facts.isa)):
        names = ", ".join(lacks[:4]) + (" ..." if len(lacks) > 4 else "")
        raise MissingDependency(f"{package} may use instructions that this CPU lacks: {names}.", fix=AGAIN)
    if kind == "cuda" and facts.capability is not None:
        index = int(device.partition(":")[2] or 0)
        major, minor = torch.cuda.get_device_capability(index)
        # Machine code runs on the later GPUs of its own generation.
        if major != facts.capability[0] or minor < facts.capability[1]:
            wants = ".".join(map(str, facts.capability))
            said = f"{package} was compiled for GPUs of compute capability {wants}, and this one has {major}.{minor}."
            raise MissingDependency(said, fix=AGAIN)


def version(text: str) -> list[str]:
    """Major and minor: the code that Inductor generates is tied to them."""
    return text.split(".")[:2]


def cpu_features() -> tuple[str, ...]:
    """Of this CPU, by Linux's names; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return tuple(sorted(flag for flag in (found[1].split() if found else ()) if re.match(ISA, flag)))


def compiler() -> str | None:
    """The C++ compiler that Inductor calls; None where there is none."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", usual))


def build(
    program: Path, package: Path, facts: Facts, settings: Mapping[str, Any], *, threads: int, device: str
) -> None:
    """Compile a saved program into `package`. Made to run in a child process (backends.isolate).

    Args:
        program: written by torch.export.save.
        facts: what is known before; the rest is filled in here.
        settings: Inductor's own.
        threads: to tune for; 0 leaves it to torch.
        device: to tune on, such as 'cuda:1'.

    Raises BackendError when Inductor or the C++ compiler fails.
    """
    from dataclasses import replace

    import torch
    from torch._inductor import aoti_compile_and_package, config
    from torch.export.passes import move_to_device_pass

    from vitdeploy.backends.inductor_census import Recorder

    # A cache that the user named is used. Torch's usual one, which it sets here itself, would grow with every compile:
    # without it the files go where this process has its temporary ones.
    if Path(os.environ.get(CACHE, "")).name.startswith("torchinductor_"):
        del os.environ[CACHE]
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    # Attention that no fused kernel takes would else be widened to fp32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    recorder = Recorder()
    try:
        loaded = torch.export.load(program)
        if facts.device == "cuda":
            index = int(device.partition(":")[2] or 0)
            torch.cuda.set_device(index)
            loaded = move_to_device_pass(loaded, f"cuda:{index}")
        with torch.no_grad(), config.patch({"_post_fusion_custom_pass": recorder}):
            aoti_compile_and_package(loaded, package_path=str(package), inductor_configs=dict(settings))
    except Exception as error:
        raise BackendError(f"Inductor cannot compile this model: {words(error)}.") from error
    capability = torch.cuda.get_device_capability() if facts.device == "cuda" else None
    found = replace(facts, capability=capability, isa=cpu_features(), ops=recorder.ops, casts=recorder.casts)
    write_facts(package, found)


def words(error: BaseException) -> str:
    """The first line that says what is wrong; a C++ compiler's comes after its whole command."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if re.search(r"\berror: ", line)), lines[0] if lines else "no message")
    return f"{type(error).__name__}: {said[:300]}".rstrip(". ")

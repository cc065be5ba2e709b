from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

import vitdeploy
from vitdeploy.bench import environment as module
from vitdeploy.bench.environment import environment, parse_cpuinfo, peak_rss_bytes

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
cpu MHz\t\t: 2000.125
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_1 avx avx2 f16c avx512f avx512_vnni amx_int8 avx512_bf16 hypervisor

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
cpu MHz\t\t: 3000.0
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_1

processor\t: 2
model name\t: Intel(R) Xeon(R) Platinum 8480+
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu sse4_1
"""

ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes fphp asimdhp asimddp
CPU implementer\t: 0x41

processor\t: 1
Features\t: fp asimd

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 5
"""


def test_parse_cpuinfo_reads_the_first_processor_when_x86() -> None:
    cpu = parse_cpuinfo(X86)
    assert cpu["model"] == "Intel(R) Xeon(R) Platinum 8480+"
    assert cpu["physical_cores"] == 2  # three threads, two cores on two sockets
    assert cpu["isa"] == ["sse4_1", "avx", "f16c", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]
    assert cpu["mhz"] == 2000.125


def test_parse_cpuinfo_reads_features_when_arm() -> None:
    cpu = parse_cpuinfo(ARM)
    assert cpu == {
        "model": "BCM2835",
        "physical_cores": None,
        "isa": ["asimd", "fphp", "asimdhp", "asimddp"],
        "mhz": None,
    }


@pytest.mark.parametrize("text", ["", "\n\n\n", "no colon here", "cpu MHz : unknown\n", "a:b\n: :\n"])
def test_parse_cpuinfo_gives_none_when_text_says_nothing(text: str) -> None:
    assert parse_cpuinfo(text) == {"model": None, "physical_cores": None, "isa": [], "mhz": None}


def test_environment_is_json_with_versions_when_read() -> None:
    data = json.loads(json.dumps(environment(), allow_nan=False))
    assert data["versions"]["vitdeploy"] == vitdeploy.__version__
    assert data["versions"]["numpy"] == np.__version__ == metadata.version("numpy")
    assert data["logical_cores"] == os.cpu_count()
    assert data["python"] == ".".join(str(n) for n in sys.version_info[:3])
    assert isinstance(data["isa"], list)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_environment_agrees_with_proc_when_on_linux() -> None:
    data = environment()
    with open("/proc/meminfo") as file:  # noqa: PTH123
        kilobytes = int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    assert data["memory_bytes"] == pytest.approx(kilobytes * 1024, rel=0.01)
    assert data["usable_cores"] == len(os.sched_getaffinity(0))
    assert data["cpu"]


@pytest.mark.parametrize("system", ["darwin", "win32", "freebsd14"])
def test_environment_does_not_raise_when_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def absent(*args: object, **kwargs: object) -> str:
        raise FileNotFoundError

    def unknown(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(module, "_read", lambda path: None)
    monkeypatch.setattr(module.subprocess, "run", absent)
    monkeypatch.setattr(module.metadata, "version", unknown)
    data = environment()
    assert data["isa"] == []
    assert data["governor"] is None
    assert data["versions"]["torch"] is None


def test_environment_reads_sysctl_when_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "hw.physicalcpu": "10",
        "machdep.cpu.brand_string": "Apple M4",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "1",
        "hw.optional.arm.FEAT_BF16": "0",
        "hw.optional.arm.AdvSIMD": "1",
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module, "_read", lambda path: None)
    monkeypatch.setattr(module, "_sysctl", values.get)
    data = environment()
    assert (data["cpu"], data["physical_cores"]) == ("Apple M4", 10)
    assert data["isa"] == ["asimd", "asimddp", "i8mm"]


def test_environment_imports_no_framework_when_read() -> None:
    code = (
        "import sys, vitdeploy.bench.environment as e; e.environment(); e.peak_rss_bytes();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_rss_grows_when_memory_is_touched() -> None:
    code = (
        "from vitdeploy.bench.environment import peak_rss_bytes as peak;"
        "before = peak(); block = bytearray(b'x') * (64 << 20); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 << 20 < int(done.stdout) < 200 << 20


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_rss_is_in_bytes_when_read_from_resource(monkeypatch: pytest.MonkeyPatch, system: str, unit: int) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(module, "_read", lambda path: None)
    usage = type("Usage", (), {"ru_maxrss": 12345})()
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert peak_rss_bytes() == 12345 * unit


def test_peak_rss_is_none_when_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(module, "_read", lambda path: None)
    assert peak_rss_bytes() is None

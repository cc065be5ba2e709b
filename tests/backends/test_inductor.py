"""AOTInductor packages: equal to eager PyTorch, honest about what they run, and refused where they cannot."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitdeploy.backends import inductor, inductor_package, registry
from vitdeploy.backends.base import Backend, Program, RunOptions
from vitdeploy.backends.inductor_census import census
from vitdeploy.backends.inductor_package import Facts, check_machine, read_facts, write_facts
from vitdeploy.errors import BackendError, MissingDependency, PrecisionNotApplied, UnsupportedModel, UsageError
from vitdeploy.models import catalog
from vitdeploy.models.random_weights import random_weights
from vitdeploy.pipeline.precision import precision_notes
from vitdeploy.pipeline.request import ExportRequest
from vitdeploy.verify.metrics import BOUNDS

compiles = pytest.mark.skipif(inductor_package.compiler() is None, reason="no C++ compiler")
STAGES = [
    {"depth": 1, "chs": 16, "stride": 1, "expand": 2},
    {"depth": 1, "chs": 16, "stride": 2, "expand": 2},
    {"depth": 1, "chs": 24, "stride": 2, "expand": 2, "dim": 32, "blocks": 1},
    {"depth": 1, "chs": 24, "stride": 2, "expand": 2},
    {"depth": 1, "chs": 32, "stride": 2, "expand": 2},
]
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "deit_tiny_patch16_224": (64, {"depth": 2}),
    "mobilevit_xxs": (64, {"stages": STAGES}),
    "levit_128s": (64, {"depth": (1, 1, 1)}),
}
# Each family once, each precision once, both kinds of batch and both kinds of input.
MADE: dict[str, tuple[str, str, int | tuple[int, int, int], str]] = {
    "fp32": ("deit_tiny_patch16_224", "fp32", 2, "fp32"),
    "fp16": ("mobilevit_xxs", "fp16", (1, 2, 4), "fp16"),
    "bf16": ("levit_128s", "bf16", (2, 4, 8), "fp32"),
}
# Inductor compiles MobileViT and LeViT for a minute each.
KEYS = ["fp32", *(pytest.param(key, marks=pytest.mark.slow) for key in ("fp16", "bf16"))]
Make = Callable[[str], tuple[Path, nn.Module, int]]
IO = {"fp32": np.float32, "fp16": np.float16}


def module(name: str, changes: dict[str, Any], size: int) -> nn.Module:
    entry, _ = catalog.find(name)
    path, cls = entry.target.split(":")
    built = getattr(import_module(f"vitdeploy.models.{path}"), cls)(**{**entry.arguments(10, (size, size)), **changes})
    random_weights(built, 0, (3, size, size))
    return built.eval()


def images(batch: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size)).astype(np.float32)


def compile_program(model: nn.Module, folder: Path, precision: str = "fp32", **changes: Any) -> Path:
    """A package of `model`; `changes` are fields of Program or RunOptions, or the image size."""
    size, batch = changes.pop("size", 8), changes.pop("batch", 1)
    sample = images(batch if isinstance(batch, int) else batch[0], size)
    program = Program(model, (3, size, size), batch, changes.pop("io", "fp32"), [sample])
    (file,) = registry.get("inductor").compile_program(program, folder, RunOptions(**changes), precision)
    return file


@pytest.fixture
def made(once: Callable[[str, Callable[[Path], object]], Path]) -> Make:
    """`made(key)`: a package of MADE, the module that it came from, and its image size. Only to be read."""

    def make(key: str) -> tuple[Path, nn.Module, int]:
        if inductor_package.compiler() is None:
            pytest.skip("no C++ compiler")
        name, precision, batch, io = MADE[key]
        if precision not in inductor.precisions("cpu"):
            pytest.skip(f"this CPU has no {precision}")
        size, changes = SMALL[name]
        built = module(name, changes, size)
        options = {"precision": precision, "size": size, "batch": batch, "io": io}
        folder = once(f"inductor-{key}", lambda folder: compile_program(built, folder, **options))
        return folder / "model.pt2", built, size

    return make


@pytest.fixture
def backend() -> Backend:
    return registry.get("inductor")


@pytest.fixture
def copy(made: Make, tmp_path: Path) -> Path:
    """A package of one's own, to spoil."""
    return Path(shutil.copy(made("fp32")[0], tmp_path / "model.pt2"))


def rewrite(package: Path, **changes: Any) -> None:
    """Let a package say something else of itself."""
    facts = replace(read_facts(package), **changes)
    with zipfile.ZipFile(package) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(inductor_package.FACTS)}
    with zipfile.ZipFile(package, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    write_facts(package, facts)


@pytest.mark.parametrize("key", KEYS)
def test_package_equals_eager_when_it_is_of_this_family_and_precision(made: Make, backend: Backend, key: str) -> None:
    file, built, size = made(key)
    _, precision, batch, io = MADE[key]
    with backend.open(file, RunOptions()) as session:
        for count in (batch,) if isinstance(batch, int) else batch:
            image = images(count, size, seed=count)
            got = session.run({"image": image.astype(IO[io])})["logits"]
            with torch.inference_mode():
                want = built(torch.from_numpy(image)).numpy()
            assert (got.dtype, got.shape) == (IO[io], want.shape)
            error = np.abs(got - want).max() / np.abs(want).max()
            assert 0 < error < (BOUNDS[precision].rel_max or 0)
        (image_spec,), (logits_spec,) = session.inputs, session.outputs
        assert image_spec.dtype == logits_spec.dtype == np.dtype(IO[io]).name


@pytest.mark.parametrize("key", KEYS[1:])
def test_run_raises_usage_error_when_the_batch_is_out_of_range(made: Make, backend: Backend, key: str) -> None:
    file, _, size = made(key)
    low, _, high = MADE[key][2]  # type: ignore[misc]
    with backend.open(file, RunOptions()) as session:
        for wrong in {low - 1, high + 1}:
            with pytest.raises(UsageError, match=f"from {low} to {high}"):
                session.run({"image": images(wrong, size).astype(session.inputs[0].dtype)})


def products_in_code(package: Path) -> int:
    """Calls of product kernels in the C++ code that the package was compiled from."""
    with zipfile.ZipFile(package) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("wrapper.cpp"))
        code = archive.read(name).decode()
    body = code[code.index("::run_impl(") :]
    kernel = r"(addmm_out|mm_out|bmm_out|convolution|_?linear_pointwise\w*|_convolution_pointwise\w*|_scaled_dot\w+)"
    return len(re.findall(rf"aoti_torch_cpu_(?:mkldnn_)?_?{kernel}\(", body))


@pytest.mark.parametrize("key", KEYS)
def test_census_counts_what_the_generated_code_calls(made: Make, backend: Backend, key: str) -> None:
    file, _, _ = made(key)
    with backend.open(file, RunOptions()) as session:
        found = session.census()
    runs_in = {"fp16": "fp16" if inductor.has_units("fp16") else "fp32"}.get(key, key)
    assert found.compute == {runs_in: products_in_code(file)}
    assert found.compute[runs_in] > 8


def test_census_tells_what_the_kernels_multiply_in_when_the_cpu_lacks_the_type() -> None:
    ops = {"aten.addmm": {"fp16": 3, "fp32": 1}, "generated": {"fp16": 5}}
    assert census(ops, 2, {}).compute == {"fp16": 3, "fp32": 1}
    found = census(ops, 2, {"fp16": "fp32"})
    assert (found.compute, found.ops["generated"], found.casts) == ({"fp32": 4}, {"fp16": 5}, 2)


@pytest.mark.parametrize(("precision", "device"), [("bf16", "cpu"), ("fp16", "cuda")])
def test_precision_is_missed_when_the_package_runs_in_fp32(
    made: Make, backend: Backend, precision: str, device: str
) -> None:
    with backend.open(made("fp32")[0], RunOptions()) as session:
        found = session.census()
    request = ExportRequest("deit", precision=precision, backend="inductor", run=RunOptions(device))
    with pytest.raises(PrecisionNotApplied, match=f"{precision} was asked for"):
        precision_notes(request, {precision: {"islands": []}}, found)


def test_fp16_is_applied_when_what_runs_in_fp32_is_kept_there() -> None:
    request = ExportRequest("deit", precision="fp16", backend="inductor", run=RunOptions("cuda"))
    report = {"fp16": {"islands": [{"op_type": "linear"}, {"op_type": "scaled_dot_product_attention"}]}}
    found = census({"aten.addmm": {"fp16": 9, "fp32": 1}, "aten.bmm": {"fp32": 2}}, 0, {})
    assert precision_notes(request, report, found) == ["applied: fp16 compute in 9 ops, fp32 in 3"]
    report["fp16"]["islands"].pop()
    with pytest.raises(PrecisionNotApplied, match="3 of 12"):
        precision_notes(request, report, found)


class Small(nn.Module):
    """A convolution and a linear layer; two products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.conv(image).mean((2, 3)))


@compiles
def test_what_overflows_fp16_stays_in_fp32_and_no_temporary_file_stays(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, folder = tmp_path / "temporary", tmp_path / "package"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = Small().eval()
    with torch.no_grad():
        model.conv.bias += 1e5
    file = compile_program(model, folder, "fp16", batch=2)
    left = [path for path in temporary.rglob("*") if path.is_file()]  # torch makes itself an empty folder
    assert (list(folder.iterdir()), left) == ([file], [])
    report = backend.compile_report(file)["fp16"]
    assert [island["op_type"] for island in report["islands"]] == ["conv2d", "linear"]
    image = images(2, 8)
    with backend.open(file, RunOptions()) as session, torch.inference_mode():
        want = model(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(session.run({"image": image})["logits"], want, rtol=1e-5)
        assert session.census().compute == {"fp32": 2}


def test_torch_keeps_its_number_of_threads_and_has_the_sessions_while_it_runs(
    made: Make, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _, size = made("fp32")
    before = torch.get_num_threads()
    seen: list[int] = []
    with backend.open(file, RunOptions(threads=before + 2)) as session:
        native = session.native  # type: ignore[attr-defined]
        monkeypatch.setattr(session, "native", lambda x: (seen.append(torch.get_num_threads()), native(x))[1])
        session.run({"image": images(2, size)})
        assert (seen, torch.get_num_threads()) == ([before + 2], before)
        monkeypatch.setattr(session, "native", lambda x: 1 / 0)
        with pytest.raises(BackendError, match="Inductor failed: ZeroDivisionError"):
            session.run({"image": images(2, size)})
        assert torch.get_num_threads() == before


ELSEWHERE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another torch": ({"torch": "2.1.0"}, MissingDependency, "compiled by torch 2.1, and this is torch"),
    "a GPU": ({"device": "cuda", "capability": (9, 0)}, UsageError, "compiled for cuda, not for cpu"),
    "another processor": ({"machine": "riscv64"}, MissingDependency, "compiled for linux on riscv64"),
    "another system": ({"system": "plan9"}, MissingDependency, "compiled for plan9"),
}


@pytest.mark.parametrize("place", list(ELSEWHERE))
def test_open_refuses_and_loads_no_code_when_the_package_is_for_elsewhere(
    copy: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    changes, error, says = ELSEWHERE[place]
    rewrite(copy, **changes)
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *_, **__: pytest.fail("its code was loaded"))
    with pytest.raises(error, match=says) as caught:
        backend.open(copy, RunOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not inductor_package.cpu_features(), reason="this system does not tell what its CPU has")
def test_open_refuses_when_the_cpu_lacks_instructions(copy: Path, backend: Backend) -> None:
    rewrite(copy, isa=("avx2048", *read_facts(copy).isa))
    with pytest.raises(MissingDependency, match="instructions that this CPU lacks: avx2048"):
        backend.open(copy, RunOptions())


@pytest.mark.parametrize(("here", "runs"), [((9, 0), True), ((9, 1), True), ((8, 9), False), ((10, 0), False)])
def test_package_for_a_gpu_is_refused_when_this_one_is_of_another_generation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: tuple[int, int], runs: bool
) -> None:
    facts = Facts("cuda", torch.__version__, "fp16", "float32", (3, 8, 8), 1, 10, capability=(9, 0))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: here)
    if runs:
        check_machine(tmp_path / "model.pt2", facts, "cuda")
        return
    with pytest.raises(MissingDependency, match=r"capability 9\.0"):
        check_machine(tmp_path / "model.pt2", facts, "cuda")


def flip(package: Path) -> None:
    """Change a byte in the middle of the machine code."""
    with zipfile.ZipFile(package) as archive:
        (entry,) = (info for info in archive.infolist() if info.filename.endswith(".so"))
    content = bytearray(package.read_bytes())
    content[entry.header_offset + entry.file_size // 2] ^= 0xFF
    package.write_bytes(content)


def without_facts(package: Path) -> None:
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("model/version", "1")


def with_facts(text: str) -> Callable[[Path], None]:
    def spoil(package: Path) -> None:
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr(f"model/{inductor_package.FACTS}", text)

    return spoil


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip, "is damaged"),
    "no facts": (without_facts, "vitdeploy did not write it"),
    "facts that are no JSON": (with_facts("{"), "cannot be read"),
    "facts that are a list": (with_facts("[]"), "cannot be read"),
    "facts of another schema": (with_facts('{"schema": 99}'), "another version"),
    "facts that lack a field": (with_facts('{"schema": 1}'), "cannot be read"),
}


@pytest.mark.parametrize("how", list(SPOILT))
def test_open_and_describe_raise_usage_error_when_the_package_is_spoilt(copy: Path, backend: Backend, how: str) -> None:
    spoil, says = SPOILT[how]
    spoil(copy)
    for look in (lambda: backend.open(copy, RunOptions()), lambda: backend.describe(copy)):
        with pytest.raises(UsageError, match=says):
            look()


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    package = tmp_path / "model.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("model/version", "1")
    facts = Facts("cuda", "2.13.0", "fp16", "float16", (3, 8, 8), (1, 2, 4), 10, (9, 0), isa=("avx2",), casts=3)
    facts = replace(facts, ops={"aten.mm": {"fp16": 1}}, report={"islands": []})
    write_facts(package, facts)
    assert read_facts(package) == facts
    assert json.loads(json.dumps(asdict(facts))) is not None


def test_describe_tells_ops_and_tensors_without_loading_code(
    made: Make, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *_, **__: pytest.fail("its code was loaded"))
    found = backend.describe(made("fp32")[0])
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": [2, 3, 64, 64]}]
    assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [2, 10]}]
    assert (found["device"], found["precision"], found["torch"]) == ("cpu", "fp32", torch.__version__)
    assert sum(found["ops"].values()) > 8


def test_backend_opens_and_does_not_compile_when_there_is_no_compiler(
    made: Make,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file, _, size = made("fp32")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = backend.capabilities()
    assert found.installed
    assert "no C++ compiler" in found.reason
    assert "apt install g++" in found.fix
    with pytest.raises(MissingDependency, match=r"C\+\+ compiler") as caught:
        compile_program(Small().eval(), tmp_path)
    assert "apt install g++" in (caught.value.fix or "")
    with backend.open(file, RunOptions()) as session:
        assert session.run({"image": images(2, size)})["logits"].shape == (2, 10)


@compiles
def test_compile_raises_backend_error_with_the_reason_when_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-g++"
    said = 'case "$*" in *wrapper.cpp*) echo "model.cpp:7:1: error: no such luck" >&2; exit 1;; esac'
    broken.write_text(f'#!/bin/sh\n{said}\nexec {inductor_package.compiler()} "$@"\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "package"
    folder.mkdir()
    with pytest.raises(BackendError, match="no such luck") as caught:
        compile_program(Small().eval(), folder)
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 500
    assert not list(folder.iterdir())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a provider": ({"provider": "cuda"}, "no provider 'cuda'"),
    "less optimisation": ({"optimization": "basic"}, "no 'basic'"),
    "an unknown option": ({"provider_options": {"colour": "red"}}, "option colour"),
    "an unknown mode": ({"provider_options": {"mode": "fastest"}}, "option mode=fastest"),
    "no number of a GPU": ({"device": "cuda:"}, "no device 'cuda:'"),
    "a number of a CPU": ({"device": "cpu:1"}, "no device 'cpu:1'"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_compile_and_open_raise_usage_error_when_an_option_is_wrong(
    copy: Path, backend: Backend, tmp_path: Path, what: str
) -> None:
    options, says = WRONG[what]
    with pytest.raises(UsageError, match=says):
        compile_program(Small().eval(), tmp_path / "none", **options)
    with pytest.raises(UsageError, match=says):
        backend.open(copy, RunOptions(**options))


@pytest.mark.skipif(bool(inductor.gpus()), reason="there is a GPU here")
def test_a_gpu_that_is_not_here_is_a_missing_dependency(copy: Path, backend: Backend, tmp_path: Path) -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(MissingDependency, match=f"no {device} here"):
            compile_program(Small().eval(), tmp_path / "none", device=device)
        with pytest.raises(MissingDependency, match=f"no {device} here"):
            backend.open(copy, RunOptions(device))


def test_precisions_say_how_they_run_when_the_cpu_has_units_and_when_not(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inductor, "gpus", list)
    monkeypatch.setattr(inductor_package, "cpu_features", lambda: ("avx2", "avx512_bf16", "avx512_fp16"))
    assert backend.capabilities().precisions == {
        "fp32": "fp32 compute",
        "fp16": "fp16 compute",
        "bf16": "bf16 compute",
    }
    monkeypatch.setattr(inductor_package, "cpu_features", lambda: ("avx2",))
    assert backend.capabilities().precisions == {
        "fp32": "fp32 compute",
        "fp16": "fp16 storage, fp32 compute, slowly",
    }
    with pytest.raises(UnsupportedModel, match="no bf16 on cpu"):
        compile_program(Small().eval(), tmp_path, "bf16")


@compiles
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "mode"),
    [
        ("mobilevit_xxs", "bf16", "default"),
        ("levit_128s", "fp32", "max-autotune"),
        ("mobilevitv2_050", "fp16", "default"),
        ("deit_tiny_patch16_224", "fp32", "max-autotune"),
    ],
)
def test_whole_models_equal_eager(tmp_path: Path, backend: Backend, name: str, precision: str, mode: str) -> None:
    if precision not in inductor.precisions("cpu"):
        pytest.skip(f"this CPU has no {precision}")
    built = module(name, {}, 64)
    options = {"provider_options": {"mode": mode}}
    file = compile_program(built, tmp_path, precision, size=64, batch=(1, 2, 8), **options)
    with backend.open(file, RunOptions(**options)) as session, torch.inference_mode():
        for count in (1, 3, 8):
            image = images(count, 64)
            want = built(torch.from_numpy(image)).numpy()
            error = np.abs(session.run({"image": image})["logits"] - want).max() / np.abs(want).max()
            assert error < (BOUNDS[precision].rel_max or 0)


@compiles
@pytest.mark.gpu
@pytest.mark.skipif(not inductor.gpus(), reason="no NVIDIA GPU that Inductor can use")
@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_package_for_a_gpu_equals_eager(tmp_path: Path, backend: Backend, name: str, precision: str) -> None:
    size, changes = SMALL[name]
    built = module(name, changes, size)
    file = compile_program(built, tmp_path, precision, size=size, batch=(1, 2, 8), device="cuda")
    with backend.open(file, RunOptions("cuda")) as session:
        for count in (1, 3, 8):
            image = images(count, size)
            with torch.inference_mode():
                want = built(torch.from_numpy(image)).numpy()
            error = np.abs(session.run({"image": image})["logits"] - want).max() / np.abs(want).max()
            assert error < (BOUNDS[precision].rel_max or 0)
        compute = session.census().compute
        assert set(compute) == {precision}
        parts = session.parts({"image": images(2, size)}, 0.05)
    assert set(parts) == {"h2d", "compute", "d2h", "latency", "enqueue"}
    assert len(parts["latency"]) >= 10
    assert np.allclose(parts["latency"], np.sum([parts[key] for key in ("h2d", "compute", "d2h")], axis=0))
    with pytest.raises(UsageError, match="compiled for cuda"):
        backend.open(file, RunOptions("cpu"))

"""What the verbs print: the result on stdout, all else on stderr, and a cheap start."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VERBS = ("list", "info", "doctor", "export", "verify", "eval", "bench", "compare", "inspect", "predict")
HEAVY = {"torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "PIL", "timm", "safetensors", "huggingface_hub"}
Cli = Callable[..., Any]


@pytest.fixture
def imports(cli: Cli) -> Callable[..., set[str]]:
    """The top-level packages that a command imports."""

    def call(*arguments: str) -> set[str]:
        run = cli(*arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})
        lines = re.findall(r"^import time:\s+\d+ \|\s+\d+ \| +([\w.]+)$", run.err, re.MULTILINE)
        assert "vitdeploy.cli" in lines, run.err
        return {line.split(".")[0] for line in lines}

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        *((verb, "--help") for verb in VERBS),
        ("--version",),
        ("list",),
        ("list", "levit_*", "--json"),
        ("info", "mobilevit_xs"),
        ("export",),
        ("export", "mobilevit_xs", "--no-such-option"),
        ("list", "zzz"),
        ("info", "zzz"),
    ],
    ids=" ".join,
)
def test_answer_imports_neither_torch_nor_numpy_nor_rich(
    imports: Callable[..., set[str]], arguments: tuple[str, ...]
) -> None:
    assert imports(*arguments).isdisjoint(HEAVY | {"numpy", "rich", "asyncio", "multiprocessing"})


@pytest.mark.parametrize("arguments", [("export", "mobilevit_xsx"), ("export", "mobilevit_xs", "--dry-run")])
def test_check_of_a_request_imports_no_torch(imports: Callable[..., set[str]], arguments: tuple[str, ...]) -> None:
    assert imports(*arguments).isdisjoint(HEAVY)


def test_help_of_every_verb_and_option_says_something(cli: Cli) -> None:
    front = cli("--help", env={"COLUMNS": "80"})
    assert front.code == 0
    assert front.err == ""
    for verb in VERBS:
        line = re.search(rf"^  {verb} +(.+)$", front.out, re.MULTILINE)
        assert line, f"{verb} is not listed"
        assert not line[1].endswith("...")
    run = cli("export", "--help", env={"COLUMNS": "200"})
    for line in run.out.splitlines():
        if line.startswith("  -"):
            assert re.match(r"  \S.*  \S", line), f"an option without a word of help: {line}"


def test_bare_command_shows_the_help_and_is_a_usage_error(cli: Cli) -> None:
    run = cli()
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("Usage: ")
    assert "error" not in run.err


def test_version_is_printed(cli: Cli) -> None:
    from vitdeploy import __version__

    run = cli("--version")
    assert (run.code, run.out, run.err) == (0, f"vitdeploy {__version__}\n", "")


def test_list_prints_a_line_a_model(cli: Cli) -> None:
    from vitdeploy.models import catalog

    run = cli("list")
    assert run.code == 0
    assert run.err == ""
    head, *lines = run.out.splitlines()
    assert [line.split()[0] for line in lines] == catalog.names()
    assert head.split()[0] == "name"
    xs = next(line for line in lines if line.startswith("mobilevit_xs ")).split()
    assert xs == ["mobilevit_xs", "2.32", "1.03", "3x256x256", "74.62", "cvnets_in1k"]
    assert all(line == line.rstrip() for line in run.out.splitlines())


def test_json_alone_is_on_stdout(cli: Cli, exported: Path) -> None:
    artifact = exported / "artifact"
    rows = json.loads(cli("list", "mobilevit_*", "--json").out)
    assert [row["name"] for row in rows] == ["mobilevit_xxs", "mobilevit_xs", "mobilevit_s"]
    assert json.loads(cli("info", "mobilevit_xs", "--json").out)["parameters"] == 2317848
    assert json.loads(cli("info", artifact, "--json").out)["model"]["name"] == "tiny.py:make"
    assert "onnxruntime" in {b["name"] for b in json.loads(cli("doctor", "--json").out)["backends"]}
    assert json.loads(cli("inspect", artifact, "--json").out)["ops"]["Softmax"] == 1
    assert json.loads(cli("export", "mobilevit_xs", "--dry-run", "--json").out)["folder"] == "mobilevit_xs-fp32"


def test_user_code_that_prints_does_not_spoil_the_json(cli: Cli, work: Path) -> None:
    run = cli("export", "tiny.py:chatty", "--no-bench", "--json", "--out", "out")
    assert run.code == 0, run.err
    assert run.err == "hello from user code\n"
    assert json.loads(run.out) == {"folder": "out", **json.loads((work / "out" / "manifest.json").read_text())}


FIGURES = ("min", "mean", "p50", "p90", "p95", "p99", "max")
STEP = r"  {name} +\d+\.\d s   {detail}"


def test_export_tells_its_steps_on_stderr_and_the_artifact_on_stdout(cli: Cli, work: Path) -> None:
    """Line by line, so that a warning of torch, onnx or ONNX Runtime shows."""
    run = cli("export", "tiny.py:make", "--duration", "0.1", "--warmup", "0", "--batch", "1:2:4")
    assert run.code == 0
    expected = [
        r"tiny\.py:make   570 parameters   image 3x16x16, mean .*",
        r"weights        as tiny\.py:make made them",
        "",
        STEP.format(name="trace", detail=r".*ONNX opset 20   \d+ nodes"),
        STEP.format(name="optimise", detail=r"\d+ passes   \d+ nodes.*"),
        STEP.format(name="compile", detail=r".*1.*cpu   \d+\.\d kB"),
        STEP.format(name="verify", detail=r"8 inputs, batch 1, 2   max error .* cosine 1\.000000   top-1 12/12   PASS"),
        STEP.format(name="bench", detail=r"1 thread, batch 2, \d+ runs   p50 .* ms   p95 .*   p99 .*"),
    ]
    said = [line for line in run.err.splitlines() if not re.match(r"tiny-make-fp32: (Unstable|Only)", line)]
    assert len(said) == len(expected), run.err
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    head, figures, gap, *rest = run.out.splitlines()
    assert head.split() == ["ms", "a", "run", "batch", "threads", *FIGURES, "images/s", "peak", "MB"]
    assert figures.split()[:3] == ["tiny-make-fp32", "2", "1"]
    assert gap == ""
    told = [rf"{re.escape(name)} \S+ kB" for name in ("model-card.md", "model.onnx", "report.html", "report.md")]
    assert re.fullmatch(f"tiny-make-fp32/   {', '.join(told)}, manifest.json", rest[0])
    assert rest[1] == "next   vitdeploy predict tiny-make-fp32 photo.jpg"
    assert sorted(path.name for path in (work / "tiny-make-fp32").iterdir()) == [
        "manifest.json",
        "model-card.md",
        "model.onnx",
        "report.html",
        "report.md",
    ]


def test_dry_run_writes_nothing(cli: Cli, work: Path, tree: Callable[[Path], dict[str, str]]) -> None:
    before = tree(work)
    run = cli("export", "mobilevit_xs", "--fp16", "--dry-run")
    assert (run.code, run.err) == (0, "")
    assert re.search(r"^folder +mobilevit_xs-fp16$", run.out, re.MULTILINE)
    assert re.search(r"^precision +fp16$", run.out, re.MULTILINE)
    assert tree(work) == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json")], ids=" ".join)
def test_output_that_nobody_reads_or_that_is_full_shows_no_traceback(work: Path, arguments: tuple[str, ...]) -> None:
    def end(stdout: Any) -> tuple[int, str]:
        line = [sys.executable, "-m", "vitdeploy", *arguments]
        done = subprocess.run(line, cwd=work, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stderr

    read, write = os.pipe()
    os.close(read)
    assert end(write) == (141, "")
    os.close(write)
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            assert end(full) == (2, f"error: Cannot write the output: {os.strerror(errno.ENOSPC)}.\n")


def test_other_alphabet_is_escaped_when_the_terminal_has_only_ascii(cli: Cli, exported: Path, work: Path) -> None:
    (work / "d\u00e9j\u00e0 vu").symlink_to(exported / "artifact")
    run = cli("info", "d\u00e9j\u00e0 vu", env={"PYTHONIOENCODING": "ascii"})
    assert (run.code, run.err) == (0, "")
    assert "d\\xe9j\\xe0 vu" in run.out


def test_next_commands_are_quoted_for_the_shell(cli: Cli) -> None:
    run = cli("export", "tiny.py:make", "--no-bench", "--out", "two words")
    assert "next   vitdeploy predict 'two words' photo.jpg" in run.out


def test_verbose_shows_the_traceback_of_an_error(cli: Cli) -> None:
    quiet, verbose = cli("export", "mobilevit_xsx"), cli("export", "mobilevit_xsx", "-v")
    assert "Traceback" not in quiet.err
    assert "Traceback" in verbose.err
    assert verbose.err.endswith(quiet.err)
    assert (quiet.code, verbose.code) == (2, 2)

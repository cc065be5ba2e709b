"""Whatever is wrong is told in one sentence, with the documented exit code, and nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Refused = Callable[..., str]

EXPORT = ("export", "mobilevit_xxs", "--no-bench")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exprot", "x"), "error: No such command 'exprot'. Did you mean 'export'?"),
        (("export",), "Missing argument 'MODEL'"),
        ((*EXPORT, "--fpp16"), "No such option: --fpp16"),
        ((*EXPORT, "more"), "unexpected extra argument"),
        (("export", "mobilevit_xsx"), "Unknown model 'mobilevit_xsx'.\n       Did you mean mobilevit_xs"),
        (("info", "levit_257"), "Did you mean levit_256"),
        (("export", ""), "Unknown model ''"),
        (("export", "mobilevit_xs.nope"), "no pretrained tag 'nope'.\n       It has: cvnets_in1k."),
        (("list", "zzz"), "No model's name matches 'zzz'"),
        ((*EXPORT, "--precision", "fp17"), "Unknown precision 'fp17': one of fp32, fp16, bf16, fp8, int8, "),
        ((*EXPORT, "--fp16", "--precision", "fp32"), "More than one precision is asked for: fp16, fp32"),
        ((*EXPORT, "--io-precision", "fp16"), "need --precision fp16"),
        ((*EXPORT, "--image-size", "big"), "Image size 'big' is not a number such as 256"),
        ((*EXPORT, "--image-size", "0"), "Image size '0'"),
        ((*EXPORT, "--image-size", "64x64x3"), "Image size '64x64x3'"),
        ((*EXPORT, "--batch", "0"), "Batch 0 is not positive."),
        ((*EXPORT, "--batch", "many"), "Batch 'many' is not a number such as 4"),
        ((*EXPORT, "--batch", "8:4:1"), "Batch 8:4:1 is not min:opt:max in rising order."),
        ((*EXPORT, "--batch", "4:4:4"), "leaves nothing dynamic.\n       Use --batch 4."),
        ((*EXPORT, "--mean", "grey"), "--mean 'grey' is not a number"),
        ((*EXPORT, "--mean", "0.4,0.5"), "mean has 2 values for 3 channels."),
        ((*EXPORT, "--mean", "nan"), "is not finite"),
        ((*EXPORT, "--std", "0"), "must be positive"),
        ((*EXPORT, "--crop-pct", "1.5"), "crop_pct 1.5 is not in (0, 1]"),
        ((*EXPORT, "--interpolation", "magic"), "Unknown interpolation 'magic': one of nearest"),
        ((*EXPORT, "--num-classes", "-3"), "num_classes is -3"),
        ((*EXPORT, "--in-chans", "0"), "in_chans is 0"),
        ((*EXPORT, "--opset", "3"), "Opset 3 is not one from 18 to 24."),
        ((*EXPORT, "--threads", "-1"), "'--threads'"),
        ((*EXPORT, "--threads", "99999"), "'--threads'"),
        ((*EXPORT, "--duration", "nan"), "'--duration'"),
        ((*EXPORT, "--warmup", "inf"), "'--warmup'"),
        ((*EXPORT, "--tolerance", "0"), "tolerance 0.0 is not a positive number"),
        ((*EXPORT, "--tolerance", "inf"), "tolerance inf is not a positive number"),
        ((*EXPORT, "--optimization", "max"), "Unknown optimization 'max': one of all, extended, basic, off."),
        ((*EXPORT, "--backend-option", "x"), "'x' is not KEY=VALUE"),
        ((*EXPORT, "--backend", "tensorflow"), "Unknown backend 'tensorflow'"),
        ((*EXPORT, "--data", "nowhere"), "There is no nowhere."),
        ((*EXPORT, "--weights", "a", "--pretrained"), "exclude each other"),
        ((*EXPORT, "--weights", ""), "--weights is empty"),
        (("export", "tiny.py"), "Name a function in it: tiny.py:factory"),
        (("bench", "nowhere"), "There is no nowhere."),
        (("compare", "nowhere", "nowhere"), "No such artifact: nowhere."),
        (("compare", "."), "One artifact has nothing to be compared with: name two or more."),
        (("compare", ".", "."), ". is not an artifact: it has no manifest.json."),
        (("verify", "nowhere"), "There is no nowhere."),
        (("inspect", "nowhere"), "There is no nowhere."),
        (("predict", "nowhere", "a.png"), "There is no nowhere."),
        (("predict", "tiny.py"), "Missing argument 'IMAGE'"),
    ],
    ids=lambda value: " ".join(value[1:])[:40] if isinstance(value, tuple) else "",
)
def test_argument_is_refused_without_torch_when_it_makes_no_sense(
    refused: Refused, arguments: tuple[str, ...], message: str, blocked: dict[str, str]
) -> None:
    assert message in refused(*arguments, env=blocked)


@pytest.fixture(scope="session")
def blocked(session_folder: Path) -> dict[str, str]:
    """An environment in which importing torch, onnx or onnxruntime fails."""
    folder = session_folder / "blocked"
    folder.mkdir()
    for name in ("torch", "onnx", "onnxruntime"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return {"PYTHONPATH": str(folder)}


# ---- weights


@pytest.fixture(scope="session")
def checkpoint(session_folder: Path) -> Path:
    """A sound checkpoint of mobilevit_xxs with ten classes."""
    from safetensors.torch import save_file

    from vitdeploy.models.build import BuildOptions, build

    path = session_folder / "checkpoint.safetensors"
    module = build("mobilevit_xxs", BuildOptions(num_classes=10, image_size=(64, 64))).module
    save_file(module.state_dict(), path)
    return path


def missing(sound: Path, folder: Path) -> Path:
    return folder / "gone.pth"


def empty(sound: Path, folder: Path) -> Path:
    (folder / "bad.safetensors").touch()
    return folder / "bad.safetensors"


def truncated(sound: Path, folder: Path) -> Path:
    (folder / "bad.safetensors").write_bytes(sound.read_bytes()[:100_000])
    return folder / "bad.safetensors"


def truncated_zip(sound: Path, folder: Path) -> Path:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(sound), folder / "whole.pth")
    (folder / "bad.pth").write_bytes((folder / "whole.pth").read_bytes()[:-5000])
    (folder / "whole.pth").unlink()
    return folder / "bad.pth"


def text(sound: Path, folder: Path) -> Path:
    (folder / "bad.pth").write_text("not a checkpoint\n" * 100)
    return folder / "bad.pth"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.marker}'",))


def pickled_code(sound: Path, folder: Path) -> Path:
    import torch

    torch.save({"state_dict": Payload(folder / "owned")}, folder / "bad.pth")
    return folder / "bad.pth"


def raw_pickled_code(sound: Path, folder: Path) -> Path:
    import pickle

    (folder / "bad.pkl").write_bytes(pickle.dumps(Payload(folder / "owned")))
    return folder / "bad.pkl"


def with_nan(sound: Path, folder: Path) -> Path:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(sound)
    state["stem.conv.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, folder / "bad.safetensors")
    return folder / "bad.safetensors"


def no_tensors(sound: Path, folder: Path) -> Path:
    import torch

    torch.save({"epoch": 3}, folder / "bad.pth")
    return folder / "bad.pth"


def bare_folder(sound: Path, folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


def damaged_config(sound: Path, folder: Path) -> Path:
    (folder / "bad").mkdir()
    shutil.copy(sound, folder / "bad" / "model.safetensors")
    (folder / "bad" / "config.json").write_text('{"architecture": ')
    return folder / "bad"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "There is no file"),
        (empty, "is empty"),
        (truncated, "bad.safetensors"),
        (truncated_zip, "bad.pth"),
        (text, "is not a checkpoint"),
        (pickled_code, "bad.pth"),
        (raw_pickled_code, "bad.pkl"),
        (with_nan, "NaN"),
        (no_tensors, "bad.pth"),
        (bare_folder, "has no config.json"),
        (damaged_config, "config.json"),
    ],
)
def test_weights_are_refused_when_they_cannot_be_trusted(
    refused: Refused, work: Path, checkpoint: Path, spoil: Callable[[Path, Path], Path], message: str
) -> None:
    path = spoil(checkpoint, work)
    said = refused(*EXPORT, "--image-size", "64", "--weights", path)
    assert message in said
    assert not (work / "owned").exists()


def test_weights_of_another_architecture_are_recognised(refused: Refused, checkpoint: Path) -> None:
    said = refused("export", "deit_tiny_patch16_224", "--weights", checkpoint, "--no-bench")
    assert "another architecture" in said
    assert "mobilevit_xxs" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("mobilevit_xs", "--pretrained"),
        ("mobilevit_xs.cvnets_in1k",),
        ("hf-hub:someone/something",),
        ("mobilevit_xs", "--weights", "hf-hub:someone/something"),
    ],
    ids=" ".join,
)
def test_hub_that_cannot_be_reached_is_told_in_a_sentence(refused: Refused, arguments: tuple[str, ...]) -> None:
    said = refused("export", *arguments)
    assert "The hub cannot be reached" in said
    assert "--weights FOLDER" in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny.py:nothing", "tiny.py has nothing called 'nothing'."),
        ("tiny.py:raises", "raised RuntimeError: no such luck."),
        ("tiny.py:leaves", "raised SystemExit"),
        ("broken.py:make", "raised SyntaxError"),
        ("gone.py:make", "There is no file gone.py."),
        ("os:getcwd", "made a str, not a torch.nn.Module."),
        ("gone.package:make", "No module named 'gone'"),
    ],
)
def test_factory_is_refused_when_it_makes_no_model(refused: Refused, work: Path, model: str, message: str) -> None:
    (work / "broken.py").write_text("def (")
    assert message in refused("export", model)


# ---- the output folder


def test_existing_artifact_stays_without_force_and_is_replaced_with_it(
    cli: Callable[..., Any], refused: Refused, work: Path, exported: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    shutil.copytree(exported / "artifact", work / "out")
    (work / "out" / "report.md").write_text("mine")
    export = ("export", "tiny.py:make", "--no-bench", "--out", "out")
    assert "out exists.\n       Use --force" in refused(*export)
    run = cli(*export, "--force")
    assert run.code == 0, run.err
    assert (work / "out" / "report.md").read_text().startswith("# tiny.py:make")
    assert {path.name for path in work.iterdir()} - {"__pycache__"} == {"out", "tiny.py"}


def test_foreign_folder_or_file_is_left_alone_even_with_force(refused: Refused, work: Path) -> None:
    (work / "photos").mkdir()
    (work / "photos" / "cat.jpg").write_bytes(b"cat")
    assert "is not an artifact" in refused("export", "tiny.py:make", "--out", "photos", "--force")
    assert "tiny.py is not a folder" in refused("export", "tiny.py:make", "--out", "tiny.py", "--force")
    assert "Cannot write tiny.py/out" in refused("export", "tiny.py:make", "--out", "tiny.py/out")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`mounted(options)` mounts a small file system; for root on Linux."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("this process may not mount a file system")
        places.append(place)
        return place

    if shutil.which("mount") is None or not sys.platform.startswith("linux"):
        pytest.skip("mounts a file system of Linux")
    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def test_read_only_place_is_refused(refused: Refused, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=1m,ro")
    assert f"Cannot write {place / 'out'}: Read-only" in refused("export", "tiny.py:make", "--out", place / "out")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_closed_folder_is_refused(refused: Refused, work: Path) -> None:
    (work / "closed").mkdir(mode=0o500)
    assert "Permission denied" in refused("export", "tiny.py:make", "--out", "closed/out")


def test_full_disk_is_refused_and_nothing_stays(refused: Refused, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=200k")
    said = refused("export", "tiny.py:wide", "--no-bench", "--out", place / "deep" / "out")
    assert f"Cannot write {place / 'deep' / 'out' / 'model.onnx'}: " in said
    assert list(place.iterdir()) == []


def test_full_temporary_folder_is_refused_and_nothing_stays(
    refused: Refused, mounted: Callable[[str], Path], work: Path
) -> None:
    place = mounted("size=40k")
    export = ("export", "tiny.py:make", "--image-size", "64", "--no-bench", "--out", "out")
    said = refused(*export, env={"TMPDIR": str(place)})
    assert "No space left on device" in said
    assert list(place.glob("vitdeploy-*")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_file_that_may_not_grow_is_refused_and_nothing_stays(refused: Refused, work: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    said = refused("export", "tiny.py:wide", "--no-bench", "--out", "out", preexec_fn=limit)
    assert "Cannot write out/model.onnx: " in said


# ---- files that are no good


@pytest.fixture
def copy(exported: Path, work: Path) -> Path:
    """An artifact of one's own, to spoil."""
    return Path(shutil.copytree(exported / "artifact", work / "artifact"))


def cut(model: Path) -> None:
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])


def drained(model: Path) -> None:
    model.write_bytes(b"")


def garbled(model: Path) -> None:
    model.write_bytes(os.urandom(1) + b"\xff" * 5000)


def gone(model: Path) -> None:
    model.unlink()


def outside(model: Path) -> None:
    """A weight's data lies in a file above the model's folder."""
    import onnx

    proto = onnx.load(model)
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    (model.parent.parent / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    model.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("verb", "spoil"),
    [
        *(("inspect", spoil) for spoil in (cut, drained, garbled, gone, outside)),
        *((verb, spoil) for verb in ("bench", "predict", "verify") for spoil in (cut, gone, outside)),
    ],
)
def test_model_file_is_refused_when_it_is_damaged(
    refused: Refused, work: Path, copy: Path, photo: Path, verb: str, spoil: Callable[[Path], None]
) -> None:
    spoil(copy / "model.onnx")
    more = {"predict": [photo], "verify": ["--model", "tiny.py:make"]}.get(verb, [])
    said = refused(verb, "artifact", *more)
    assert "artifact/model.onnx" in said
    if spoil is outside:
        assert "outside the model's folder" in said


@pytest.mark.parametrize("content", ["", "{}", '{"schema": 99}', "[1, 2]", "\0" * 50])
def test_manifest_is_refused_when_it_is_damaged(refused: Refused, copy: Path, content: str) -> None:
    (copy / "manifest.json").write_text(content)
    for verb in ("info", "inspect"):
        assert "manifest.json is not a manifest that can be read" in refused(verb, "artifact")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model/name", None),
        ("model/labels", "x"),
        ("model/labels", [1] * 10),
        ("model/num_classes", "ten"),
        ("model/input/shape", [3, 10**12, 16]),
        ("model/input/std", [0, 0, 0]),
        ("request/backend", []),
        ("request/backend", "nothing"),
        ("request/batch", -1),
        ("request/batch", 10**12),
        ("request/batch", [1, 2]),
        ("request/opset", None),
        ("request/build", [1]),
        ("model_file", "../../etc/passwd"),
    ],
    ids=str,
)
def test_manifest_is_refused_when_a_field_makes_no_sense(
    work: Path, copy: Path, photo: Path, place: str, value: Any
) -> None:
    from vitdeploy import predict, verify
    from vitdeploy.errors import UsageError

    manifest = json.loads((copy / "manifest.json").read_text())
    *folders, name = place.split("/")
    record = manifest
    for folder in folders:
        record = record[folder]
    record[name] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for act in (lambda: verify(copy, model="tiny.py:make"), lambda: predict(copy, [photo])):
        with pytest.raises(UsageError):
            act()


@pytest.fixture
def photo(work: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 100, 50)).save(work / "photo.png")
    return work / "photo.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("no image"), "is not an image"),
        (lambda p: p.touch(), "x.png"),
        (lambda p: None, "No such image file: x.png."),
        (lambda p: p.mkdir(), "x.png"),
        (lambda p: p.write_bytes((p.parent / "photo.png").read_bytes()[:60]), "x.png"),
    ],
    ids=["text", "empty", "missing", "folder", "truncated"],
)
def test_image_is_refused_when_it_is_none(
    refused: Refused, work: Path, copy: Path, photo: Path, make: Callable[[Path], object], message: str
) -> None:
    make(work / "x.png")
    assert message in refused("predict", "artifact", photo, "x.png")


def test_foreign_onnx_file_is_refused_where_the_model_must_be_known(refused: Refused, work: Path, photo: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), work / "f.onnx")
    for arguments in (("verify", "f.onnx"), ("predict", "f.onnx", photo)):
        assert "vitdeploy did not write it" in refused(*arguments)
    assert "is a finished graph" in refused("export", "f.onnx", code=7)


def test_missing_provider_names_its_install_command(refused: Refused, copy: Path) -> None:
    said = refused("bench", "artifact", "--provider", "coreml" if sys.platform != "darwin" else "cuda", code=3)
    assert "provider" in said
    assert "nstall" in said

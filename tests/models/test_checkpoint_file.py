"""Reading checkpoint files: every way they are saved, and every way they are broken or hostile."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from vitdeploy.errors import UsageError
from vitdeploy.models.checkpoint_file import digest, read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(STATE) and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin", "weights"])
def test_safetensors_are_read_whatever_the_suffix(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(read_checkpoint(tmp_path / name))


@pytest.mark.parametrize("name", ["m.pth", "m.pt", "m.bin", "m.ckpt", "m.pth.tar", "m"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_whatever_the_suffix(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / name))


@pytest.mark.parametrize(
    "saved",
    [
        {"model": STATE},
        {"state_dict": OrderedDict(STATE), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        {"module": STATE, "optimizer": {"x": torch.zeros(2)}},
        {"state_dict": {"model": STATE}},
        {"model": {"a.weight": torch.zeros(2, 3)}, "model_ema": STATE},
        {"state_dict": {"a.weight": torch.zeros(2, 3)}, "state_dict_ema": STATE, "ema": None},
        {"module." + k: v for k, v in STATE.items()},
        {"state_dict": {"model._orig_mod.module." + k: v for k, v in STATE.items()}},
        {**STATE, "epoch": 3, "arch": "vit"},
        {k: nn.Parameter(v) for k, v in STATE.items()},
    ],
    ids=[
        "model",
        "state_dict",
        "module",
        "nested",
        "ema",
        "state_dict_ema",
        "prefix",
        "prefixes",
        "mixed",
        "parameters",
    ],
)
def test_wrappers_and_common_prefixes_are_opened(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "m.pth")
    found = read_checkpoint(tmp_path / "m.pth")
    assert same(found)
    assert not any(t.requires_grad for t in found.values())


def test_prefix_stays_when_only_some_keys_have_it(tmp_path: Path) -> None:
    torch.save({"model.a": torch.ones(1), "head.b": torch.ones(1)}, tmp_path / "m.pth")
    assert set(read_checkpoint(tmp_path / "m.pth")) == {"model.a", "head.b"}


def torch_bytes(thing: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **kwargs)
    return buffer.getvalue()


def zip_bytes(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


def script_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def array_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


BIG = {"a": torch.zeros(100, 100)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("m.pth", b"", "is empty"),
    "empty safetensors": ("m.safetensors", b"", "is empty"),
    "text": ("m.pth", b"hello, this is a text file", "not a checkpoint"),
    "html": ("m.bin", b"<!DOCTYPE html><html>404</html>", "not a checkpoint"),
    "lfs pointer": ("m.safetensors", LFS, "git lfs pull"),
    "truncated zip": ("m.pth", torch_bytes(BIG)[:20000], "truncated"),
    "truncated legacy": ("m.pth", torch_bytes(BIG, _use_new_zipfile_serialization=False)[:20000], "truncated"),
    "truncated pickle": ("m.pth", torch_bytes(BIG, _use_new_zipfile_serialization=False)[:12], "m.pth is"),
    "truncated safetensors": ("m.safetensors", save(BIG)[:20000], "truncated"),
    "safetensors header alone": ("m.safetensors", save(BIG)[:5], "truncated"),
    "text as safetensors": ("m.safetensors", b"hello, this is a text file", "not a safetensors"),
    "torch as safetensors": ("m.safetensors", torch_bytes(BIG), "not a safetensors"),
    "other zip": ("m.pth", zip_bytes("notes.txt"), "zip archive"),
    "numpy": ("m.npz", array_bytes(), "zip archive"),
    "fake torch zip": ("m.pth", zip_bytes("archive/data.pkl"), "m.pth is"),
    "torchscript": ("m.pt", script_bytes(), "TorchScript"),
    "whole module": ("m.pth", torch_bytes(nn.Linear(2, 2)), "runs code"),
    "no tensors": ("m.pth", torch_bytes({"epoch": 3, "name": "vit"}), "no tensors"),
    "a list": ("m.pth", torch_bytes([torch.ones(1)]), "no tensors"),
    "one tensor": ("m.pth", torch_bytes(torch.ones(1)), "no tensors"),
    "empty dictionary": ("m.pth", torch_bytes({"model": {}}), "no tensors"),
    "nan": ("m.pth", torch_bytes({"fine": torch.ones(2), "x.weight": torch.tensor([1.0, float("nan")])}), "'x.weight'"),
    "inf half": ("m.pth", torch_bytes({"x": torch.tensor([float("inf")], dtype=torch.float16)}), "NaN or Inf"),
    "inf bf16": ("m.safetensors", save({"x": torch.tensor([float("inf")], dtype=torch.bfloat16)}), "NaN or Inf"),
    "nan fp8": ("m.safetensors", save({"x": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}), "NaN or Inf"),
    "sparse": ("m.pth", torch_bytes({"x": torch.eye(3).to_sparse()}), "sparse"),
    "meta": ("m.pth", torch_bytes({"x": torch.empty(3, device="meta")}), "without data"),
    "complex": ("m.pth", torch_bytes({"x": torch.ones(2, dtype=torch.complex64)}), "complex"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_a_usage_error(tmp_path: Path, case: str) -> None:
    name, content, words = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_checkpoint(tmp_path / name)
    assert words in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    attack = {"model": STATE, "x": Attack(tmp_path / "pwned")}
    path = tmp_path / "m.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(attack))
    else:
        path.write_bytes(torch_bytes(attack, _use_new_zipfile_serialization=form == "zip"))
    with pytest.raises(UsageError, match=r"runs code|read safely") as caught:
        read_checkpoint(path)
    assert "safetensors" in (caught.value.fix or "")
    assert not (tmp_path / "pwned").exists()


def test_missing_file_and_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="folder"):
        read_checkpoint(tmp_path)


def test_digest_is_the_sha256_of_a_file_longer_than_a_piece(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "m").write_bytes(content)
    assert digest(tmp_path / "m") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UsageError, match="Cannot read"):
        digest(tmp_path / "none")

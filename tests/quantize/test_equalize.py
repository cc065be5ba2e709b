"""Equalisation leaves the function as it is, and takes from int8 what outlier channels cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from test_fp16 import traced
from test_int8 import as_images, own_cache, photos, run, written  # noqa: F401
from this_cpu import SCHEME

from vitdeploy.errors import UsageError
from vitdeploy.quantize import equalize as room
from vitdeploy.quantize.channels import End, find_sites
from vitdeploy.quantize.equalize import equalize
from vitdeploy.quantize.options import EQUALIZERS, Int8Options
from vitdeploy.quantize.ptq import to_int8
from vitdeploy.quantize.rewrite import rewrite_reader, rewrite_writer
from vitdeploy.quantize.targets import find_targets, to_gemm


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def equalised(model: ir.Model, name: str, techniques: Sequence[str]) -> room.Equalized:
    calib = photos(name, 16, seed=0)
    weighted = [target for target in find_targets(model, SCHEME) if target.axis is not None]
    return equalize(model, weighted, techniques, SCHEME, [calib[:8], calib[8:]])


@pytest.mark.parametrize("technique", EQUALIZERS)
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs"])
def test_function_is_the_same_when_every_site_is_equalised(
    name: str, technique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_error", lambda _, change, *__: 1.0 if change.technique == "none" else 0.5)
    plain, model = traced(name), traced(name)
    for one in (plain, model):
        to_gemm(one)
    if technique == "repq":
        sites = sum(site.movable for site in find_sites(model))
    else:
        norms = [any(end.node.op_type == "LayerNormalization" for end in s.writers) for s in find_sites(model)]
        sites = len(norms) if technique == "smoothquant" else norms.count(False)
    found = equalised(model, name, [technique])
    assert len(found.sites) == sites
    assert sites > 0 or (name, technique) == ("levit_128s", "repq")  # its sites are sums, which cannot be moved
    assert {site["technique"] for site in found.sites} <= {technique}
    x = photos(name, 4, seed=1)
    assert far(run(written(model, tmp_path), x), run(written(plain, tmp_path), x)) < 1e-5


def with_outliers(name: str) -> ir.Model:
    """The same function with some channels fifty times as large, as DINOv2's are."""
    model = traced(name)
    to_gemm(model)
    for site in find_sites(model):
        scale = np.ones(site.size)
        scale[:: max(site.size // 3, 1)] = 1 / 50

        def of(end: End, scale: np.ndarray = scale) -> tuple[np.ndarray, np.ndarray]:
            return np.where(end.channels < 0, 1.0, scale[end.channels]), np.zeros(end.channels.shape)

        for end in site.writers:
            rewrite_writer(end, *of(end))
        for end in site.readers:
            rewrite_reader(end, *of(end))
    return model


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "levit_128s"])
def test_int8_error_falls_strongly_when_channels_are_outliers(name: str, tmp_path: Path) -> None:
    x = photos(name, 8, seed=1)
    want = run(written(with_outliers(name), tmp_path), x)
    errors = {}
    for techniques in ("none", "smoothquant", "auto"):
        model = with_outliers(name)
        report = to_int8(model, as_images(photos(name, 32, seed=0)), SCHEME, Int8Options(equalize=techniques))
        errors[techniques] = far(run(written(model, tmp_path), x), want)
        assert bool(report.equalized) == (techniques != "none")
        assert all(site["error"][1] < site["error"][0] for site in report.equalized)
    assert errors["auto"] < 0.5 * errors["none"]
    assert errors["smoothquant"] < 0.5 * errors["none"]


def test_nothing_is_equalised_when_there_are_no_images_to_judge_by() -> None:
    name = "deit_tiny_patch16_224"
    model = traced(name)
    weighted = [target for target in find_targets(model, SCHEME) if target.axis is not None]
    assert not equalize(model, weighted, EQUALIZERS, SCHEME, [photos(name, 4, seed=0)]).sites


def test_kept_layers_stay_in_float_when_their_inputs_are_equalised(tmp_path: Path) -> None:
    name = "deit_tiny_patch16_224"
    model = with_outliers(name)
    options = Int8Options(keep=("blocks.0.attn.qkv.v",))
    report = to_int8(model, as_images(photos(name, 32, seed=0)), SCHEME, options)
    kept = [op["label"] for op in report.ops if op["reason"] == "asked for"]
    assert kept == ["blocks.0.attn.qkv.v"]
    x = photos(name, 4, seed=1)
    assert far(run(written(model, tmp_path), x), run(written(traced(name), tmp_path), x)) < 0.1


def test_values_that_hold_other_numbers_get_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_error", lambda _, change, *__: 1.0 if change.technique == "none" else 0.5)
    model = traced("deit_tiny_patch16_224")
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization").outputs[0]
    before = norm.name
    assert equalised(model, "deit_tiny_patch16_224", ["smoothquant"]).renamed[before or ""] == norm.name != before


@pytest.mark.parametrize("text", ["smooth", "smoothquant,awq", ""])
def test_unknown_equalisation_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Unknown equalisation"):
        Int8Options(equalize=text).check()

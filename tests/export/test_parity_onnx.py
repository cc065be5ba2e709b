"""Exported graphs against eager PyTorch, for every structure in the catalog, and what no exported graph may contain.

Tracing whole models takes minutes, so names that differ only in sizes share one shrunk model. How names are grouped is
read off the catalog: a new name falls into a known structure or makes a new case by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from onnx_files import assert_file_equals_eager, export_file
from torch import nn

from vitdeploy.backends.base import RunOptions
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.graph.load import load
from vitdeploy.graph.ops import op_counts
from vitdeploy.models import catalog
from vitdeploy.models.build import construct
from vitdeploy.models.random_weights import random_weights

DYNAMIC = (1, 2, 8)
BATCHES = (1, DYNAMIC)

# Arguments that change how large a model is and nothing else; every other one makes another structure.
SIZES = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "key_dim", "width"}
SIZES |= {"base_dims", "heads", "stride", "embed_dims", "depths", "mlp_ratios", "img_scale", "stem_width"}
STRUCTURE = {
    "block_type",
    "conv_act_layer",
    "conv_attn_ratio",
    "conv_expand_output",
    "conv_norm_eps",
    "conv_output_bias",
    "conv_padding",
    "distilled",
    "eta",
    "head_hidden_size",
    "multi_conv",
    "pad_type",
    "stem_bias",
    "tokens_norm",
    "transformer_act_layer",
    "transformer_head_first",
    "transformer_init_values",
    "transformer_norm_eps",
    "transformer_rel_pos_type",
    "wss",
    "act_layer",
    "class_token",
    "fc_norm",
    "global_pool",
    "init_values",
    "mlp_layer",
    "no_embed_class",
    "norm_eps",
    "pre_norm",
    "qkv_bias",
    "reg_tokens",
    "stem_type",
    "use_conv",
}
MOBILEVIT = {"stem_chs", "stages", "num_features"}  # sizes, but for where a residual or a transformer stands


def structure(entry: catalog.Entry) -> str:
    """What entries have in common that differ only in sizes, as one word."""
    parts: dict[str, Any] = {k: v for k, v in entry.config.items() if k not in SIZES and k not in MOBILEVIT}
    parts |= {key: key in parts for key in ("init_values", "eta", "head_hidden_size")}
    chs, shapes = entry.config.get("stem_chs"), []
    for stage in entry.config.get("stages", ()):
        shapes.append([stage["depth"], stage["stride"], "dim" in stage, stage["stride"] == 1 and chs == stage["chs"]])
        chs = stage["chs"]
    parts["stages"] = shapes
    parts["head"] = entry.num_classes > 0
    return f"{entry.target} {json.dumps(parts, sort_keys=True)}"


@cache
def structures() -> dict[str, list[str]]:
    """Structure to the names that have it."""
    found: dict[str, list[str]] = {}
    for name in catalog.names():
        found.setdefault(structure(catalog.find(name)[0]), []).append(name)
    return found


def representatives() -> list[str]:
    return [min(names, key=lambda n: catalog.find(n)[0].params) for names in structures().values()]


def first_of_each_family(names: list[str]) -> list[Any]:
    """As parameters: the others are slow."""
    met: set[str] = set()
    found: list[Any] = []
    for name in names:
        family = catalog.find(name)[0].family
        found.append(pytest.param(name, marks=pytest.mark.slow) if family in met else name)
        met.add(family)
    return found


SMALL: dict[str, dict[str, Any]] = {
    "pit": {"base_dims": [16] * 3, "depth": [1, 1, 1], "heads": [1, 2, 4], "img_size": 64},
    "twins": {"embed_dims": [16, 32, 48, 64], "num_heads": [1, 2, 3, 4], "depths": [2] * 4, "img_size": 96},
    "nest": {"embed_dims": [32, 64, 96], "num_heads": [1, 2, 3], "depths": [1, 1, 1], "img_size": 48},
    "crossvit": {"embed_dim": [48, 96], "depth": [[1, 1, 0]] * 2, "num_heads": [3, 3]},
    "maxvit": {"embed_dim": [32, 64], "depths": [1, 2], "stem_width": 16, "img_size": 96},
}
ITS_OWN = {"maxvit": {"Tanh"}, "xcit": {"ReduceL2"}}  # ops of the paper's: in the head, and in the attention


def shrunk(entry: catalog.Entry) -> dict[str, Any]:
    """Constructor arguments that keep an entry's structure and little else."""
    if entry.family in SMALL:
        return SMALL[entry.family]
    if entry.family.startswith("levit"):
        small = {"embed_dim": [64, 96], "num_heads": [2, 3], "depth": [1, 0], "key_dim": 16}
        return {**small, "img_size": 7 * int(entry.config.get("stem_type", "s16")[1:])}
    if "patch_size" in entry.config:
        return {"depth": 2, "embed_dim": 96, "num_heads": 3, "img_size": 4 * entry.config["patch_size"]}
    if "stages" in entry.config:
        return {"stages": [{**s, "blocks": 1, "depth": min(s["depth"], 2)} for s in entry.config["stages"][:4]]}
    return {}  # MobileViTV2: see small_mobilevitv2


def size_of(entry: catalog.Entry, changes: dict[str, Any]) -> tuple[int, int, int]:
    """Of the image; MobileViT's maps are 10 and 5 pixels wide then: even and odd."""
    side = changes.get("img_size", 80 if entry.family.startswith("mobilevit") else entry.input.shape[1])
    return 3, side, side


@pytest.fixture
def small_mobilevitv2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stages are the class's own: one transformer block on an even map and one on an odd one."""
    stages = ((64, 1, 1, 0), (128, 2, 2, 0), (256, 1, 2, 1), (384, 1, 2, 1))
    monkeypatch.setattr("vitdeploy.models.mobilevit.V2_STAGES", stages)


def build(name: str, changes: dict[str, Any], whole: bool) -> tuple[nn.Module, tuple[int, int, int]]:
    entry, _ = catalog.find(name)
    shape = entry.input.shape if whole else size_of(entry, changes)
    module = construct(entry, {**entry.arguments(), **changes}).eval()
    random_weights(module, 1, shape)
    return module, shape


def label(batch: Any) -> str:
    return "dynamic" if isinstance(batch, tuple) else f"batch{batch}"


def assert_clean(ops: Counter[str], family: str = "") -> None:
    """Nothing is left that export should have settled: copies, shape arithmetic, torn-apart layers."""
    copies = {"Identity", "Dropout", "BatchNormalization", "Constant"}
    shape_arithmetic = {"Shape", "Range", "Expand", "ConstantOfShape", "Size", "NonZero", "Where"}
    torn_apart = {"Erf", "Tanh", "Pow", "Sqrt", "ReduceL2", "Reciprocal", "Einsum", "Resize"}
    assert not set(ops) & (copies | shape_arithmetic | torn_apart - ITS_OWN.get(family, set()))


def check(
    name: str, changes: dict[str, Any], batch: Any, path: Path, opset: int = 20, whole: bool = False
) -> Counter[str]:
    """Export and compare; `whole` images are of the entry's own size. Returns the graph's ops."""
    module, shape = build(name, changes, whole)
    ops = op_counts(export_file(module, shape, batch, path, opset))
    assert_file_equals_eager(path, module, shape, *((1, 3) if isinstance(batch, tuple) else (1,)))
    return ops


def test_every_argument_in_the_catalog_is_known_to_change_structure_or_size() -> None:
    for name in catalog.names():
        config = catalog.find(name)[0].config
        assert set(config) <= SIZES | STRUCTURE | MOBILEVIT, f"{name}: say which kind its new argument is of"


def test_every_name_is_covered_by_a_representative_of_its_structure() -> None:
    tested = {structure(catalog.find(name)[0]) for name in representatives()}
    assert [n for n in catalog.names() if structure(catalog.find(n)[0]) not in tested] == []
    assert 20 < len(tested) < len(catalog.names()) / 2


@pytest.mark.usefixtures("small_mobilevitv2")
@pytest.mark.parametrize("name", first_of_each_family(representatives()))
def test_structure_equals_eager_and_leaves_nothing_unsettled(name: str, tmp_path: Path) -> None:
    entry, _ = catalog.find(name)
    counts = []
    for batch in BATCHES:
        counts.append(check(name, shrunk(entry), batch, tmp_path / f"{label(batch)}.onnx"))
        assert_clean(counts[-1], entry.family)
    assert counts[0] == counts[1], "a dynamic batch costs nothing"


QUICK = ("deit_tiny_distilled_patch16_224", "mobilevit_xxs", "mobilevitv2_050", "levit_128s")


def own_size(entry: catalog.Entry) -> dict[str, Any]:
    """Constructor arguments of the model as it is, but for two blocks instead of all where it is large."""
    arguments = {"img_size": entry.config["img_size"]} if "img_size" in entry.config else {}
    large = entry.params > 100e6 or entry.macs > 20e9
    if not large:
        return arguments
    stages = {"maxvit": {"depths": [1, 1, 1, 1]}, "crossvit": {"depth": [[1, 1, 0]]}}
    return {**arguments, **stages.get(entry.family, {"depth": 2})}


@pytest.mark.parametrize("batch", BATCHES, ids=label)
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in catalog.names()]
)
def test_every_name_equals_eager(name: str, batch: Any, tmp_path: Path) -> None:
    entry, _ = catalog.find(name)
    assert_clean(check(name, own_size(entry), batch, tmp_path / "model.onnx", whole=True), entry.family)


@pytest.mark.usefixtures("small_mobilevitv2")
@pytest.mark.parametrize(
    ("name", "opset"),
    [("deit_tiny_distilled_patch16_224", 18), ("mobilevitv2_050", 18), ("mobilevitv2_050", 21), ("levit_256d", 24)],
)
def test_other_opsets_equal_eager(name: str, opset: int, tmp_path: Path) -> None:
    check(name, shrunk(catalog.find(name)[0]), DYNAMIC, tmp_path / "model.onnx", opset)


@pytest.mark.parametrize("batch", BATCHES, ids=label)
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_256d"])
def test_compiled_attention_is_one_op_at_opset_23_and_equals_eager(name: str, batch: Any, tmp_path: Path) -> None:
    module, shape = build(name, shrunk(catalog.find(name)[0]), whole=False)
    graph = export_file(module, shape, batch, tmp_path / "graph.onnx", opset=23)
    before = op_counts(graph)
    (path,) = OnnxRuntimeBackend().compile(graph, tmp_path, RunOptions())
    after = op_counts(load(path))
    assert after["Attention"] == before["Softmax"] > 0
    assert (after["Softmax"], after["Transpose"]) == (0, before["Transpose"] - 4 * before["Softmax"])
    assert after["Reshape"] == before["Reshape"]
    assert_file_equals_eager(path, module, shape, *((1, 3) if isinstance(batch, tuple) else (1,)))


@pytest.mark.usefixtures("small_mobilevitv2")
@pytest.mark.parametrize("size", [(96, 96), (100, 72)])
@pytest.mark.parametrize("name", ["mobilevit_xs", "mobilevitv2_075"])
def test_mobilevit_equals_eager_at_any_map_size(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    entry, _ = catalog.find(name)
    module = construct(entry, {**entry.arguments(), **shrunk(entry)}).eval()
    random_weights(module, 1, (3, *size))
    export_file(module, (3, *size), 1, tmp_path / "model.onnx")
    assert_file_equals_eager(tmp_path / "model.onnx", module, (3, *size), 1)

"""Architectures by name: what their constructors can take is taken, and all else is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.errors import UsageError
from vitdeploy.models import build_zoo, zoo
from vitdeploy.models.build import BuildOptions, build, check, rebuild
from vitdeploy.spec import InputSpec

SMALL = {"dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32, "image_size": 64, "patch_size": 16, "num_classes": 10}


@pytest.mark.parametrize("name", zoo.names())
def test_entry_is_what_its_class_takes(name: str) -> None:
    entry = zoo.find(name)
    arguments = build_zoo.settle(entry, {})
    assert entry.paper[-10:].replace(".", "").isdecimal()
    with torch.device("meta"):
        module = build_zoo.constructor(entry)(**arguments)
    assert sum(p.numel() for p in module.parameters()) > 100_000
    assert build_zoo.defaults(entry)["num_classes" if "num_classes" in build_zoo.parameters(entry) else "img_size"]


def test_names_are_listed_without_torch() -> None:
    code = "import sys; from vitdeploy.models import zoo; print(len(zoo.names()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(zoo.names())), "False"]
    assert zoo.names("zoo:simple_vit")[0] == "simple_vit"
    assert zoo.names("cct_1?") == ["cct_14", "cct_16"]


def test_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        check("zoo:simple_vti", BuildOptions())
    assert "zoo:simple_vit" in str(caught.value.fix)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a name is unknown": ({"dmi": 64}, "has no argument 'dmi'"),
    "a text is given for a number": ({"dim": "wide"}, "dim = 'wide': it is a whole number"),
    "true is given for a number": ({"depth": True}, "it is a whole number"),
    "a fraction is given for a whole number": ({"depth": 1.5}, "it is a whole number"),
    "a number is 0": ({"heads": 0}, "heads = 0: a number from 1"),
    "a number is negative": ({"mlp_dim": -4}, "mlp_dim = -4"),
    "a number is enormous": ({"dim": 10**9}, "dim = 1000000000"),
    "nothing would be left": ({"dropout": 1.0}, "below 1"),
    "a pair has three": ({"image_size": (64, 64, 64)}, "image_size"),
    "patches do not fill the image": ({"patch_size": 24}, r"patch_size \(24\) must divide image_size \(64\)"),
    "a choice is unknown": ({"pool": "max"}, r"pool \('max'\) must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_build_is_refused_when(case: str) -> None:
    given, says = BAD[case]
    with pytest.raises(UsageError, match=says):
        build("zoo:vit", BuildOptions(arguments={**SMALL, **given}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_argument_is_taken_or_refused_in_one_sentence(data: st.DataObject) -> None:
    """On the meta device, where nothing is computed."""
    entry = zoo.find(data.draw(st.sampled_from(zoo.names())))
    key = data.draw(st.sampled_from(sorted(build_zoo.parameters(entry))))
    number = st.integers(-3, 300) | st.sampled_from([7, 48, 96, 224])
    value = data.draw(number | st.floats(-1, 2) | st.booleans() | st.text(max_size=4) | st.lists(number, max_size=4))
    said = ""
    try:
        arguments = build_zoo.settle(entry, {key: value})
        takes = InputSpec(entry.shape(arguments), (0.5,), (0.5,), packing=entry.packing(arguments))
        with torch.device("meta"):
            build_zoo.construct(entry, arguments, takes)
    except UsageError as error:
        said = error.message
    assert not said or (said.startswith(f"zoo:{entry.name} ") and key in said and len(said.splitlines()) == 1)


@pytest.mark.parametrize(
    ("name", "given", "says", "fix"),
    [
        ("sep_vit", {"window_size": 6}, r"window_size \(6\) does not divide 56", "window_size 7 would do."),
        ("max_vit", {"window_size": 5}, r"window_size \(5\) does not divide 56", "window_size 7 would do."),
        ("twins_svt", {"s1_local_patch_size": 9}, r"s1_local_patch_size \(9\)", "s1_local_patch_size 8 would do."),
        ("regionvit", {"window_size": 5}, "20 does not divide 224", "window_size 7 would do."),
        ("nest", {"heads": 5}, r"heads \(5\) must divide dim \(96\)", "heads 6 would do."),
        ("vit", {"patch_size": 60}, r"patch_size \(60\) must divide image_size \(256\)", "patch_size 64 would do."),
        ("mobile_vit", {"image_size": (100, 100)}, "100", None),
        ("vit_3d", {"pool": "\r"}, r"pool = '\\r' does not work", None),
    ],
)
def test_number_that_does_not_fit_is_named_and_a_near_one_that_does(
    name: str, given: dict[str, Any], says: str, fix: str | None
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        build(f"zoo:{name}", BuildOptions(arguments=given))
    assert caught.value.fix == fix
    assert next(iter(given)) in caught.value.message


def test_other_options_are_arguments_too() -> None:
    built = build("zoo:vit", BuildOptions(num_classes=7, image_size=(32, 64), in_chans=1, arguments=SMALL))
    assert built.spec.num_classes == 7
    assert built.spec.input.shape == (1, 32, 64)
    assert built.spec.config["channels"] == 1
    assert built.module(torch.zeros(2, 1, 32, 64)).shape == (2, 7)


def test_model_is_built_again_from_its_record() -> None:
    first = build("zoo:vit", BuildOptions(seed=3, arguments={**SMALL, "image_size": [64, 32]}))
    again = rebuild(type(first.spec).from_dict(first.spec.to_dict()))
    x = torch.randn(2, 3, 64, 32)
    assert torch.equal(first.module(x), again.module(x))
    assert first.spec == again.spec


def test_checkpoint_is_loaded_strictly(tmp_path: Path) -> None:
    made = build("zoo:vit", BuildOptions(seed=1, arguments=SMALL))
    torch.save(made.module.state_dict(), tmp_path / "vit.pt")
    options = BuildOptions(weights=str(tmp_path / "vit.pt"), arguments=SMALL)
    loaded = build("zoo:vit", options)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(made.module(x), loaded.module(x))
    assert any("preprocessing" in note for note in loaded.notes)
    with pytest.raises(UsageError, match="does not fit the model"):
        build("zoo:vit", BuildOptions(weights=options.weights, arguments={**SMALL, "depth": 2}))


def test_arguments_are_refused_for_other_models() -> None:
    with pytest.raises(UsageError, match="are for zoo: names"):
        check("levit_128s", BuildOptions(arguments={"dim": 3}))
    with pytest.raises(UsageError, match="Nobody has published weights"):
        check("zoo:vit", BuildOptions(pretrained=True))

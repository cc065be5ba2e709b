from __future__ import annotations

import pytest

from vitdeploy.backends.nvidia.options import EngineOptions, Profile
from vitdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("pairs", "field", "value"),
    [
        ({"workspace": "4G"}, "workspace", 4 << 30),
        ({"workspace": "0.5GiB"}, "workspace", 1 << 29),
        ({"workspace": "1024"}, "workspace", 1024),
        ({"refit": "on"}, "refit", True),
        ({"tf32": "0"}, "tf32", False),
        ({"compute_capability": "8.9, sm_120,SM75"}, "compute_capability", ("8.9", "12.0", "7.5")),
        ({"hardware_compatibility_level": "AMPERE_PLUS"}, "hardware_compatibility_level", "ampere_plus"),
        ({"profile": "1:8:32"}, "profile", (Profile(batch=(1, 8, 32)),)),
    ],
)
def test_read_understands(pairs: dict[str, str], field: str, value: object) -> None:
    options = EngineOptions.read(pairs)
    assert getattr(options, field) == value
    assert getattr(EngineOptions.read({}), field) != value or value is False


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ({"worksapce": "4G"}, "no option 'worksapce'. Did you mean workspace?"),
        ({"fp16": "1"}, "no option 'fp16'"),
        ({"workspace": "four"}, "workspace=four is not a size"),
        ({"workspace": "-1"}, "is not a size"),
        ({"refit": "maybe"}, "refit=maybe is not 1 or 0"),
        ({"builder_optimization_level": "6"}, "is not a level from 0 to 5"),
        ({"max_aux_streams": "-2"}, "is not a whole number"),
        ({"compute_capability": "ada"}, "is not a compute capability"),
        ({"profiling_verbosity": "loud"}, "one of detailed"),
        ({"profile": "8:1:32"}, "is not min:opt:max"),
        ({"profile": "image:1x3:2x3"}, "is not min:opt:max"),
        ({"profile": "image:axb:1x1:1x1"}, "is not min:opt:max"),
        ({"timing_cache": ""}, "is not a file, or off"),
    ],
)
def test_read_refuses_in_a_sentence(pairs: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        EngineOptions.read(pairs)


def test_profile_gives_ranges_for_every_dynamic_input() -> None:
    text = "image:1x3x64x64:4x3x96x96:8x3x128x128,mask:1x5:4x5:8x5"
    (profile,) = EngineOptions.read({"profile": text}).profile
    assert profile.of("image", (-1, 3, -1, -1)) == ((1, 3, 64, 64), (4, 3, 96, 96), (8, 3, 128, 128))
    assert profile.of("mask", (-1, 5)) == ((1, 5), (4, 5), (8, 5))
    assert profile.to_text() == text
    with pytest.raises(UsageError, match="has no profile"):
        profile.of("other", (-1, 3))
    with pytest.raises(UsageError, match="does not fit"):
        profile.of("image", (-1, 3, 64, 64))


def test_batch_profile_refuses_an_input_that_is_dynamic_beyond_its_batch() -> None:
    profile = Profile(batch=(1, 2, 4))
    assert profile.of("image", (-1, 3, 4, 4)) == ((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4))
    for shape in ((-1, 3, -1, 4), (2, -1), ()):
        with pytest.raises(UsageError, match="has no profile"):
            profile.of("image", shape)


def test_to_dict_holds_what_differs_and_no_more() -> None:
    assert EngineOptions.read({}).to_dict() == {}
    pairs = {"workspace": "1G", "profile": "1:2:4", "compute_capability": "8.9", "tf32": "0"}
    assert EngineOptions.read(pairs).to_dict() == {
        "workspace": 1 << 30,
        "profile": "1:2:4",
        "compute_capability": ["8.9"],
    }

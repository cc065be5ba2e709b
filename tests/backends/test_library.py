"""Options that libraries have no use for are refused before anything is traced, whichever library it is."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.backends import registry
from vitdeploy.backends.base import RunOptions
from vitdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"device": "cuda"}, "does not run on 'cuda'"),
        ({"threads": -1}, "threads is -1"),
        ({"provider": "cpu"}, "no provider 'cpu'"),
        ({"optimization": "basic"}, "has no 'basic'"),
        ({"provider_options": {"speed": "high"}}, "does not take the option speed"),
    ],
)
@pytest.mark.parametrize("name", ["litert", "executorch", "ncnn", "coreml"])
def test_option_that_means_nothing_is_refused_by_its_name(name: str, wrong: dict[str, Any], says: str) -> None:
    backend = registry.get(name)
    backend.check(RunOptions(device="cpu"))
    with pytest.raises(UsageError, match=says):
        backend.check(RunOptions(**{"device": "cpu", **wrong}))

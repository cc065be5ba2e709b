"""Exit codes of errors that are not raised as our own."""

from __future__ import annotations

import pytest

from vitdeploy.errors import BackendError
from vitdeploy.exits import code_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 2),
        (BackendError("The runtime can't allocate memory."), 6),
    ],
)
def test_out_of_memory_is_a_sentence(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(error) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bug_is_raised_again() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        code_of(RuntimeError("a bug"))

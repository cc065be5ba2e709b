"""Class names that come with a data set rather than with a checkpoint."""

from __future__ import annotations

from importlib import resources


def imagenet1k() -> tuple[str, ...]:
    """ImageNet-1k's 1000 classes in the order of ILSVRC 2012 (that of their WordNet ids), by WordNet 3.0's lemmas.

    Not all differ: 134 and 517 are both 'crane', the bird and the machine.
    """
    text = resources.files("vitdeploy.data").joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())

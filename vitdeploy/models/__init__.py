"""Architectures, one paper a file, and the weights that they load.

`from vitdeploy.models import ViT, SimpleViT` gives the classes of vit.py and simple_vit.py, as vit-pytorch does.
"""

from typing import Any

from vitdeploy.verb import make_verb

make_verb(__name__)


def __getattr__(name: str) -> Any:
    """The two classes, when they are asked for: importing a catalog imports no torch."""
    if name == "ViT":
        from vitdeploy.models.vit import ViT

        return ViT
    if name == "SimpleViT":
        from vitdeploy.models.simple_vit import SimpleViT

        return SimpleViT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

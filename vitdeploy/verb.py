"""Packages that are verbs too: `vitdeploy.export` holds the exporter's modules, and `vitdeploy.export(...)` exports."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that can be called: it calls the function of its name in `vitdeploy.api`."""

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        from vitdeploy import api

        found: Callable[..., Any] = getattr(api, self.__name__.rpartition(".")[2])
        return found

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__wrapped__)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)


def make_verb(name: str) -> None:
    """Make the package of that name, which is being imported, callable."""
    sys.modules[name].__class__ = Verb

"""From `zoo:cvt` and its arguments to a module: arguments are held against the constructor before it runs."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from vitdeploy.errors import UsageError
from vitdeploy.models import zoo

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.spec import InputSpec

LARGEST = 1 << 14  # of a number: beyond it building would not end, or not fit
NO_NUMBER = {"num_classes", "num_registers", "padding", "pooling_padding"}  # whole numbers that may be 0


def constructor(entry: zoo.Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(f"vitdeploy.models.{module}"), attribute)


def settle(
    entry: zoo.Entry,
    given: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    in_chans: int | None = None,
    frames: int | None = None,
) -> dict[str, Any]:
    """The constructor's arguments: the entry's, then those given, then what other options say of the same.

    Raises UsageError on a name or a value that the constructor cannot take.
    """
    arguments = {**entry.arguments, **{key: as_tuple(value) for key, value in given.items()}}
    known = parameters(entry)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    for key in zoo.SIZES:
        if image_size is not None and key in known:
            arguments[key] = image_size[0] if image_size[0] == image_size[1] else image_size
    if in_chans is not None and in_chans != 3:
        named = [key for key in zoo.CHANNELS if key in known]
        if not named:
            raise UsageError(f"{zoo.PREFIX}{entry.name} reads images of 3 channels, not {in_chans}.")
        arguments[named[0]] = in_chans
    if frames is not None:
        named = [key for key in zoo.FRAMES if key in known]
        if not named:
            raise UsageError(f"{zoo.PREFIX}{entry.name} takes images, not videos.")
        arguments[named[0]] = frames
    for key, value in arguments.items():
        check_argument(entry, key, value, known)
    return arguments


def parameters(entry: zoo.Entry) -> dict[str, Any]:
    """Types by name, of what the constructor takes; Any where it does not say."""
    return {p.name: Any if p.annotation is p.empty else p.annotation for p in named(entry)}


def defaults(entry: zoo.Entry) -> dict[str, Any]:
    """Every argument by name, with what it is where nothing else is said."""
    return {p.name: entry.arguments.get(p.name, p.default) for p in named(entry)}


def named(entry: zoo.Entry) -> list[inspect.Parameter]:
    """What the constructor takes by name."""
    found = inspect.signature(constructor(entry), eval_str=True).parameters.values()
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def check_argument(entry: zoo.Entry, key: str, value: Any, known: Mapping[str, Any]) -> None:
    """Raise UsageError, which names the argument and says what it takes."""
    name = f"{zoo.PREFIX}{entry.name}"
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        fix = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"{name} has no argument '{key}'.", fix=f"{fix}It has {', '.join(known)}.")
    if not fits(known[key], value):
        raise UsageError(f"{name} cannot take {key} = {str(value)[:80]!r}: it is {words(known[key])}.")
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, bool | str | tuple | None):
            continue
        least = 0 if isinstance(item, float) or key in NO_NUMBER else 1
        most = 1 if "drop" in key else LARGEST
        if not least <= item <= most or ("drop" in key and item == 1):
            upper = "below 1" if "drop" in key else f"up to {LARGEST}"
            raise UsageError(f"{name} cannot take {key} = {value}: a number from {least} {upper} is wanted.")


def fits(wanted: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; numbers, texts, tuples and unions of them, nothing finer."""
    if wanted is Any:
        return value is None or isinstance(value, bool | int | float | str | tuple)
    if wanted is None or wanted is type(None):
        return value is None
    if get_origin(wanted) in (Union, types.UnionType):
        return any(fits(one, value) for one in get_args(wanted))
    if get_origin(wanted) in (tuple, Sequence) or wanted is tuple:
        inner = (*get_args(wanted), ...) if get_origin(wanted) is Sequence else get_args(wanted) or (Any, ...)
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is ...:
            return all(fits(inner[0], item) for item in value)
        return len(inner) == len(value) and all(fits(one, item) for one, item in zip(inner, value, strict=True))
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, wanted) if isinstance(wanted, type) else False


def words(wanted: Any) -> str:
    """A type, for a sentence."""
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return simple.get(wanted, f"of the type {getattr(wanted, '__name__', wanted)}".replace("typing.", ""))


def as_tuple(value: Any) -> Any:
    """Lists, which JSON and TOML have, as tuples, which constructors take."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)  # of arguments that clash
NEAR = 4  # how far from a number that does not work others are tried


def construct(entry: zoo.Entry, arguments: Mapping[str, Any], takes: InputSpec) -> nn.Module:
    """The module, with parameters as its own constructor draws them.

    Args:
        takes: what it will be given.

    Raises:
        UsageError: arguments that contradict each other or the input, or a model that memory cannot hold.
    """
    from vitdeploy.bench.environment import memory_bytes

    changed = {key: value for key, value in arguments.items() if entry.arguments.get(key, ...) != value}
    asked = " and ".join(f"{key} = {shown(value)}" for key, value in changed.items())
    name = f"{zoo.PREFIX}{entry.name}{f' with {asked}' if asked else ''}"
    try:
        weights = sketch(entry, arguments, takes)
    except ERRORS as error:
        near = nearest(entry, arguments, takes, *changed) if len(changed) == 1 else None
        fix = None if near is None else f"{asked.split(' = ')[0]} {near} would do."
        raise UsageError(f"{name} does not work: {clash(arguments, takes.shape, error)}.", fix=fix) from None
    there = memory_bytes()
    if there is not None and weights > there:
        raise UsageError(f"{name} has weights of {weights / 1e9:.0f} GB; memory is {there / 1e9:.0f} GB.")
    return constructor(entry)(**arguments)


def shown(value: Any) -> str:
    """A value within a sentence, in one line."""
    return value if isinstance(value, str) and value.isprintable() else repr(value)


def sketch(entry: zoo.Entry, arguments: Mapping[str, Any], takes: InputSpec) -> int:
    """Build and run it on tensors without values; bytes of its weights. Raises whatever the model does."""
    import torch

    from vitdeploy.models.inputs import zeros

    with torch.device("meta"), torch.no_grad():
        module = constructor(entry)(**arguments).eval()
        with contextlib.suppress(NotImplementedError):  # by meta tensors, where values are wanted
            module(*zeros(takes.tensors))
    return sum(t.nbytes for t in module.parameters())


def nearest(entry: zoo.Entry, arguments: Mapping[str, Any], takes: InputSpec, key: str) -> int | None:
    """The nearest whole number that works instead of the argument's, or None where none does nearby."""
    value = arguments[key]
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    for near in (value + sign * distance for distance in range(1, NEAR + 1) for sign in (1, -1)):
        with contextlib.suppress(*ERRORS, UsageError):
            check_argument(entry, key, near, parameters(entry))
            sketch(entry, {**arguments, key: near}, takes)
            return near
    return None


def clash(arguments: Mapping[str, Any], shape: Sequence[int], error: Exception) -> str:
    """What did not fit, and the argument that has the number where einops tells one."""
    found = re.search(r"divide axis of length (\d+) in chunks of (\d+)", str(error))
    if found is None:
        return last_line(error)
    length, chunk = map(int, found.groups())
    names = [key for key, value in arguments.items() if chunk in (value if isinstance(value, tuple) else (value,))]
    what = f"{' or '.join(names)} ({chunk})" if names else str(chunk)
    return f"{what} does not divide {length}, for an input of {'x'.join(map(str, shape))}"


def last_line(error: Exception) -> str:
    """The end of a message: einops begins with how it came to be."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")

"""Class names: those that come with a data set rather than with a checkpoint, and which class a name means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources

from vitdeploy.errors import UsageError

NAMED = 4  # class names that a message shows


def imagenet1k() -> tuple[str, ...]:
    """ImageNet-1k's 1000 classes in the order of ILSVRC 2012 (that of their WordNet ids), by WordNet 3.0's lemmas.

    Not all differ: 134 and 517 are both 'crane', the bird and the machine.
    """
    text = resources.files("vitdeploy.data").joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def class_indices(
    names: Iterable[str], classes: Sequence[str] | None = None, num_classes: int | None = None
) -> tuple[dict[str, int], str]:
    """Which class each name (of a folder, or in a list) means.

    The first of these that fits: the names of the model's classes, exactly or without regard to case and punctuation
    ('t_shirt' is 'T-shirt'); numbers, which are the classes themselves; as many names as there are classes, which are
    theirs in sorted order (ImageNet's n01440764 and so on).

    Args:
        classes: the model's class names in logit order, where they are known.
        num_classes: width of the logits, where it is known.

    Returns:
        {name: index} and the rule that fitted: 'names', 'numbers' or 'order'.

    Raises:
        UsageError: none fits, some names are the model's and some are not, or two names would be one class.
    """
    given = sorted(set(names))
    count = num_classes if num_classes is not None else len(classes) if classes else None
    if classes:
        found = _by_name(given, classes)
        strange = [name for name in given if name not in found]
        if found and strange:
            raise _no_match(strange, given, classes, count)
        if found:
            return _each_its_own(found), "names"
    if all(re.fullmatch("[0-9]{1,9}", name) for name in given):
        numbers = {name: int(name) for name in given}
        check_numbers(numbers.values(), count)
        return _each_its_own(numbers), "numbers"
    if len(given) == count:
        return {name: index for index, name in enumerate(given)}, "order"
    raise _no_match(given, given, classes, count)


def check_numbers(numbers: Iterable[int], num_classes: int | None) -> None:
    """Raise UsageError on a class number that the model does not have."""
    low, high = min(numbers), max(numbers)
    if low < 0 or (num_classes is not None and high >= num_classes):
        has = "" if num_classes is None else f", and the model has the classes 0 to {num_classes - 1}"
        raise UsageError(f"The labels go from {low} to {high}{has}.", fix="The first class is 0.")


def _by_name(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The names that are a class's own, exactly or loosely, with its index."""
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        exact.setdefault(name, []).append(index)
        loose.setdefault(_loose(name), []).append(index)
    found = {}
    for name in names:
        matches = exact.get(name) or loose.get(_loose(name), [])
        if len(matches) > 1:
            which = ", ".join(map(str, matches))
            raise UsageError(
                f"'{name}' can be several of the model's classes: {which}.", fix="Label by number instead."
            )
        if matches:
            found[name] = matches[0]
    return found


def _loose(name: str) -> str:
    """The name without case and punctuation; kept as it is where it is nothing else."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name


def _each_its_own(found: dict[str, int]) -> dict[str, int]:
    taken: dict[int, str] = {}
    for name, index in found.items():
        if index in taken:
            raise UsageError(f"'{taken[index]}' and '{name}' would both be class {index}.")
        taken[index] = name
    return found


def _no_match(
    strange: Sequence[str], given: Sequence[str], classes: Sequence[str] | None, count: int | None
) -> UsageError:
    shown = ", ".join(f"'{name}'" for name in strange[:NAMED]) + (" ..." if len(strange) > NAMED else "")
    if classes:
        has = f"the model's {len(classes)} classes (" + ", ".join(f"'{c}'" for c in classes[:NAMED])
        has += " ...)" if len(classes) > NAMED else ")"
    else:
        has = f"{count} classes without names" if count is not None else "classes of unknown names and number"
        has = f"the model's {has}" if count is not None else has
    return UsageError(
        f"{len(strange)} of the {len(given)} class names in the data ({shown}) fit none of {has}.",
        fix="Use the model's class names, or the class numbers from 0.",
    )

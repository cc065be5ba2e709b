"""Class names: those that come with a data set rather than with a checkpoint, and which class a name means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from vitdeploy.errors import UsageError

NAMED = 4  # class names that a message shows


def imagenet1k() -> tuple[str, ...]:
    """ImageNet-1k's 1000 classes in the order of ILSVRC 2012 (that of their WordNet ids), by WordNet 3.0's lemmas.

    Not all differ: 134 and 517 are both 'crane', the bird and the machine.
    """
    text = resources.files("vitdeploy.data").joinpath("imagenet1k.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_labels(source: str, num_classes: int) -> tuple[str, ...]:
    """Class names in logit order: 'imagenet', or a file with a name a line, or JSON: a list, or an object of names by
    number (as Hugging Face's `id2label`).

    Raises:
        UsageError: it cannot be read, or has not as many names as there are classes.
    """
    names = list(imagenet1k()) if source in ("imagenet", "imagenet1k") else _read_names(Path(source))
    if len(names) != num_classes:
        raise UsageError(f"{source} has {len(names)} labels, and the model has {num_classes} classes.")
    return tuple(names)


def _read_names(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(
            f"The labels in {path} cannot be read: {said}.", fix="Give 'imagenet', or a file with a name a line."
        ) from None
    if isinstance(found, dict):
        found = found.get("id2label", found)
    if isinstance(found, dict):
        places = [str(i) for i in range(len(found))]
        if set(found) != set(places):
            raise UsageError(f"The labels in {path} are not named by the numbers from 0 to {len(found) - 1}.")
        found = [found[place] for place in places]
    if not isinstance(found, list) or not all(isinstance(name, str) and name.isprintable() for name in found):
        raise UsageError(f"The labels in {path} are not a list of names.")
    return [name.strip() for name in found]


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

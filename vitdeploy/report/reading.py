"""Reading records of unknown origin: what is missing or of the wrong kind reads as nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

TEXTS = ("report.md", "report.html", "model-card.md")  # what is written about an artifact, and no part of its size


def at(value: Any, *keys: str) -> Any:
    """What lies under the keys of nested mappings; None where there is no such thing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any, *keys: str) -> float | None:
    """A finite number, or None."""
    value = at(value, *keys) if keys else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def numbers(value: Any) -> list[float]:
    """The finite numbers of a list."""
    found = [number(one) for one in value] if isinstance(value, (list, tuple)) else []
    return [one for one in found if one is not None]


def records(value: Any) -> list[Mapping[str, Any]]:
    """The mappings of a list."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, (list, tuple)) else []


def mapping(value: Any, *keys: str) -> Mapping[str, Any]:
    """A mapping, or an empty one."""
    value = at(value, *keys) if keys else value
    return value if isinstance(value, Mapping) else {}


def words(value: Any) -> str:
    """JSON values in a line, without braces; numbers with six digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(words(one) for one in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def figure(value: Any, digits: int = 3, unit: str = "") -> str:
    """A number with so many digits; nothing where it is none."""
    found = number(value)
    if found is None:
        return ""
    if found and abs(found) < 1e-3:
        text = f"{found:.{digits - 2}e}".replace("e-0", "e-")
    else:
        text = f"{found:.0f}" if abs(found) >= 10**digits else f"{found:.{digits}g}"
    return f"{text} {unit}".strip()


def cases_told(verification: Any) -> list[str]:
    """What the outputs were compared on; inputs that are told alike are counted."""
    cases = records(at(verification, "cases"))
    told = Counter(f"{words(at(case, 'source'))}, batch {words(at(case, 'batch'))}" for case in cases)
    return [case if count == 1 else f"{count} times {case}" for case, count in told.items()]


def verdict(verification: Any) -> str:
    """'verified', 'failed', 'stand-in' (something else ran in its stead) or 'none'."""
    passed = at(verification, "passed")
    if passed is True:
        return "stand-in" if at(verification, "stand_in") else "verified"
    return "failed" if passed is False else "none"


def worst(verification: Any) -> dict[str, Any]:
    """The output with the largest relative error: its figures, its 'name', and top-1 as 'matches' of 'samples'."""
    found: dict[str, Any] = {}
    for name, figures in mapping(verification, "outputs").items():
        error = number(figures, "rel_max")
        # An error that is no number is worse than any.
        if not found or error is None or (found["rel_max"] is not None and error > found["rel_max"]):
            found = {"name": name, "rel_max": error} | {
                key: number(figures, key) for key in ("max_abs", "rel_l2", "cosine")
            }
    logits = [mapping(one, "logits") for one in mapping(verification, "outputs").values()]
    counted = [one for one in logits if number(one, "samples") and number(one, "top1_matches") is not None]
    if counted:
        least = min(counted, key=lambda one: one["top1_matches"] / one["samples"])
        found |= {"matches": int(least["top1_matches"]), "samples": int(least["samples"])}
    return found


def size_of(files: Any) -> int | None:
    """Bytes of an artifact's files, without the texts and pictures about it; None where nothing is known."""
    sizes = [
        number(entry, "bytes")
        for name, entry in mapping(files).items()
        if name not in TEXTS and not str(name).endswith(".svg")
    ]
    known = [size for size in sizes if size is not None]
    return int(sum(known)) if known else None


def threads(bench: Any) -> str:
    """How many threads ran."""
    count = number(bench, "threads")
    if count is None:
        return ""
    return "threads by the runtime" if count == 0 else f"{count:.0f} thread{'s' if count != 1 else ''}"


def listed(value: Any) -> list[Any]:
    """A list's members; none of anything else."""
    return list(value) if isinstance(value, (list, tuple)) else []

"""Plots for a page, as SVG that takes its colours from the page and stretches without shrinking its letters.

Horizontal places are per cent of the width; vertical ones, and letters, are CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vitdeploy.report.page import text
from vitdeploy.report.reading import figure

MOST = 40  # rows of a bar chart
ROW, BAR = 34, 9
TALL = 240
HEAD = 36  # above a scatter plot's frame: the name of the vertical axis, and its highest figure
COLOURS = 5
NAME = 44  # letters in a row of 300 CSS pixels


@dataclass(frozen=True)
class Point:
    """One thing in a scatter plot: its label, which is short, and its name, which is not; area grows with `weight`."""

    x: float
    y: float
    label: str
    name: str
    weight: float = 1.0
    strong: bool = False


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars (name, value, value as told) in the given order; beyond the first 40 none is drawn."""
    most = max((value for _, value, _ in rows), default=0.0)
    return stacked(title, [(name, {"": value}, told) for name, value, told in rows], [""]) if most > 0 else ""


def stacked(title: str, rows: Sequence[tuple[str, Mapping[str, float], str]], kinds: Sequence[str]) -> str:
    """Bars made of parts: (name, {kind: value}, value as told); the kinds' colours follow their order."""
    shown = rows[:MOST]
    most = max((sum(parts.values()) for _, parts, _ in shown), default=0.0)
    if most <= 0:
        return ""
    drawn = []
    for i, (name, parts, told) in enumerate(shown):
        top, left = i * ROW, 0.0
        drawn.append(_text("0", top + 14, clipped(name, NAME - len(told)), "name"))
        drawn.append(_text("100%", top + 14, told, anchor="end"))
        drawn.append(f'<rect class="back" x="0" y="{top + 19}" width="100%" height="{BAR}" rx="2"/>')
        for kind in kinds:
            width = 100 * parts.get(kind, 0.0) / most
            place = f'x="{left:.2f}%" y="{top + 19}" width="{width:.2f}%" height="{BAR}" rx="2"'
            drawn.append(f'<rect class="c{min(kinds.index(kind), COLOURS - 1)}" {place}/>' if width > 0 else "")
            left += width
    return _svg(title, _told([(name, told) for name, _, told in shown]), drawn, len(shown) * ROW)


def key(kinds: Sequence[str]) -> str:
    """Which colour is which kind."""
    if len(kinds) < 2:
        return ""
    items = (f'<li><span class="c{min(i, COLOURS - 1)}"></span>{text(kind)}</li>' for i, kind in enumerate(kinds))
    return f'<ul class="key">{"".join(items)}</ul>'


def against_bound(title: str, rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Errors and the largest allowed, on a logarithmic scale: (name, error, bound)."""
    values = [v for _, error, bound in rows for v in (error, bound) if v is not None and v > 0]
    if not values:
        return ""
    low, high = math.floor(math.log10(min(values)) - 0.5), math.ceil(math.log10(max(values)) + 0.3)

    def share(value: float) -> float:
        return 100 * (math.log10(max(value, 10.0**low)) - low) / (high - low)

    drawn = []
    for i, (name, error, bound) in enumerate(rows[:MOST]):
        top = i * (ROW + 6)
        broken = error is None or (bound is not None and error > bound)
        told = f"{figure(error) or 'not finite'}{f' of {figure(bound)} allowed' if bound is not None else ''}"
        drawn += [
            _text("0", top + 14, clipped(name, NAME - len(told)), "name"),
            _text("100%", top + 14, told, anchor="end"),
        ]
        drawn.append(f'<rect class="back" x="0" y="{top + 21}" width="100%" height="{BAR}" rx="2"/>')
        width = 100.0 if error is None else share(error)
        kind = "alarm" if broken else "c0"
        drawn.append(f'<rect class="{kind}" x="0" y="{top + 21}" width="{width:.2f}%" height="{BAR}" rx="2"/>')
        if bound is not None and bound > 0:
            drawn.append(_line(share(bound), top + 18, share(bound), top + 33, "mark"))
    height = len(rows[:MOST]) * (ROW + 6)
    drawn += [
        _text(f"{100 * i / (high - low):.2f}%", height + 14, f"1e{low + i}", anchor=_anchor(i, high - low))
        for i in range(0, high - low + 1, max(1, (high - low + 3) // 4))
    ]
    described = _told([(name, f"{figure(error)} of {figure(bound)}") for name, error, bound in rows[:MOST]])
    return _svg(title, described, drawn, height + 20)


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], marks: Sequence[tuple[str, float]]) -> str:
    """Counts between edges, with named values marked; every bin is as wide as any other."""
    most = max(counts, default=0)
    if most <= 0 or len(edges) != len(counts) + 1 or edges[-1] <= edges[0]:
        return ""
    span, head = edges[-1] - edges[0], 16 * len(marks) + 6
    base = head + TALL - 90

    def place(value: float) -> float:
        return min(max(100 * (value - edges[0]) / span, 0.0), 100.0)

    width = 100 / len(counts)
    drawn = [_line(0, base, 100, base, "grid")]
    for i, count in enumerate(counts):
        high = (base - head) * count / most
        box = f'x="{i * width + 0.1:.2f}%" y="{base - high:.1f}" width="{width - 0.2:.2f}%" height="{high:.1f}"'
        drawn.append(f'<rect class="c0" {box}><title>{count}</title></rect>' if count else "")
    for i, (name, value) in enumerate(marks):
        x, y = place(value), 12 + 16 * i
        late = x > 60
        drawn.append(_line(x, y - 8, x, base, "mark"))
        drawn.append(_text(f"{x:.2f}%", y, f"{name} {figure(value)}", "name", *(("end", -5) if late else ("start", 5))))
    for i in range(5):
        value = edges[0] + span * i / 4
        drawn.append(_text(f"{25 * i}%", base + 18, figure(value), anchor=_anchor(i, 4)))
    return _svg(title, _told([(name, figure(value)) for name, value in marks]), drawn, base + 24)


def scatter(title: str, points: Sequence[Point], front: Sequence[int], x_label: str, y_label: str) -> str:
    """Points, and a line through those of `front`; x begins at 0, y does too or is logarithmic where it spans much."""
    if not points:
        return ""
    right = _round_up(max(point.x for point in points))
    positive = [point.y for point in points if point.y > 0]
    logarithmic = len(positive) > 1 and max(positive) > 30 * min(positive)
    low = math.floor(math.log10(min(positive))) if logarithmic else 0
    high = math.ceil(math.log10(max(positive)) + 1e-9) if logarithmic else 0
    top = _round_up(max(positive, default=1.0))

    def share(y: float) -> float:
        return (math.log10(max(y, 10.0**low)) - low) / (high - low) if logarithmic else y / top

    def place(point: Point) -> tuple[float, float]:
        return 4 + 92 * point.x / right, HEAD + TALL * (1 - share(point.y))

    drawn = [_text("0", 10, y_label, "name"), _text("100%", HEAD + TALL + 34, f"{x_label} →", "name", "end")]
    steps = range(low, high + 1, max(1, (high - low) // 5)) if logarithmic else range(5)
    for step in steps:
        value = 10.0**step if logarithmic else top * step / 4
        y = HEAD + TALL * (1 - share(value))
        drawn += [_line(0, y, 100, y, "grid"), _text("0", y - 4, f"{value:g}")]
    for i in range(5):
        drawn.append(_text(f"{4 + 23 * i}%", HEAD + TALL + 18, f"{right * i / 4:g}", anchor=_anchor(i, 4)))
    along = sorted((place(points[i]) for i in front), key=lambda at: at[0])
    drawn += [_line(*a, *b, "front") for a, b in pairwise(along)]
    heaviest = max((point.weight for point in points), default=1.0) or 1.0
    for point in points:
        x, y = place(point)
        radius = 4 + 7 * math.sqrt(max(point.weight, 0.0) / heaviest)
        kind = "c1" if point.strong else "c0"
        named = f"<title>{text(point.name)}</title>"
        drawn.append(f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.1f}" r="{radius:.1f}">{named}</circle>')
        late = x > 85
        shift = -radius - 3 if late else radius + 3
        drawn.append(_text(f"{x:.2f}%", y + 4, point.label, "name", "end" if late else "start", shift))
    described = _told([(point.name, f"{figure(point.x)}, {figure(point.y)}") for point in points])
    return _svg(title, f"{x_label} and {y_label}. {described}", drawn, HEAD + TALL + 40)


def course(title: str, values: Sequence[tuple[str, float]], x_label: str, y_label: str) -> str:
    """Positive values (name, value) in their order from left to right, on a logarithmic scale."""
    positive = [value for _, value in values if value > 0]
    if not positive:
        return ""
    low = math.floor(math.log10(min(positive)))
    high = max(math.ceil(math.log10(max(positive)) + 1e-9), low + 1)

    def place(i: int, value: float) -> tuple[float, float]:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return 6 + 92 * i / max(len(values) - 1, 1), HEAD + TALL * (1 - share)

    drawn = [_text("0", 10, y_label, "name"), _text("100%", HEAD + TALL + 18, f"{x_label} →", "name", "end")]
    for step in range(low, high + 1, max(1, (high - low) // 5)):
        _, y = place(0, 10.0**step)
        drawn += [_line(0, y, 100, y, "grid"), _text("0", y - 4, f"1e{step}")]
    points = [place(i, value) for i, (_, value) in enumerate(values)]
    drawn += [_line(*a, *b, "front") for a, b in pairwise(points)]
    for (x, y), (name, value) in zip(points, values, strict=True):
        named = f"<title>{text(name)} {text(figure(value))}</title>"
        drawn.append(f'<circle class="c0" cx="{x:.2f}%" cy="{y:.1f}" r="3">{named}</circle>')
    described = _told([(name, figure(value)) for name, value in values])
    return _svg(title, f"{x_label} and {y_label}. {described}", drawn, HEAD + TALL + 24)


def bins(samples: Sequence[float], most: int = 40) -> tuple[list[float], list[int]]:
    """Edges and counts over all samples, in bins of one width: as many as the root of their number, 40 at most."""
    low, high = min(samples), max(samples)
    number = max(1, min(most, round(math.sqrt(len(samples)))))
    if not high > low:
        low, high, number = low * 0.99, high * 1.01 or 1.0, 1
    width = (high - low) / number
    counts = [0] * number
    for sample in samples:
        counts[min(int((sample - low) / width), number - 1)] += 1
    return [low + i * width for i in range(number + 1)], counts


def clipped(name: str, most: int) -> str:
    """A name that fits beside its value on a phone; its end tells layers apart, so the middle goes."""
    most = max(most, 8)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def _round_up(value: float) -> float:
    """A little more than `value`, of a kind that divides by four into short numbers."""
    if not value > 0:
        return 1.0
    digits = 10.0 ** math.floor(math.log10(value))
    return next(step * digits for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if step * digits >= value * 1.01)


def _anchor(i: int, last: int) -> str:
    return "start" if i == 0 else "end" if i == last else "middle"


def _told(rows: Sequence[tuple[str, str]]) -> str:
    """The first few values, for those who hear the page."""
    more = f"; and {len(rows) - 8} more" if len(rows) > 8 else ""
    return "; ".join(f"{name} {told}".strip() for name, told in rows[:8]) + more + "."


def _text(x: str, y: float, said: str, kind: str = "", anchor: str = "start", shift: float = 0.0) -> str:
    more = f' class="{kind}"' if kind else ""
    more += f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += f' dx="{shift:.1f}"' if shift else ""
    return f'<text x="{x}" y="{y:.1f}"{more}>{text(said)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _svg(title: str, described: str, drawn: Sequence[str], height: float) -> str:
    named = f"<title>{text(title)}</title><desc>{text(described)}</desc>"
    body = "\n".join(part for part in drawn if part)
    return f'<svg role="img" height="{height:.0f}" aria-label="{text(title)}">{named}\n{body}\n</svg>'

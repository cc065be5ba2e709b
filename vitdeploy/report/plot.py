"""Two small plots as SVG text: they open in any browser, and need no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 40, 50
INK, MUTED, STRONG = "#333", "#8aa", "#c33"
MOST_BARS = 40
ROW = 18


def scatter(
    points: Sequence[tuple[float, float, str, bool]],
    line: Sequence[tuple[float, float]],
    x_label: str,
    y_label: str,
    title: str,
) -> str:
    """Points (x, y, label, strong) and a line through some of them; both axes begin at 0."""
    most_x = _round_up(max((p[0] for p in points), default=1.0))
    most_y = _round_up(max((p[1] for p in points), default=1.0))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / most_x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / most_y * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_text(LEFT, 22, title, size=15)]
    for i in range(6):
        x, y = place(most_x * i / 5, most_y * i / 5)
        parts += [_line(x, TOP, x, HEIGHT - BOTTOM), _line(LEFT, y, WIDTH - RIGHT, y)]
        parts.append(_text(x, HEIGHT - BOTTOM + 16, f"{most_x * i / 5:g}", anchor="middle"))
        parts.append(_text(LEFT - 6, y + 4, f"{most_y * i / 5:g}", anchor="end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, anchor="middle"))
    parts.append(_text(LEFT, TOP - 6, y_label, size=11))
    if len(line) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in sorted(line)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{MUTED}" stroke-dasharray="4 3"/>')
    for px, py, label, strong in points:
        x, y = place(px, py)
        colour = STRONG if strong else INK
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if strong else 4}" fill="{colour}"/>')
        end = x > WIDTH * 0.6
        parts.append(_text(x - 9 if end else x + 9, y - 5, label, 11, "end" if end else "start", colour))
    return _svg(parts, HEIGHT)


def bars(rows: Sequence[tuple[float, str]], label: str) -> str:
    """Horizontal bars (value, name), in the given order; beyond the first 40 the rest is counted."""
    shown = rows[:MOST_BARS]
    most = max((value for value, _ in shown), default=0.0) or 1.0
    left = 12 + 7 * max((len(name) for _, name in shown), default=0)
    parts = [_text(12, 22, label, size=14)]
    for i, (value, name) in enumerate(shown):
        y = 40 + i * ROW
        width = value / most * (WIDTH - left - 90)
        parts.append(_text(left - 6, y + 12, name, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{ROW - 5}" fill="{INK}"/>')
        parts.append(_text(left + width + 5, y + 12, f"{value:.3g}"))
    height = 40 + len(shown) * ROW + 10
    if len(rows) > len(shown):
        parts.append(_text(left, height + 8, f"and {len(rows) - len(shown)} smaller ones"))
        height += 20
    return _svg(parts, height)


def _round_up(value: float) -> float:
    """A little more than `value`, with one digit or two."""
    if not value > 0:
        return 1.0
    digits = 10.0 ** len(str(int(value))) / 10 if value >= 1 else 10.0 ** -_zeros(value)
    return next(step * digits for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15) if step * digits >= value * 1.02)


def _zeros(value: float) -> int:
    count = 0
    while value < 1:
        value *= 10
        count += 1
    return count


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "start", colour: str = INK) -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _svg(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return "\n".join(
        [f'{head} font-family="sans-serif">', '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )

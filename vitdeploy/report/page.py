"""A page of HTML in one file: no script, nothing from the network; for phones, paper, light and dark."""

from __future__ import annotations

from collections.abc import Container, Sequence
from html import escape
from importlib import resources
from typing import Any

from vitdeploy.report.reading import words


def document(title: str, body: str) -> str:
    """The whole file around `body`, which is HTML."""
    style = resources.files("vitdeploy.report").joinpath("page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>\n{style}</style>",
            "</head>",
            f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
        ]
    )


def text(value: Any) -> str:
    """Any value as text that is safe in HTML, also within an attribute."""
    return escape(words(value), quote=True)


def section(title: str, *parts: str) -> str:
    """A section with a heading; nothing where it would be empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(said: Any, kind: str = "") -> str:
    return f"<p{_class(kind)}>{text(said)}</p>" if said else ""


def bullets(items: Sequence[Any], kind: str = "") -> str:
    """A list of texts."""
    return f"<ul{_class(kind)}>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>" if items else ""


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names and values; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if words(value)]
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in shown)
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def tiles(pairs: Sequence[tuple[str, str, str]]) -> str:
    """The few figures that matter most: (name, value, remark); those without a value are left out."""
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(remark)}</small></dd></div>"
        for name, value, remark in pairs
        if value
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Container[int] = (), shut: bool = False
) -> str:
    """A table that scrolls in its own box; columns of the numbers in `right` are set to the right, empty ones left out.

    With `shut` it opens at a click, and is printed in any case.
    """
    if not rows:
        return ""
    kept = [i for i in range(len(heads)) if i == 0 or any(words(row[i]) for row in rows)]

    def cell(i: int, value: Any, kind: str) -> str:
        scope = ' scope="col"' if kind == "th" else ""
        return f"<{kind}{scope}{_class('n' if i in right else '')}>{text(value)}</{kind}>"

    def line(row: Sequence[Any]) -> str:
        first = f'<th scope="row"{_class("n" if 0 in right else "")}>{text(row[0])}</th>'
        return f"<tr>{first}{''.join(cell(i, row[i], 'td') for i in kept if i)}</tr>"

    head = "".join(cell(i, heads[i], "th") for i in kept)
    body = "\n".join(line(row) for row in rows)
    named = "" if shut else f"<caption>{text(caption)}</caption>"
    box = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table>{named}\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
    return f"<details>\n<summary>{text(caption)}</summary>\n{box}\n</details>" if shut else box


def figure(caption: str, picture: str, numbers: str) -> str:
    """A plot with its numbers, which are a table; nothing where there is no plot."""
    if not picture:
        return numbers
    return f"<figure>\n<figcaption>{text(caption)}</figcaption>\n{picture}\n{numbers}\n</figure>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""

"""The texts that lie beside an artifact's manifest."""

from __future__ import annotations

from vitdeploy.artifact import Manifest
from vitdeploy.report import card, html, markdown
from vitdeploy.report.reading import TEXTS


def texts(manifest: Manifest) -> dict[str, str]:
    """The texts about an artifact by file name; see `TEXTS`.

    The same manifest gives the same texts, also when it was read from its file: there keys are sorted, and what is not
    finite is None.
    """
    manifest = Manifest.from_json(manifest.to_json())
    return dict(zip(TEXTS, (markdown.report(manifest), html.report(manifest), card.card(manifest)), strict=True))

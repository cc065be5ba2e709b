"""Where vitdeploy keeps what it need not find out twice."""

from __future__ import annotations

import os
from pathlib import Path


def folder(what: str) -> Path:
    """$VITDEPLOY_CACHE, or vitdeploy/ in the user's cache folder, and in it the folder of this name."""
    own = os.environ.get("VITDEPLOY_CACHE")
    if own:
        return Path(own).expanduser() / what
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "vitdeploy" / what

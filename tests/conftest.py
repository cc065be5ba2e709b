"""Options and fixtures that every test shares."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure() -> None:
    # Behind `nohup` or `&` these come ignored, and processes under test would inherit that.
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: give --slow to run it"))


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch = sys.modules.get("torch")
    most = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    if torch is not None and torch.get_num_threads() > most:
        torch.set_num_threads(most)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole run: for files that are dear to make and only read afterwards."""
    return tmp_path_factory.mktemp("session")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within, no other process holds the same lock; where there are no such locks, each has its own."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: a folder that `make(folder)` fills, once for all test processes of a run. Only to be read."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    # Inductor tries the compiler out before each compile, unless it remembers.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / f"once-{name}"
        with locked(root / f"once-{name}.lock"):
            if not folder.exists():
                part = Path(tempfile.mkdtemp(dir=root))
                try:
                    make(part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        return folder

    return get


@pytest.fixture(scope="session")
def net_code() -> str:
    """A user's own file with a small model, Net, which does not say its input size."""
    return """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 4, 8, 8)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def sized():
    net = Net()
    net.image_size = 16
    return net
"""


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """210 photos of odd sizes, lying and standing, up to five times as long as wide: uint8 (height, width, 3).

    They are parts of what VITDEPLOY_TEST_PHOTOS holds, or of the wallpapers of Debian's packages mate-backgrounds and
    lomiri-wallpapers-16.04 and -20.04.
    """
    from PIL import Image

    folder = Path(os.environ.get("VITDEPLOY_TEST_PHOTOS", "/usr/share/backgrounds"))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png") and path.stat().st_size < 1e7)
    if len(files) < 20:
        pytest.skip(f"there are no 20 photos in {folder}: apt-get install mate-backgrounds lomiri-wallpapers-16.04")
    whole = []
    for file in files:
        with Image.open(file) as image:
            image.draft("RGB", (2200, 2200))
            whole.append(image.convert("RGB"))
            whole[-1].thumbnail((2200, 2200))
    draw, found = np.random.default_rng(0), []
    for i in range(210):
        image = whole[i % len(whole)]
        width, height = (int(draw.integers(side // 5, side + 1)) for side in image.size)
        left, top = int(draw.integers(0, image.width - width + 1)), int(draw.integers(0, image.height - height + 1))
        part = np.asarray(image.crop((left, top, left + width, top + height)))
        found.append(np.ascontiguousarray(np.rot90(part) if draw.random() < 0.5 else part))
    return found

"""A file with its preprocessing inside, on real photos, in headless Chromium, against Pillow and eager PyTorch."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("ort_web")
Start = Callable[..., str]
BOUND, TALL = 5e-4, 1e-2  # as in tests/pipeline/test_photos.py

# The page's own worker opens the file; each photo is handed to it as an app would.
OPEN = """async (file) => {
    const worker = new Worker("worker.js", { type: "module" });
    const answers = new Map();
    worker.onmessage = ({ data }) => "id" in data && answers.get(data.id)(data);
    let calls = 0;
    window.ask = (op, args) => new Promise((done, fail) => {
        answers.set(++calls, (data) => "error" in data ? fail(new Error(data.error)) : done(data.found));
        worker.postMessage({ id: calls, op, args });
    });
    await window.ask("open", { model: { file, external: [] }, provider: "wasm", threads: 1 });
}"""
PREDICT = """async ([pixels, shape]) => {
    const data = Uint8Array.from(atob(pixels), (c) => c.charCodeAt(0));
    const found = await window.ask("predict", { inputs: [{ name: "image", dtype: "uint8", shape, data }] });
    return Object.fromEntries(Object.entries(found).map(([name, data]) => [name, Array.from(data)]));
}"""


@pytest.mark.slow
def test_photos_get_their_labels_in_the_browser(
    page: Any, photos: list[np.ndarray], tmp_path: Path, start: Start
) -> None:
    import torch
    from PIL import Image

    import vitdeploy
    from vitdeploy.data.images import preprocess
    from vitdeploy.models.build import rebuild

    options = {"embed_preprocessing": True, "embed_postprocessing": True, "bench": False}
    artifact = vitdeploy.export("mobilevit_xs", out=tmp_path / "made", **options)
    spec = artifact.manifest.model
    module = rebuild(spec).module
    page.goto(start(artifact.folder))
    page.wait_for_selector("body[data-state=ready]", timeout=30_000)
    page.evaluate(OPEN, page.evaluate("fetch('config.json').then((a) => a.json()).then((c) => c.models[0].file)"))
    for photo in photos:
        with torch.inference_mode():
            wanted = module(torch.from_numpy(preprocess(Image.fromarray(photo), spec.input)[None])).numpy()[0]
        got = page.evaluate(PREDICT, [base64.b64encode(photo.tobytes()).decode(), list(photo.shape)])
        error = np.abs(np.array(got["logits"]) - wanted).max() / np.abs(wanted).max()
        assert error <= (TALL if photo.shape[0] > 2 * photo.shape[1] else BOUND), photo.shape
        assert int(got["indices"][0]) == int(wanted.argmax()), photo.shape


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("rgb", None), ("nv21", (120, 160))], ids=["rgb", "nv21"])
def test_page_proves_and_classifies_with_frames(
    page: Any, tmp_path: Path, start: Start, flags: tuple[str, tuple[int, int] | None], tiny_config: dict[str, Any]
) -> None:
    from test_page import DONE, png

    import vitdeploy

    name, size = flags
    embed = {"embed_preprocessing": True, "frame_format": name, "frame_size": size, "embed_postprocessing": True}
    artifact = vitdeploy.export("zoo:levit", arguments=tiny_config, out=tmp_path / "made", bench=False, **embed)
    page.goto(start(artifact.folder))
    page.wait_for_selector("body[data-state=ready]", timeout=30_000)
    page.fill("#seconds", "0.3")
    page.click("#start")
    page.wait_for_selector(DONE, timeout=60_000)
    assert page.get_attribute("body", "data-state") == "done"
    assert "match PyTorch's" in page.inner_text("#models")
    page.set_input_files("#file", png(231, 173))
    page.wait_for_selector("#classes li", timeout=30_000)
    assert page.locator("#classes li.fail").count() == 0
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(231, 173)["buffer"])
    best = vitdeploy.predict(artifact.folder, [photo])[0]["top"][0]
    shown = page.inner_text("#classes li >> nth=0")
    assert f"class {best['index']} " in shown

"""The page in headless Chromium."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.data.images import _centre, normalise, preprocess, resized_size
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputSpec

pytestmark = pytest.mark.usefixtures("ort_web")
Start = Callable[..., str]
DONE = "body[data-state=done], body[data-state=failed]"


def ready(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]", timeout=30_000)


def prove(page: Any, seconds: str = "0.3") -> None:
    page.fill("#seconds", seconds)
    page.fill("#device", "Test <b>phone</b>")
    page.click("#start")
    page.wait_for_selector(DONE, timeout=180_000)


def fits(page: Any) -> bool:
    """No sideways scrolling."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def photo(height: int, width: int) -> Any:
    from PIL import Image

    coarse = np.random.default_rng(height).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(height: int, width: int) -> dict[str, Any]:
    file = io.BytesIO()
    photo(height, width).save(file, "PNG")
    return {"name": "photo.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_page_proves_measures_and_reports_when_started(page: Any, tiny: Path, tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    ready(page, start(folder))
    assert page.evaluate("crossOriginIsolated")
    prove(page)
    assert page.get_attribute("body", "data-state") == "done"
    assert "match PyTorch's" in page.inner_text("#models")
    assert fits(page)
    artifact = Artifact.load(folder)
    artifact.check_files()
    (found,) = artifact.manifest.devices
    assert found["device"] == "Test <b>phone</b>"
    assert found["provider"] == "wasm"
    assert found["verification"]["passed"]
    assert 0 < found["verification"]["outputs"]["logits"]["rel_max"] <= 1e-5
    assert found["latency"]["count"] > 1
    for name in ("report.md", "report.html"):
        assert "Test &lt;b&gt;phone&lt;/b&gt;" in (folder / name).read_text()
    page.set_input_files("#file", png(231, 173))
    page.wait_for_selector("#classes li", timeout=30_000)
    assert page.locator("#classes li").count() == 5
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_selector("#classes li.fail", timeout=30_000)


def test_page_tells_when_outputs_are_not_pytorchs(page: Any, tiny: Path, tmp_path: Path, start: Start) -> None:
    """The served file is another model than the one that PyTorch runs: the page and the server must both see it."""
    import onnx

    from vitdeploy.artifact import staged

    folder = tmp_path / "tiny"
    model = onnx.load(tiny / "model.onnx")
    weights = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * np.float32(1.5)).tobytes()
    with staged(folder) as stage:
        onnx.save(model, stage.folder / "model.onnx")
        stage.commit(Artifact.load(tiny).manifest)
    ready(page, start(folder))
    prove(page)
    assert "do not match PyTorch's" in page.inner_text("#models")
    (found,) = Artifact.load(folder).manifest.devices
    assert not found["verification"]["passed"]


def test_packaged_page_proves_itself_when_any_web_server_serves_it(page: Any, tiny: Path, tmp_path: Path) -> None:
    from vitdeploy.pipeline import package_web

    folder = package_web([tiny], tmp_path / "made" / "site")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        ready(page, f"http://127.0.0.1:{server.server_port}/")
        prove(page)
        server.shutdown()
    assert page.get_attribute("body", "data-state") == "done"
    assert "match PyTorch's" in page.inner_text("#models")
    with pytest.raises(UsageError, match="exists"):
        package_web([tiny], folder)


def test_package_leaves_nothing_when_an_artifact_is_not_for_browsers(tmp_path: Path, tiny: Path) -> None:
    from vitdeploy.artifact import staged
    from vitdeploy.pipeline import package_web

    with staged(tmp_path / "other") as stage:
        (stage.folder / "model.onnx").write_bytes(b"")
        manifest = Artifact.load(tiny).manifest
        stage.commit(replace(manifest, request={**manifest.request, "backend": "openvino"}))
    with pytest.raises(UsageError, match="a browser opens"):
        package_web([tmp_path / "other"], tmp_path / "made" / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


SPECS = [
    InputSpec((3, 32, 32)),
    InputSpec((3, 48, 32), crop_pct=1.0, interpolation="bilinear"),
    InputSpec((3, 32, 32), crop_mode="squash", interpolation="lanczos"),
    InputSpec((3, 32, 40), crop_mode="border", interpolation="hamming"),
    InputSpec((1, 32, 32), mean=(0.5,), std=(0.25,), interpolation="box"),
    InputSpec((3, 32, 32), crop_pct=0.95, interpolation="nearest"),
]
SIZES = [(57, 1023), (1023, 57), (301, 203), (32, 32), (20, 25), (640, 480)]
# Decodes a PNG as the page does, and preprocesses it.
SCRIPT = """async ([png, spec, at]) => {
    const { preprocess } = await import(at);
    const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes]), { colorSpaceConversion: "none" });
    const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    return Array.from(preprocess(pen.getImageData(0, 0, image.width, image.height), spec));
}"""


def across_then_down(image: Any, spec: InputSpec) -> np.ndarray:
    """What Pillow makes of it in that order; some versions take the other where it is cheaper, and round elsewhere."""
    from PIL import Image

    how = Image.Resampling[spec.interpolation.upper()]
    height, width = resized_size(image.height, image.width, spec)
    resized = image.resize((width, image.height), how).resize((width, height), how)
    return normalise(np.asarray(_centre(resized, spec)), spec)


def test_page_preprocesses_as_pillow_does(page: Any, tiny: Path, start: Start) -> None:
    address = start(tiny)
    ready(page, address)
    for spec in SPECS:
        for height, width in SIZES:
            data = base64.b64encode(png(height, width)["buffer"]).decode()
            given = [data, spec.to_dict(), urljoin(address, "preprocess.js")]
            got = np.array(page.evaluate(SCRIPT, given), np.float32).reshape(spec.shape)
            image = photo(height, width).convert("L" if spec.shape[0] == 1 else "RGB")
            np.testing.assert_allclose(got, across_then_down(image, spec), atol=1e-6, err_msg=f"{spec} {height}")
            off = np.abs(got - preprocess(image, spec)) * 255 * np.array(spec.std)[:, None, None]
            assert off.max() < 1.01, (spec, height)


@pytest.mark.slow
def test_page_verifies_mobilevit_xs_when_it_is_fp32_and_int8(page: Any, tmp_path: Path, start: Start) -> None:
    from vitdeploy import api

    folders = [tmp_path / "fp32", tmp_path / "int8"]
    api.export("mobilevit_xs", out=folders[0], bench=False)
    calibration = {"calib_random": True, "calib_images": 16}
    api.export("mobilevit_xs", precision="int8", out=folders[1], bench=False, **calibration)
    ready(page, start(*folders))
    prove(page, "1")
    assert page.get_attribute("body", "data-state") == "done"
    assert fits(page)
    for folder, bound in zip(folders, (1e-5, 0.4), strict=True):
        (found,) = Artifact.load(folder).manifest.devices
        assert found["verification"]["passed"]
        assert found["verification"]["outputs"]["logits"]["rel_max"] <= bound
        assert found["latency"]["p50"] > 0
        assert found["device"].split("<")[0] in (folder / "report.html").read_text()

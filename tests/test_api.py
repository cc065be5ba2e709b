"""The public API: the command line's verbs in Python, as often as one likes, whatever was imported before."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitdeploy

VERBS = ("build", "export", "load", "verify", "evaluate", "bench", "compare", "inspect", "predict", "models", "tune")


@pytest.fixture(scope="module")
def work(session_folder: Path, net_code: str) -> Path:
    folder = session_folder / "api"
    folder.mkdir()
    (folder / "net.py").write_text(net_code)
    Image.new("RGB", (40, 30), (200, 100, 50)).save(folder / "photo.png")
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(40) % 4)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_callable_documented_and_stay_so(verb: str) -> None:
    import vitdeploy.bench.stats
    import vitdeploy.export.trace
    import vitdeploy.models.catalog
    import vitdeploy.tune.plans
    import vitdeploy.verify.metrics

    assert callable(getattr(vitdeploy, verb))
    assert verb in dir(vitdeploy)
    assert inspect.signature(getattr(vitdeploy, verb)).parameters
    assert vitdeploy.export.trace.OPSET
    assert vitdeploy.verify.metrics.BOUNDS


def test_every_verb_does_its_work_twice(work: Path) -> None:
    name = f"{work / 'net.py'}:sized"
    for precision in ("fp32", "fp16"):
        out = work / precision
        artifact = vitdeploy.export(name, precision=precision, out=out, warmup=0, duration=0.1)
        assert artifact.manifest.verification["passed"] is True
        assert vitdeploy.verify(out, model=name)
        assert vitdeploy.inspect(out)["parameters"] == 4 * 3 * 64 + 4
        (found,) = vitdeploy.predict(out, [work / "photo.png"], top=2)
        assert len(found["top"]) == 2
        score = vitdeploy.evaluate(out, work / "data.npz", eager=True, model=name)
        assert (score.score.top1.total, score.score.top5, score.eager[1].agreement.total) == (40, None, 40)
        with vitdeploy.load(out, threads=1) as session:
            assert session.run({"image": np.zeros((1, 3, 16, 16), np.float32)})["logits"].shape == (1, 4)
    both = vitdeploy.bench(work / "fp32", work / "fp16", warmup=0, duration=0.1)
    assert [m.batch for m in both] == [1, 1]
    assert "levit_128s" in vitdeploy.models("levit*")
    assert vitdeploy.build("mobilevit_xxs").spec.name == "mobilevit_xxs"


def test_tune_chooses_scores_and_writes_what_it_chose(work: Path) -> None:
    name, out = f"{work / 'net.py'}:sized", work / "tuned"
    found = vitdeploy.tune(name, data=work / "data.npz", time_budget=0, duration=0.1, out=out)
    assert found.artifact.folder == out
    assert found.chosen.plan.precision == "fp32"  # there was no time for another
    with vitdeploy.load(out) as session:
        assert session.run({"image": np.zeros((1, 3, 16, 16), np.float32)})["logits"].shape == (1, 4)
    with pytest.raises(vitdeploy.UsageError, match="Unknown option colour"):
        vitdeploy.tune(name, colour="red")


def test_unknown_options_and_names_are_refused() -> None:
    with pytest.raises(vitdeploy.UsageError, match="Unknown option colour"):
        vitdeploy.build("mobilevit_xxs", colour="red")
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        vitdeploy.exprot("mobilevit_xxs")


def test_import_is_light() -> None:
    code = "import sys, vitdeploy; sys.exit(bool({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.artifact import Artifact, Manifest
from vitdeploy.errors import UsageError
from vitdeploy.lab import results
from vitdeploy.lab.site import Subject
from vitdeploy.spec import InputSpec, ModelSpec
from vitdeploy.verify.collect import Case

LOGITS = np.random.default_rng(0).normal(size=(2, 1, 5)).astype(np.float32)
MODEL = ModelSpec("tiny", input=InputSpec((3, 4, 4)), num_classes=5)


@pytest.fixture
def subjects() -> list[Subject]:
    cases = [Case(np.full((1, 3, 4, 4), k, np.float32), f"synthetic seed {k}") for k in range(2)]
    artifact = Artifact(Path("tiny-fp32"), Manifest(MODEL, request={"precision": "fp32"}))
    return [Subject(artifact, cases, [{"logits": one} for one in LOGITS])]


def post(logits: np.ndarray = LOGITS, **changes: Any) -> bytes:
    data = {
        "model": 0,
        "device": "Phone",
        "agent": "Browser/1",
        "runtime": "onnxruntime-web 1",
        "provider": "wasm",
        "gpu": "",
        "threads": 2,
        "cores": 8,
        "samples": [0.001, 0.002, 0.003],
        "outputs": [{"logits": base64.b64encode(one.astype("<f4").tobytes()).decode()} for one in logits],
    }
    return json.dumps({key: value for key, value in (data | changes).items() if value is not ...}).encode()


def test_record_judges_and_summarises_when_the_post_is_good(subjects: list[Subject]) -> None:
    index, found = results.record(post(), subjects)
    assert index == 0
    assert found["verification"]["passed"]
    assert found["latency"]["p50"] == pytest.approx(2)
    assert found["latency"]["count"] == 3
    assert {"device", "agent", "runtime", "provider", "threads", "when"} <= set(found)


def test_record_fails_verification_when_outputs_are_off(subjects: list[Subject]) -> None:
    _, found = results.record(post(LOGITS * 1.01), subjects)
    assert not found["verification"]["passed"]


def test_record_fails_verification_when_an_output_is_nan(subjects: list[Subject]) -> None:
    _, found = results.record(post(np.where(LOGITS.max() == LOGITS, np.nan, LOGITS)), subjects)
    assert not found["verification"]["passed"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "fields"),
        (post(device=...), "fields"),
        (post(surprise=1), "fields"),
        (post(model=1), "'model'"),
        (post(model=True), "'model'"),
        (post(model=-1), "'model'"),
        (post(device=" "), "no name"),
        (post(device="a" * 81), "'device'"),
        (post(device="a\nb"), "'device'"),
        (post(agent=3), "'agent'"),
        (post(threads=1.5), "'threads'"),
        (post(cores=10**9), "'cores'"),
        (post(samples=[]), "'samples'"),
        (post(samples="1"), "'samples'"),
        (post(samples=[0.1] * (results.MOST_SAMPLES + 1)), "'samples'"),
        (post(samples=[-1]), "seconds of a run"),
        (post(samples=[True]), "seconds of a run"),
        (post(samples=[1e9]), "seconds of a run"),
        (post(samples=[float("nan")]), "seconds of a run"),
        (post(outputs=[]), "'outputs'"),
        (post(outputs=[1, 2]), "outputs are not logits"),
        (post(outputs=[{"other": ""}] * 2), "outputs are not logits"),
        (post(outputs=[{"logits": "?"}] * 2), "not base64"),
        (post(outputs=[{"logits": 7}] * 2), "not base64"),
        (post(outputs=[{"logits": ""}] * 2), "0 bytes"),
    ],
)
def test_record_refuses_what_is_no_result(body: bytes, words: str, subjects: list[Subject]) -> None:
    with pytest.raises(UsageError, match=words):
        results.record(body, subjects)

"""Scores and indices against the logits that they are of."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.verify.answers import agrees, part_answers


def outputs(top: int = 3) -> dict[str, np.ndarray]:
    logits = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    indices = np.argsort(-odds, axis=1)[:, :top]
    return {"logits": logits, "scores": np.take_along_axis(odds, indices, 1), "indices": indices}


def test_right_answers_agree_and_are_taken_away() -> None:
    found = outputs()
    plain, reasons = part_answers([found, {**found, "indices": found["indices"].astype(np.int32)}])
    assert [list(one) for one in plain] == [["logits"], ["logits"]]
    assert reasons == []


def test_outputs_without_answers_are_left_as_they_are() -> None:
    plain, reasons = part_answers([{"logits": np.zeros((1, 2)), "map": np.ones(3)}])
    assert list(plain[0]) == ["logits", "map"]
    assert reasons == []


@pytest.mark.parametrize("wrong", ["other class", "order", "score", "repeated", "beyond", "missing", "shape"])
def test_wrong_answers_are_told(wrong: str) -> None:
    found = outputs()
    indices, scores = found["indices"].copy(), found["scores"].copy()
    if wrong == "other class":
        indices[0, 0] = next(i for i in range(6) if i not in indices[0])
    elif wrong == "order":
        indices, scores = indices[:, ::-1], scores[:, ::-1]
    elif wrong == "score":
        scores[1, 2] += 1e-3
    elif wrong == "repeated":
        indices[0, 1] = indices[0, 0]
    elif wrong == "beyond":
        indices[0, 0] = 6
    elif wrong == "shape":
        scores = scores[:, :2]
    found |= {"indices": indices, "scores": scores}
    if wrong == "missing":
        del found["scores"]
    assert not agrees(found)
    _, reasons = part_answers([outputs(), found])
    assert len(reasons) == 1
    assert "1 of 2" in reasons[0]

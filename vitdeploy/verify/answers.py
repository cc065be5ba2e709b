"""A file's own answers, held against its own logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitdeploy.spec import INDICES, OUTPUTS, SCORES

CLOSE = 1e-4  # of probabilities: runtimes have exponentials of their own


def part_answers(outputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The outputs without scores and indices, and why these are not what the logits say: a sentence, or none."""
    plain = [{name: array for name, array in one.items() if name not in (SCORES, INDICES)} for one in outputs]
    wrong = sum(not agrees(one) for one in outputs if SCORES in one or INDICES in one)
    if not wrong:
        return plain, []
    return plain, [
        f"The scores and indices of {wrong} of {len(outputs)} inputs are not those of the file's own logits."
    ]


def agrees(outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether scores are the largest values of softmax, in falling order, and indices say where they are."""
    if not {SCORES, INDICES, OUTPUTS[0]} <= set(outputs):
        return False
    logits = outputs[OUTPUTS[0]].astype(np.float64)
    scores, indices = outputs[SCORES], outputs[INDICES].astype(np.int64)
    if scores.shape != indices.shape or scores.ndim != 2 or len(scores) != len(logits):
        return False
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    if indices.size == 0 or indices.min() < 0 or indices.max() >= logits.shape[1]:
        return False
    if any(len(set(row)) < len(row) for row in indices.tolist()):
        return False
    best = -np.sort(-odds, axis=1)[:, : scores.shape[1]]
    named = np.take_along_axis(odds, indices, axis=1)
    return bool(np.abs(scores - best).max() <= CLOSE and np.abs(named - best).max() <= CLOSE)

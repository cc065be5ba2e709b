"""What a device reports: read with suspicion, and judged here."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np

from vitdeploy.bench.stats import LatencyStats
from vitdeploy.errors import UsageError
from vitdeploy.lab.site import Subject
from vitdeploy.verify.compare import Verification, verify_outputs

MOST_SAMPLES = 20_000
LONGEST = {"device": 80, "agent": 400, "runtime": 80, "provider": 20, "gpu": 120}
COUNTS = ("threads", "cores")
SLOWEST = 600.0  # seconds a run


def record(body: bytes, subjects: list[Subject]) -> tuple[int, dict[str, Any]]:
    """Read and judge one post.

    Args:
        body: JSON: 'model' (its index), the texts of LONGEST, the whole numbers of COUNTS, 'samples' (seconds of
            single runs), 'outputs' (a list of {name: base64 of little-endian float32}, one a case).

    Returns:
        The model's index, and the record: those texts and numbers, 'verification', 'latency' in ms, 'when'.

    Raises:
        UsageError: it is anything else.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("The post is not JSON.") from None
    names = {"model", "samples", "outputs", *LONGEST, *COUNTS}
    if not isinstance(data, dict) or set(data) != names:
        raise UsageError(f"The post does not have just the fields {', '.join(sorted(names))}.")
    index = whole(data["model"], "model", 0, len(subjects) - 1)
    subject = subjects[index]
    verification = judged(subject, data["outputs"])
    stats = LatencyStats.from_seconds(samples(data["samples"]), batch=len(subject.cases[0].image))
    texts = {name: text(data[name], name, longest) for name, longest in LONGEST.items()}
    if not texts["device"].strip():
        raise UsageError("The device has no name.")
    return index, {
        **texts,
        **{name: whole(data[name], name, 0, 4096) for name in COUNTS},
        "verification": verification.to_dict(),
        "latency": stats.to_dict(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def judged(subject: Subject, outputs: Any) -> Verification:
    """The device's outputs against eager PyTorch's, by the bounds of the artifact's precision."""
    if not isinstance(outputs, list) or len(outputs) != len(subject.reference):
        raise UsageError(f"'outputs' is not a list of {len(subject.reference)}.")
    got = [tensors(one, wanted) for one, wanted in zip(outputs, subject.reference, strict=True)]
    described = [case.describe() for case in subject.cases]
    logits = {"logits"} & set(subject.reference[0]) or None
    return verify_outputs(
        subject.reference, got, subject.precision, cases=described, logits=logits, frames=subject.frames
    )


def tensors(posted: Any, wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not isinstance(posted, dict) or set(posted) != set(wanted):
        raise UsageError(f"A case's outputs are not {', '.join(wanted)}.")
    found = {}
    for name, reference in wanted.items():
        try:
            data = base64.b64decode(posted[name], validate=True)
        except (TypeError, ValueError):
            raise UsageError(f"Output '{name}' is not base64.") from None
        if len(data) != 4 * reference.size:
            raise UsageError(f"Output '{name}' has {len(data)} bytes, not {4 * reference.size}.")
        found[name] = np.frombuffer(data, "<f4").reshape(reference.shape)
    return found


def samples(posted: Any) -> list[float]:
    """Seconds of single runs."""
    if not isinstance(posted, list) or not 1 <= len(posted) <= MOST_SAMPLES:
        raise UsageError(f"'samples' is not a list of 1 to {MOST_SAMPLES} numbers.")
    for one in posted:
        real = isinstance(one, (int, float)) and not isinstance(one, bool)
        if not real or not math.isfinite(one) or not 0 <= one <= SLOWEST:
            raise UsageError("'samples' has something that is not the seconds of a run.")
    return [float(one) for one in posted]


def text(value: Any, name: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise UsageError(f"'{name}' is not a text of at most {longest} printable letters.")
    return value


def whole(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"'{name}' is not a whole number from {least} to {most}.")
    return value

"""Plan: which precision each op gets and who runs it. Trial: what was measured of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Plan:
    """One way to compile the model.

    Attributes:
        backend: by name.
        precision: as in spec.PRECISIONS.
        keep: layers that stay in float, by their exact labels, sorted.
        attention: int8 for the products of two activations too.
        why: what it is, for people, behind the precision: 'all', 'where it pays', 'less 5 ops'; no part of its key.
    """

    backend: str
    precision: str
    keep: tuple[str, ...] = ()
    attention: bool = False
    why: str = field(default="", compare=False)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised."""
        return self.precision in FLOATS

    @property
    def name(self) -> str:
        """For people: 'onnxruntime int8, less 5 ops'."""
        return f"{self.backend} {self.precision}" + (f", {self.why}" if self.why else "")

    @property
    def is_rung(self) -> bool:
        """Whether it is one of a ladder's."""
        return "less" in self.why

    @property
    def key(self) -> str:
        """The same for the same plan, in any run."""
        own = {name: value for name, value in asdict(self).items() if name != "why"}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        return cls(**{**data, "keep": tuple(data["keep"])})


@dataclass(frozen=True)
class Answers:
    """How a plan's answers compare with the fp32 model's on the same images.

    Attributes:
        images: how many.
        changed: images that change class.
        gained, lost: labelled images that only the plan, and only fp32, gets right; None without labels.
        error: relative L2 of the logits.
    """

    images: int
    changed: int
    error: float
    gained: int | None = None
    lost: int | None = None

    @property
    def drop(self) -> float | None:
        """Percentage points of top-1 that the plan loses; None without labels."""
        return None if self.gained is None or self.lost is None else 100 * (self.lost - self.gained) / self.images

    @property
    def change(self) -> float:
        """Percentage of images that change class: top-1 cannot drop by more."""
        return 100 * self.changed / self.images

    def __add__(self, other: Answers) -> Answers:
        """Both sets of images together."""
        images = self.images + other.images
        error = ((self.error**2 * self.images + other.error**2 * other.images) / images) ** 0.5
        known = None not in (self.gained, other.gained)
        gained, lost = (self.gained or 0) + (other.gained or 0), (self.lost or 0) + (other.lost or 0)
        return Answers(images, self.changed + other.changed, error, gained if known else None, lost if known else None)


@dataclass(frozen=True)
class Trial:
    """What was measured of a plan.

    Attributes:
        ratio: fp32's latency on the first backend over this plan's, from rounds in turn: above 1 is faster.
        low, high: its 95 % interval.
        p50: milliseconds.
        bytes: of the model's files.
        search: on the images that the search sees.
        held_out: on those that it does not; None until the plan was a candidate for the end.
        failed: why there is no such file; then everything else is void.
        int8_share: of the MACs, in the plan.
    """

    plan: Plan
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p50: float = 0.0
    bytes: int = 0
    search: Answers | None = None
    held_out: Answers | None = None
    failed: str = ""
    int8_share: float = 0.0

    @property
    def answers(self) -> Answers | None:
        """On every image that it was tried on."""
        if self.search is None or self.held_out is None:
            return self.search
        return self.search + self.held_out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"plan": self.plan.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        answers = {name: Answers(**data[name]) if data[name] else None for name in ("search", "held_out")}
        return cls(**{**data, "plan": Plan.from_dict(data["plan"]), **answers})


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front: trials that no other beats in both latency and error, fastest first."""
    alive = [trial for trial in trials if not trial.failed and trial.search is not None]
    best: list[Trial] = []
    for trial in sorted(alive, key=lambda t: (-t.ratio, _error(t))):
        if not best or _error(trial) < _error(best[-1]):
            best.append(trial)
    return best


def _error(trial: Trial) -> float:
    assert trial.search is not None
    return trial.search.error

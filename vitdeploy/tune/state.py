"""What a tune has measured so far, on disk after every step, so that a run that was cut off goes on."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy.tune.budget import Budget
from vitdeploy.tune.plans import Trial

FORMAT = 1


@dataclass
class State:
    """Everything that costs time to find out.

    Attributes:
        file: where it is kept.
        digest: of what the figures depend on: graph, images, machine, options.
        trials: by the plan's key, in the order in which they were measured.
        errors: relative L2 by label, of single ops in int8; empty until it was needed.
        savings: by backend: predicted seconds that int8 saves, by label.
        resumed: how many trials an earlier run left.
    """

    file: Path
    digest: str
    trials: dict[str, Trial] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    savings: dict[str, dict[str, float]] = field(default_factory=dict)
    resumed: int = 0

    @classmethod
    def open(cls, file: Path, digest: str) -> State:
        """What an earlier run with the same digest left, or a fresh one."""
        state = cls(file, digest)
        with suppress(Exception):  # what cannot be read is measured again
            data = json.loads(file.read_text(encoding="utf-8"))
            if (data["format"], data["digest"]) == (FORMAT, digest):
                trials = [Trial.from_dict(entry) for entry in data["trials"]]
                state.trials = {trial.plan.key: trial for trial in trials}
                state.errors, state.savings = data["errors"], data["savings"]
                state.resumed = len(trials)
        return state

    def save(self) -> None:
        """Write it in one step: a run that dies meanwhile leaves the old one."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "digest": self.digest,
            "trials": [trial.to_dict() for trial in self.trials.values()],
            "errors": self.errors,
            "savings": self.savings,
        }
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(data, indent=1), encoding="utf-8")
        part.replace(self.file)

    def add(self, trial: Trial) -> None:
        self.trials[trial.plan.key] = trial
        self.save()


def describe(trial: Trial, budget: Budget) -> dict[str, Any]:
    """JSON values of a trial for a manifest, with why the budget leaves it out."""
    answers = trial.answers
    facts = {} if answers is None else {**asdict(answers), "drop_pp": answers.drop, "change_percent": answers.change}
    return trial.to_dict() | {"name": trial.plan.name, "answers": facts, "out": budget.why_not(trial)}

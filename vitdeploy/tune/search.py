"""What to measure next. The answer follows from what was measured alone, so that a run that was cut off goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vitdeploy.tune.budget import Budget
from vitdeploy.tune.plans import Plan, Trial

STEPS = 6  # plans on the way from int8 to float, at the most
MIN_GAIN = 1.03  # times float's speed: for less nobody gives up accuracy


@dataclass(frozen=True)
class Op:
    """What is known of one product before a plan with it is measured.

    Attributes:
        label: of its weight.
        saving: predicted seconds that int8 saves.
        error: relative L2 of the logits when it alone is in int8.
    """

    label: str
    saving: float
    error: float = 0.0


def where_it_pays(start: Plan, ops: Sequence[Op]) -> Plan | None:
    """The plan without the ops that int8 is predicted to slow down; None where there is none such, or nothing else."""
    slower = [op.label for op in ops if op.saving < 0 and op.label not in start.keep]
    if not slower or len(slower) == len(ops):
        return None
    return replace(start, keep=tuple(sorted({*start.keep, *slower})), why=_why(start, "where it pays"))


def ladder(start: Plan, ops: Sequence[Op]) -> list[Plan]:
    """Plans from `start` towards float: each leaves one more op in float, the most error for the least time first."""
    free = [op for op in ops if op.label not in start.keep]
    # What saves nothing goes first.
    free.sort(key=lambda op: -(op.error**2) / max(op.saving, 1e-9))
    plans = []
    for count in range(1, len(free)):
        keep = tuple(sorted({*start.keep, *(op.label for op in free[:count])}))
        plans.append(replace(start, keep=keep, why=_why(start, f"less {count} op{'s' * (count > 1)}")))
    return plans


def rung(start: Plan, ops: Sequence[Op], trials: Mapping[str, Trial], budget: Budget) -> Plan | None:
    """The next plan to measure between `start`, which is not accurate enough, and float; None at the end.

    Errors of single ops add up in squares: the first steps go where what is left should be small enough, and once a
    mixture is accurate enough, half way back.
    """
    rungs = [start, *ladder(start, ops)]
    tried = {i: trials[plan.key] for i, plan in enumerate(rungs) if plan.key in trials}
    if len(tried) > STEPS:
        return None
    good = [i for i, trial in tried.items() if not trial.failed and trial.search and _accurate(trial, budget)]
    high = min(good, default=len(rungs))
    low = max((i for i in tried if i < high), default=0)
    error = {op.label: op.error**2 for op in ops}
    left = [sum(error[label] for label in error if label not in plan.keep) for plan in rungs] + [0.0]
    if good:
        wanted = (left[low] + left[high]) / 2
    else:
        last = tried[low].search
        share = min(0.7, 0.9 * budget.share(last)) if last is not None else 0.7
        wanted = left[low] * share**2
    inside = range(low + 1, min(high, len(rungs)))
    return rungs[min(inside, key=lambda i: abs(left[i] - wanted))] if inside else None


def contenders(trials: Sequence[Trial], budget: Budget) -> list[Trial]:
    """Trials that keep to the budget as far as they were measured, fastest first."""
    return sorted((trial for trial in trials if not budget.why_not(trial)), key=lambda trial: -trial.ratio)


def _accurate(trial: Trial, budget: Budget) -> bool:
    assert trial.search is not None
    return not budget.inaccurate(trial.search)


def _why(start: Plan, word: str) -> str:
    return f"{start.why}, {word}" if start.why else word

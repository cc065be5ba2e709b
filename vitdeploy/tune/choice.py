"""Which plan wins: what the images held out and the last race say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vitdeploy.bench.stats import LatencyStats, Ratio, ratio_of_interleaved
from vitdeploy.bench.timer import Turns
from vitdeploy.tune.budget import Budget
from vitdeploy.tune.plans import Trial
from vitdeploy.tune.search import MIN_GAIN


def unconfirmed(trial: Trial, budget: Budget) -> str:
    """Why the images held out speak against a plan: what they show by themselves, or all images together."""
    own = trial.held_out
    if own is None:
        return ""
    shown = own.change if own.drop is None else own.drop
    if budget.max_drop is not None and shown > budget.max_drop:
        return f"top-1 drops by {shown:.2f} pp: more than {budget.max_drop:g}"
    if budget.max_error is not None and not own.error <= budget.max_error:
        return f"relative L2 is {own.error:.3g}: more than {budget.max_error:g}"
    return budget.why_not(trial)


def pick(
    budget: Budget,
    floats: Sequence[Trial],
    quantised: Sequence[Trial],
    turns: Mapping[str, Turns],
    reasons: dict[str, str],
    asked: Callable[[Trial], Trial],
) -> Trial | None:
    """The fastest quantised plan that beats every float one beyond doubt, else the fastest float; None if none may be.

    Args:
        turns: of the last race, by plan key.
        reasons: gets why a quantised plan was not taken.
        asked: gives a float plan its answers to the images held out.
    """
    for trial in sorted(quantised, key=lambda trial: p50(turns[trial.plan.key])):
        name = trial.plan.name
        against = {other.plan.name: beats(turns, other, trial) for other in floats}
        slower = [other for other, ratio in against.items() if ratio.low < 1 or ratio.median < MIN_GAIN]
        if slower:
            reasons[name] = f"in the last race only {against[slower[0]].median:.2f}x as fast as {slower[0]}"
        elif late := budget.too_big(replace(trial, p50=p50(turns[trial.plan.key]))):
            reasons[name] = late
        else:
            return trial
    allowed = [t for t in floats if not budget.why_not(replace(t, p50=p50(turns[t.plan.key])))]
    fastest_first = sorted(allowed, key=lambda trial: p50(turns[trial.plan.key]))
    return next((trial for trial in map(asked, fastest_first) if not unconfirmed(trial, budget)), None)


def beats(turns: Mapping[str, Turns], first: Trial, second: Trial) -> Ratio:
    return ratio_of_interleaved(turns[first.plan.key], turns[second.plan.key])


def p50(turns: Turns) -> float:
    """Milliseconds."""
    return LatencyStats.from_seconds([sample for turn in turns for sample in turn]).p50


def no_plan(budget: Budget, trials: Sequence[Trial], reasons: Mapping[str, str]) -> str:
    alive = sorted((t for t in trials if not t.failed), key=lambda t: -t.ratio)
    nearest = alive[0] if alive else None
    if nearest is None:
        return "No plan could be measured."
    why = reasons.get(nearest.plan.name) or budget.why_not(nearest) or "it is too slow in the last race"
    return f"No plan keeps to the budget. The fastest of {len(alive)}, {nearest.plan.name}: {why}."

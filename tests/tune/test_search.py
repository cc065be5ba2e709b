"""The search: which plan is measured next, and which one wins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from vitdeploy.errors import UsageError
from vitdeploy.tune.budget import Budget
from vitdeploy.tune.choice import pick
from vitdeploy.tune.plans import Answers, Plan, Trial, front
from vitdeploy.tune.search import STEPS, Op, contenders, ladder, rung, where_it_pays

INT8 = Plan("onnxruntime", "int8")
OPS = [Op(f"op{i}", saving=1e-3, error=0.001 * 2**i) for i in range(8)]


def trial(plan: Plan, ratio: float = 2.0, error: float = 0.01, changed: int = 0, **more: object) -> Trial:
    return Trial(plan, ratio, ratio, ratio, 10 / ratio, 1000, Answers(1000, changed, error, 0, changed), **more)  # type: ignore[arg-type]


def error_of(plan: Plan) -> float:
    return math.sqrt(sum(op.error**2 for op in OPS if op.label not in plan.keep))


def test_where_it_pays_keeps_the_slower_ops_in_float() -> None:
    ops = [Op("fast", 1e-3), Op("slow", -1e-4), Op("even", 0.0)]
    plan = where_it_pays(INT8, ops)
    assert plan is not None
    assert plan.keep == ("slow",)
    assert where_it_pays(INT8, [Op("fast", 1e-3)]) is None
    assert where_it_pays(INT8, [Op("slow", -1e-3)]) is None


def test_ladder_gives_up_the_most_error_for_the_least_time_first() -> None:
    ops = [Op("cheap and bad", 1e-6, 0.1), Op("dear and bad", 1e-2, 0.1), Op("good", 1e-3, 0.001)]
    plans = ladder(INT8, ops)
    assert [plan.keep for plan in plans] == [("cheap and bad",), ("cheap and bad", "dear and bad")]
    assert plans[0].name == "onnxruntime int8, less 1 op"
    assert all(plan.is_rung for plan in plans)
    assert len({plan.key for plan in [INT8, *plans]}) == 3


@pytest.mark.parametrize("limit", [0.2, 0.1, 0.03, 0.005, 0.0015])
def test_rungs_end_at_the_largest_plan_that_is_accurate_enough(limit: float) -> None:
    budget = Budget(max_error=limit)
    trials = {INT8.key: trial(INT8, error=error_of(INT8))}
    while (plan := rung(INT8, OPS, trials, budget)) is not None:
        assert plan.key not in trials
        trials[plan.key] = trial(plan, error=error_of(plan))
    assert len(trials) <= STEPS + 1
    good = [found.plan for found in trials.values() if found.search and found.search.error <= limit]
    wanted = next(plan for plan in [INT8, *ladder(INT8, OPS)] if error_of(plan) <= limit)
    assert min(len(plan.keep) for plan in good) == len(wanted.keep)


def test_rungs_end_when_no_mixture_is_accurate_enough() -> None:
    trials = {INT8.key: trial(INT8, error=1.0)}
    while (plan := rung(INT8, OPS, trials, Budget(max_error=1e-9))) is not None:
        trials[plan.key] = trial(plan, error=1.0)
    assert len(trials) <= STEPS + 1


def test_contenders_are_the_fastest_that_keep_to_the_budget() -> None:
    slow, fast = trial(INT8, 1.5, changed=2), trial(replace(INT8, keep=("a",)), 2.5, changed=40)
    broken = Trial(Plan("openvino", "int8"), failed="refused")
    assert contenders([slow, fast, broken], Budget()) == [fast, slow]
    assert contenders([slow, fast, broken], Budget(max_drop=1.0)) == [slow]


def test_front_holds_what_nothing_beats_in_both() -> None:
    best = trial(Plan("a", "int8"), 3.0, 0.05)
    beaten = trial(Plan("b", "int8"), 2.0, 0.06)
    exact = trial(Plan("a", "fp32"), 1.0, 0.0)
    assert front([exact, beaten, best, Trial(Plan("c", "int8"), failed="no")]) == [best, exact]


def test_drop_must_be_within_the_limit_beyond_chance() -> None:
    budget = Budget(max_drop=0.5)
    assert budget.inaccurate(Answers(5000, 30, 0.01, gained=10, lost=15)) == ""
    few = budget.inaccurate(Answers(200, 3, 0.01, gained=1, lost=2))
    assert "200 images" in few
    assert "more than 0.5" in few
    assert budget.inaccurate(Answers(200, 0, 0.01, gained=0, lost=0)) == ""
    assert "top-1 drops by 1.00 pp" in budget.inaccurate(Answers(5000, 60, 0.01, gained=5, lost=55))


def test_images_that_change_class_bound_the_drop_when_there_are_no_labels() -> None:
    assert Budget(max_drop=0.5).inaccurate(Answers(1000, 5, 0.01)) == ""
    assert "0.60 % of 1000 images change class" in Budget(max_drop=0.5).inaccurate(Answers(1000, 6, 0.01))


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_answers_that_are_not_finite_break_every_budget(error: float) -> None:
    assert "NaN or Inf" in Budget().inaccurate(Answers(100, 0, error))


def test_size_and_latency_are_limits_too() -> None:
    found = trial(INT8)
    assert "MB" in Budget(max_size=999).why_not(found)
    assert "p50" in Budget(max_latency=4.9).why_not(found)
    assert Budget(max_size=1000, max_latency=5.0).why_not(found) == ""


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf])
def test_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="--max-drop"):
        Budget(max_drop=limit).check()


def test_answers_of_two_sets_add_up() -> None:
    both = Answers(100, 1, 0.03, 1, 2) + Answers(300, 4, 0.01, 0, 3)
    assert (both.images, both.changed, both.gained, both.lost) == (400, 5, 1, 5)
    assert both.drop == pytest.approx(1.0)
    assert both.error == pytest.approx(math.sqrt((0.03**2 * 100 + 0.01**2 * 300) / 400))
    assert (Answers(10, 1, 0.1, 1, 0) + Answers(10, 1, 0.1)).drop is None


def test_choice_is_the_fastest_float_that_keeps_to_the_budget_when_int8_does_not_beat_it() -> None:
    fp32, fp16, bf16 = (trial(Plan("openvino", p), changed=0) for p in ("fp32", "fp16", "bf16"))
    int8 = trial(INT8)
    spread = (0.98, 1.0, 1.02)

    def turns(seconds: float) -> list[list[float]]:
        return [[seconds * s * r for s in spread] for r in spread]

    race = {fp32.plan.key: turns(0.010), fp16.plan.key: turns(0.004), bf16.plan.key: turns(0.005)}
    heard = []

    def asked(one: Trial) -> Trial:
        heard.append(one.plan.precision)
        changed = 50 if one.plan == fp16.plan else 0
        return replace(one, held_out=None if one.plan == fp32.plan else Answers(1000, changed, 0.01, 0, changed))

    floats, reasons = [fp32, fp16, bf16], {}
    chosen = pick(Budget(max_drop=0.5), floats, [int8], race | {INT8.key: turns(0.00395)}, reasons, asked)
    assert chosen is not None
    assert chosen.plan == bf16.plan, "fp16 breaks the budget on images held out, and int8 does not beat it beyond doubt"
    assert heard == ["fp16", "bf16"]
    assert "openvino fp16" in reasons[INT8.name]
    assert pick(Budget(max_drop=0.5), floats, [int8], race | {INT8.key: turns(0.003)}, {}, asked) == int8
    assert pick(Budget(max_latency=1.0), floats, [int8], race | {INT8.key: turns(0.003)}, {}, asked) is None

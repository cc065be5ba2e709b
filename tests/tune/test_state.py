"""What a tune keeps on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.tune.plans import Answers, Plan, Trial
from vitdeploy.tune.state import State

TRIALS = [
    Trial(Plan("onnxruntime", "fp32"), 1.0, 1.0, 1.0, 9.5, 100, Answers(10, 0, 0.0, 0, 0)),
    Trial(
        Plan("openvino", "int8+bf16", ("a.b", "c"), why="less 2 ops"),
        2.5,
        2.4,
        2.6,
        3.8,
        40,
        Answers(10, 1, 0.02),
        Answers(20, 1, 0.03),
        int8_share=0.9,
    ),
    Trial(Plan("openvino", "bf16"), failed="no bf16 here"),
]


def filled(file: Path) -> State:
    state = State(file, "digest", errors={"a.b": 0.1}, savings={"openvino": {"c": 1e-4}})
    for trial in TRIALS:
        state.add(trial)
    return state


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path / "state.json")
    again = State.open(tmp_path / "state.json", "digest")
    assert list(again.trials.values()) == TRIALS
    assert again.trials[TRIALS[1].plan.key].plan.why == "less 2 ops"
    assert (again.errors, again.savings, again.resumed) == ({"a.b": 0.1}, {"openvino": {"c": 1e-4}}, 3)


def test_state_of_other_circumstances_is_left_out(tmp_path: Path) -> None:
    filled(tmp_path / "state.json")
    assert State.open(tmp_path / "state.json", "another").trials == {}


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[]", '{"format": 1, "digest": "digest", "trials": [3]}'])
def test_state_that_cannot_be_read_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    state = State.open(tmp_path / "state.json", "digest")
    assert state.trials == {}
    state.save()
    assert State.open(tmp_path / "state.json", "digest").resumed == 0


def test_plan_keeps_its_key_whatever_it_is_called() -> None:
    assert Plan("a", "int8", why="less 3 ops").key == Plan("a", "int8").key
    assert Plan("a", "int8", ("x",)).key != Plan("a", "int8").key
    assert Plan("a", "int8+bf16").key != Plan("a", "int8").key

"""The time that a comparison takes is told before it, and better with every part that is done."""

from __future__ import annotations

import pytest

from smc_bridge.analysis.comparison.effort import Clock, about, paces
from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.comparison.store import Cell, Outcome
from tests.toys import ToyTask, toy_pair


def cell(method: str, problems: int, seconds: float) -> Cell:
    outcome = Outcome(0, "", True, 1.0, 1.0, 1, 1, None, None)
    return Cell(method, 0, seconds, 1, (outcome,) * problems)


def test_before_the_first_part_the_expected_paces_count() -> None:
    work, expected = [("dlm-1", 10), ("dlm-4", 20), ("ar", 5), ("ar", 2)], {"dlm-1": 0.5, "dlm-4": 0.2, "ar": 0.1}
    assert Clock(work, expected).left == pytest.approx(10 * 0.5 + 20 * 0.2 + 7 * 0.1)
    assert Clock(work, expected, workers=2).left == pytest.approx(Clock(work, expected).left / 2)


def test_a_method_that_was_seen_goes_on_at_its_own_pace_and_others_are_as_much_off() -> None:
    clock = Clock([("smc-4", 10), ("smc-4", 10), ("dlm-1", 3)], {"smc-4": 0.35, "dlm-1": 0.2})
    clock.finished(cell("smc-4", 10, 7.0))
    assert clock.left == pytest.approx(7.0 + 3 * 0.4)
    clock.finished(cell("dlm-1", 3, 2.0))
    clock.finished(cell("smc-4", 10, 9.0))
    assert clock.left == 0.0


def test_paces_are_times_of_a_problem() -> None:
    pair, task = toy_pair(), ToyTask()
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(5)]
    methods = ("ar", "dlm-1", "smc-2", "tree-walk")
    found = paces(methods, pair, task, prompts, Settings("toy", 5, methods))
    assert tuple(found) == methods
    assert all(0 < seconds < 60 for seconds in found.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "about 5 s"), (41.0, "about 45 s"), (100.0, "about 2 minutes"), (3599.0, "about 60 minutes"),
     (9000.0, "about 2.5 hours")],
)
def test_times_are_round(seconds: float, words: str) -> None:
    assert about(seconds) == words

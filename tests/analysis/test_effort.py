"""The time that a comparison takes is told before it, and better with every part that is done."""

from __future__ import annotations

import pytest

from analysis.comparison.effort import Clock, about, probe, relative_cost
from analysis.comparison.methods import DEFAULT_METHODS
from analysis.comparison.settings import Settings
from analysis.comparison.store import Cell, Outcome
from tests.toys import ToyTask, toy_pair


def cell(method: str, problems: int, seconds: float) -> Cell:
    outcome = Outcome(0, "", True, 1.0, 1.0, 1, 1, None, None)
    return Cell(method, 0, seconds, 1, (outcome,) * problems)


def test_before_the_first_part_the_probe_counts() -> None:
    work = [("dlm-1", 10), ("dlm-4", 20), ("ar", 5)]
    assert Clock(work, 0.5).left == pytest.approx(0.5 * (10 + 20 / 4 + 5 * relative_cost("ar")))
    assert Clock(work, 0.5, workers=2).left == pytest.approx(Clock(work, 0.5).left / 2)


def test_a_method_that_was_seen_goes_on_at_its_own_pace_and_others_at_the_common_one() -> None:
    clock = Clock([("smc-4", 10), ("smc-4", 10), ("dlm-1", 3)], 0.5)
    clock.finished(cell("smc-4", 10, 7.0))
    assert clock.left == pytest.approx(7.0 + 3 * 0.7 / relative_cost("smc-4"))
    clock.finished(cell("dlm-1", 3, 2.0))
    clock.finished(cell("smc-4", 10, 9.0))
    assert clock.left == 0.0


def test_costs_grow_with_work() -> None:
    assert relative_cost("dlm-1") == 1.0 > relative_cost("dlm-2-entropy") > relative_cost("dlm-8")
    assert relative_cost("smc-1") < relative_cost("smc-1x4") < relative_cost("smc-4") < relative_cost("smc-4x4")
    assert all(0 < relative_cost(method) <= 1 for method in DEFAULT_METHODS)


def test_probe_is_a_time() -> None:
    prompts = [toy_pair().encode(item.prompt).tolist() for item in ToyTask().problems(5)]
    assert 0 < probe(toy_pair(), ToyTask(), prompts, Settings("toy", 5, ("ar",))) < 60


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "about 5 s"), (41.0, "about 45 s"), (100.0, "about 2 minutes"), (3599.0, "about 60 minutes"),
     (9000.0, "about 2.5 hours")],
)
def test_times_are_round(seconds: float, words: str) -> None:
    assert about(seconds) == words

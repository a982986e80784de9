"""The time that work takes is told before it, where somebody expects it, and better with every part that is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from smc_bridge.analysis.comparison.comparing import paces
from smc_bridge.analysis.comparison.settings import Settings
from smc_bridge.analysis.runner import Clock, about
from smc_bridge.analysis.study.cells import cells
from smc_bridge.analysis.study.sources import load_problems
from tests.toys import ToyTask, toy_pair


class Part(NamedTuple):
    label: str
    size: int

    def key(self) -> dict[str, Any]:
        return self._asdict()


def test_before_the_first_part_the_expected_paces_count() -> None:
    work = [Part("dlm-1", 10), Part("dlm-4", 20), Part("ar", 5), Part("ar", 2)]
    expected = {"dlm-1": 0.5, "dlm-4": 0.2, "ar": 0.1}
    assert Clock(work, expected).left == pytest.approx(10 * 0.5 + 20 * 0.2 + 7 * 0.1)
    assert Clock(work, expected, workers=2).left == pytest.approx(Clock(work, expected).left / 2)


def test_a_method_that_was_seen_goes_on_at_its_own_pace_and_others_are_as_much_off() -> None:
    clock = Clock([Part("smc-4", 10), Part("smc-4", 10), Part("dlm-1", 3)], {"smc-4": 0.35, "dlm-1": 0.2})
    clock.finished("smc-4", 10, 7.0)
    assert clock.left == pytest.approx(7.0 + 3 * 0.4)
    clock.finished("dlm-1", 3, 2.0)
    clock.finished("smc-4", 10, 9.0)
    assert clock.left == 0.0


def test_without_expectations_what_was_not_seen_goes_at_the_pace_of_all_that_was() -> None:
    clock = Clock([Part("a", 10), Part("b", 5), Part("c", 5)])
    assert clock.text() == "", "nothing is known before the first part"
    clock.finished("a", 10, 20.0)
    assert clock.left == pytest.approx(20.0)
    clock.finished("b", 5, 25.0)
    assert clock.left == pytest.approx(5 * 45 / 15)


def test_paces_are_times_of_a_problem() -> None:
    config = Settings("toy", 5, ("ar", "dlm-1", "smc-2", "tree-walk")).study()
    found = paces(cells(config), load_problems(config.source, pair=toy_pair(), task=ToyTask()))
    assert tuple(found) == config.axes.methods
    assert all(0 < seconds < 60 for seconds in found.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "about 5 s"), (41.0, "about 45 s"), (100.0, "about 2 minutes"), (3599.0, "about 60 minutes"),
     (9000.0, "about 2.5 hours")],
)
def test_times_are_round(seconds: float, words: str) -> None:
    assert about(seconds) == words

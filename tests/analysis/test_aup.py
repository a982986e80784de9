"""Accuracy under parallelism against figures by hand."""

from __future__ import annotations

import math

import pytest

from smc_bridge.analysis.aup import aup, aup_of
from smc_bridge.analysis.comparison.table import Row
from smc_bridge.analysis.estimates import wilson
from smc_bridge.estimate import Estimate


def row(right: int, *, dlm: float | None, ar: float | None) -> Row:
    rate = None if dlm is None else Estimate.normal(dlm, 0.1)
    return Row("m", 100, 1, "AR", True, wilson(right, 100), rate, None, ar, ar, 1.0, None, None, None)


def test_the_formula_by_hand() -> None:
    """W(80) = 1 and W(60) = exp(-3/4) = .472367; 1 * 78 + half of 1 * (78 W(78) + 80 W(80))."""
    w78 = 0.9277434863  # exp(-3 (1 - 78 / 80))
    assert aup([(1.0, 78.0), (2.0, 80.0)], best=80.0) == pytest.approx(78 + (78 * w78 + 80) / 2)
    three = 78 + (78 * w78 + 80) / 2 + 2 / 2 * (80 + 76 * math.exp(-0.15))
    assert aup([(4.0, 76.0), (1.0, 78.0), (2.0, 80.0)], best=80.0) == pytest.approx(three), "in any order"


def test_a_point_more_than_five_below_the_slowest_is_dropped() -> None:
    assert aup([(1.0, 80.0), (9.0, 74.9)], best=80.0) == 80.0
    assert aup([(1.0, 80.0), (9.0, 75.0)], best=80.0) > 80.0
    between = aup([(1.0, 80.0), (2.0, 10.0), (3.0, 80.0)], best=80.0)
    assert between == pytest.approx(80 + 2 * 80), "the area goes on over a point that is dropped"


def test_accuracy_is_measured_against_the_best_of_all_decoders() -> None:
    mine, beaten = (aup([(1.0, 60.0), (3.0, 60.0)], best=best) for best in (60.0, 80.0))
    assert mine == 180.0
    assert beaten == pytest.approx(60 + 2 * 60 * 0.4723665527)
    assert aup([(1.0, 60.0), (3.0, 60.0)], best=30.0) == 180.0, "no weight is above 1"
    assert aup([(2.0, 0.0)], best=0.0) == 0.0


def test_forwards_are_those_of_the_dlm_and_without_one_those_of_the_ar_model() -> None:
    assert aup_of([row(90, dlm=4.0, ar=0.5)], best=90.0) == pytest.approx(360.0)
    assert aup_of([row(90, dlm=None, ar=0.5)], best=90.0) == pytest.approx(180.0)
    assert aup_of([row(90, dlm=None, ar=None)], best=90.0) is None
    assert aup_of([], best=90.0) is None


@pytest.mark.parametrize(("points", "best", "said"), [
    ([], 80.0, "points is empty"), ([(0.0, 50.0)], 80.0, r"\(0, 50\)"), ([(1.0, 101.0)], 80.0, r"\(1, 101\)"),
    ([(math.inf, 50.0)], 80.0, r"\(inf, 50\)"), ([(1.0, 50.0)], 101.0, "best = 101"),
])
def test_bad_points_are_refused(points: list[tuple[float, float]], best: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        aup(points, best=best)

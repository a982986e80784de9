"""The bootstrap-t interval: against a plain loop over fresh resamples, and that it does not depend on how data come."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from smc_bridge.intervals import ratio_interval

VALUES = np.random.default_rng(0).gamma(0.5, size=40)
TOKENS = np.random.default_rng(1).integers(1, 20, size=40).astype(float)


@pytest.mark.parametrize("over", [None, TOKENS], ids=["mean", "ratio"])
def test_ends_are_quantiles_of_the_studentised_error(over: np.ndarray | None) -> None:
    """4,000 resamples of another stream; the ends, of which the upper one takes a fifth of its tail, vary by some per
    cent of the interval's width."""
    rng, lengths = np.random.default_rng(2), np.ones(40) if over is None else over

    def ratio_and_error(x: np.ndarray, t: np.ndarray) -> tuple[float, float]:
        ratio = x.sum() / t.sum()
        return ratio, float((x - ratio * t).std(ddof=1) / math.sqrt(x.size) / t.mean())

    ratio, error = ratio_and_error(VALUES, lengths)
    found = []
    for _ in range(4000):
        chosen = rng.integers(40, size=40)
        again, own = ratio_and_error(VALUES[chosen], lengths[chosen])
        found.append((again - ratio) / own)
    below, above = np.quantile(found, [0.01, 0.95])
    low, high = ratio_interval(VALUES, over, level=0.9)
    width = high - low
    assert abs(low - (ratio - error * above)) < 0.06 * width
    assert abs(high - (ratio - error * below)) < 0.15 * width
    assert high - ratio > ratio - low, "the data are skewed to the right"


def test_scale_shift_and_order_do_not_matter() -> None:
    low, high = ratio_interval(VALUES)
    assert ratio_interval(VALUES[::-1]) == pytest.approx((low, high), rel=1e-12)
    assert ratio_interval(1e-9 * VALUES) == pytest.approx((1e-9 * low, 1e-9 * high), rel=1e-9)
    assert ratio_interval(VALUES + 1000) == pytest.approx((low + 1000, high + 1000), rel=1e-9)
    assert ratio_interval(VALUES, np.full(40, 4.0)) == pytest.approx((low / 4, high / 4), rel=1e-9)
    shuffled = np.random.default_rng(3).permutation(40)
    assert ratio_interval(VALUES[shuffled], TOKENS[shuffled]) == pytest.approx(ratio_interval(VALUES, TOKENS), rel=1e-9)


def test_more_confidence_is_a_wider_interval() -> None:
    ends = [ratio_interval(VALUES, level=level) for level in (0.5, 0.9, 0.975, 0.98, 0.985, 0.999, 1 - 1e-6)]
    for (low, high), (lower, higher) in itertools.pairwise(ends):
        assert lower < low < VALUES.mean() < high < higher


def test_parts_of_many_resamples_are_put_together() -> None:
    """Above a thousand values resamples come in parts; the ends are close to Student's there."""
    values = np.random.default_rng(4).normal(size=1500)
    above, below = stats.t.ppf([0.995, 0.975], 1499) * stats.sem(values)
    assert ratio_interval(values) == pytest.approx((values.mean() - below, values.mean() + above), abs=0.2 * below)


def test_what_gives_no_end() -> None:
    none = (-math.inf, math.inf)
    assert ratio_interval(np.array([0.3])) == none
    assert ratio_interval(np.array([0.1 + 0.2, 0.3, 0.3])) == none, "a spread of round-off"
    low, high = ratio_interval(np.r_[np.zeros(99), 1.0])
    assert low > -0.01
    assert high == math.inf, "a third of the resamples leave the only large value out, and have no spread"

"""The fit of a generalised Pareto law: as the reference implementation has it, and NaN where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smc_bridge.pareto import pareto_shape, tail_shape, tail_size


@pytest.mark.parametrize("count", [25, 100, 225, 226, 3000])
def test_the_fit_is_that_of_arviz(count: int) -> None:
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    log_weights = 2 * np.random.default_rng(count).normal(size=count)
    expected = float(array_stats.psislw(-log_weights)[1])
    assert tail_shape(np.exp(log_weights)) == pytest.approx(expected, rel=1e-9)
    assert tail_shape(1e-9 * np.exp(log_weights)) == pytest.approx(expected, rel=1e-9), "a scale changes nothing"


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.2])
def test_shape_of_a_generalised_pareto_law_is_found(k: float) -> None:
    """The mean of 40 fits to 300 draws each; five standard errors, and the pull of the prior towards 0.5."""
    draws = np.random.default_rng(1).random((40, 300))
    found = np.mean([pareto_shape(np.sort(np.expm1(-k * np.log1p(-row)) / k)) for row in draws])
    assert abs(found - k) < 5 * (1 + abs(k)) / math.sqrt(300 * 40) + 10 / 310 * abs(k - 0.5), found


def test_samples_without_a_tail_have_no_shape() -> None:
    assert math.isnan(tail_shape(np.arange(24.0)))
    assert math.isnan(tail_shape(np.r_[np.zeros(99), 1.0])), "ties"
    assert [tail_size(n) for n in (25, 225, 226, 10_000)] == [5, 45, 45, 300]

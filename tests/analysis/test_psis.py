"""Pareto k-hat: right on generalised Pareto weights, and an answer for samples that have no fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smc_bridge.analysis.psis import pareto_k, smoothed_log_weights

pytest.importorskip("arviz_stats")


def pareto_log_weights(k: float, count: int, seed: int) -> np.ndarray:
    """Draws of a generalised Pareto law of shape k, as log weights."""
    uniform = np.random.default_rng(seed).random(count)
    return np.log(np.expm1(-k * np.log1p(-uniform)) / k)


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 0.7, 0.9, 1.2])
def test_shape_of_generalised_pareto_weights_is_found(k: float) -> None:
    found = np.array([pareto_k(pareto_log_weights(k, 10_000, seed)).k for seed in range(40)])
    # A tail of 300 weights gives k with a standard deviation of about (1 + k) / sqrt(300), and the prior pulls towards
    # 0.5 by at most 10 / 310 of the distance; five standard errors of the mean of 40.
    tolerance = 5 * (1 + k) / math.sqrt(300 * 40) + 10 / 310 * abs(k - 0.5)
    assert abs(found.mean() - k) < tolerance, (found.mean(), k)


def test_a_shift_of_the_log_weights_changes_nothing() -> None:
    values = pareto_log_weights(0.6, 2000, 0)
    assert pareto_k(values + 123.0).k == pytest.approx(pareto_k(values).k, abs=1e-9)


def test_negated_log_weights_are_another_question() -> None:
    values = 0.9 * np.random.default_rng(3).exponential(size=4000)  # Pareto weights of shape 0.9, at least 1
    assert pareto_k(values).k > 0.7 > pareto_k(-values).k


def test_samples_without_a_fit_have_a_documented_answer() -> None:
    few = pareto_k(np.zeros(24))
    assert math.isnan(few.k)
    assert "too few" in str(few)
    for equal in (np.zeros(100), np.r_[np.random.default_rng(0).normal(size=950) - 50, np.zeros(150)]):
        found = pareto_k(equal)
        assert found.k == -math.inf
        assert found.reliable
        assert "equal" in str(found)
    dead = pareto_k(np.full(100, -np.inf))
    assert math.isnan(dead.k)
    assert not dead.reliable


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (np.r_[np.zeros(99), 8.0], "ties"),
        (np.r_[np.zeros(90), 3.0 + np.arange(10)], "ties"),
        (np.r_[np.zeros(5), np.full(95, -np.inf)], "5 of 100 weights are positive"),
        (np.r_[np.arange(5.0), np.full(95, -np.inf)], "5 of 100 weights are positive"),
    ],
    ids=["one heavy", "ten heavy", "five alive and equal", "five alive"],
)
def test_hopeless_weights_are_never_called_reliable(weights: np.ndarray, reason: str) -> None:
    found = pareto_k(weights)
    assert math.isnan(found.k)
    assert not found.reliable
    assert reason in str(found)


def test_a_tail_of_equal_weights_is_no_tail_even_if_others_are_smaller() -> None:
    found = pareto_k(np.r_[np.zeros(80), np.ones(20)])
    assert found.k == -math.inf
    assert found.reliable


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(25, 400), levels=st.lists(st.sampled_from([-math.inf, -800.0, -2.0, 0.0, 1e-12, 1.0, 8.0]),
                                                min_size=1, max_size=5), seed=st.integers(0, 2**16),
)
def test_discrete_weights_always_have_an_answer(count: int, levels: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice(levels, p=rng.dirichlet(np.full(len(levels), 0.5)), size=count)
    found = pareto_k(values)
    tail = np.sort(values)[-(math.floor(3 * math.sqrt(count)) if count > 225 else count // 5):]
    equal = tail[0] == tail[-1] > -math.inf
    assert (found.k == -math.inf) == equal, (found, tail)
    assert found.k != math.inf
    assert not (math.isnan(found.k) and found.reliable)
    smooth = smoothed_log_weights(values) if tail[-1] > -math.inf else np.zeros(1)
    assert np.logaddexp.reduce(smooth) == pytest.approx(0.0, abs=1e-9)


def test_weights_of_zero_are_legal() -> None:
    values = np.r_[pareto_log_weights(0.5, 1000, 2), np.full(1000, -np.inf)]
    assert math.isfinite(pareto_k(values).k)


def test_smoothing_keeps_order_and_normalises() -> None:
    values = pareto_log_weights(0.8, 1000, 4)
    smooth = smoothed_log_weights(values)
    assert np.logaddexp.reduce(smooth) == pytest.approx(0.0, abs=1e-9)
    assert (np.diff(smooth[np.argsort(values)]) >= -1e-9).all()
    assert smoothed_log_weights([0.0, 0.0]) == pytest.approx([-math.log(2)] * 2)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="nan"):
        pareto_k([0.0] * 30 + [math.nan])

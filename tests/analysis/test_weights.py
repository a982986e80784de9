"""ESS, shares and variances against numpy by hand, and against the engine's own records."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from smc_bridge.analysis import (
    ess,
    ess_per_step,
    log_weight_variance,
    log_weight_variance_per_step,
    log_weight_variance_per_token,
    max_share,
    weight_variance,
)
from smc_bridge.analysis.effective_size import conditional_ess, conditional_ess_per_step, entropy_ess
from smc_bridge.analysis.variance import log_weights_before_selection
from smc_bridge.engine.presets import smc
from smc_bridge.engine.weights import always
from smc_bridge.models.tabular import TabularAR, TabularDLM
from tests.analysis.helpers import INF, make_record, make_result, two_step_trace

LOG_WEIGHTS = [0.3, -1.2, 2.0, -0.4, 0.9]


def test_final_statistics_equal_their_definitions() -> None:
    w = np.exp(LOG_WEIGHTS)
    assert ess(LOG_WEIGHTS) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-14)
    assert max_share(LOG_WEIGHTS) == pytest.approx(w.max() / w.sum(), rel=1e-14)
    assert weight_variance(LOG_WEIGHTS) == pytest.approx(w.var() / w.mean() ** 2, rel=1e-13)
    assert log_weight_variance(LOG_WEIGHTS) == pytest.approx(np.var(LOG_WEIGHTS, ddof=1), rel=1e-14)


@pytest.mark.parametrize("shift", [-900.0, 0.0, 900.0])
def test_a_common_factor_of_the_weights_changes_nothing(shift: float) -> None:
    moved = [w + shift for w in LOG_WEIGHTS]
    assert ess(moved) == pytest.approx(ess(LOG_WEIGHTS), rel=1e-12)
    assert max_share(moved) == pytest.approx(max_share(LOG_WEIGHTS), rel=1e-12)
    assert log_weight_variance(moved) == pytest.approx(log_weight_variance(LOG_WEIGHTS), rel=1e-9)


def test_edges_have_a_documented_value() -> None:
    assert (ess([0.0, -INF]), max_share([0.0, -INF]), weight_variance([0.0, -INF])) == (1.0, 1.0, 1.0)
    assert log_weight_variance([0.0, -INF]) == INF
    assert (ess([-INF, -INF]), max_share([-INF, -INF])) == (0.0, 0.0)
    assert math.isnan(weight_variance([-INF, -INF]))
    assert math.isnan(log_weight_variance([-INF, -INF]))
    assert (ess([5.0]), weight_variance([5.0])) == (1.0, 0.0)
    assert math.isnan(log_weight_variance([5.0]))


@pytest.mark.parametrize("bad", [[], [[0.0, 1.0]], [math.nan, 0.0], [INF, 0.0]])
def test_what_is_not_weights_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="log_weights"):
        ess(bad)


def test_weights_before_selection_by_hand() -> None:
    result = make_result([0.4, 0.1, -0.1], trace=two_step_trace())
    first = [np.log((np.exp(0.5) + np.exp(-0.5)) / 2), np.log(np.exp(-1.0) / 2), np.log((np.exp(0.25) + 1) / 2)]
    second = [
        0.1 + np.log((np.exp(0.2) + np.exp(0.4)) / 2), 0.1, 0.1 + np.log((np.exp(-0.3) + np.exp(-0.1)) / 2),
    ]
    np.testing.assert_allclose(log_weights_before_selection(result), [first, second], rtol=1e-13)
    expected = [np.var(first, ddof=1), np.var(second, ddof=1)]
    np.testing.assert_allclose(log_weight_variance_per_step(result), expected, rtol=1e-12)
    assert ess_per_step(result) == [2.5, 2.9]


def test_weights_before_selection_give_the_ess_that_the_engine_recorded() -> None:
    ar = TabularAR.random(3, 4, seed=1, eos_id=1)
    pair = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.5))
    run = smc(pair, 5, lanes=2, w=0.8, window=2).run([[]], seed=3, max_new_tokens=4)[0]
    assert len(run.trace) >= 2
    rebuilt = [ess(row) for row in log_weights_before_selection(run)]
    np.testing.assert_allclose(rebuilt, ess_per_step(run), rtol=1e-12)


def test_variance_per_token_by_hand() -> None:
    trace = [make_record(length=[[2, 4], [0, 0]], log_increments=[[0.5, -0.7], [0.0, 0.0]])]
    d, tokens = np.array([0.5, -0.7]), np.array([2.0, 4.0])
    expected = ((d - d.sum() / 6 * tokens) ** 2).sum() / 6
    assert log_weight_variance_per_token(make_result([0.0, 0.0], trace=trace)) == pytest.approx(expected, rel=1e-13)
    assert log_weight_variance_per_token(make_result([0.0, 0.0, 0.0], trace=two_step_trace())) == INF
    assert math.isnan(log_weight_variance_per_token(make_result([0.0])))


def test_variance_per_token_recovers_that_of_independent_tokens() -> None:
    """4,000 blocks of 1 to 8 tokens, each token N(-0.1, 0.3^2): the standard error is about 3 %, the margin six."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 9, size=4000)
    gains = [float(rng.normal(-0.1, 0.3, size=n).sum()) for n in length]
    trace = [make_record(length=[[int(n)]], log_increments=[[g]]) for n, g in zip(length, gains, strict=True)]
    assert log_weight_variance_per_token(make_result([0.0], trace=trace)) == pytest.approx(0.09, rel=0.18)


def test_no_trace_gives_no_steps() -> None:
    result = make_result([0.0, 1.0])
    assert ess_per_step(result) == []
    assert log_weight_variance_per_step(result) == []
    assert log_weights_before_selection(result).shape == (0, 2)


def test_entropy_ess_is_the_perplexity_and_never_below_the_ess() -> None:
    shares = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    assert entropy_ess(LOG_WEIGHTS) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-13)
    for seed in range(20):
        values = 3 * np.random.default_rng(seed).normal(size=9)
        assert ess(values) <= entropy_ess(values) <= 9 + 1e-9
    assert (entropy_ess([0.0, -INF]), entropy_ess([-INF, -INF])) == (1.0, 0.0)


def test_conditional_ess_is_about_the_step_alone() -> None:
    gain = np.array([0.1, -0.5, 0.7, 0.0, 1.1])
    shares = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()
    step = np.exp(gain)
    expected = 5 * (shares @ step) ** 2 / (shares @ step**2)
    assert conditional_ess(LOG_WEIGHTS, gain) == pytest.approx(expected, rel=1e-13)
    assert conditional_ess(LOG_WEIGHTS, [2.0] * 5) == pytest.approx(5.0, rel=1e-13)
    assert conditional_ess([0.0] * 5, gain) == pytest.approx(ess(gain), rel=1e-13)
    assert conditional_ess([0.0, 0.0], [-INF, -INF]) == 0.0
    with pytest.raises(ValueError, match="log_increments has 2 entries for 1"):
        conditional_ess([0.0], [0.0, 0.0])


def test_conditional_ess_per_step_equals_the_ess_after_every_resampling() -> None:
    ar = TabularAR.random(3, 4, seed=2, eos_id=None)
    pair = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.8))
    result = smc(pair, 6, w=0.9, window=1, trigger=always).run([[]], seed=3, max_new_tokens=4)[0]
    assert conditional_ess_per_step(result) == pytest.approx(ess_per_step(result), rel=1e-9)

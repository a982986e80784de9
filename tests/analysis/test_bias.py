"""Jackknife and covariance estimates of bias against biases known exactly by enumeration."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from smc_bridge.analysis import jackknife_bias, oracle, run_bias
from smc_bridge.analysis.bias import bias_against_samples, delta_bias, delta_ratio, jackknife, jackknife_ratio
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.engine.weights import never
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.models.tabular import TabularAR, TabularDLM
from tests.analysis.helpers import INF, make_record, make_result

#: Outcomes of one unit: probability, weight, value. Weights have mean 1.
OUTCOMES = [(0.5, 0.8, 1.0), (0.3, 1.0, 4.0), (0.2, 1.5, 7.0)]
TRUTH = sum(p * w * v for p, w, v in OUTCOMES)


def _enumerate(n: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(probability, log weights, values) of every sample of n units."""
    samples = []
    for choice in itertools.product(OUTCOMES, repeat=n):
        probability, weights, values = math.prod(c[0] for c in choice), [c[1] for c in choice], [c[2] for c in choice]
        samples.append((probability, np.log(weights), np.array(values)))
    return samples


def _bias(n: int) -> float:
    total = 0.0
    for probability, log_w, v in _enumerate(n):
        w = np.exp(log_w)
        total += probability * float((w * v).sum() / w.sum())
    return total - TRUTH


def test_expected_jackknife_equals_its_formula_in_exact_biases() -> None:
    """E[estimate] = (n - 1) (bias_{n-1} - bias_n), by enumeration of all samples of five units."""
    n = 5
    expected = sum(p * jackknife_ratio(w, v).bias.value for p, w, v in _enumerate(n))
    assert expected == pytest.approx((n - 1) * (_bias(n - 1) - _bias(n)), rel=1e-11)


def test_jackknife_removes_most_of_a_known_bias() -> None:
    """Exact expectations for six units: what is left of the bias is less than a tenth."""
    n = 6
    left = sum(p * jackknife_ratio(w, v).corrected for p, w, v in _enumerate(n)) - TRUTH
    assert abs(_bias(n)) > 0.02
    assert abs(left) < 0.1 * abs(_bias(n)), (left, _bias(n))


def test_jackknife_of_the_plug_in_variance_is_the_textbook_one() -> None:
    """The plug-in variance has bias -s^2 / n, and the jackknife finds exactly that."""
    x = np.array([0.3, -1.0, 2.2, 0.7])
    found = jackknife(float(x.var()), np.array([np.delete(x, i).var() for i in range(4)]))
    assert found.bias.value == pytest.approx(-x.var(ddof=1) / 4, rel=1e-12)
    assert found.corrected == pytest.approx(x.var(ddof=1), rel=1e-12)


def test_standard_error_of_equal_weights_is_that_of_the_mean() -> None:
    v = np.array([1.0, 4.0, 2.0, 8.0, 3.0])
    found = jackknife_ratio(np.zeros(5), v)
    assert found.bias.value == pytest.approx(0.0, abs=1e-14)
    assert found.estimate.error == pytest.approx(v.std(ddof=1) / math.sqrt(5), rel=1e-12)


def test_a_dominant_weight_does_not_lose_the_others() -> None:
    found = jackknife_ratio(np.array([0.0, -800.0, -800.0]), np.array([1.0, 2.0, 4.0]))
    assert found.estimate.value == 1.0
    assert found.bias.value == pytest.approx(2 * ((3.0 + 1.0 + 1.0) / 3 - 1.0))


def test_weight_zero_and_its_value_are_ignored() -> None:
    found = jackknife_ratio(np.array([0.0, -INF, math.log(3.0)]), np.array([1.0, math.nan, 2.0]))
    assert found.estimate.value == pytest.approx(7 / 4)
    assert found.bias.value == pytest.approx(2 * ((2.0 + 7 / 4 + 1.0) / 3 - 7 / 4))


def test_particles_of_one_run_are_units_and_runs_of_several() -> None:
    log_w = [0.1, -0.4, 0.7]
    one = jackknife_bias(make_result(log_w), lambda x: float(x[0] ** 2))
    assert one == jackknife_ratio(np.array(log_w), np.array([0.0, 1.0, 4.0]))
    runs = [make_result([0.1, 0.3]), make_result([-0.5, 0.0]), make_result([-INF, -INF])]
    pooled = jackknife_bias(runs, lambda x: float(x[0]))
    z = np.array([np.exp([0.1, 0.3]).mean(), np.exp([-0.5, 0.0]).mean()])
    theta = np.array([np.exp(0.3) / np.exp([0.1, 0.3]).sum(), 1 / (1 + np.exp(-0.5))])
    assert pooled.estimate.value == pytest.approx((z * theta).sum() / z.sum(), rel=1e-12)
    assert pooled.estimate.n == 3


def test_bias_is_refused_where_it_has_no_meaning() -> None:
    resampled = make_result([0.0, 0.0], trace=[make_record(length=[[1], [1]], resampled=True)])
    with pytest.raises(ValueError, match="not independent"):
        jackknife_bias(resampled, lambda x: 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        jackknife_bias(make_result([0.0]), lambda x: 0.0)
    with pytest.raises(ValueError, match="positive weight"):
        jackknife_bias(make_result([0.0, -INF]), lambda x: 0.0)
    with pytest.raises(ValueError, match="proper"):
        run_bias([make_result([0.0], proper=False, reasons=["argmax"])] * 3, lambda x: 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        run_bias([make_result([0.0])], lambda x: 0.0)
    with pytest.raises(ValueError, match="log_z"):
        run_bias([make_result([0.0], has_potential=True)] * 2, lambda x: 0.0)
    with pytest.raises(ValueError, match="no particle of positive weight"):
        run_bias([make_result([0.0]), make_result([-INF])], lambda x: 0.0)


def test_covariance_gives_the_exact_bias_in_expectation() -> None:
    """All pairs of runs of three units, each pair with its probability: E[run_bias] is the bias of three units."""
    runs = [
        (p, make_result(list(w), sequences=[[int(100 * x)] for x in v])) for p, w, v in _enumerate(3)
    ]
    expected = sum(
        p * q * run_bias([a, b], lambda x: x[0] / 100).bias.value
        for (p, a), (q, b) in itertools.product(runs, repeat=2)
    )
    assert expected == pytest.approx(_bias(3), rel=1e-10)


def test_covariance_finds_the_bias_of_a_real_sampler() -> None:
    """Against the exact answer: 4,000 runs, the direct error is one mean of bounded values; five standard errors."""
    ar = TabularAR.random(3, 4, seed=1, eos_id=1)
    pair = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.7, seed=2))
    exact = oracle(ARTarget(ar), max_new_tokens=4)

    def f(x: tuple[int, ...]) -> float:
        return float(len(x))

    for trigger in (None, never):
        sampler = smc(pair, 2, w=0.8, window=3, trigger=trigger)
        runs = sampler.run([[]] * 4000, seed=list(range(4000)), max_new_tokens=4)
        found = run_bias(runs, f)
        estimates = np.array([run.expectation(f) for run in runs])
        direct, error = estimates.mean() - exact.expectation(f), estimates.std() / math.sqrt(4000)
        assert abs(direct) > 5 * error, "no bias to be found: the test would have no power"
        assert abs(found.bias.value - direct) < 5 * math.hypot(found.bias.error, error), (found, direct)


def test_delta_method_finds_a_known_bias_to_first_order() -> None:
    """Exact expectations for seven units, the most that enumeration affords: within a third of the bias."""
    n = 7
    expected = sum(p * delta_ratio(w, v).bias.value for p, w, v in _enumerate(n))
    assert abs(expected - _bias(n)) < abs(_bias(n)) / 3, (expected, _bias(n))
    left = sum(p * delta_ratio(w, v).corrected for p, w, v in _enumerate(n)) - TRUTH
    assert abs(left) < abs(_bias(n)) / 3, (left, _bias(n))


def test_delta_and_jackknife_agree_on_many_units() -> None:
    rng = np.random.default_rng(0)
    log_w, v = 0.5 * rng.normal(size=4000), rng.normal(size=4000)
    a, b = delta_ratio(log_w, v + np.exp(log_w)), jackknife_ratio(log_w, v + np.exp(log_w))
    assert a.estimate.value == pytest.approx(b.estimate.value, rel=1e-12)
    assert a.bias.value == pytest.approx(b.bias.value, rel=0.02)
    assert a.estimate.error == pytest.approx(b.estimate.error, rel=0.02)


def test_delta_method_uses_runs_or_untouched_particles_as_units() -> None:
    free = make_result([0.0, -INF, 0.5], sequences=[[0], [1], [2]])
    assert delta_bias(free, lambda x: x[0]).bias.n == 3
    touched = make_result([0.0, 0.5], trace=[make_record(length=[[1], [1]], resampled=True)])
    with pytest.raises(ValueError, match="resampled"):
        delta_bias(touched, lambda x: x[0])
    with pytest.raises(ValueError, match="needs 2 units"):
        delta_ratio(np.array([-INF, -INF]), np.zeros(2))


def test_bias_against_exact_samples_covers_the_exact_bias() -> None:
    """One particle of plain importance sampling is biased; the interval against AR samples covers the exact bias."""
    ar = TabularAR.random(3, 3, seed=1, eos_id=None)
    pair = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.9))
    sampler, target = smc(pair, 1, w=0.9, window=3), ARTarget(ar)

    def f(x: tuple[int, ...]) -> float:
        return float(x[0] == x[1])

    seeds = list(range(1500))
    results = sampler.run([[]] * len(seeds), seed=seeds, max_new_tokens=3)
    exact = [r for s in range(300) for r in ar_sampling(target, [[]], seed=s, max_new_tokens=3)]
    found = bias_against_samples(results, exact, f, level=0.9999)
    reference = run_bias(smc(pair, 1, w=0.9, window=3).run([[]] * 6000, seed=list(range(4000, 10_000)),
                                                            max_new_tokens=3), f)
    assert found.low < reference.bias.value < found.high, (found, reference)
    assert bias_against_samples(exact[:150], exact[150:], f, level=0.9999).low < 0


def test_a_function_that_never_varied_bounds_no_bias() -> None:
    rare = [make_result([0.0]) for _ in range(30)]
    found = bias_against_samples(rare, rare, lambda x: 0.0)
    assert (found.value, found.low, found.high) == (0.0, -INF, INF)


def test_bias_against_samples_refuses_too_few() -> None:
    one = make_result([0.0])
    with pytest.raises(ValueError, match="at least 2 of each"):
        bias_against_samples([one, one], [one], lambda x: 1.0)
    with pytest.raises(ValueError, match="level"):
        bias_against_samples([one, one], [one, one], lambda x: 1.0, level=0.0)

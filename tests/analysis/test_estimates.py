"""Variance of one run's estimates from its genealogy, against the variance over repeated runs; batch means."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest

from smc_bridge.analysis.estimates import batch_means, eve_indices, genealogy_variance
from smc_bridge.engine.presets import smc
from smc_bridge.engine.resampling import Multinomial, Systematic
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import Trigger, always, never
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.result import Result

RUNS, PARTICLES = 400, 128


class Tables:
    """A tabular pair with a perturbed proposal."""

    ar = TabularAR.random(3, 4, seed=5, eos_id=None)
    dlm = TabularDLM(ar, noise=0.6)


def sampler(trigger: Trigger) -> Sampler:
    return smc(Tables(), PARTICLES, w=0.8, window=2, resampler=Multinomial(), trigger=trigger)


@functools.cache
def runs(trigger: Trigger) -> list[Result]:
    return sampler(trigger).run([[]] * RUNS, seed=list(range(RUNS)), max_new_tokens=4)


def first_is_zero(value: tuple[int, ...]) -> float:
    return float(value[0] == 0)


def last_is_zero(value: tuple[int, ...]) -> float:
    return float(value[-1] == 0)


@pytest.mark.parametrize("trigger", [always, never], ids=["always", "never"])
@pytest.mark.parametrize("f", [first_is_zero, last_is_zero])
def test_genealogy_predicts_the_variance_over_repeated_runs(trigger: Trigger, f: object) -> None:
    results = runs(trigger)
    theta = np.array([r.expectation(f) for r in results])  # type: ignore[arg-type]
    found = [genealogy_variance(r, f) for r in results]  # type: ignore[arg-type]
    observed = theta.var(ddof=1)
    # The sample variance of 400 runs has a relative standard error of about 7 %; 30 % is more than four of them, and
    # leaves room for the O(1/N) bias of both estimators.
    for name in ("chan_lai", "lee_whiteley"):
        predicted = float(np.mean([getattr(v, name) for v in found]))
        assert abs(predicted / observed - 1) < 0.30, f"{name}: predicted {predicted:.5f}, observed {observed:.5f}"


@pytest.mark.parametrize("trigger", [always, never], ids=["always", "never"])
def test_genealogy_predicts_the_relative_variance_of_the_evidence(trigger: Trigger) -> None:
    results = runs(trigger)
    observed = np.exp([r.log_evidence for r in results]).var(ddof=1)
    predicted = float(np.mean([genealogy_variance(r, first_is_zero).evidence for r in results]))
    assert abs(predicted / observed - 1) < 0.30, f"predicted {predicted:.5f}, observed {observed:.5f}"


def test_a_genealogy_of_another_resampling_scheme_is_refused() -> None:
    """With systematic resampling the families' variance of the evidence is below 0 on average, the true one above."""
    program = smc(Tables(), 8, w=0.8, window=2, resampler=Systematic(), trigger=always)
    results = program.run([[]] * 200, seed=list(range(200)), max_new_tokens=4)
    for result in results:
        with pytest.raises(ValueError, match=r"resampled by Systematic\(\).*multinomial resampling only"):
            genealogy_variance(result, first_is_zero)
    unknown = [genealogy_variance(dataclasses.replace(r, settings={}), first_is_zero).evidence for r in results]
    assert np.mean(unknown) < 0 < np.exp([r.log_evidence for r in results]).var()


def test_a_run_that_never_resampled_has_a_variance_whatever_its_scheme() -> None:
    program = smc(Tables(), 16, w=0.8, window=2, resampler=Systematic(), trigger=never)
    found = genealogy_variance(program.run([[]], seed=0, max_new_tokens=4)[0], first_is_zero)
    assert found.families == 16


def test_one_family_is_called_degenerate() -> None:
    results = smc(Tables(), 2, w=1.0, window=1, resampler=Multinomial(), trigger=always).run(
        [[]] * 50, seed=list(range(50)), max_new_tokens=4
    )
    found = [genealogy_variance(r, first_is_zero) for r in results]
    assert any(v.degenerate for v in found)
    assert any(not v.degenerate for v in found)
    for result, v in zip(results, found, strict=True):
        assert v.degenerate == (len(set(eve_indices(result).tolist())) == 1)
        assert not v.degenerate or v.chan_lai == pytest.approx(0.0, abs=1e-15)


def test_what_has_no_genealogy_is_refused() -> None:
    one = Result([], [[0]], [0.0])
    with pytest.raises(ValueError, match="at least 2"):
        genealogy_variance(one, first_is_zero)
    improper = Result([], [[0], [1]], [0.0, 0.0], proper=False, reasons=["argmax"])
    with pytest.raises(ValueError, match="not properly weighted"):
        genealogy_variance(improper, first_is_zero)


def test_batch_means_cover_the_mean_at_their_level() -> None:
    rng = np.random.default_rng(0)
    trials = [batch_means(rng.exponential(size=200), batches=20, level=0.9) for _ in range(1000)]
    covered = sum(t.low <= 1.0 <= t.high for t in trials)
    # 1,000 trials at 0.9 have a standard error of 9.5; the exponential's skew costs about a point.
    assert 850 <= covered <= 945, covered


def test_batch_means_of_dependent_values_are_wider_than_naive_ones() -> None:
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=50), 20)  # runs of twenty equal values
    assert batch_means(values, batches=50).error > 3 * batch_means(values).error


def test_batch_means_know_their_limits() -> None:
    assert math.isinf(batch_means([1.0, 2.0], batches=1).high)
    with pytest.raises(ValueError, match="batches = 3 of 2 values"):
        batch_means([1.0, 2.0], batches=3)
    with pytest.raises(ValueError, match="level = 1"):
        batch_means([1.0, 2.0], level=1.0)

"""The KL certificate over runs: by hand, its coverage, and that it bounds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from smc_bridge.analysis import kl, kl_certificate, kl_per_token, oracle
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.intervals import ratio_interval
from smc_bridge.models.tabular import TabularAR, TabularDLM
from tests.analysis.helpers import INF, make_result


def test_mean_and_interval_by_hand() -> None:
    evidence = [-0.2, 0.1, -0.4, 0.05, -0.3, 0.2, -0.1]
    found = kl_certificate([make_result([z]) for z in evidence])
    terms = np.exp(evidence) - 1 - evidence
    assert found.kl == pytest.approx(terms.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(ratio_interval(terms), rel=1e-9)
    assert found.tv == pytest.approx(math.sqrt(found.high / 2), rel=1e-12)


def test_interval_covers_the_mean_at_its_level() -> None:
    """400 certificates of 100 normal evidences. The upper end takes a fifth of its tail, so 94 % of the intervals cover
    in the limit; the band is that of levels 0.91 to 0.97, at a failure rate of 1e-6."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        evidence = rng.normal(-0.045, 0.3, size=100)  # a log-normal of mean 1: log Z has mean -s^2 / 2
        found = kl_certificate([make_result([float(z)]) for z in evidence], level=0.9)
        hits += found.low <= 0.045 <= found.high
    assert stats.binom.ppf(5e-7, 400, 0.91) <= hits <= stats.binom.ppf(1 - 5e-7, 400, 0.97), hits


def test_per_token_interval_covers_the_ratio() -> None:
    """As above with random lengths, and plain terms, whose mean is known."""
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(400):
        tokens = rng.integers(1, 9, size=60)
        excess = rng.normal(0.02 * tokens, 0.1)
        runs = [make_result([-float(d)], sequences=[[0] * int(n)]) for d, n in zip(excess, tokens, strict=True)]
        found = kl_per_token(runs, log_z=0.0, level=0.9)
        hits += found.low <= 0.02 <= found.high
    assert stats.binom.ppf(5e-7, 400, 0.91) <= hits <= stats.binom.ppf(1 - 5e-7, 400, 0.97), hits


def test_per_token_by_hand() -> None:
    runs = [make_result([-0.3], sequences=[[0, 1]]), make_result([-0.1, -0.1], sequences=[[0] * 4, [0] * 2])]
    found = kl_per_token(runs)
    assert found.n == 2
    terms = np.expm1([-0.3, -0.1]) + np.array([0.3, 0.1])
    assert found.value == pytest.approx(terms.sum() / 5)
    assert (kl_per_token(runs[:1]).low, kl_per_token(runs[:1]).high) == (0.0, INF)
    alike = kl_per_token([make_result([-0.3], sequences=[[0] * n]) for n in (2, 3, 5)])
    assert (alike.low, alike.high) == (0.0, INF), "runs of one evidence give no interval, whatever their lengths"


def test_length_per_token_is_that_of_a_draw_from_the_weights() -> None:
    """Weights 3 : 1 on sequences of 1 and 9 tokens: a draw has 3 tokens on average, the particles 5."""
    run = make_result([math.log(1.5), math.log(0.5)], sequences=[[0], [0] * 9])
    assert kl_per_token([run, run], log_z=-0.3).value == pytest.approx(-0.3 / 3.0)
    dead = make_result([-INF, -INF], sequences=[[0], [0] * 9])
    assert kl_per_token([run, dead]).value == INF


def test_certificates_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="argmax is no resampling"):
        kl_certificate(make_result([0.0], proper=False, reasons=["argmax is no resampling"]))
    with pytest.raises(ValueError, match="log_z is missing"):
        kl_per_token(make_result([0.0], has_potential=True))
    with pytest.raises(ValueError, match="results is empty"):
        kl_certificate([])
    assert kl_certificate(make_result([-1.0], has_potential=True), log_z=-0.7).kl == pytest.approx(0.3)


@pytest.mark.parametrize("particles", [1, 4])
def test_certificate_bounds_the_divergence_of_the_output(particles: int) -> None:
    """6,000 runs: the estimated KL of the output law, which noise only raises, stays below the interval's end."""
    ar = TabularAR.random(3, 3, seed=2, eos_id=1)
    pair = SimpleNamespace(ar=ar, dlm=TabularDLM(ar, noise=0.7))
    runs = smc(pair, particles, w=0.7, window=3).run([[]] * 6000, seed=list(range(6000)), max_new_tokens=3)
    bound = kl_certificate(runs, level=1 - 1e-6)
    found = kl(runs, oracle(ARTarget(ar), max_new_tokens=3))
    assert 0.0 < found <= bound.high, (found, bound)

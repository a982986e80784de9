"""`EvidenceSMCFilter` against Pyro's own filter: each defect is shown there and mended here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SMCFilter
from pyro.infer.smcfilter import _systematic_sample

from smc_bridge.engine.resampling import SSP, Multinomial, Resampler, Stratified, Systematic
from smc_bridge.engine.weights import always, never
from smc_bridge.pyro_program.filter import EvidenceSMCFilter
from tests.smc_bridge.claims import claim, mean_test


class Coin:
    """Two coins per step; the model sees the first one land."""

    def __init__(self, bias: float, *, observed: bool = False, auxiliary: bool = False) -> None:
        self.bias, self.observed, self.auxiliary = bias, observed, auxiliary

    def init(self, state: Any) -> None:
        if self.observed:
            state["heads"] = torch.zeros(state._num_particles)

    def step(self, state: Any, t: int) -> None:
        bias = torch.full((state._num_particles,), self.bias)
        if self.auxiliary:
            which = pyro.sample(f"auxiliary_{t}", dist.Bernoulli(0.3 * torch.ones_like(bias)))
            bias = torch.where(which > 0, bias, 1 - bias)
        heads = pyro.sample(f"coin_{t}", dist.Bernoulli(bias))
        if self.observed:
            pyro.sample(f"seen_{t}", dist.Bernoulli(0.2 + 0.6 * heads), obs=torch.ones_like(heads))
            state["heads"] = state["heads"] + heads


def coin_evidence(steps: int) -> float:
    """Probability of all observations: each is `0.4 * 0.8 + 0.6 * 0.2`."""
    return (0.4 * 0.8 + 0.6 * 0.2) ** steps


def coin_masses(smc: Any) -> tuple[np.ndarray, np.ndarray]:
    """`w 1{heads = h}` of every particle for h = 0 .. 3, and its expectation."""
    hits = smc.state["heads"].numpy()[:, None] == np.arange(4)
    expected = [math.comb(3, h) * (0.4 * 0.8) ** h * (0.6 * 0.2) ** (3 - h) for h in range(4)]
    return hits * smc.log_weights.exp().numpy()[:, None], np.array(expected)


def run_filter(cls: type[Any], *, auxiliary: bool = False, particles: int = 4000, **parts: Any) -> Any:
    """Three steps of a coin model with bias 0.4 whose guide has bias 0.55."""
    pyro.set_rng_seed(4)
    smc = cls(Coin(0.4, observed=True), Coin(0.55, auxiliary=auxiliary), particles, max_plate_nesting=0, **parts)
    smc.init()
    for t in range(3):
        smc.step(t)
    return smc


def test_pyros_resampler_returns_an_index_out_of_range_and_ours_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = next(
        w for n in range(3, 100) for w in [torch.full((n,), 1.0 / n)] if float(w.cumsum(-1)[-1]) < 1.0
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.zeros(*shape, **kwargs))
    theirs = _systematic_sample(weights)
    assert int(theirs.max()) == weights.numel(), "Pyro's resampler has been mended: simplify ours"
    # The smallest offset and the greatest one below 1.
    for offset in (0.0, 1.0 - 2.0**-53):
        uniforms = torch.full((1, 1), offset, dtype=torch.float64)
        ours = Systematic().ancestors(torch.cat([weights, torch.zeros(1)])[None], weights.numel(), uniforms)
        assert int(ours.max()) < weights.numel(), "an index out of range, or the particle of weight zero"


@pytest.mark.parametrize("resampler", [Systematic(), Multinomial(), SSP()], ids=lambda r: type(r).__name__)
def test_filter_survives_round_off_and_never_keeps_a_particle_of_weight_zero(resampler: Resampler) -> None:
    class Last(Coin):
        def step(self, state: Any, t: int) -> None:
            state["particle"] = torch.arange(state._num_particles)
            log_weight = torch.zeros(state._num_particles)
            log_weight[-3:] = -torch.inf
            pyro.factor(f"factor_{t}", log_weight)

    for particles in range(4, 40):
        smc = EvidenceSMCFilter(
            Last(0.5, observed=True), Coin(0.5, auxiliary=False), particles, 0, resampler=resampler, trigger=always)
        smc.guide.step = lambda state, t: None
        smc.init()
        smc.step(0)
        assert int(smc.state["particle"].max()) < particles - 3
        assert abs(smc.log_evidence - math.log(1 - 3 / particles)) < 1e-12


def test_pyros_filter_breaks_on_auxiliary_guide_sites_and_ours_does_not() -> None:
    with pytest.raises(KeyError, match="auxiliary_0"):
        run_filter(SMCFilter, auxiliary=True)
    ours = run_filter(EvidenceSMCFilter, auxiliary=True, trigger=never)
    claim(mean_test(*coin_masses(ours)), "masses with auxiliary sites")


def test_pyros_filter_has_no_evidence_and_ours_has() -> None:
    theirs = run_filter(SMCFilter)
    assert not hasattr(theirs, "log_evidence")
    lost = float(theirs.state._log_weights.double().logsumexp(-1)) - math.log(4000)
    assert abs(lost - math.log(coin_evidence(3))) > 1.0, "Pyro's filter carries log Z now: simplify ours"
    ours = run_filter(EvidenceSMCFilter, trigger=never)
    assert ours.log_weights.dtype == torch.float64
    claim(mean_test(*coin_masses(ours)), "masses of the filter")


def test_evidence_is_carried_through_resampling() -> None:
    exact = math.log(coin_evidence(3))
    smc = run_filter(EvidenceSMCFilter, trigger=always, resampler=Stratified())
    assert all(step.resampled for step in smc.history)
    assert bool((smc.log_weights == smc.log_weights[0]).all())
    # The increments lie in [log 0.2 (0.4/0.55), ...], so 4,000 particles put log Z within a few per cent.
    assert abs(smc.log_evidence - exact) < 0.1, (smc.log_evidence, exact)
    steps = smc.history[1:]
    telescoped, before = 0.0, torch.zeros(4000, dtype=torch.float64)
    for step in steps:
        telescoped += float((before + step.log_increments).logsumexp(-1) - before.logsumexp(-1))
        before = step.log_weights
    assert abs(smc.log_evidence - telescoped) < 1e-9
    assert {"heads"} == set(smc.get_empirical())


def test_sites_that_would_make_the_weight_wrong_are_refused() -> None:
    class Copies(Coin):
        def step(self, state: Any, t: int) -> None:
            drawn = pyro.sample(f"hidden_{t}", dist.Bernoulli(torch.full((state._num_particles,), 0.5)))
            pyro.sample(f"coin_{t}", dist.Delta(drawn))

    smc = EvidenceSMCFilter(Coin(0.4, observed=True), Copies(0.5), 4, 0)
    smc.init()
    with pytest.raises(ValueError, match=r"'coin_0' is a Delta after an auxiliary site"):
        smc.step(0)

    class Observes(Coin):
        def step(self, state: Any, t: int) -> None:
            super().step(state, t)
            pyro.factor(f"factor_{t}", torch.zeros(state._num_particles))

    smc = EvidenceSMCFilter(Coin(0.4, observed=True), Observes(0.5), 4, 0)
    smc.init()
    with pytest.raises(ValueError, match="guide site 'factor_0' is observed"):
        smc.step(0)

"""Rank tests: uniform for proper methods, not for the released decoder nor for a wrong weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from smc_bridge.analysis.calibration import rank_test, rank_uniformity
from smc_bridge.analysis.exact_law import oracle
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.presets import smc
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods import poe_bridge as presets
from smc_bridge.methods.released import released
from smc_bridge.models.tabular import TabularAR, TabularDLM

#: Probability that a test of this file fails by chance.
FAILURE = 1e-6
LIMIT, TRIALS, STEPS = 4, 1200, 3


class Tables:
    """A tabular pair with a perturbed proposal."""

    ar = TabularAR.random(4, LIMIT, seed=5, eos_id=None)
    dlm = TabularDLM(ar, noise=0.6)


LAW = oracle(ARTarget(Tables.ar), max_new_tokens=LIMIT).posterior()


def statistic(value: tuple[int, ...]) -> float:
    """The probability of the sequence under the target: what a wrong weight inflates or deflates."""
    return LAW[value]


@pytest.mark.parametrize("kernel", [None, GumbelCoupling(), TreeWalk(3)], ids=["rejection", "gumbel", "tree"])
@pytest.mark.parametrize(("particles", "lanes"), [(4, 1), (2, 2)])
def test_ranks_of_exact_samples_are_uniform_for_proper_programs(
    kernel: Kernel | None, particles: int, lanes: int
) -> None:
    sampler = smc(Tables(), particles, lanes=lanes, w=0.8, window=2, lookahead=LIMIT, kernel=kernel)
    found = rank_test(sampler, [[]] * TRIALS, statistic, steps=STEPS, max_new_tokens=LIMIT)
    assert found.p_value > FAILURE, found
    assert found.ranks.size == TRIALS


class WrongWeights(OwnWeights):
    """A wrong importance step that calls itself proper: a mean over length rather than a sum, sharpened."""

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        return 3 * super().__call__(lanes, kernel=kernel, intermediate=intermediate) / lanes.move.length


def test_a_wrong_weight_is_caught() -> None:
    """The wrong law moves the sum of the tokens. Ranks at shares of about .19, .18, .27 and .36 have a non-centrality
    of 90 for 1,200 trials: a test at 1e-6 (critical value 31 on 3 degrees of freedom) misses it once in 1,000."""
    sampler = smc(Tables(), 16, w=0.8, window=2, lookahead=LIMIT, weight=WrongWeights())
    found = rank_test(sampler, [[]] * TRIALS, lambda value: float(sum(value)), steps=STEPS, max_new_tokens=LIMIT)
    assert found.p_value < FAILURE, found


def test_the_direct_test_catches_the_released_decoder_and_passes_speculative_decoding() -> None:
    """The released decoder's ranks have shares of about .59, .19, .11 and .11: a non-centrality of 746 for 1,200 trials
    against a critical value of 31, so it passes with probability below 1e-100. Speculative decoding has no bias; proper
    smc of few particles would fail this direct test as well, given enough trials."""
    baseline = released(Tables(), window=LIMIT, lookahead=LIMIT)
    found = rank_test(baseline, [[]] * TRIALS, statistic, steps=STEPS, kind="direct", max_new_tokens=LIMIT)
    assert found.p_value < FAILURE, found
    exact = presets.speculative(Tables(), window=LIMIT, lookahead=LIMIT)
    found = rank_test(exact, [[]] * TRIALS, statistic, steps=STEPS, kind="direct", max_new_tokens=LIMIT)
    assert found.p_value > FAILURE, found


def test_what_has_no_conditional_form_is_refused() -> None:
    with pytest.raises(ValueError, match="use kind='direct'"):
        rank_test(released(Tables()), [[]] * 100, statistic, steps=1)
    with pytest.raises(ValueError, match="give at least 40"):
        rank_test(smc(Tables(), 2), [[]] * 10, statistic)
    with_potential = dataclasses.replace(
        smc(Tables(), 2), target=smc(Tables(), 2, potential=lambda p: p.length.double()).target
    )
    with pytest.raises(ValueError, match="potential"):
        rank_test(with_potential, [[]] * 100, statistic, steps=1)


def test_a_statistic_without_a_number_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="statistic is NaN for 200 of 200 values"):
        rank_test(smc(Tables(), 2), [[]] * 100, lambda value: float("nan"), steps=1, max_new_tokens=LIMIT)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "foo"}, "kind = 'foo': choose"), ({"steps": 2.5}, "steps = 2.5: "), ({"steps": 0}, "steps = 0: ")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_test(smc(Tables(), 2), [[]] * 100, statistic, **options)


def test_uniformity_is_judged_by_pearson() -> None:
    assert rank_uniformity(np.repeat(np.arange(5), 20), 5).p_value == pytest.approx(1.0)
    assert rank_uniformity(np.zeros(100, dtype=np.int64), 5).p_value < 1e-50

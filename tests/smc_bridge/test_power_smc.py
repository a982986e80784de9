"""Power-SMC: whole sequences of law `p(x)^alpha / Z`, by increments of the AR laws that a step has anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.distributions.power import SequencePower
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always
from smc_bridge.methods.power_smc import power_smc
from smc_bridge.models.tabular import TabularAR, TabularCausalSession
from smc_bridge.names import RESAMPLERS
from smc_bridge.prefix import Prefix
from smc_bridge.pyro_program.inference import enumerate_program, score
from smc_bridge.testing import TabularPair, assert_proper, check, enumerate_sampler, exact_law, mutated, tabular_pair
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import worst

PAIR = tabular_pair(2, 3)
LIMIT = 3
CAUGHT = 1e-3


def powers(alpha: float, pair: TabularPair = PAIR, *, temperature: float = 1.0) -> oracle.Law:
    """`p(s)^alpha` of every complete sequence, by the oracle in numpy."""
    tables = [table.numpy() for table in pair.ar.tables]
    law = oracle.sequence_law(tables, LIMIT, pair.ar.eos_id, temperature=temperature)
    return {s: p**alpha for s, p in law.items()}


def program(alpha: float = 2.0, **options: Any) -> Sampler:
    return power_smc(PAIR, alpha=alpha, **{"particles": 2, "window": 2, "trigger": always, **options})


def gap_of(sampler: Sampler, expected: oracle.Law) -> tuple[float, str]:
    """Largest gap of the enumerated program to a law, and where it is."""
    return worst(enumerate_sampler(sampler, LIMIT).proper, expected)


PROGRAMS: dict[str, dict[str, Any]] = {
    "rejection": {}, "block": {"kernel": "block"}, "tree": {"kernel": "tree"}, "accept-all": {"kernel": "accept-all"},
    "chain": {"proposal": "chain"}, "w = 0": {"w": 0.0}, "towards p": {"intermediate": "poe"},
    "two lanes": {"lanes": 2, "particles": 1}, "balance": {"lanes": 2, "particles": 1, "weight": "balance"},
    "lanes of their own": {"lanes": 2, "particles": 1, "proposal_temperature": [0.4, 1.5]},
    "three particles": {"particles": 3, "window": 3}, "colder": {"temperature": 0.7}, "ess": {"trigger": "ess"},
}


@pytest.mark.parametrize("alpha", [2.0, 0.5])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_the_power_of_whole_sequences_as_its_target(name: str, alpha: float) -> None:
    """And `E[Z_hat]` is `Z = sum_s p(s)^alpha`, the sum of what is compared here."""
    options = PROGRAMS[name]
    gap, where = gap_of(program(alpha, **options), powers(alpha, temperature=options.get("temperature", 1.0)))
    assert gap < 1e-12, where


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_it_is_proper_under_every_resampler(resampler: str) -> None:
    assert_proper(program(3.0, resampler=resampler))


def test_it_is_proper_by_the_gumbel_coupling_as_far_as_draws_can_tell() -> None:
    found = check(program(kernel="gumbel"), runs=1_000)
    assert found.proper, str(found)
    assert found.how == "Monte Carlo"


def test_no_temperature_of_tokens_has_this_law() -> None:
    """What the power is for: the locally tempered law is another one."""
    power, local = powers(2.0), oracle.sequence_law(
        [table.numpy() for table in PAIR.ar.tables], LIMIT, PAIR.ar.eos_id, temperature=0.5
    )
    total = sum(power.values())
    assert 0.5 * sum(abs(power[s] / total - local[s]) for s in power) > 0.05


@dataclass(frozen=True)
class WithTheWholePower(SequencePower):
    """The increment is alpha, and not alpha - 1, times the log-probability."""

    def of_tokens(self, log_p: Tensor) -> Tensor:
        return self.alpha * log_p


def test_an_increment_of_alpha_instead_of_alpha_minus_one_is_caught() -> None:
    sampler = program()
    sampler.target.potential = WithTheWholePower(2.0)
    gap, where = gap_of(sampler, powers(2.0))
    assert gap > CAUGHT, where


def test_an_increment_past_the_end_of_the_block_is_caught() -> None:
    """What was drafted behind a refusal or an end of sequence counts for nobody."""
    right = ARTarget.log_potential_along

    def of_the_window(self: ARTarget, p: Law, block: Tensor, length: Tensor) -> Tensor:
        return right(self, p, block.clamp_min(0), torch.full_like(length, block.shape[-1]))

    with mock.patch.object(ARTarget, "log_potential_along", of_the_window):
        gap, where = gap_of(program(), powers(2.0))
    assert gap > CAUGHT, where


@pytest.mark.parametrize("mutant", ["finished particles dropped", "finished particles reweighted", "weights not reset"])
def test_a_wrong_reduction_is_caught(mutant: str) -> None:
    options = {"trigger": "never"} if mutant == "finished particles reweighted" else {}
    with mutated(mutant):
        gap, where = gap_of(program(**options), powers(2.0))
    assert gap > CAUGHT, where


def test_rescoring_gives_the_same_potential() -> None:
    """What `exact_law` and the Pyro program read; a prompt does not count."""
    target = ARTarget(PAIR.ar, potential=SequencePower(2.0))
    whole = powers(2.0)
    found = exact_law(target, LIMIT)
    assert max(abs(found[s] - whole[s]) for s in whole) < 1e-12
    prefix = Prefix.of([[0, 0, 1], [1]])
    conditional = PAIR.ar.tables[1][0, 0].log() + PAIR.ar.tables[2][0, 1].log()
    assert target.log_potential(prefix, start=torch.tensor([1, 1])).tolist() == pytest.approx([float(conditional), 0.0])
    with pytest.raises(ValueError, match="start is missing: potential SequencePower"):
        target.log_potential(prefix)


def test_the_pyro_program_has_the_same_law() -> None:
    sampler = power_smc(PAIR, particles=1, alpha=2.0, window=2)
    gap, where = worst(enumerate_program(sampler, [], max_new_tokens=LIMIT), powers(2.0))
    assert gap < 1e-12, where
    p = PAIR.ar.tables[1][0, 0] * PAIR.ar.tables[2][0, 1]
    assert score(sampler, [0], [0, 1]) == pytest.approx(2 * math.log(float(p)))


def test_no_forward_is_added() -> None:
    """The same forwards as without a potential, of as many positions."""
    pair, calls = tabular_pair(3, 6), []
    right = TabularCausalSession.score

    def counted(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        calls.append(drafts.numel())
        return right(self, rows, drafts)

    with mock.patch.object(TabularCausalSession, "score", counted):
        [result] = power_smc(pair, particles=4, alpha=2.0, window=2).run([[0]], seed=3, max_new_tokens=5)
    assert len(calls) == len(result.trace) == result.forwards.ar_forwards
    assert sum(calls) == result.forwards.ar_tokens


def test_the_tempered_intermediate_keeps_more_particles() -> None:
    """Towards p^alpha against towards p, at the same N, on a pair whose DLM is close; final ESS of 200 runs."""
    pair = tabular_pair(3, 6, noise=0.3, eos=False)

    def mean_ess(**options: Any) -> float:
        sampler = power_smc(pair, particles=8, alpha=4.0, trigger="never", window=6, **options)
        runs = sampler.run([[]] * 200, seed=range(200), max_new_tokens=6)
        return sum(run.ess for run in runs) / len(runs)

    tempered, plain = mean_ess(), mean_ess(intermediate="poe")
    assert tempered > 1.5 * plain, (tempered, plain)


def test_its_results_ask_for_log_z_before_they_bound_anything() -> None:
    [result] = program().run([[]], seed=1, max_new_tokens=LIMIT)
    assert result.proper
    assert result.has_potential
    with pytest.raises(ValueError, match="log_z is missing"):
        result.certificate()
    log_z = math.log(sum(powers(2.0).values()))
    assert result.certificate(log_z=log_z).kl == pytest.approx(log_z - result.log_evidence)


def test_a_power_of_one_is_the_target_itself_and_zero_temperature_its_likeliest_sequence() -> None:
    gap, where = gap_of(program(1.0), powers(1.0))
    assert gap < 1e-12, where
    [result] = program(temperature=0.0).run([[]], seed=1, max_new_tokens=LIMIT)
    assert result.log_weights == [0.0, 0.0]


def test_a_token_that_the_target_leaves_out_is_dead_under_every_power() -> None:
    """`0^(alpha - 1)` is infinite for alpha < 1; the product with p is 0."""
    ar = TabularAR([[[0.0, 1.0]], [[0.5, 0.5], [0.3, 0.7]]])
    target = ARTarget(ar, potential=SequencePower(0.5))
    found = target.log_potential(Prefix.of([[0, 1], [1, 0]]), start=torch.tensor([0, 0])).tolist()
    assert found == [-math.inf, pytest.approx(-0.5 * math.log(0.3))]


def test_draws_do_not_depend_on_the_batch() -> None:
    pair = tabular_pair(3, 6)
    sampler = power_smc(pair, particles=3, alpha=2.0, window=2)
    prompts, seeds = [[0], [1], [0, 1]], [5, 6, 7]
    together = sampler.run(prompts, seed=seeds, max_new_tokens=4, batch=2)
    for prompt, seed, result in zip(prompts, seeds, together, strict=True):
        [alone] = sampler.run([prompt], seed=seed, max_new_tokens=4)
        assert (alone.sequences, alone.log_weights) == (result.sequences, result.log_weights)


@pytest.mark.parametrize(("options", "message"), [
    ({"alpha": 0}, r"alpha = 0: give a power above 0"), ({"alpha": math.nan}, "alpha = nan: give a power"),
    ({"alpha": "x"}, "alpha = 'x': give a power"), ({"w": 2}, r"w = 2: the exponent"),
])
def test_bad_parameters_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        power_smc(PAIR, **options)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Odd:
    """A user's potential of tokens that returns something else."""

    found: Any

    def of_tokens(self, log_p: Tensor) -> Tensor:
        return self.found(log_p)


@pytest.mark.parametrize(("found", "message"), [
    (lambda log_p: log_p * math.nan, "Odd.of_tokens returned nan for log-probability"),
    (lambda log_p: log_p.sum(), r"Odd.of_tokens returned a tensor of float64, shape \[\]: return a tensor of float"),
    (lambda log_p: None, "Odd.of_tokens returned None: return a tensor of float"),
])
def test_what_a_users_potential_returns_is_checked(found: Any, message: str) -> None:
    sampler = program()
    sampler.target.potential = Odd(found)
    with pytest.raises(ValueError, match=message) as caught:
        sampler.run([[]], seed=1, max_new_tokens=LIMIT)
    assert "\n" not in str(caught.value)

"""The program is properly weighted: `E[Z_hat sum_k W_k 1{x_k = s}] = p(s) phi(s)` for every complete sequence s.

Everything that the real engine can draw is enumerated: drafts and stops of every lane, the choice among lanes, the
ancestors. Two particles, two tokens, sequences of up to three, asymmetric tables; the oracle is plain numpy.

`E[Z_hat] = 1` alone has no power (a sampler that always keeps its best particle passes it, shown below), so every claim
is about every sequence, and the sampler's own output law r is reported next to it.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge.engine.resampling import Multinomial, Systematic, UniformResampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.importance import BalanceHeuristic, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.released import released
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.randomness import Randomness
from smc_bridge.testing import EnumeratingSource, TabularPair, enumerate_sampler, mutants, outcomes
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import KERNELS, TABLES, TablePotential, program, table_model, target_law, worst
from tests.smc_bridge.smc_enumeration import Enumeration, enumerate_program, resampling_outcomes

TOLERANCE = 1e-12
LIMIT = 3
TRIGGERS = {"always": always, "ess": EssBelow(0.95), "never": never}
LANES = {"one-lane": (1, OwnWeights()), "two-lanes": (2, OwnWeights()), "balance-heuristic": (2, BalanceHeuristic())}
POTENTIALS = {"no-potential": None, "potential": TablePotential(2, LIMIT, dead=(0, 0, 1))}


@functools.cache
def enumerated(
    kernel: str, resampler: str, trigger: str, potential: str, lanes: str, eos: int | None
) -> tuple[Enumeration, oracle.Law]:
    """Enumeration and target law of one configuration."""
    count, weight = LANES[lanes]
    sampler = program(
        KERNELS[kernel], eos=eos, lanes=count, weight=weight, resampler=named("resampler", resampler),
        trigger=TRIGGERS[trigger], potential=POTENTIALS[potential])
    return enumerate_program(sampler, LIMIT), target_law(sampler, LIMIT)


def claim(kernel: str, resampler: str, trigger: str, potential: str, lanes: str, eos: int | None) -> None:
    """Check one configuration; if particles never interact, one enumeration does for all resamplers."""
    used = resampler if trigger != "never" else "systematic"
    found, expected = enumerated(kernel, used, trigger, potential, lanes, eos)
    gap, message = worst(found.proper, expected)
    assert gap < TOLERANCE, message
    assert abs(found.evidence - sum(expected.values())) < TOLERANCE, (found.evidence, sum(expected.values()))
    assert set(found.proper) == {s for s, p in expected.items() if p > 0}
    # The configuration exercises what its name says.
    assert (found.resampled > 0) == (trigger != "never"), f"resampled {found.resampled} times on average"
    assert found.kept > 0 or trigger == "always", f"kept {found.kept} times on average"
    assert (found.dead > 0) == (potential == "potential"), f"weight zero with probability {found.dead}"


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_program_is_properly_weighted(
    kernel: str, resampler: str, trigger: str, potential: str, lanes: str
) -> None:
    # Without an end of sequence the tree of one node can be left; the others see sequences of different lengths.
    claim(kernel, resampler, trigger, potential, lanes, eos=None if kernel == "tree-walk" else 1)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_program_is_properly_weighted_with_the_other_end_of_sequences(
    kernel: str, resampler: str, trigger: str, potential: str
) -> None:
    claim(kernel, resampler, trigger, potential, "one-lane", eos=1 if kernel == "tree-walk" else None)


@pytest.mark.parametrize("lanes", ["two-lanes", "balance-heuristic"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_two_lanes_are_properly_weighted_without_an_end_of_sequence(kernel: str, lanes: str) -> None:
    claim(kernel, "systematic", "always", "potential", lanes, eos=None)


@pytest.mark.parametrize("kernel", ["rejection", "block-verification", "gumbel", "accept-all", "tree-walk"])
@pytest.mark.parametrize("eos", [2, None])
def test_three_tokens_are_properly_weighted(kernel: str, eos: int | None) -> None:
    """Two tokens are special: on them the Gumbel coupling is maximal, with the law of token-level rejection."""
    ar = TabularAR.random(3, 2, seed=11, eos_id=eos)
    real = TreeWalk(1) if kernel == "tree-walk" else KERNELS[kernel]
    sampler = program(
        real, ar=ar, trigger=EssBelow(0.9), resampler=named("resampler", "ssp"), potential=TablePotential(3, 2)
    )
    found = enumerate_program(sampler, 2)
    gap, message = worst(found.proper, target_law(sampler, 2))
    assert gap < TOLERANCE, message


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_one_and_three_particles_are_properly_weighted(resampler: str, particles: int) -> None:
    sampler = program(
        Rejection(), particles=particles, trigger=EssBelow(0.9), resampler=named("resampler", resampler),
        potential=TablePotential(2, LIMIT))
    found = enumerate_program(sampler, LIMIT)
    gap, message = worst(found.proper, target_law(sampler, LIMIT))
    assert gap < TOLERANCE, message


@pytest.mark.parametrize("eos", [1, None])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_that_outlasts_the_lookahead_is_properly_weighted(kernel: str, eos: int | None) -> None:
    sampler = program(KERNELS[kernel], eos=eos, lookahead=1, window=2, trigger=always, resampler=Systematic())
    gap, message = worst(enumerate_program(sampler, LIMIT).proper, target_law(sampler, LIMIT))
    assert gap < TOLERANCE, message


def test_evidence_one_alone_has_no_power() -> None:
    """Keeping the best particle gives `E[Z_hat] = 1` to round-off and a wrong law."""
    sampler = program(Rejection(), trigger=always, resampler=mutants.KeepsTheBest())
    found, expected = enumerate_sampler(sampler, LIMIT), target_law(sampler, LIMIT)
    assert abs(found.evidence - 1.0) < TOLERANCE, f"E[Z_hat] = {found.evidence}"
    gap, message = worst(found.proper, expected)
    assert gap > 1e-3, f"argmax selection is not caught: {message}"


class EnumeratingResampler:
    """A real resampler whose outcomes are branches of an `EnumeratingSource`."""

    proper = True

    def __init__(self, real: UniformResampler) -> None:
        self.real = real

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        assert isinstance(source, EnumeratingSource)
        _, uniforms, mass = resampling_outcomes(self.real, log_weights, count)
        chosen = source.choose(mass.tolist())
        return self.real.ancestors(torch.softmax(log_weights, -1), count, uniforms[chosen : chosen + 1])


def raw_enumeration(sampler: Sampler, limit: int) -> tuple[oracle.Law, oracle.Law, int]:
    """Both laws of `Enumeration` and the number of runs, with no closed form anywhere: every draw of the real kernel,
    the real engine and the resampler is a branch, and `Sampler.run` is called once for every leaf."""
    if isinstance(sampler.resampler, UniformResampler):
        sampler.resampler = EnumeratingResampler(sampler.resampler)
    proper: oracle.Law = defaultdict(float)
    output: oracle.Law = defaultdict(float)
    total, runs = 0.0, 0

    def run(source: EnumeratingSource) -> tuple[dict[oracle.Sequence, float], float]:
        sampler._source = lambda state, prompts, rows, **_: source  # type: ignore[method-assign]
        (result,) = sampler.run([[]], max_new_tokens=limit)
        return result.posterior(), result.log_evidence

    for probability, (posterior, log_evidence) in outcomes(run):
        total, runs = total + probability, runs + 1
        for s, weight in posterior.items():
            proper[s] += probability * weight * math.exp(log_evidence)
            output[s] += probability * weight
    assert abs(total - 1.0) < TOLERANCE, f"probabilities of all runs sum to {total}"
    return dict(proper), dict(output), runs


RAW: dict[str, tuple[Kernel, dict[str, Any], int]] = {
    "rejection": (Rejection(), {"eos": None, "window": 1, "trigger": always, "resampler": Systematic()}, 2),
    "rejection-potential": (
        Rejection(), {"eos": 1, "window": 1, "trigger": EssBelow(0.95), "resampler": named("resampler", "residual"),
                      "potential": TablePotential(2, 2)}, 2),
    "rejection-elastic": (Rejection(), {"particles": 1, "eos": None}, 3),
    "rejection-balance": (Rejection(), {"particles": 1, "lanes": 2, "eos": 0, "weight": BalanceHeuristic()}, 2),
    "block-verification-lanes": (
        BlockVerification(), {"particles": 1, "lanes": 2, "eos": 0, "trigger": always, "resampler": Multinomial()}, 2),
    "block-verification-elastic": (BlockVerification(), {"particles": 1, "eos": None}, 3),
    "tree-walk": (TreeWalk(1), {"eos": None, "trigger": always, "resampler": named("resampler", "ssp")}, 2),
    "tree-walk-balance": (
        TreeWalk(1), {"particles": 1, "lanes": 2, "eos": None, "trigger": never, "weight": BalanceHeuristic()}, 2),
    "tree-walk-lanes": (
        TreeWalk(2), {"particles": 1, "lanes": 2, "eos": 1, "window": 3, "trigger": EssBelow(0.95)}, 3),
    "tree-walk-threshold": (  # one node, or none, as the marginals have it
        TreeWalk(2, min_probability=0.5, exponent=1.5),
        {"eos": None, "trigger": always, "resampler": Systematic()}, 2),
}


@functools.cache
def raw(case: str) -> tuple[oracle.Law, oracle.Law, int]:
    """The raw enumeration of a case."""
    kernel, parts, limit = RAW[case]
    return raw_enumeration(program(kernel, **parts), limit)


@pytest.mark.parametrize("case", RAW)
def test_raw_runs_over_every_random_draw_are_properly_weighted(case: str) -> None:
    kernel, parts, limit = RAW[case]
    found, _, runs = raw(case)
    expected = target_law(program(kernel, **parts), limit)
    gap, message = worst(found, expected)
    assert gap < TOLERANCE, f"{message} in {runs} runs"


@pytest.mark.parametrize("case", RAW)
def test_the_scripted_enumeration_has_the_law_of_the_raw_one(case: str) -> None:
    """The kernels' closed forms change nothing: not in the proper law, and not in the output's own."""
    kernel, parts, limit = RAW[case]
    scripted = enumerate_program(program(kernel, **parts), limit)
    proper, output, _ = raw(case)
    for found, expected in ((scripted.proper, proper), (scripted.output, output)):
        gap, message = worst(found, expected)
        assert gap < TOLERANCE, message


@pytest.mark.parametrize("lanes", [1, 2])
def test_the_released_decoder_is_caught(lanes: int) -> None:
    ar = table_model(1)
    pair = TabularPair(TabularDLM(ar, noise=0.9, seed=2), ar)
    sampler = released(pair, lanes=lanes, window=2, temperature=0.8, w=0.3)
    assert not sampler.proper
    expected = target_law(sampler, 2)
    found, output, _ = raw_enumeration(sampler, 2)
    gap, message = worst(found, expected)
    assert gap > 1e-3, f"not caught: {message}"
    distance = oracle.total_variation(output, expected)
    assert distance > 0.05, f"total variation of its output to the target is only {distance}"


def test_the_tables_are_asymmetric() -> None:
    rows = [tuple(row) for table in TABLES for row in table]
    assert len(set(rows)) == len(rows)
    assert all(tuple(reversed(row)) not in rows for row in rows)

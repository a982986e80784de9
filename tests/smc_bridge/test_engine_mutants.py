"""Every way to break the program is caught by the full enumeration: `test_full_enumeration` has power.

Each mutant changes one thing in the real engine (docs/theory, section 6, conditions C1 to C8). The same enumeration and
the same oracle that find a gap below 1e-12 for the program must find one above 1e-3 for some sequence. Mutants of the
kernels are in the kernel tests; the released decoder, which is many at once, is in `test_full_enumeration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.engine import steps
from smc_bridge.engine.resampling import Multinomial, Systematic
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.steps import Reduced
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import BalanceHeuristic, Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel, at_tokens, prefix_sum
from smc_bridge.kernels.rejection import Rejection
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

LIMIT = 3
CAUGHT = 1e-3
POTENTIAL = TablePotential(2, LIMIT)


class KeepsTheBest(Multinomial):
    """All survivors are copies of the best candidate."""

    def dimension(self, candidates: int, count: int) -> int:
        return 1

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return weights.argmax(-1, keepdim=True).expand(-1, count)

    def cells(self, weights: np.ndarray, count: int) -> oracle.Cells:
        return oracle.systematic(weights[:, :1], 1)


class Skewed(Multinomial):
    """Offspring in proportion to the square of the weights."""

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return super().ancestors(weights.square() / weights.square().sum(-1, keepdim=True), count, uniforms)

    def cells(self, weights: np.ndarray, count: int) -> oracle.Cells:
        return oracle.multinomial(weights**2 / (weights**2).sum(1, keepdims=True), count)


class WeightRuleMutant:
    """A wrong importance step that claims to be right."""

    proper = True

    def __init__(self, rule: Callable[[Lanes], Tensor]) -> None:
        self.rule = rule

    def __call__(self, lanes: Lanes, *, kernel: Kernel, intermediate: Intermediate) -> Tensor:
        return self.rule(lanes)


def _own(lanes: Lanes) -> Tensor:
    return OwnWeights()(lanes, kernel=Rejection(), intermediate=None)  # type: ignore[arg-type]


def length_normalised(lanes: Lanes) -> Tensor:
    """The mean over the block instead of the sum."""
    return _own(lanes) / lanes.move.length


def against_the_proposal(lanes: Lanes) -> Tensor:
    """`p / q` for a block whose law is pi."""
    ratio = at_tokens(lanes.log_p, lanes.move.block) - at_tokens(lanes.log_q, lanes.move.block)
    return prefix_sum(ratio, lanes.move.length)


def against_the_first_lane(lanes: Lanes) -> Tensor:
    """Every lane weighs with the intermediate of lane 0's temperature."""
    log_pi = 0.5 * lanes.log_q[:, :1] + 0.5 * lanes.log_p
    log_pi = log_pi - log_pi.logsumexp(-1, keepdim=True)
    ratio = at_tokens(lanes.log_p, lanes.move.block) - at_tokens(log_pi, lanes.move.block)
    return prefix_sum(ratio, lanes.move.length)


def without_the_last_token(lanes: Lanes) -> Tensor:
    """The corrected token is taken for an exact draw."""
    ratio = at_tokens(lanes.log_p, lanes.move.block) - at_tokens(lanes.log_pi, lanes.move.block)
    return prefix_sum(ratio, lanes.move.length - 1)


def balance_without_stops(lanes: Lanes) -> Tensor:
    """The balance heuristic on tokens only, `K p / sum_k pi_k`, as if the lanes stopped alike (C2)."""
    lane_sum = torch.stack([
        prefix_sum(at_tokens(
            torch.log_softmax(0.5 * lanes.log_q[:, j : j + 1] + 0.5 * lanes.log_p, -1), lanes.move.block),
            lanes.move.length)
        for j in range(lanes.log_q.shape[1])
    ], dim=-1)
    log_p = prefix_sum(at_tokens(lanes.log_p, lanes.move.block), lanes.move.length)
    return log_p + math.log(lanes.log_q.shape[1]) - lane_sum.logsumexp(-1)


def gap_of(sampler: Sampler) -> tuple[float, str]:
    """Largest gap of the enumeration to the oracle."""
    return worst(enumerate_program(sampler, LIMIT).proper, target_law(sampler, LIMIT))


PLUG_INS: dict[str, dict[str, Any]] = {
    "argmax-selection": {"resampler": KeepsTheBest(), "trigger": always},
    "argmax-selection-below-an-ess": {"resampler": KeepsTheBest(), "trigger": EssBelow(0.95)},
    "skewed-resampler": {"resampler": Skewed(), "trigger": always},
    "length-normalised-weight": {"weight": WeightRuleMutant(length_normalised), "trigger": never},
    "weight-against-the-proposal": {"weight": WeightRuleMutant(against_the_proposal), "trigger": never},
    "weight-without-the-last-token": {"weight": WeightRuleMutant(without_the_last_token), "trigger": always},
    "weight-against-the-first-lane": {
        "weight": WeightRuleMutant(against_the_first_lane), "lanes": 2, "trigger": always},
    "balance-heuristic-without-the-stops": {
        "weight": WeightRuleMutant(balance_without_stops), "lanes": 2, "trigger": always, "noise": 1.5,
        "temperature": [0.4, 2.5]},
}


@pytest.mark.parametrize("mutant", PLUG_INS)
def test_a_wrong_plug_in_is_caught(mutant: str) -> None:
    parts = {"resampler": Systematic(), **PLUG_INS[mutant]}
    gap, message = gap_of(program(Rejection(), **parts))
    assert gap > CAUGHT, f"{mutant} is not caught: {message}"


Reduce = Callable[..., Reduced]


def dropping_finished(reduce: Reduce) -> Reduce:
    """Finished particles never survive while another one still grows (C5)."""

    def mutant(log_weights: Tensor, *, pick: Tensor, **rest: Any) -> Reduced:
        drop = ~pick & pick.any(1, keepdim=True)
        return reduce(log_weights.masked_fill(drop[..., None], -math.inf), pick=pick, **rest)

    return mutant


def losing_the_weight_of_finished(reduce: Reduce) -> Reduce:
    """Finished particles stay, but count as if of weight one (C5)."""

    def mutant(log_weights: Tensor, *, pick: Tensor, **rest: Any) -> Reduced:
        flat = torch.full_like(log_weights, -math.log(log_weights.shape[-1]))
        return reduce(torch.where(pick[..., None], log_weights, flat), pick=pick, **rest)

    return mutant


def not_resetting(reduce: Reduce) -> Reduce:
    """Survivors of resampling keep their ancestors' weights (C6)."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        own = log_weights.logsumexp(-1).gather(1, out.survivors // log_weights.shape[-1])
        return out._replace(log_weights=torch.where(out.resampled[:, None], own, out.log_weights))

    return mutant


def resetting_to_one(reduce: Reduce) -> Reduce:
    """Survivors of resampling get weight one, so that the evidence so far is lost (C6)."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        return out._replace(log_weights=torch.where(out.resampled[:, None], 0.0, out.log_weights))

    return mutant


def summing_lanes(reduce: Reduce) -> Reduce:
    """The particle's weight is that of the lane it keeps, not the mean of its lanes."""

    def mutant(log_weights: Tensor, **rest: Any) -> Reduced:
        out = reduce(log_weights, **rest)
        lanes = log_weights.shape[-1]
        chosen = log_weights.reshape(log_weights.shape[0], -1).gather(1, out.survivors) + math.log(lanes)
        return out._replace(log_weights=chosen)

    return mutant


REDUCTIONS: dict[str, tuple[Callable[[Reduce], Reduce], dict[str, Any]]] = {
    "finished-particles-dropped": (dropping_finished, {"trigger": always}),
    "finished-particles-dropped-without-resampling": (dropping_finished, {"trigger": never}),
    "finished-particles-reweighted": (losing_the_weight_of_finished, {"trigger": never}),
    "weights-not-reset": (not_resetting, {"trigger": always}),
    "weights-reset-to-one": (resetting_to_one, {"trigger": always}),
    "weight-of-the-kept-lane": (summing_lanes, {"trigger": never, "lanes": 2}),
}


@pytest.mark.parametrize("mutant", REDUCTIONS)
def test_a_wrong_reduction_is_caught(mutant: str) -> None:
    change, parts = REDUCTIONS[mutant]
    sampler = program(Rejection(), resampler=Systematic(), potential=POTENTIAL, **parts)
    with mock.patch.object(steps, "reduce_lanes", change(steps.reduce_lanes)):
        gap, message = gap_of(sampler)
    assert gap > CAUGHT, f"{mutant} is not caught: {message}"


def _forgets_potentials(commit: Callable[..., None], *, zero: bool) -> Callable[..., None]:
    def mutant(state: Any, active: Tensor, *arguments: Any, **options: Any) -> None:
        before = state.log_potential.clone()
        commit(state, active, *arguments, **options)
        state.log_potential = torch.zeros_like(before) if zero else before

    return mutant


@pytest.mark.parametrize("zero", [True, False], ids=["forgotten", "not-gathered"])
def test_a_potential_of_unfinished_sequences_that_is_not_carried_is_caught(zero: bool) -> None:
    sampler = program(Rejection(), resampler=Systematic(), trigger=always, potential=POTENTIAL, eos=None)
    with mock.patch.object(steps, "commit", _forgets_potentials(steps.commit, zero=zero)):
        gap, message = gap_of(sampler)
    assert gap > CAUGHT, f"not caught: {message}"


@pytest.mark.parametrize(
    "parts",
    [{"trigger": always}, {"trigger": always, "lanes": 2},
     {"trigger": always, "lanes": 2, "weight": BalanceHeuristic()},
     {"trigger": EssBelow(0.95), "potential": POTENTIAL}, {"trigger": never, "lanes": 2, "potential": POTENTIAL}],
)
def test_the_program_itself_is_not_caught(parts: dict[str, Any]) -> None:
    gap, message = gap_of(program(Rejection(), resampler=Systematic(), **parts))
    assert gap < 1e-12, message

"""Marginals that outlive a refusal: exact by enumeration in every program that has them, one by one and in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from smc_bridge import DLMProposal, Mixture, Rejection, Sampler, load_pair, paper, plain_is, smc, speculative, tree_walk
from smc_bridge.analysis.local import blocks_of, local_divergences
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.pace import Pace
from smc_bridge.engine.resampling import Multinomial, Systematic
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, OwnWeights
from smc_bridge.methods.canvas import Canvas
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.registry import spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing import TabularPair, assert_biased, assert_proper, enumerate_sampler, mutants, tabular_pair
from tests.smc_bridge.programs import KERNELS, TEMPERATURE, TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_full_enumeration import raw_enumeration
from tests.smc_bridge.test_pyro_program import same_law

TOLERANCE = 1e-12
LIMIT = 3
REFUSING = [name for name in KERNELS if name != "accept-all"]
#: Reused after every refusal, and after some: at the prefixes where the marginals are sure enough.
ALWAYS, SOMETIMES = 1e-9, 0.6


@contextmanager
def decisions() -> Iterator[list[bool]]:
    """What is decided about stale marginals, one by one."""
    found: list[bool] = []
    real = DLMProposal.confident

    def heard(self: DLMProposal, *arguments: Any) -> Any:
        sure = real(self, *arguments)
        found.extend(sure.tolist())
        return sure

    with mock.patch.object(DLMProposal, "confident", heard):
        yield found


def claim(sampler: Sampler, limit: int = LIMIT) -> list[bool]:
    """Enumerate a program; what was decided on the way."""
    with decisions() as found:
        gap, message = worst(enumerate_program(sampler, limit).proper, target_law(sampler, limit))
    assert gap < TOLERANCE, message
    assert any(found), "nothing was reused: the claim says nothing"
    return found


PARTS: dict[str, dict[str, Any]] = {
    "always": {"trigger": always},
    "ess": {"trigger": EssBelow(0.95), "potential": TablePotential(2, LIMIT)},
    "two-lanes": {"trigger": always, "lanes": 2},
    "balance": {"trigger": EssBelow(0.95), "lanes": 2, "weight": BalanceHeuristic()},
    "one-place-windows": {"trigger": always, "window": 1},
    "short-lookahead": {"trigger": never, "lookahead": 2},
}


@pytest.mark.parametrize("reuse", [ALWAYS, SOMETIMES])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kernel", REFUSING)
def test_the_program_is_properly_weighted(kernel: str, parts: str, reuse: float) -> None:
    if kernel == "tree-walk" and parts == "one-place-windows":
        pytest.skip("a tree of one place has no node, and its walk is never refused")
    sampler = program(KERNELS[kernel], eos=None, reuse=reuse, resampler=Systematic(), **PARTS[parts])
    found = claim(sampler)
    assert all(found) == (reuse == ALWAYS), f"{sum(found)} of {len(found)} were reused"


@pytest.mark.parametrize("kernel", ["rejection", "block-verification"])
def test_sequences_that_end_are_properly_weighted(kernel: str) -> None:
    claim(program(KERNELS[kernel], eos=1, reuse=ALWAYS, trigger=always, resampler=Systematic()))


def test_every_single_draw_branched_gives_the_target() -> None:
    sampler = program(Rejection(), particles=1, eos=None, reuse=ALWAYS)
    with decisions() as found:
        gap, message = worst(raw_enumeration(sampler, LIMIT)[0], target_law(sampler, LIMIT))
    assert gap < TOLERANCE, message
    assert any(found)


def test_two_refusals_in_a_row_are_met_and_end_it() -> None:
    """Four places of windows of one: reused once, the marginals are forgotten at the second refusal."""
    ar = TabularAR.random(2, 4, seed=3)
    sampler = program(Rejection(), ar=ar, particles=1, window=1, lookahead=4, reuse=ALWAYS)
    gap, message = worst(enumerate_program(sampler, 4).proper, target_law(sampler, 4))
    assert gap < TOLERANCE, message


@pytest.mark.parametrize("kernel", REFUSING)
@pytest.mark.parametrize("lanes", [1, 2])
def test_an_exact_retained_draw_makes_everything_an_exact_draw(kernel: str, lanes: int) -> None:
    sampler = program(
        KERNELS[kernel], eos=None, lanes=lanes, trigger=always, resampler=Multinomial(), reuse=SOMETIMES,
        particles=2 if lanes == 1 else 1,
    )
    law = target_law(sampler, LIMIT)
    with decisions() as found:
        conditional = enumerate_program(sampler, LIMIT, retained=law)
    assert abs(conditional.inverse_evidence - 1.0) < TOLERANCE, f"E[1 / Z_hat] = {conditional.inverse_evidence!r}"
    gap, message = worst(conditional.output, law)
    assert gap < TOLERANCE, f"the target is not invariant: {message}"
    assert any(found) and not all(found)


@pytest.mark.parametrize("form", [lambda base: base, MostLikelyPath], ids=["marginals", "path"])
def test_blocks_of_a_block_causal_model_are_properly_weighted(form: Any) -> None:
    pair = tabular_pair(2, 4, block_size=3, noise=1.2)
    with decisions() as found:
        assert_proper(Sampler(
            form(DLMProposal(pair.dlm, lookahead=4, reuse=ALWAYS)), ARTarget(pair.ar), Mixture(0.5), window=2,
            particles=1,
        ))
    assert any(found)


def test_a_paced_program_is_properly_weighted() -> None:
    claim(program(Rejection(), eos=None, reuse=ALWAYS, trigger=always, resampler=Systematic(), pace=Pace()))


def test_a_reuse_that_looks_ahead_is_caught() -> None:
    assert_biased(mutants.ReusesByTheDraft())
    right = mutants.ReusesByTheDraft()
    right.__class__ = DLMProposal  # the same without its fault
    with decisions() as found:
        assert_proper(right)
    assert any(found)


def test_filter_and_engine_have_one_law() -> None:
    for reuse in (ALWAYS, SOMETIMES):
        with decisions() as found:
            same_law(3, kernel=KERNELS["rejection"], window=1, eos=None, trigger=always, reuse=reuse)
        assert any(found) and all(found) == (reuse == ALWAYS)

"""Marginals that outlive a refusal: exact by enumeration in every program that has them, one by one and in a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from smc_bridge import DLMProposal, Mixture, Rejection, Sampler, paper, plain_is, smc, speculative, tree_walk
from smc_bridge.analysis.local import blocks_of, local_divergences
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.pace import Pace
from smc_bridge.engine.resampling import Multinomial, Systematic
from smc_bridge.engine.weights import EssBelow, always, never
from smc_bridge.kernels.importance import BalanceHeuristic
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.pyro_program import run_program
from smc_bridge.registry import spelled
from smc_bridge.testing import TabularPair, assert_biased, assert_proper, mutants, tabular_pair
from tests.smc_bridge.programs import KERNELS, TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_block_models import PROMPTS as NETWORK_PROMPTS
from tests.smc_bridge.test_block_models import network_pair
from tests.smc_bridge.test_full_enumeration import raw_enumeration
from tests.smc_bridge.test_pyro_program import same_law

TOLERANCE = 1e-12
LIMIT = 3
REFUSING = [name for name in KERNELS if name != "accept-all"]
#: Reused after every refusal, and after those where the marginals are sure enough.
ALWAYS, SOMETIMES = 1e-9, 0.72


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
    "two-lanes": {"particles": 1, "lanes": 2, "trigger": always},
    "balance": {"particles": 1, "lanes": 2, "trigger": never, "weight": BalanceHeuristic()},
    "one-place-windows": {"trigger": always, "window": 1},
    "short-lookahead": {"trigger": never, "lookahead": 2},
}


@pytest.mark.parametrize(("kernel", "parts"), [
    # A tree for one place has no node: its walk is never refused.
    (k, p) for k in REFUSING for p in PARTS if (k, p) != ("tree-walk", "one-place-windows")
])
def test_the_program_is_properly_weighted(kernel: str, parts: str) -> None:
    found = claim(program(KERNELS[kernel], eos=None, reuse=ALWAYS, resampler=Systematic(), **PARTS[parts]))
    assert all(found), f"{sum(found)} of {len(found)} were reused"


@pytest.mark.parametrize(("kernel", "parts"), [
    ("rejection", "always"), ("block-verification", "one-place-windows"), ("gumbel", "two-lanes"),
    ("tree-walk", "two-lanes"),
])
def test_it_is_where_some_marginals_are_not_sure_enough(kernel: str, parts: str) -> None:
    found = claim(program(KERNELS[kernel], eos=None, reuse=SOMETIMES, resampler=Systematic(), **PARTS[parts]))
    assert not all(found), f"{sum(found)} of {len(found)} were reused"


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
    """Four places of windows of one: reused once, the marginals are forgotten at the second refusal.

    Windows that are accepted whole in between do not count as another forward.
    """
    ar = TabularAR.random(2, 4, seed=3)
    sampler = program(Rejection(), ar=ar, particles=1, window=1, lookahead=4, reuse=ALWAYS)
    gap, message = worst(enumerate_program(sampler, 4).proper, target_law(sampler, 4))
    assert gap < TOLERANCE, message
    found = {"stale, whole, refused": 0, "stale, refused": 0}
    ar = TabularAR.random(3, 6, seed=4)
    often = smc(TabularPair(TabularDLM(ar, noise=1.2, seed=1), ar), 1, w=0.0, window=1, lookahead=6, reuse=ALWAYS)
    for run in often.run([[]] * 200, seed=range(200), max_new_tokens=6):
        refused, past = 0, ""
        for record, later in itertools.pairwise(run.trace):
            no, fresh = record.accepted[0][0] < record.length[0][0], later.fresh == [True]
            refused += no
            assert fresh == (refused == 2), f"{refused} refusals since the forward, a new one: {fresh}"
            name = f"stale, {past}refused"
            found[name] = found.get(name, 0) + (no and refused == 2)
            past = "" if no or not refused else "whole, "
            refused = 0 if fresh else refused
    assert min(found["stale, whole, refused"], found["stale, refused"]) > 5, found


@pytest.mark.parametrize("kernel", REFUSING)
@pytest.mark.parametrize("lanes", [1, 2])
def test_an_exact_retained_draw_makes_everything_an_exact_draw(kernel: str, lanes: int) -> None:
    sampler = program(
        KERNELS[kernel], eos=None, lanes=lanes, trigger=always, resampler=Multinomial(), reuse=ALWAYS,
        particles=3 - lanes,
    )
    law = target_law(sampler, LIMIT)
    with decisions() as found:
        conditional = enumerate_program(sampler, LIMIT, retained=law)
    assert abs(conditional.inverse_evidence - 1.0) < TOLERANCE, f"E[1 / Z_hat] = {conditional.inverse_evidence!r}"
    gap, message = worst(conditional.output, law)
    assert gap < TOLERANCE, f"the target is not invariant: {message}"
    assert any(found)


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
            same_law(3, kernel=Rejection(), particles=1, window=1, eos=None, trigger=never, reuse=reuse)
        assert any(found)
        assert all(found) == (reuse == ALWAYS)


def sampler_of(reuse: float, **options: Any) -> Sampler:
    """One that is often refused, on sequences of up to six tokens."""
    ar = TabularAR.random(3, 6, seed=4)
    pair = TabularPair(TabularDLM(ar, noise=1.2, seed=1), ar)
    return smc(pair, window=3, lookahead=6, reuse=reuse, **options)


PROMPTS = [[], [0], [2], [0, 2], [2, 2], [2, 0]]


@pytest.mark.parametrize("batch", [1, 2, None])
def test_a_prompt_draws_the_same_whatever_its_neighbours(batch: int | None) -> None:
    """Also where a seat is taken by the next prompt while others hold stale marginals (C8)."""
    sampler = sampler_of(0.75, particles=3, lanes=2, proposal_temperature=[0.7, 1.4])
    seeds = list(range(len(PROMPTS)))
    with decisions() as found:
        together = sampler.run(PROMPTS, seed=seeds, max_new_tokens=4, batch=batch)
    alone = [sampler.run([p], seed=s, max_new_tokens=4)[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one.sequences == other.sequences
        assert np.allclose(one.log_weights, other.log_weights, rtol=0, atol=1e-12)
        assert one.forwards == other.forwards
        assert [r.fresh for r in one.trace] == [r.fresh for r in other.trace]
    assert 0 < sum(found) < len(found), f"{sum(found)} of {len(found)} were reused"


def test_a_reused_draft_is_no_forward_of_the_diffusion_model() -> None:
    runs = sampler_of(ALWAYS, particles=1).run([[]] * 40, seed=list(range(40)), max_new_tokens=6)
    reused = 0
    for run in runs:
        fresh = [record.fresh for record in run.trace]
        assert [record.dlm_rows for record in run.trace] == [int(mine) for (mine,) in fresh]  # type: ignore[misc]
        assert run.forwards.dlm_forwards == run.forwards.dlm_rows == sum(mine for (mine,) in fresh)  # type: ignore
        steps = list(itertools.pairwise(run.trace))
        refused = [r.accepted[0][0] < r.length[0][0] for r, _ in steps]
        stale = [no and later.fresh == [False] for no, (_, later) in zip(refused, steps, strict=True)]
        reused += sum(stale)
        assert not any(a and b for a, b in itertools.pairwise(stale)), "twice in a row"
    assert reused > 10, f"{reused} drafts were reused"


def test_without_it_nothing_is_decided() -> None:
    with decisions() as found:
        run = sampler_of(0.0).run([[]], max_new_tokens=6)[0]
    assert not found
    assert "reuse" not in run.settings["proposal"]
    assert sampler_of(0.4).run([[]], max_new_tokens=2)[0].settings["proposal"]["reuse"] == 0.4


@pytest.mark.parametrize("engine", ["sampler", "pyro"])
@pytest.mark.parametrize("reuse", [0.0, ALWAYS])
def test_local_divergences_read_a_block_where_it_was_drafted(reuse: float, engine: str) -> None:
    sampler = sampler_of(reuse, particles=1, trigger=never)
    stale = 0
    for seed in range(20):
        if engine == "pyro":
            run = run_program(sampler, [], seed=seed, max_new_tokens=6)
        else:
            run = sampler.run([[]], seed=seed, max_new_tokens=6)[0]
        found = local_divergences(sampler, run, max_new_tokens=6)
        assert abs(found.log_ratio.sum() - run.log_weights[0]) < 1e-9
        after = [r.accepted[0][0] < r.length[0][0] for r in run.trace[:-1]]
        stale += sum(no and b.forward < b.start for no, b in zip(after, blocks_of(sampler, run)[1:], strict=True))
    assert (stale > 3) == (reuse > 0), f"{stale} blocks were drafted by an earlier forward, after a refusal"


def test_the_prefix_cache_is_right_at_the_next_forward() -> None:
    """Of a block-causal model it is exact: what was committed since without a forward is all there."""
    found = []
    for cache in ("none", "prefix"):
        dlm, ar = network_pair(cache, shift=True)
        proposal = DLMProposal(dlm, lookahead=8, reuse=ALWAYS)
        sampler = Sampler(proposal, ARTarget(ar), Mixture(0.5), particles=3, window=2)
        with decisions() as reused:
            found.append(sampler.run(NETWORK_PROMPTS, seed=range(5), max_new_tokens=9, batch=2))
        assert sum(reused) > 10, f"{sum(reused)} were reused"
    for plain, cached in zip(*found, strict=True):
        assert cached.sequences == plain.sequences
        assert cached.log_weights == pytest.approx(plain.log_weights, abs=1e-9)


def test_confidence_is_that_of_the_law_that_drafts() -> None:
    dlm = tabular_pair(3, 3).dlm
    probs = torch.tensor([[[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]], dtype=torch.float64)
    slot, two, three = (np.array([x]) for x in (0, 2, 3))
    zero = np.array([0])
    cases: list[tuple[Any, Any, Any, float]] = [
        (1.0, zero, three, 0.8 * 0.5 * 0.9), (1.0, zero, two, 0.8 * 0.5), (1.0, two, three, 0.9),
        (0.0, zero, three, 0.8 * 0.5 * 0.9),  # greedy: at temperature 1
        (0.5, two, three, 0.81 / (0.81 + 2 * 0.0025)),
        ([1.0, 0.5], two, three, (0.9 + 0.81 / (0.81 + 2 * 0.0025)) / 2),
    ]
    for temperature, offset, width, expected in cases:
        for shift in (-1e-9, 1e-9):
            proposal = DLMProposal(dlm, temperature=temperature, reuse=expected + shift)
            sure = proposal.confident(probs.log(), slot, offset, width)
            assert sure.tolist() == [shift < 0], (temperature, expected)
    banned = DLMProposal(dlm, reuse=0.7, banned_ids=(1, 2))
    assert banned.confident(probs.log(), slot, zero, three).tolist() == [True]
    assert DLMProposal(dlm, reuse=0.1).confident(probs.log() * math.nan, slot, zero, three).tolist() == [False]


def test_a_bad_threshold_is_refused() -> None:
    for bad in (1.0, -0.1, 1.5, math.nan, "0.8", None):
        with pytest.raises(ValueError, match=r"reuse = .*give a probability below 1, or 0"):
            sampler_of(bad)  # type: ignore[arg-type]


def test_what_has_no_stale_marginals_refuses_it() -> None:
    pair = tabular_pair(2, 3)
    base = DLMProposal(pair.dlm, reuse=0.5)
    with pytest.raises(ValueError, match=r"reuse = 0\.5 with proposal = chain"):
        smc(pair, reuse=0.5, proposal="chain")
    with pytest.raises(ValueError, match=r"reuse = 0\.5 of a chain's base"):
        PrefixFilled(base)
    with pytest.raises(ValueError, match=r"reuse = 0\.5 with kernel = accept-all"):
        smc(pair, reuse=0.5, kernel="accept-all")
    with pytest.raises(ValueError, match=r"reuse = 0\.5 with kernel = accept-all"):
        plain_is(pair, reuse=0.5)
    with pytest.raises(ValueError, match=r"reuse = 0\.5 of the proposal"):
        Canvas(base)


def test_methods_have_it_as_an_option() -> None:
    pair = tabular_pair(2, 3)
    for make in (smc, paper, speculative, tree_walk):
        assert make(pair, reuse=0.25).proposal.reuse == 0.25  # type: ignore[operator]
    assert spelled("tree-32,reuse=0.5").make(pair).proposal.reuse == 0.5  # type: ignore[attr-defined]

"""Programs on a diffusion model with an approximate cache: properly weighted, and what the policy's definition gives.

The proposal's density is that of the very logits it was drawn from, so that no cache on its side can bias a program.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytest
import torch

from smc_bridge.analysis.exact_law import oracle
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.decode import decode
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, Trigger
from smc_bridge.kernels.importance import OwnWeights
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.names import named
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.testing import EnumeratingSource, outcomes
from tests.models.cache_reference import ByDefinition
from tests.smc_bridge.test_exact_on_cached_path import models

POLICIES = ["prefix", "freecache:2", "refresh:2", "dual:2", "window:1"]


def program(
    dlm: Any, ar: Any, *, particles: int, window: int, resampler: str, trigger: Trigger, chain: bool = False
) -> Sampler:
    proposal = DLMProposal(dlm, temperature=1.1, lookahead=4)
    return Sampler(
        PrefixFilled(proposal) if chain else proposal, ARTarget(ar, temperature=0.8), ProductOfExperts(0.5),
        Rejection(), OwnWeights(), named("resampler", resampler), trigger, particles, 1, window,
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_with_an_approximate_cache_runs_over_every_draw_are_properly_weighted(policy: str) -> None:
    """`E[Z_hat 1(x = s)] = p(s)` to round-off, all randomness enumerated; a forward after each refusal."""
    ar, dlm = models(2, None, cache=True)
    scores: dict[str, set[float]] = defaultdict(set)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    prompt, total, runs = [1, 0, 0], 0.0, 0
    kept = dlm.with_cache(policy)
    sampler = program(kept, ar, particles=1, window=1, resampler="systematic", trigger=EssBelow(0.95))
    opened = kept.session

    def session(tokens: torch.Tensor, length: torch.Tensor) -> Any:
        own, plain = opened(tokens, length), dlm.session(tokens, length)
        score = own.score

        def compared(rows: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
            found = score(rows, canvas)
            plain.texts, plain.lengths = own.texts, own.lengths
            gap = float((found.log_softmax(-1) - plain.score(rows, canvas).log_softmax(-1)).abs().max())
            scores["gap"].add(gap)
            return found

        own.score = compared
        return own

    kept.session = session  # type: ignore[method-assign]

    def run(source: EnumeratingSource) -> tuple[dict[tuple[int, ...], float], float]:
        sampler._source = lambda state, prompts, rows, **_: source  # type: ignore[method-assign]
        (result,) = sampler.run([prompt], max_new_tokens=3)
        return result.posterior(), result.log_evidence

    for probability, (posterior, log_evidence) in outcomes(run):
        total, runs = total + probability, runs + 1
        for sequence, weight in posterior.items():
            found[sequence] += probability * weight * math.exp(log_evidence)
    exact = oracle(ARTarget(ar, temperature=0.8), prompt, max_new_tokens=3).posterior()
    assert abs(total - 1.0) < 1e-9, total
    assert max(scores["gap"]) > 0.01, "the proposal is that of recomputation: the case says nothing"
    for sequence, mass in exact.items():
        assert abs(found[sequence] - mass) < 1e-9, f"{sequence}: {found[sequence]} of {mass} in {runs} runs"


PROMPTS = [[0, 1, 2], [2, 2], [0, 1, 2]]


@pytest.mark.parametrize(("policy", "chain"), [
    *((name, False) for name in POLICIES), ("dual:2", True),
])
def test_a_program_under_resampling_draws_what_the_policy_by_definition_draws(policy: str, chain: bool) -> None:
    """Gathers by ancestor, blocks of all lengths, prompts that take seats of others; and a batch is each alone."""
    ar, dlm = models(5, 4, cache=True)
    parts: dict[str, Any] = {
        "particles": 3, "window": 2, "resampler": "multinomial", "trigger": EssBelow(0.99), "chain": chain,
    }
    kept = program(dlm.with_cache(policy), ar, **parts)
    seeds = list(range(len(PROMPTS)))
    together = kept.run(PROMPTS, seed=seeds, max_new_tokens=7, batch=2)
    slow = program(ByDefinition(dlm, policy), ar, **parts).run(PROMPTS, seed=seeds, max_new_tokens=7, batch=2)
    plain = program(dlm, ar, **parts).run(PROMPTS, seed=seeds, max_new_tokens=7, batch=2)
    apart = []
    for seed, (prompt, result, reference, other) in enumerate(zip(PROMPTS, together, slow, plain, strict=True)):
        (alone,) = kept.run([prompt], seed=seed, max_new_tokens=7)
        for same in (reference, alone):
            assert result.sequences == same.sequences, (prompt, seed)
            assert result.log_weights == pytest.approx(same.log_weights, abs=1e-8), (prompt, seed)
        apart.append(result.log_weights != pytest.approx(other.log_weights, abs=1e-6))
        assert result.proper
    assert any(apart), "the case does not tell the cache from recomputation"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_canvas_draws_what_the_policy_by_definition_draws(policy: str) -> None:
    _, dlm = models(5, 4, cache=True)
    results = [
        decode(Canvas(DLMProposal(model, lookahead=5)), PROMPTS, seed=[3, 4, 5], max_new_tokens=8, batch=2)
        for model in (dlm.with_cache(policy), ByDefinition(dlm, policy))
    ]
    assert [r.sequences for r in results[0]] == [r.sequences for r in results[1]]



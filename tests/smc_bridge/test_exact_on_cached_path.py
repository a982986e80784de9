"""The exact tests once more on real networks: cached, packed, batched transformers models instead of tables.

Two tiny Qwen2 networks in float64 (one causal, one made bidirectional). The engine runs on the cached session of the
causal one; the naive loop and the oracle read a session that recomputes. Enumeration of every draw of the real engine
gives the target's law to 1e-9 (round-off of the networks), and the engine draws what the naive loop draws.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from smc_bridge.analysis.exact_law import oracle
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.resampling import Multinomial, Systematic, UniformResampler
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, Trigger, always
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.importance import BalanceHeuristic, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.huggingface import HuggingFaceCausalLM, HuggingFaceMaskedLM
from smc_bridge.names import named
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.streams import Role, prompt_generator
from smc_bridge.testing import EnumeratingSource, outcomes
from tests.smc_bridge.programs import KERNELS
from tests.smc_bridge.reference_loop import Reference, Settings
from tests.smc_bridge.test_full_enumeration import EnumeratingResampler

TOLERANCE = 1e-9
MASK = 6


@functools.cache
def networks() -> tuple[Qwen2ForCausalLM, Qwen2ForCausalLM]:
    """The causal and the bidirectional network: random, with logits that spread over a few nats."""
    config = Qwen2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.4,
    )
    torch.manual_seed(3)
    return Qwen2ForCausalLM(config).double().eval(), Qwen2ForCausalLM(config).double().eval()


def models(size: int, eos: int | None, *, cache: bool) -> tuple[HuggingFaceCausalLM, HuggingFaceMaskedLM]:
    """Both as models of `size` tokens."""
    causal, bidirectional = networks()
    return (
        HuggingFaceCausalLM(causal, eos_id=eos, vocab_size=size, cache=cache),
        HuggingFaceMaskedLM(bidirectional, mask_id=MASK, shift=True, eos_id=eos, vocab_size=size),
    )


def program(
    kernel: Kernel, *, size: int, eos: int | None, particles: int, lanes: int, window: int, trigger: Trigger,
    resampler: UniformResampler, balance: bool = False, dlm_cache: Literal["none", "prefix"] = "none",
) -> Sampler:
    """A sampler on the cached path; two lanes have different temperatures."""
    ar, dlm = models(size, eos, cache=True)
    return Sampler(
        DLMProposal(dlm.with_cache(dlm_cache), temperature=[0.7, 1.4] if lanes == 2 else 1.1, lookahead=3),
        ARTarget(ar, temperature=0.8), ProductOfExperts(0.5), kernel, BalanceHeuristic() if balance else OwnWeights(),
        resampler, trigger, particles, lanes, window,
    )


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "rejection, two particles": (
        {"kernel": Rejection(), "particles": 2, "lanes": 1, "window": 1, "trigger": always,
         "resampler": named("resampler", "systematic")}, 2),
    "rejection, elastic window": (
        {"kernel": Rejection(), "particles": 1, "lanes": 1, "window": 2, "trigger": EssBelow(0.95),
         "resampler": named("resampler", "systematic")}, 3),
    "rejection, two lanes, balance heuristic": (
        {"kernel": Rejection(), "particles": 1, "lanes": 2, "window": 1, "trigger": EssBelow(0.95),
         "resampler": Multinomial(), "balance": True}, 2),
    "block verification, two lanes": (
        {"kernel": BlockVerification(), "particles": 1, "lanes": 2, "window": 1, "trigger": always,
         "resampler": Multinomial()}, 2),
    "tree walk, two particles": (
        {"kernel": TreeWalk(1), "particles": 2, "lanes": 1, "window": 2, "trigger": always,
         "resampler": named("resampler", "ssp")}, 2),
    "tree walk, two lanes": (
        {"kernel": TreeWalk(2), "particles": 1, "lanes": 2, "window": 2, "trigger": EssBelow(0.95),
         "resampler": Multinomial()}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_raw_runs_over_every_random_draw_are_properly_weighted(case: str) -> None:
    parts, limit = CASES[case]
    sampler = program(size=2, eos=None, **parts)
    assert isinstance(sampler.resampler, UniformResampler)
    sampler.resampler = EnumeratingResampler(sampler.resampler)
    prompt = [1, 0]
    found: dict[tuple[int, ...], float] = defaultdict(float)

    def run(source: EnumeratingSource) -> tuple[dict[tuple[int, ...], float], float]:
        sampler._source = lambda state, prompts, rows, **_: source  # type: ignore[method-assign]
        (result,) = sampler.run([prompt], max_new_tokens=limit)
        return result.posterior(), result.log_evidence

    total, runs = 0.0, 0
    for probability, (posterior, log_evidence) in outcomes(run):
        total, runs = total + probability, runs + 1
        for sequence, weight in posterior.items():
            found[sequence] += probability * weight * math.exp(log_evidence)
    reference, _ = models(2, None, cache=False)
    exact = oracle(ARTarget(reference, temperature=0.8), prompt, max_new_tokens=limit).posterior()
    assert abs(total - 1.0) < TOLERANCE, total
    assert runs > 20
    assert max(exact.values()) - min(exact.values()) > 0.05, "the law is too even to tell anything"
    for sequence, mass in exact.items():
        assert abs(found[sequence] - mass) < TOLERANCE, f"{sequence}: {found[sequence]} of {mass} in {runs} runs"


PROMPTS = [[2], [0, 2], [2, 2, 0], [2]]


@pytest.mark.parametrize("lanes", ["one-lane", "two-lanes", "balance-heuristic"])
@pytest.mark.parametrize("kernel", ["rejection", "block-verification", "gumbel", "tree-walk"])
def test_engine_on_the_cached_path_draws_what_the_naive_loop_draws(kernel: str, lanes: str) -> None:
    for start, (particles, window, batch) in enumerate(((1, 2, None), (3, 2, 2), (2, 3, 1))):
        settings = Settings(
            kernel, "systematic", 0.95, particles=particles, temperatures=(0.9,) if lanes == "one-lane" else (0.7, 1.5),
            target_temperature=0.8, w=0.4, window=window, lookahead=3, nodes=3, balance=lanes == "balance-heuristic",
        )
        ar, dlm = models(3, 1, cache=True)
        sampler = Sampler(
            DLMProposal(dlm, temperature=list(settings.temperatures), lookahead=3), ARTarget(ar, temperature=0.8),
            ProductOfExperts(0.4), TreeWalk(3) if kernel == "tree-walk" else KERNELS[kernel],
            BalanceHeuristic() if settings.balance else OwnWeights(), Systematic(), EssBelow(0.95), particles,
            len(settings.temperatures), window,
        )
        seeds = [100 * start + i for i in range(len(PROMPTS))]
        results = sampler.run(PROMPTS, seed=seeds, max_new_tokens=6, batch=batch)
        reference_ar, reference_dlm = models(3, 1, cache=False)
        for prompt, seed, result in zip(PROMPTS, seeds, results, strict=True):
            with torch.inference_mode():
                loop = Reference(settings, reference_ar, reference_dlm, prompt_generator(seed, prompt, role=Role.SMC))
                particles_ = loop.run(prompt, 6, None)
            where = f"prompt {prompt}, seed {seed}, {settings}"
            assert [p.tokens[len(prompt):] for p in particles_] == result.sequences, where
            _assert_close([p.log_weight for p in particles_], result.log_weights, where)


def _assert_close(left: Sequence[float], right: Sequence[float], where: str) -> None:
    for a, b in zip(left, right, strict=True):
        assert a == b or abs(a - b) < TOLERANCE, f"log weight {a!r} of the loop, {b!r} of the engine: {where}"


@settings_of_hypothesis(max_examples=12, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=2, max_size=5),
    batch=st.integers(1, 4), program_=st.sampled_from(["rejection", "block-verification", "tree-walk"]),
    particles=st.integers(1, 3), lanes=st.integers(1, 2),
)
def test_a_batch_of_prompts_is_each_alone(
    prompts: list[list[int]], batch: int, program_: str, particles: int, lanes: int
) -> None:
    kernel = {"rejection": Rejection(), "block-verification": BlockVerification(), "tree-walk": TreeWalk(3)}[program_]
    sampler = program(
        kernel, size=3, eos=1, particles=particles, lanes=lanes, window=2, trigger=EssBelow(0.95),
        resampler=named("resampler", "systematic"),
    )
    together = sampler.run(prompts, seed=list(range(len(prompts))), max_new_tokens=5, batch=batch)
    for seed, (prompt, result) in enumerate(zip(prompts, together, strict=True)):
        (alone,) = sampler.run([prompt], seed=seed, max_new_tokens=5)
        assert alone.sequences == result.sequences, (prompt, seed)
        _assert_close(alone.log_weights, result.log_weights, f"prompt {prompt}, seed {seed}")


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("batch", [None, 4])
def test_one_prompt_under_many_seeds_is_each_alone_with_a_prefix_cache(batch: int | None, lanes: int) -> None:
    """The cache keeps what a row's own forwards computed, also where other rows were equal to it once."""
    sampler = program(
        Rejection(), size=5, eos=None, particles=6, lanes=lanes, window=2, trigger=EssBelow(0.95),
        resampler=named("resampler", "systematic"), dlm_cache="prefix",
    )
    seeds = list(range(8))
    together = sampler.run([[0, 1, 2]] * len(seeds), seed=seeds, max_new_tokens=10, batch=batch)
    for seed, result in zip(seeds, together, strict=True):
        (alone,) = sampler.run([[0, 1, 2]], seed=seed, max_new_tokens=10)
        assert alone.sequences == result.sequences, f"seed {seed}"
        _assert_close(alone.log_weights, result.log_weights, f"seed {seed}")

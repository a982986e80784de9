"""Runs whose results are recorded: name -> a function that decodes a few prompts under a few seeds.

Each run is small and seeded. The tabular ones are in float64; those of the embedded pair in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from smc_bridge import (
    SSP,
    AcceptAll,
    ARTarget,
    BalanceHeuristic,
    BlockVerification,
    Chernoff,
    Defensive,
    DLMProposal,
    EssBelow,
    GumbelCoupling,
    Mixture,
    Multinomial,
    PowerMean,
    Prefix,
    ProductOfExperts,
    Proposal,
    Rejection,
    Residual,
    Result,
    Stratified,
    Systematic,
    Target,
    TreeWalk,
    always,
    ar_sampling,
    diffusion,
    never,
    paper,
    plain_is,
    released,
    smc,
    speculative,
    tree_walk,
)
from smc_bridge.models.pairs import Pair, load_pair
from tests.toys import LIMIT, toy_pair

Run = Callable[[], list[Result]]

#: Prompts of the tabular pair, each under two seeds.
TABULAR = [([1], 3), ([2, 1], 3), ([1], 4), ([2, 1], 4)]
#: Problems of the embedded pair and their seeds.
PROBLEMS = [("Jack has 47 candies. Jack sells 2. How many candies does Jack have now?", 1),
            ("Ann has 3 apples. A friend gives Ann 29 more. How many apples does Ann have now?", 2)]
#: Length limit on the embedded pair, tokens.
TOKENS = 24


@cache
def embedded() -> Pair:
    """The embedded pair, loaded once a process."""
    return load_pair("arithmetic", dlm_cache="none")


def likes_ones(prefix: Prefix) -> torch.Tensor:
    """An incremental potential: every token 1 multiplies by 1.5."""
    return (prefix.tokens == 1).sum(1).double() * 0.4054651081081644


def tabular_samplers() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, preset and options of every program that is run on tabular models."""
    kernels = {"rejection": Rejection(), "block": BlockVerification(), "gumbel": GumbelCoupling(), "tree": TreeWalk(3)}
    for name, kernel in kernels.items():
        for lanes in (1, 2):
            yield f"kernel-{name}-{lanes}", smc, {"particles": 3, "lanes": lanes, "kernel": kernel, "w": 0.5}
    yield "kernel-all", smc, {"particles": 3, "kernel": AcceptAll(), "intermediate": Proposal()}
    resamplers = (Multinomial(), Stratified(), Systematic(), Residual(), SSP())
    for resampler in resamplers:
        for lanes in (1, 2):
            yield f"resampler-{type(resampler).__name__}-{lanes}", smc, {
                "particles": 4, "lanes": lanes, "resampler": resampler, "trigger": always, "w": 0.7,
            }
    for name, trigger in (("never", never), ("ess", EssBelow(0.9))):
        yield f"trigger-{name}", smc, {"particles": 4, "trigger": trigger, "w": 0.9}
    intermediates = {
        "poe": ProductOfExperts(0.4), "poe-two": ProductOfExperts(0.4, 0.9), "mixture": Mixture(0.4),
        "power-mean": PowerMean(0.5, 0.4), "chernoff": Chernoff(), "defensive": Defensive(ProductOfExperts(0.8), 0.1),
        "proposal": Proposal(), "target": Target(),
    }
    for name, intermediate in intermediates.items():
        yield f"intermediate-{name}", smc, {"particles": 2, "intermediate": intermediate}
    yield "balance", smc, {"particles": 2, "lanes": 2, "weight": BalanceHeuristic(), "proposal_temperature": [0.7, 1.2]}
    yield "potential", smc, {"particles": 4, "potential": likes_ones}
    yield "top-p", smc, {"particles": 2, "top_p": 0.8}
    yield "top-k", smc, {"particles": 2, "top_k": 2, "proposal_top_p": 0.9,
                         "intermediate": Defensive(ProductOfExperts(0.3), 0.2)}
    yield "paper", paper, {}
    yield "released", released, {}
    yield "speculative", speculative, {}
    yield "plain-is", plain_is, {}
    yield "tree-walk", tree_walk, {"nodes": 4}


def cases() -> dict[str, Run]:
    """All runs by name."""
    pair = toy_pair()
    prompts, seeds = [prompt for prompt, _ in TABULAR], [seed for _, seed in TABULAR]
    found: dict[str, Run] = {}

    def add(name: str, run: Run) -> None:
        assert name not in found, name
        found[name] = run

    for name, preset, options in tabular_samplers():
        for temperature in (1.0, 0.6):
            sampler = preset(pair, **{"window": 2, "lookahead": LIMIT, "temperature": temperature, **options})
            add(
                f"tabular/{name}/{temperature:g}",
                lambda sampler=sampler: sampler.run(prompts, seed=seeds, max_new_tokens=LIMIT, batch=3),
            )
    target, proposal = ARTarget(pair.ar, temperature=0.7), DLMProposal(pair.dlm, temperature=0.7, lookahead=LIMIT)
    add("tabular/ar", lambda: ar_sampling(target, prompts, seed=seeds, max_new_tokens=LIMIT, batch=3))
    for order in ("left_to_right", "entropy", "confidence"):
        for count in (1, 2, None):
            add(
                f"tabular/dlm/{order}/{count}",
                lambda order=order, count=count: diffusion(
                    proposal, prompts, order=order, tempered=True, tokens_per_forward=count, window=3, seed=seeds,
                    max_new_tokens=LIMIT, batch=3,
                ),
            )
    conditional = smc(pair, 3, lanes=2, window=2, lookahead=LIMIT, w=0.5)
    add(
        "tabular/conditional",
        lambda: conditional.run(
            prompts, seed=seeds, max_new_tokens=LIMIT, retained=[[1, 2, 0], [2, 2, 1, 1], [0], [1, 1, 1, 1]]
        ),
    )
    for name, preset, options in (
        ("smc-1", smc, {"particles": 1}), ("smc-4", smc, {}), ("smc-2x2", smc, {"particles": 2, "lanes": 2}),
        ("paper", paper, {}), ("released", released, {}), ("speculative", speculative, {}), ("plain-is", plain_is, {}),
        ("tree-walk", tree_walk, {"nodes": 32}),
    ):
        add(f"embedded/{name}", lambda preset=preset, options=options: _decode(preset, options))
    add("embedded/ar", lambda: ar_sampling(ARTarget(embedded().ar, temperature=0.2), **_problems()))
    for order in ("left_to_right", "entropy", "confidence"):
        add(
            f"embedded/dlm/{order}",
            lambda order=order: diffusion(
                DLMProposal(embedded().dlm, temperature=0.2, lookahead=32), **_problems(), order=order,
                tempered=True, tokens_per_forward=4,
            ),
        )
    return found


def _problems() -> dict[str, Any]:
    """Arguments of a run on the embedded pair's problems."""
    prompts = [embedded().encode(text).tolist() for text, _ in PROBLEMS]
    return {"prompts": prompts, "seed": [seed for _, seed in PROBLEMS], "max_new_tokens": TOKENS}


def _decode(preset: Any, options: dict[str, Any]) -> list[Result]:
    sampler = preset(embedded(), temperature=0.5, window=16, lookahead=32, **options)
    return sampler.run(**_problems())

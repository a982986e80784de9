"""The batched engine and a naive loop over lists draw the same particles: equal tokens, ancestors, lengths and accepted
counts for the same seed, and log weights equal up to round-off, on ragged prompts decoded in one batch."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import Move, full_horizon
from smc_bridge.distributions.intermediate import ProductOfExperts, Proposal
from smc_bridge.distributions.table import Dense
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, Trigger, always, never
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.result import Result
from smc_bridge.streams import Role, prompt_generator
from tests.smc_bridge.reference_loop import Particle, Reference, Settings

DEPTH, NEW = 6, 4
PROMPTS = [[], [0], [2, 0], [], [1, 2], [2], [0, 0], []]
KERNELS: dict[str, Kernel] = {
    "rejection": Rejection(), "block-verification": BlockVerification(), "gumbel": GumbelCoupling(),
    "accept-all": AcceptAll(), "tree-walk": TreeWalk(3),
}
TRIGGERS: dict[float, Trigger] = {2.0: always, 0.8: EssBelow(0.8), -1.0: never}


def log_phi(tokens: list[int]) -> float:
    """An incremental potential that some sequences do not survive."""
    code = sum((t + 1) * 7**i for i, t in enumerate(tokens))
    return -math.inf if code % 11 == 3 else math.sin(code)


def batched_log_phi(prefix: Prefix) -> Tensor:
    return torch.tensor([log_phi(tokens) for tokens in prefix.lists()], dtype=torch.float64)


@functools.cache
def models(eos: int | None) -> tuple[TabularAR, TabularDLM]:
    ar = TabularAR.random(3, DEPTH, seed=4, eos_id=eos)
    return ar, TabularDLM(ar, noise=0.6, seed=1)


def engine(settings: Settings, eos: int | None) -> Sampler:
    """The sampler of the settings."""
    ar, dlm = models(eos)
    plain = settings.kernel == "accept-all"
    return Sampler(
        DLMProposal(dlm, temperature=list(settings.temperatures), lookahead=settings.lookahead, reuse=settings.reuse),
        ARTarget(ar, temperature=settings.target_temperature,
                 potential=None if settings.potential is None else batched_log_phi),
        Proposal() if plain else ProductOfExperts(settings.w),
        TreeWalk(settings.nodes) if settings.kernel == "tree-walk" else KERNELS[settings.kernel],
        BalanceHeuristic() if settings.balance else OwnWeights(), named("resampler", settings.resampler),
        TRIGGERS[settings.trigger], settings.particles, len(settings.temperatures), settings.window)


def compare(
    settings: Settings, eos: int | None, seeds: list[int], retained: list[list[int]] | None = None
) -> list[Result]:
    """Run both on all prompts and compare everything."""
    ar, dlm = models(eos)
    results = engine(settings, eos).run(
        PROMPTS, seed=seeds, max_new_tokens=NEW, keep_drafts=True, retained=retained)
    role = Role.SMC if retained is None else Role.CONDITIONAL
    for i, (prompt, seed, result) in enumerate(zip(PROMPTS, seeds, results, strict=True)):
        loop = Reference(settings, ar, dlm, prompt_generator(seed, prompt, role=role))
        particles = loop.run(prompt, NEW, None if retained is None else retained[i])
        where = f"prompt {prompt}, seed {seed}, {settings}"
        assert [p.tokens[len(prompt):] for p in particles] == result.sequences, where
        for step, record in zip(loop.steps, result.trace, strict=True):
            for name in ("ancestors", "lanes", "length", "accepted", "resampled"):
                assert getattr(step, name) == getattr(record, name), f"{name} of {where}"
            assert_close(step.log_weights, record.log_weights, where)
        assert_close([p.log_weight for p in particles], result.log_weights, where)
    return results


def assert_close(left: list[float], right: list[float], where: str) -> None:
    for a, b in zip(left, right, strict=True):
        assert a == b or abs(a - b) < 1e-12, f"log weight {a!r} of the loop, {b!r} of the engine: {where}"


def seeds(start: int) -> list[int]:
    return list(range(start, start + len(PROMPTS)))


@pytest.mark.parametrize("potential", [None, log_phi], ids=["no-potential", "potential"])
@pytest.mark.parametrize("lanes", ["one-lane", "two-lanes", "balance-heuristic"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_engine_and_naive_loop_draw_the_same_particles(kernel: str, lanes: str, potential: object) -> None:
    interacted = 0
    configurations = itertools.product(RESAMPLERS, TRIGGERS)
    for start, (resampler, trigger) in enumerate(configurations):
        settings = Settings(
            kernel, resampler, trigger, particles=3, temperatures=(0.9,) if lanes == "one-lane" else (0.7, 1.5),
            target_temperature=0.8, w=0.4, window=2 + start % 2, lookahead=4 - start % 3, nodes=1 + start % 4,
            balance=lanes == "balance-heuristic", potential=potential)  # type: ignore[arg-type]
        results = compare(settings, [1, None, 0][start % 3], seeds(100 * start))
        interacted += sum(record.resampled for result in results for record in result.trace)
    assert interacted > 20, f"only {interacted} steps resampled"


@pytest.mark.parametrize("kernel", KERNELS)
def test_many_seeds_agree(kernel: str) -> None:
    settings = Settings(
        kernel, "systematic", 0.8, particles=2, temperatures=(0.6, 1.3), target_temperature=1.2, window=3, lookahead=4)
    for start in range(12):
        compare(settings, 1, seeds(1000 + 50 * start))


@pytest.mark.parametrize("temperatures", [(0.9,), (0.6, 1.3)], ids=["one-lane", "two-lanes"])
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "accept-all"])
def test_marginals_that_outlive_a_refusal_agree(kernel: str, temperatures: tuple[float, ...]) -> None:
    for start, reuse in enumerate((1e-9, 0.3, 0.5)):
        settings = Settings(
            kernel, "systematic", 2.0, particles=2, temperatures=temperatures, window=2, lookahead=4, reuse=reuse)
        compare(settings, None, seeds(3000 + 50 * start))


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_particle_agrees(kernel: str) -> None:
    for lanes in ((1.1,), (0.8, 1.2, 0.5)):
        settings = Settings(kernel, "multinomial", 2.0, particles=1, temperatures=lanes, window=2, lookahead=3)
        compare(settings, 2, seeds(5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("temperatures", [(0.9,), (0.7, 1.5)])
def test_conditional_runs_agree(kernel: str, temperatures: tuple[float, ...]) -> None:
    """With a retained sequence: its lane, its stops, and multinomial ancestors for the others."""
    whole = [[0, 1], [2, 2, 0, 2], [1], [0, 0, 0, 0], [2, 1], [0, 2, 1], [2, 0, 0, 1], [1]]
    for start, trigger in enumerate(TRIGGERS):
        settings = Settings(
            kernel, "ssp", trigger, particles=3, temperatures=temperatures, target_temperature=0.9, w=0.5, window=2,
            lookahead=3, nodes=2)
        results = compare(settings, 1, seeds(30 * start), retained=whole)
        assert [r.sequences[0] for r in results] == whole


def test_every_prompt_draws_the_same_alone_as_in_a_batch() -> None:
    settings = Settings("rejection", "systematic", 0.8, particles=3, temperatures=(0.7, 1.5), window=3)
    sampler = engine(settings, 1)
    together = sampler.run(PROMPTS, seed=seeds(0), max_new_tokens=NEW)
    for prompt, seed, result in zip(PROMPTS, seeds(0), together, strict=True):
        (alone,) = sampler.run([prompt], seed=seed, max_new_tokens=NEW)
        assert (alone.sequences, alone.log_weights) == (result.sequences, result.log_weights), f"prompt {prompt}"


def test_a_naive_loop_with_one_other_rule_differs() -> None:
    """The comparison has power: marginals that are thrown away after a whole draft give other tokens."""

    class Forgets(Reference):
        def step(self, particles: list[Particle], *rest: object) -> list[Particle]:
            for particle in particles:
                particle.logits = []
            return super().step(particles, *rest)  # type: ignore[arg-type]

    settings = Settings("rejection", "systematic", 0.8, particles=2, temperatures=(1.0,), window=2, lookahead=4)
    ar, dlm = models(None)
    results = engine(settings, None).run(PROMPTS, seed=seeds(0), max_new_tokens=NEW)
    draws = [prompt_generator(s, p, role=Role.SMC) for s, p in zip(seeds(0), PROMPTS, strict=True)]
    loops = [Forgets(settings, ar, dlm, generator) for generator in draws]
    found = [[x.tokens[len(p):] for x in loop.run(p, NEW)] for loop, p in zip(loops, PROMPTS, strict=True)]
    assert found != [r.sequences for r in results]


def test_a_correction_that_no_lane_can_draw_keeps_its_own_weight() -> None:
    """Round-off can refuse a token where q and pi are equal; the balance heuristic then has no law of the block."""
    log_q = torch.tensor([[[[0.3, 0.7], [0.6, 0.4]]]], dtype=torch.float64).log()
    log_p = torch.tensor([[[[0.5, 0.5], [0.6, 0.4]]]], dtype=torch.float64).log()
    move = Move(torch.tensor([[[1, -1]]]), torch.tensor([[1]]), torch.tensor([[0]]))
    lanes = Lanes(Dense(log_q), Dense(log_p), Dense(log_q), move, full_horizon(1, 2))
    weight = BalanceHeuristic()(lanes, kernel=Rejection(), intermediate=Proposal())
    expected = math.log(0.5 / 0.7)
    assert abs(float(weight) - expected) < 1e-12, f"{float(weight)}, expected {expected}"


def test_parts_may_be_set_between_steps_and_what_a_run_rests_on_may_not() -> None:
    ar, dlm = models(None)
    sampler = Sampler(DLMProposal(dlm, lookahead=3), ARTarget(ar), lanes=2, particles=2, window=1)
    state = sampler.step(sampler.start([[]], seed=1, max_new_tokens=NEW))
    sampler.kernel = "gumbel"  # type: ignore[assignment]
    state = sampler.step(state)
    assert isinstance(sampler.kernel, GumbelCoupling)
    sampler.intermediate = ProductOfExperts(0.5, torch.tensor([0.9, 0.2]))
    assert sampler.step(state).walks == 1, "lanes that differ share no tree"
    for name, value in (("particles", 7), ("proposal", DLMProposal(dlm)), ("target", ARTarget(ar))):
        changed = replace(sampler)
        begun = changed.start([[]], seed=1, max_new_tokens=NEW)
        setattr(changed, name, value)
        with pytest.raises(ValueError, match=f"^{name} = .* is not what the run began with: start anew"):
            changed.step(begun)

"""Streams of random numbers by role: independent of each other under one seed, each from all of its hash."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from smc_bridge.analysis.reverse import conditional_runs
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.weights import never
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.ar import ar_sampling
from smc_bridge.methods.canvas import diffusion
from smc_bridge.result import Result
from smc_bridge.streams import Role, derived_seed, numpy_generator, prompt_generator, seeds_apart
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.programs import TABLES, program, target_law

RUNS = 600


def uniforms(generator: torch.Generator, count: int = 1) -> list[float]:
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


# --- one stream ------------------------------------------------------------------------------------------------------


def test_a_prompts_generator_depends_on_role_seed_and_prompt_only() -> None:
    def first(seed: int, prompt: Sequence[int], role: Role = Role.SMC) -> float:
        return uniforms(prompt_generator(seed, prompt, role=role))[0]

    assert first(3, [1, 2]) == first(3, (1, 2)) == first(np.int64(3), torch.tensor([1, 2]))  # type: ignore[arg-type]
    arguments = [(3, [1, 2]), (4, [1, 2]), (3, [2, 1]), (3, [12]), (3, []), (-3, [1, 2]), (31, [2])]
    found = [first(*given) for given in arguments] + [first(3, [1, 2], role) for role in Role if role is not Role.SMC]
    assert len(set(found)) == len(found), f"first draws {found}"


def test_every_bit_of_a_seed_matters() -> None:
    seeds = [0, *(2**bit for bit in (0, 31, 32, 53, 63, 64, 65, 127, 128, 500))]
    for make in (
        lambda seed: uniforms(prompt_generator(seed, [1], role=Role.SMC)),
        lambda seed: [numpy_generator(Role.SAMPLE, seed).random()],
        lambda seed: [derived_seed(Role.STUDY, seed, 3)],
    ):
        found = [make(seed)[0] for seed in seeds]
        assert len(set(found)) == len(seeds), f"two of the seeds {seeds} are one: {found}"


def test_the_hash_is_the_whole_state_of_the_generator() -> None:
    """The draws are those of numpy's Mersenne Twister with the hash as its 624 words."""
    key = np.frombuffer(hashlib.shake_256(repr(("ar", 7, 1, 2)).encode()).digest(624 * 4), dtype="<u4")
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    high, low = twister.random_raw(2 * 1500).reshape(-1, 2).T  # past the first renewal of the state
    expected = ((high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)) % np.uint64(2**53)) / 2.0**53
    found = torch.empty(1500, dtype=torch.float64).uniform_(generator=prompt_generator(7, [1, 2], role=Role.AR))
    assert np.array_equal(found.numpy(), expected)


def test_generators_draw_uniforms() -> None:
    """First draws of many generators, of which the seeds differ in one bit after another."""
    first = [uniforms(prompt_generator(seed, [2], role=Role.SMC))[0] for seed in range(4000)]
    claim(chi_square(np.histogram(first, bins=20, range=(0, 1))[0], np.full(20, 0.05)), "first draws of generators")


@pytest.mark.parametrize("seeds", [(17372, 25829), (25894, 51084), (134729, 145927)])
def test_seeds_whose_hashes_agree_in_32_bits_run_differently(seeds: tuple[int, int]) -> None:
    """The 64-bit hashes of these, as seeds of a `torch.Generator`, gave one and the same stream."""
    left, right = program(Rejection(), particles=40).run([[0], [0]], seed=seeds, max_new_tokens=2)
    assert left.sequences != right.sequences


@pytest.mark.parametrize("seed", [1.5, "3", None])
def test_a_seed_that_is_no_whole_number_is_refused(seed: object) -> None:
    with pytest.raises(ValueError, match=r"^seed = .*: give a whole number$"):
        derived_seed(Role.STUDY, seed)  # type: ignore[arg-type]


# --- several streams -------------------------------------------------------------------------------------------------


def firsts(results: Sequence[Result], place: int = 0) -> list[int]:
    return [result.sequences[place][0] for result in results]


def test_what_is_held_against_each_other_under_one_seed_is_independent() -> None:
    """All of these draw their first token from one law p: of every two, the pair has the law p x p."""
    sampler = program(TreeWalk(2), w=0.0, noise=0.0, particles=2, trigger=never, temperature=0.8)
    target, options = sampler.target, {"seed": range(RUNS), "max_new_tokens": 1}
    prompts: list[list[int]] = [[]] * RUNS
    conditional = conditional_runs(sampler, prompts, **options)  # type: ignore[arg-type]
    tokens = {
        "sampler": firsts(sampler.run(prompts, **options)),  # type: ignore[arg-type]
        "ar_sampling": firsts(ar_sampling(target, prompts, **options)),  # type: ignore[arg-type]
        "retained": firsts(conditional), "conditional": firsts(conditional, 1),
        # Of one token, the marginals of the exact diffusion model are the law itself.
        "diffusion": firsts(diffusion(sampler.proposal, prompts, **options)),  # type: ignore[arg-type]
    }
    raised = TABLES[0][0] ** (1 / 0.8)
    law = raised / raised.sum()
    pairs = list(itertools.combinations(tokens, 2))
    for left, right in pairs:
        table = np.zeros((2, 2))
        np.add.at(table, (tokens[left], tokens[right]), 1)
        p_value = chi_square(table, np.outer(law, law))
        claim(min(1.0, p_value * len(pairs)), f"{left} and {right} under one seed")


def test_conditional_runs_know_the_seed_that_was_given() -> None:
    [run] = conditional_runs(program(Rejection(), resampler=Multinomial()), [[0]], seed=2**70, max_new_tokens=2)
    assert (run.settings["seed"], run.settings["stream"]) == (2**70, "conditional")


# --- draws from weights ----------------------------------------------------------------------------------------------


def exact_runs(count: int) -> list[Result]:
    """Runs of an exact sampler: its particles are equally weighted draws, and there are few sets of them."""
    sampler = program(Rejection(), w=0.0, particles=2, trigger=never)
    return sampler.run([[]] * count, seed=range(count), max_new_tokens=3)


def saved(results: list[Result], folder: Path) -> list[Result]:
    for i, result in enumerate(results):
        result.save(folder / f"{i}.json")
    return [Result.load(folder / f"{i}.json") for i in range(len(results))]


def test_one_seed_for_draws_from_many_runs_gives_the_law(tmp_path: Path) -> None:
    results = exact_runs(1000)
    law = target_law(program(Rejection()), 3)
    drawn = [tuple(result.sample(seed=0)) for result in results]
    counts = Counter(drawn)
    claim(chi_square(np.array([counts[s] for s in law]), np.array(list(law.values()))), "draws from runs, one seed")
    assert [tuple(result.sample(seed=0)) for result in saved(results[:40], tmp_path)] == drawn[:40]


def test_runs_with_equal_particles_draw_apart_if_their_seeds_differ() -> None:
    def run(seed: int) -> Result:
        return Result([1], [[0], [1]], [0.0, 0.0], settings={"seed": seed, "stream": "smc"})

    drawn = [run(seed).sample(seed=5)[0] for seed in range(1000)]
    table = np.bincount(drawn, minlength=2)
    claim(chi_square(table, np.full(2, 0.5)), "draws from equal particles")
    assert run(3).sample(20, seed=5) == run(3).sample(20, seed=5) != run(3).sample(20, seed=6)
    unknown = Result([1], [[0], [1]], [0.0, 0.0])
    assert unknown.sample(20, seed=5) == unknown.sample(20, seed=5) != unknown.sample(20, seed=2**64 + 5)
    with pytest.raises(ValueError, match=r"seed = 0\.5: give a whole number"):
        unknown.sample(seed=0.5)  # type: ignore[call-overload, arg-type]


# --- equal draws are told --------------------------------------------------------------------------------------------

Decode = Callable[..., list[Result]]


def decoders() -> dict[str, Decode]:
    sampler = program(Rejection())
    return {
        "run": sampler.run,
        "ar_sampling": lambda prompts, **options: ar_sampling(sampler.target, prompts, **options),
        "diffusion": lambda prompts, **options: diffusion(sampler.proposal, prompts, **options),
    }


@pytest.mark.parametrize("name", decoders())
def test_a_prompt_that_repeats_under_one_seed_is_told_once(name: str) -> None:
    decode = decoders()[name]
    with pytest.warns(UserWarning, match="equal draws") as told:
        results = decode([[0], [1], [], [0], [0]], max_new_tokens=2)
    assert [str(warning.message) for warning in told] == [
        "prompts[3] repeats prompts[0] with seed 0: equal draws; give seed=range(5)"
    ]
    assert told[0].filename == __file__, "the warning points at the caller"
    assert results[0].sequences == results[3].sequences
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode([[0], [1], [], [0], [0]], seed=range(5), max_new_tokens=2)
        decode([[0], [0]], seed=[1, 2**64 + 1], max_new_tokens=2)


def test_repetitions_get_seeds_of_their_own() -> None:
    seeds = seeds_apart([[1], [2], [1], [1], (2,)], 7)
    assert seeds[:2] == [7, 7]
    assert seeds[2] == seeds[4], "the second of each prompt: the prompt tells them apart"
    assert len({seeds[0], seeds[2], seeds[3]}) == 3

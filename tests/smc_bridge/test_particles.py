"""Particles over denoising steps: each potential is properly weighted for the tilted law, and mutants are caught."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget
from smc_bridge.canvas.denoising_state import DenoisingState, Masked, Wide
from smc_bridge.canvas.particles import Particles
from smc_bridge.decode import decode
from smc_bridge.engine.resampling import Multinomial, Resampler, Stratified, Systematic
from smc_bridge.methods.fk_steering import Steered
from smc_bridge.methods.self_rewarding import SelfRewarded
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.randomness import PromptSource
from smc_bridge.registry import METHODS, spelled
from smc_bridge.requests import Request
from smc_bridge.testing import exact_law, tabular_pair
from smc_bridge.testing.frontier import SequenceLaw
from tests.smc_bridge.canvas_enumeration import distance, weighted_law
from tests.smc_bridge.denoising_oracle import denoised
from tests.toys import LIMIT, toy_pair

PAIR = tabular_pair(2, 3, seed=0, noise=0.9)
AR = exact_law(ARTarget(PAIR.ar), 2)


def steered(options: str = "", pair: object = PAIR) -> Steered:
    """Two particles over two steps, which may resample after each."""
    found = spelled(f"fk-steering,particles=2,steps=2,every=1{options and ','}{options}").make(pair)  # type: ignore[arg-type]
    assert isinstance(found, Steered)
    return found


def tilted(exponent: float, *, law: SequenceLaw | None = None) -> SequenceLaw:
    """`q(s) p(s)^lambda`, q by plain loops."""
    q = denoised(PAIR, 2, 2) if law is None else law
    return {s: mass * AR[s] ** exponent for s, mass in q.items()}


def gap(found: SequenceLaw, expected: SequenceLaw) -> float:
    """Greatest difference."""
    return max(abs(found.get(s, 0.0) - expected.get(s, 0.0)) for s in {*found, *expected})


@pytest.mark.parametrize(("options", "exponent"), [
    ("samples=1,resampler=systematic", 1.0), ("potential=max,samples=0", 1.0), ("potential=add,samples=0", 1.0),
    ("potential=max,samples=0,exponent=3", 3.0), ("potential=add,samples=0,exponent=0.5", 0.5),
    ("potential=diff,samples=2,particles=1,resampler=systematic", 1.0), ("samples=0,trigger=ess", 1.0),
    ("samples=0,trigger=never", 1.0),
])
def test_every_potential_is_properly_weighted_for_the_tilted_law(options: str, exponent: float) -> None:
    """`E[Z_hat sum_n W_n 1{x_n = s}] = q(s) p(s)^lambda`, over every outcome of all draws."""
    text = options.replace("particles=1,", "")
    decoder = steered(text)
    if "particles=1" in options:
        decoder.particles = 1
    found, outcomes = weighted_law(decoder, 2)
    assert outcomes >= 90
    assert gap(found, tilted(exponent)) < 1e-12


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_every_resampler_keeps_it(resampler: str) -> None:
    found, _ = weighted_law(steered(f"samples=0,resampler={resampler}"), 2)
    assert gap(found, tilted(1.0)) < 1e-12


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("method", ["fk-steering", "self-rewarding-smc"])
@pytest.mark.parametrize("limit", [1, 3])
def test_there_may_be_more_particles_than_places(method: str, limit: int, resampler: str) -> None:
    """A survivor has a uniform of its own, whatever the number of places; draws do not depend on the batch."""
    text = f"{method},particles=8,steps=4,every=1,trigger=always,resampler={resampler}"
    decoder, prompts = spelled(text).make(toy_pair()), [[1], [2, 1]]
    asked: list[int] = []
    uniform = PromptSource.uniform

    def counting(self: PromptSource, size: tuple[int, ...]) -> Tensor:
        asked.append(size[-1])
        return uniform(self, size)

    with mock.patch.object(PromptSource, "uniform", counting):
        together = decode(decoder, prompts, seed=3, max_new_tokens=limit)
    assert max(asked) == (limit if resampler == "systematic" else 7 if resampler == "ssp" else 8)
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = decode(decoder, [prompt], seed=3, max_new_tokens=limit)
        assert alone.sequences == found.sequences
        assert all(1 <= len(s) <= limit for s in found.sequences)


def test_a_source_of_the_places_of_a_canvas_gives_no_more_draws_than_places() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = Wide(PromptSource([generator]), 3)
    assert wide.uniform((2, 3)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"^size = \(4,\): ask for at most 3 uniforms a row"):
        wide.uniform((4,))


def test_canvases_that_wait_for_their_next_part_keep_it() -> None:
    """One place at a time, so that a particle is done with its part while the other is not."""
    found, _ = weighted_law(steered("samples=0,lookahead=1,resampler=systematic"), 2)
    one_by_one, _ = weighted_law(without_rewards(1), 2)
    assert gap(found, tilted(1.0, law=one_by_one)) < 1e-12


def without_rewards(lookahead: int) -> Particles:
    """The denoiser alone, every weight one."""

    class Alone(Particles):
        def weighed(
            self, state: DenoisingState, seats: Sequence[int], seen: Masked | None, due: Sequence[bool],
            over: Sequence[bool],
        ) -> DenoisingState:
            return state

    base = steered()
    proposal = type(base.proposal)(PAIR.dlm, lookahead=lookahead)
    return Alone(proposal, None, 2, 1, every=1)


class KeepsWhatWasSpent(Steered):
    """The last potential does not divide by those before."""

    def gained(self, state: DenoisingState, seats: Sequence[int], gain: Tensor) -> DenoisingState:
        after = super().gained(state, seats, gain)
        tilt = after.tilt
        return after._replace(tilt=tilt._replace(spent=torch.zeros_like(tilt.spent)))


class ForgetsItsAncestors(Steered):
    """What was spent stays in its place when particles are resampled."""

    def _resampled(self, state: DenoisingState, seats: Sequence[int]) -> DenoisingState:
        after = super()._resampled(state, seats)
        return after._replace(tilt=after.tilt._replace(spent=state.tilt.spent))


class ResetsToOne(Steered):
    """Weights are reset to one, not to their mean."""

    def _resampled(self, state: DenoisingState, seats: Sequence[int]) -> DenoisingState:
        after = super()._resampled(state, seats)
        weights = after.tilt.log_weights.clone()
        weights[list(seats)] = 0.0
        return after._replace(tilt=after.tilt._replace(log_weights=weights))


class Greatest:
    """Keeps the particle of greatest weight alone."""

    proper = False

    def __call__(self, log_weights: Tensor, count: int, *, source: object) -> Tensor:
        return log_weights.argmax(-1, keepdim=True).expand(-1, count)


@pytest.mark.parametrize("mutant", [KeepsWhatWasSpent, ForgetsItsAncestors, ResetsToOne])
def test_mutants_are_caught(mutant: type[Steered]) -> None:
    right = steered("samples=0,potential=max")
    wrong = mutant(**{each.name: getattr(right, each.name) for each in fields(right)})
    found, _ = weighted_law(wrong, 2)
    assert gap(found, tilted(1.0)) > 1e-3


def test_a_resampler_that_keeps_the_best_is_caught() -> None:
    decoder = steered("samples=0")
    decoder.resampler = Greatest()  # type: ignore[assignment]
    found, _ = weighted_law(decoder, 2)
    assert gap(found, tilted(1.0)) > 1e-3


def test_the_tilted_law_is_not_the_ar_law() -> None:
    law = tilted(1.0)
    total = sum(law.values())
    q = denoised(PAIR, 2, 2)
    own, none = distance({s: m / total for s, m in law.items()}, AR), distance(q, AR)
    assert own > none > 0.1, f"TV to the AR law: tilted {own:.4f}, diffusion model {none:.4f}"


@pytest.mark.parametrize("particles", [1, 2])
def test_self_rewarding_particles_are_weighted_for_the_square_of_the_path_law(particles: int) -> None:
    text = f"self-rewarding-smc,particles={particles},steps=2,every=1,final=weights,trigger=always"
    decoder = spelled(text).make(PAIR)
    assert isinstance(decoder, SelfRewarded)
    found, _ = weighted_law(decoder, 2)
    square = denoised(PAIR, 2, 2, squared=True)
    assert gap(found, square) < 1e-12
    total = sum(square.values())
    tv = distance({s: m / total for s, m in square.items()}, AR)
    assert tv > distance(denoised(PAIR, 2, 2), AR) + 0.02, f"TV to the AR law {tv:.4f}"


def test_in_the_end_the_particle_of_greatest_weight_is_kept() -> None:
    text = "self-rewarding-smc,particles=4,steps=3,lookahead=4"
    every = decode(spelled(f"{text},final=weights").make(toy_pair()), [[1], [2]], seed=5, max_new_tokens=LIMIT)
    best = decode(spelled(text).make(toy_pair()), [[1], [2]], seed=5, max_new_tokens=LIMIT)
    for all_of_them, one in zip(every, best, strict=True):
        place = all_of_them.log_weights.index(max(all_of_them.log_weights))
        assert len(all_of_them.sequences) == 4
        assert one.sequences == [all_of_them.sequences[place]]
        assert one.log_weights == [0.0]


def test_a_reward_is_asked_once_of_what_is_complete() -> None:
    """Each particle is judged after every step up to the one that completes it, and not after."""
    decoder = spelled("fk-steering,particles=3,steps=8,every=1,samples=1,trigger=never").make(toy_pair())
    assert isinstance(decoder, Steered)
    shares = []
    for seed in range(4):
        state, grew, steps = decoder.open([Request(0, [1], seed, decoder.stream)], LIMIT), 0, 0
        while not decoder.finished(state):
            grew += int((~decoder.complete(state, [0])).sum())
            state, steps = decoder.step(state), steps + 1
        assert decoder.result(state, 0).forwards.ar_rows == grew
        shares.append(grew / (3 * steps))
    assert min(shares) < 1, "no particle was complete before the others"


def test_weights_are_those_of_the_ar_model_whatever_the_potential() -> None:
    """Without resampling the product of potentials is p^lambda of what came out, path by path."""
    pair = toy_pair()
    target = ARTarget(pair.ar)  # type: ignore[arg-type]
    for potential in ("diff", "max", "add"):
        text = f"fk-steering,particles=3,steps=4,every=2,samples=2,exponent=2,trigger=never,potential={potential}"
        for result in decode(spelled(text).make(pair), [[1], [2, 1]], seed=2, max_new_tokens=LIMIT):
            for sequence, weight in zip(result.sequences, result.log_weights, strict=True):
                total, prefix = 0.0, list(result.prompt)
                for token in sequence:
                    law = pair.ar.log_conditional(torch.tensor([prefix]), torch.tensor([len(prefix)]))  # type: ignore[attr-defined]
                    total += float(target.log_probs(law)[0, token])
                    prefix.append(token)
                assert weight == pytest.approx(2 * total, abs=1e-9)


def test_results_say_what_they_are_weighted_for() -> None:
    for text, words in (
        ("fk-steering,particles=2,steps=2", "times p^lambda, not for the AR law"),
        ("self-rewarding-smc,particles=2,steps=2", "times its confidences, not for the AR law"),
    ):
        [result] = decode(spelled(text).make(toy_pair()), [[1]], max_new_tokens=LIMIT)
        assert not result.proper
        assert len(result.reasons) == 1
        assert result.reasons[0].endswith(words)
        with pytest.raises(ValueError, match="has no certificate"):
            result.certificate()
        assert METHODS[text.split(",")[0]].role == "baseline"


@pytest.mark.parametrize(("text", "says"), [
    ("fk-steering,particles=0", "particles = 0: "), ("fk-steering,every=0", "every = 0: resample every 1 step or more"),
    *((f"fk-steering,exponent={x}", f"exponent = {float(x)}: give a number from 0.001 to 1000, 1 for the AR law itself")
      for x in ("0", "1e308", "1e-308", "inf", "nan")),
    ("fk-steering,samples=-1", "samples = -1: draw at least 1, a whole number, or 0 for the likeliest tokens"),
    ("self-rewarding-smc,steps=0", "steps = 0: denoise in at least 1 step"),
    ("self-rewarding-smc,every=0", "every = 0: resample every 1 step or more"),
])
def test_bad_options_are_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)) as caught:
        spelled(text).make(toy_pair())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "says"), [
    (lambda base: replace(base, potential="rt"), "potential = 'rt': give one of diff, max, add"),
    (lambda base: replace(base, target=3), "target = 3: give an ARTarget"),
    (lambda base: replace(base, proposal=None), "proposal = None: give a DLMProposal"),
    (lambda base: spelled("self-rewarding-smc").method.make(toy_pair(), final="best"),
     "final = 'best': give one of argmax, weights"),
])
def test_bad_parts_are_one_line(make: Callable[[Steered], object], says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        make(steered())


def test_resamplers_by_name_and_as_objects_are_one() -> None:
    parts: list[tuple[str, type[Resampler]]] = [
        ("multinomial", Multinomial), ("stratified", Stratified), ("systematic", Systematic)
    ]
    for name, kind in parts:
        assert isinstance(steered(f"resampler={name}").resampler, kind)
        assert isinstance(named("resampler", name), kind)

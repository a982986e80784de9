"""Draft & Verify: a causal model drafts until it doubts a token; exact with every kernel, and the published greedy form
caught."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge import (
    AcceptAll,
    ARTarget,
    BalanceHeuristic,
    BlockVerification,
    Defensive,
    GumbelCoupling,
    Mixture,
    Move,
    ProductOfExperts,
    Proposal,
    Rejection,
    Sampler,
    Target,
    TreeWalk,
    ar_sampling,
    load_pair,
)
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.state import Retained
from smc_bridge.engine.weights import always
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.methods.draft_verify import draft_verify, three_experts
from smc_bridge.models.tabular import TabularAR, TabularCausalSession
from smc_bridge.names import RESAMPLERS
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.proposals.skip_search import Texts, own_texts, search, usual_skips, worth
from smc_bridge.proposals.skipped import CausalProposal, CausalState
from smc_bridge.registry import METHODS, spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, exact_law, frontier, outcomes, tabular_pair
from smc_bridge.testing.branches import BranchingResampler
from smc_bridge.testing.frontier import Enumeration, Frontier
from smc_bridge.testing.program import _advance
from tests.smc_bridge.programs import target_law, worst

PAIR = tabular_pair(2, 3)
PREFIX = Prefix.of([[]])
LEFT = PAIR.ar.without([0], [1])
KERNELS: dict[str, Kernel] = {"rejection": Rejection(), "block": BlockVerification()}


def program(
    drafts: Any = CausalProposal, *, pair: Any = PAIR, left: Any = None, threshold: float = 0.5, adapt: bool = False,
    temperature: Any = 1.0, **options: Any,
) -> Sampler:
    left = pair.ar.without([0], [1]) if left is None else left
    proposal = drafts(left, threshold=threshold, adapt=adapt, temperature=temperature)
    given: dict[str, Any] = {"window": 3, "particles": 2, "intermediate": ProductOfExperts(0.4), **options}
    return Sampler(proposal, ARTarget(pair.ar), **given)


class TakesBack(CausalProposal):
    """A token that is given little is taken back and not verified: the width looks at the draft (C1)."""

    def draft(self, state: CausalState, asked: Asked, *, source: Any) -> Draft:
        found = super().draft(state, asked, source=source)
        last = found.tokens.gather(1, found.width[:, None] - 1)[:, 0]
        scores = state.session.score(asked.rows.repeat_interleave(asked.lanes), found.tokens)
        given = scores.softmax(-1).gather(-1, found.tokens[..., None])[..., 0].gather(1, found.width[:, None] - 1)[:, 0]
        shorter = (given < self.threshold) & (found.width > 1)
        assert bool((last >= 0).all())
        return found._replace(width=found.width - shorter.long())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threshold", [0.0, 0.45, 0.6])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_draft_that_ends_with_a_doubtful_token_is_exact(kernel: str, threshold: float, lanes: int) -> None:
    assert_proper(program(
        kernel=KERNELS[kernel], threshold=threshold, lanes=lanes, particles=3 - lanes,
        temperature=[0.7, 1.4] if lanes == 2 else 1.0,
    ))


@pytest.mark.parametrize("kernel", KERNELS)
def test_drafts_end_at_different_places(kernel: str) -> None:
    """Or what is said of thresholds would be said of nothing."""
    found = {
        length
        for result in program(kernel=KERNELS[kernel], intermediate=Target(), threshold=0.45, particles=1).run(
            [[]] * 40, seed=range(40), max_new_tokens=3)
        for record in result.trace for [[length]] in [record.accepted]
    }
    assert found >= {1, 2}, found


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_doubtful_token_that_is_taken_back_is_caught(kernel: str) -> None:
    assert_biased(program(TakesBack, kernel=KERNELS[kernel], intermediate=Target(), threshold=0.45), least=1e-2)


@pytest.mark.parametrize("intermediate", [Target(), Mixture(0.5), Proposal(), Defensive(ProductOfExperts(0.4), 0.2)])
def test_every_intermediate_is_exact(intermediate: Any) -> None:
    assert_proper(program(intermediate=intermediate, threshold=0.45))


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_every_resampler_is_exact(resampler: str) -> None:
    assert_proper(program(resampler=resampler, threshold=0.45, trigger=always, window=2))


def test_accepting_all_of_a_draft_that_ends_early_is_exact() -> None:
    assert_proper(program(kernel=AcceptAll(), intermediate=Proposal(), threshold=0.45))


def test_the_gumbel_coupling_agrees_with_the_exact_law() -> None:
    """Its noise is continuous: by 3,000 runs at level 1e-4."""
    assert_proper(program(kernel=GumbelCoupling(), threshold=0.45), runs=3_000)


def whole_runs(sampler: Sampler, limit: int) -> Iterator[tuple[float, tuple[int, ...], float, int]]:
    """Every outcome of whole runs of one particle: probability, sequence, weight, and steps."""

    def run(source: Any) -> tuple[tuple[int, ...], float, int]:
        one = copy.copy(sampler)
        one._source = lambda *_, **__: source  # type: ignore[method-assign]
        state, steps = one.start([[]], max_new_tokens=limit), 0
        while not state.finished():
            state, steps = one.step(state), steps + 1
        [sequence] = state.prefix.lists()
        return tuple(sequence), float(state.log_weights.exp()), steps

    with torch.inference_mode():
        for probability, (sequence, weight, steps) in outcomes(run):
            yield probability, sequence, weight, steps


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_threshold_that_follows_the_past_is_exact(kernel: str) -> None:
    """By all outcomes of whole runs, since the threshold is carried from step to step; it moves so far that drafts end
    elsewhere than under one that stays: the expected number of steps is another."""
    pair = tabular_pair(2, 3, eos=False, seed=2)
    steps = []
    for adapt in (True, False):
        sampler = program(pair=pair, kernel=KERNELS[kernel], adapt=adapt, threshold=0.5, particles=1, window=2)
        sampler.proposal.step = 1.0  # type: ignore[attr-defined]
        law, found, mean = exact_law(sampler.target, 3), dict[tuple[int, ...], float](), 0.0
        for probability, sequence, weight, count in whole_runs(sampler, 3):
            found[sequence] = found.get(sequence, 0.0) + probability * weight
            mean += probability * count
        assert max(abs(found.get(s, 0.0) - p) for s, p in law.items()) < 1e-12
        steps.append(mean)
    assert abs(steps[0] - steps[1]) > 1e-3, steps


def test_the_threshold_follows_the_formula() -> None:
    """m <- .5 m + .5 share; t' = t -+ .01; t <- .9 t + .1 t': worked out by hand for 2 of 3, then for all."""
    proposal = CausalProposal(LEFT, threshold=0.5)
    prefix = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool)
    state = proposal.open(type(PREFIX)(*prefix), particles=2)
    block, length = torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 3])
    proposal.commit(state, None, block, length, torch.tensor([False, True]))
    assert state.acceptance == pytest.approx([0.5 * 0.9 + 0.5 * 2 / 3, 0.95])
    assert state.threshold == pytest.approx([0.501, 0.499])
    proposal.commit(state, torch.tensor([1, 1]), block, torch.tensor([1, 0]), torch.tensor([True, False]))
    assert state.threshold == pytest.approx([0.498, 0.499])


class Coins:
    """Uniforms that decide by trials of a source, so that they can be listed: `uniform < probability`."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __lt__(self, probability: Tensor) -> Tensor:
        found: Tensor = self.source.bernoulli(probability)
        return found


class Listed(Pinned):
    """Retained lanes whose stops are listed: nothing is drawn past the ends of blocks, where laws are arbitrary."""

    def stopped(self, move: Move, log_continue: Tensor, end: Tensor) -> Move:
        past = torch.arange(log_continue.shape[1]) >= end[:, None]
        return super().stopped(move, log_continue.masked_fill(past, -math.inf), end)


def conditional(sampler: Sampler, limit: int, monkeypatch: pytest.MonkeyPatch) -> Enumeration:
    """Every outcome of conditional runs of an exact draw; its lane is the first, as lanes are alike."""
    law = exact_law(sampler.target, limit)
    whole = Prefix.of([list(sequence) for sequence in law])
    retained = Retained(whole.tokens.clamp_min(0), whole.length)

    def pin(state: Any, active: Tensor, rows: Tensor, *, lanes: int, window: int, source_of: Any) -> Any:
        first = active * state.particles
        alive = ~state.prefix.done[first]
        prompts = active[alive]
        place = torch.searchsorted(rows, first[alive])
        column = state.prefix.length[first[alive]][:, None] + torch.arange(window)
        tokens = state.retained.tokens[prompts].gather(1, column.clamp_max(state.retained.tokens.shape[1] - 1))
        return Listed(place * lanes, tokens, Coins(source_of(prompts))), torch.zeros_like(active)  # type: ignore[arg-type]

    monkeypatch.setattr("smc_bridge.engine.sampler.pin", pin)
    monkeypatch.setattr("smc_bridge.engine.sampler.Multinomial", lambda: BranchingResampler(Multinomial()))
    monkeypatch.setattr("smc_bridge.testing.program.step", partial(frontier.step, retained=retained))
    sampler, total = copy.copy(sampler), Enumeration()
    states = Frontier.start(sampler.particles, limit, sampler.target.model.vocab_size, retained=list(law.values()))
    with torch.inference_mode():
        while states.states:
            after = frontier.joined([
                frontier.relative(part, total) for part in _advance(sampler, states, limit, total, 10**6)
            ])
            states = frontier.finish(after.merged() if after.states else after, total, limit, retained=retained)
    assert total.probability == pytest.approx(1.0, abs=1e-12)
    return total


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_retained_sequence_stops_where_its_own_draft_would(
    kernel: str, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditional SMC with an exact retained draw: `E[1 / Z_hat] = 1`, and what is drawn at last has the target's
    law."""
    pair = tabular_pair(2, 3, eos=False, seed=1)
    sampler = program(
        pair=pair, kernel=KERNELS[kernel], threshold=0.5, lanes=lanes, particles=3 - lanes, window=2, trigger=always
    )
    found = conditional(sampler, 3, monkeypatch)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, target_law(sampler, 3))
    assert gap < 1e-12, where


class StopsByAnother(CausalProposal):
    """A retained sequence stops where the draft ended that it takes the place of."""

    follow = None  # type: ignore[assignment]

    def along(self, state: CausalState, asked: Asked, lane: Tensor, block: Tensor) -> Any:
        return CausalProposal.follow(self, state, asked, lane, block)[0]


def test_a_retained_sequence_that_stops_by_another_draft_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tabular_pair(2, 3, eos=False, seed=1)
    sampler = program(StopsByAnother, pair=pair, threshold=0.5, window=2, trigger=always)
    found = conditional(sampler, 3, monkeypatch)
    gap, _ = worst(found.output, target_law(sampler, 3))
    assert max(abs(found.inverse_evidence - 1.0), gap) > 1e-5, (found.inverse_evidence, gap)


def test_laws_and_ends_along_a_block_are_those_of_a_draft() -> None:
    sampler = program(threshold=0.45, temperature=[0.7, 1.4], lanes=2, particles=1)
    state = sampler.start([[], [0]], seed=[1, 2], max_new_tokens=2)
    rows = torch.arange(2)
    asked = Asked(rows, state.prefix, torch.tensor([3, 2]), 2, 3, sampler.chunks)
    draft = sampler.proposal.draft(state.drafts, asked, source=sampler._source(state, rows, 2))
    law, width = sampler.proposal.follow(state.drafts, asked, torch.arange(4), draft.tokens)  # type: ignore[attr-defined]
    ended = draft.tokens.gather(1, draft.width[:, None] - 1)[:, 0] == PAIR.ar.eos_id
    assert torch.equal(torch.where(ended, draft.width, width), draft.width)
    inside = torch.arange(3) < draft.width[:, None]
    gap = (law.dense().exp() - draft.q.dense().exp()).abs().amax(-1)
    assert float(gap[inside].max()) < 1e-12


# The method.

def total_variation(sampler: Sampler, limit: int) -> float:
    """Between the exact law of a run's only sequence and the target, by all outcomes."""
    law, found = exact_law(sampler.target, limit), dict[tuple[int, ...], float]()
    for probability, sequence, weight, _ in whole_runs(sampler, limit):
        assert weight == pytest.approx(1.0)
        found[sequence] = found.get(sequence, 0.0) + probability
    return 0.5 * sum(abs(found.get(s, 0.0) - law.get(s, 0.0)) for s in {*law, *found})


@pytest.mark.parametrize("options", [
    {}, {"kernel": "block"}, {"form": "point"}, {"threshold": 0.0}, {"adapt": False, "threshold": 0.7}, {"search": 6},
])
def test_every_exact_form_draws_from_the_target(options: dict[str, Any]) -> None:
    sampler = draft_verify(PAIR, window=3, **options)
    assert sampler.exact
    assert total_variation(sampler, 3) < 1e-12


def test_the_published_greedy_form_is_biased_by_a_stated_gap() -> None:
    """The likeliest token, tested as if drawn: total variation .61 to the AR law, exact; as a point mass none."""
    pair = tabular_pair(3, 3)
    gaps = {form: total_variation(draft_verify(pair, window=3, form=form), 3) for form in ("greedy", "point")}
    assert gaps["greedy"] > 0.6, gaps
    assert gaps["point"] < 1e-12, gaps
    assert draft_verify(pair, form="greedy").why_improper() == ["proposal GreedyDrafts is not proper"]
    assert_biased(draft_verify(pair, window=3, form="greedy", adapt=False), least=1e-2)


def test_at_temperature_zero_all_forms_are_greedy_decoding() -> None:
    pair = tabular_pair(3, 4, eos=False)
    for form in ("sampled", "point", "greedy"):
        [result] = draft_verify(pair, form=form, temperature=0.0).run([[]], max_new_tokens=4)
        [exact] = ar_sampling(ARTarget(pair.ar, temperature=0.0), [[]], max_new_tokens=4)
        assert result.sequences == exact.sequences, form


@pytest.mark.parametrize("expert", [0.3, -0.4])
def test_three_experts_are_exact(expert: float) -> None:
    assert_proper(three_experts(PAIR, particles=2, expert=expert, window=2))


def test_methods_say_what_they_are() -> None:
    assert (METHODS["draft-verify"].role, METHODS["three-experts"].role) == ("exact", "weighted")
    for text in METHODS["draft-verify"].examples:
        spelled(text).check()
        assert spelled(text).make(PAIR).proper is ("greedy" not in text)  # type: ignore[attr-defined]


def test_draws_and_costs_do_not_depend_on_the_batch() -> None:
    sampler = draft_verify(tabular_pair(3, 6, eos=True), window=3)
    prompts: list[list[int]] = [[], [0], [1], [0, 1], [1, 1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=2)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_forward_of_either_model_is_counted(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[TabularAR, int, int]] = []
    score = TabularCausalSession.score

    def counting(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        calls.append((self.model, rows.numel(), drafts.numel()))
        return score(self, rows, drafts)

    monkeypatch.setattr(TabularCausalSession, "score", counting)
    pair = tabular_pair(3, 6, eos=False)
    sampler = program(pair=pair, lanes=lanes, particles=1, threshold=0.45)
    [result] = sampler.run([[]], seed=2, max_new_tokens=6)
    drafting, whole = ([c for c in calls if (c[0] is pair.ar) is asked] for asked in (False, True))
    found = result.forwards
    assert (found.dlm_forwards, found.dlm_rows) == (len(drafting), sum(c[1] for c in drafting))
    assert (found.ar_forwards, found.ar_rows) == (len(whole), sum(c[1] for c in whole))
    if lanes == 1:  # of several lanes the widest says how far all of them are read
        assert found.ar_tokens == sum(c[2] for c in whole)


def test_the_diffusion_model_is_not_asked() -> None:
    class Deaf:
        ar, dlm = PAIR.ar, None

    [result] = draft_verify(Deaf(), window=3).run([[]], seed=1, max_new_tokens=3)  # type: ignore[arg-type]
    assert result.complete


# The search.

def test_what_a_set_is_worth_is_as_worked_out_by_hand() -> None:
    """Acceptances .8, .5 and .25 along one text, half the layers left: of 1, 2, 3 drafted tokens the best."""
    drafter = TabularAR([np.array([[1.0, 0.0]] * 2**d) for d in range(3)])  # so that acceptance is p of token 0
    a = [0.8, 0.5, 0.25]
    p = torch.tensor([[[x, 1 - x] for x in a]], dtype=torch.float64)
    texts = Texts(PREFIX, torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), p)
    one = 1.0
    two = one + (a[0] + a[1] + a[2]) / 3
    three = two + (a[0] * a[1] + a[1] * a[2]) / 3
    for share in (0.1, 0.5):
        best = max(tokens / (1.0 + n * share) for n, tokens in ((1, one), (2, two), (3, three)))
        assert worth(drafter, texts, Shaping(), window=3, share=share) == pytest.approx(best)


def test_the_search_is_seeded_and_never_worse_than_where_it_begins() -> None:
    model = tabular_pair(3, 5, eos=False).ar
    first, begun = search(model, trials=0, seed=4)
    assert first == usual_skips(model.layers)
    found, most = search(model, trials=20, seed=4)
    assert (found, most) == search(model, trials=20, seed=4)
    assert most > begun
    texts = own_texts(model, [[]] * 8, Shaping(), np.random.default_rng(4))
    share = 1.0 - (len(found.attention) + len(found.mlp)) / (2 * model.layers)
    assert worth(model.without(*found), texts, Shaping(), window=8, share=share) == most


def test_on_the_embedded_pair_what_the_search_finds_is_accepted_more_often() -> None:
    """At temperature 0.2: tokens per forward of the whole model, and of all that were drafted the accepted share."""
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    tokens = []
    for options in ({"attention": [0, 1, 2]}, {"search": 6}):
        sampler = draft_verify(pair, temperature=0.2, **options)  # type: ignore[arg-type]
        results = sampler.run(prompts, seed=1, max_new_tokens=24)
        tokens.append(sum(r.tokens for r in results) / sum(r.forwards.ar_forwards for r in results))
    assert tokens[1] > 1.2 * tokens[0], tokens
    assert tokens[1] > 1.5, tokens


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "form": ({"form": "beam"}, "form = 'beam': give one of sampled, point, greedy"),
    "both": ({"attention": 1, "search": 3}, "search = 3 with attention = 1 and mlp = None: name what is left out, or"),
    "layer": ({"mlp": [-1]}, r"mlp = \[-1\]: give layers, counted from 0"),
    "half": ({"mlp": [0.5]}, r"mlp = \[0.5\]: give layers, whole numbers"),
    "threshold": ({"threshold": 2.0}, r"threshold = 2.0: give a number in \[0, 1\]"),
    "search": ({"search": -1}, "search = -1: "),
    "window": ({"window": 0}, "^window = 0: draft at least 1"),
    "acceptance": ({"acceptance": 2}, r"^acceptance = 2: give a number in \[0, 1\]"),
    "acceptance, fixed": ({"adapt": False, "acceptance": 0.9}, "acceptance = 0.9 with adapt = False, which follows no"),
    "step, fixed": ({"adapt": False, "step": 0.1}, "step = 0.1 with adapt = False, which follows no past: leave"),
    "step, none": ({"threshold": 0, "step": 0.1}, "step = 0.1 with threshold = 0.*, which follows no past"),
    "adapt": ({"adapt": "no"}, "adapt = 'no': give True or False"),
    "prompts": ({"prompts": [[0]]}, r"prompts = \[\[0\]\] with search = 0, which has none: leave it out"),
    "prompts, draft": ({"prompts": [[0]], "draft": LEFT}, r"prompts = \[\[0\]\] with a draft model, of which nothing"),
    "tree": ({"kernel": TreeWalk(3), "bonus": False}, r"kernel = TreeWalk\(3.* CausalProposal .*use Rejection\(\)"),
    "all": ({"kernel": "accept-all", "bonus": False}, r"AcceptAll, .* use Proposal\(\)"),
}


@pytest.mark.parametrize("make", [draft_verify, three_experts])
@pytest.mark.parametrize(("options", "message"), [
    ({"search_seed": 0}, "search_seed = 0 with search = 0, which has none: leave it out"),
    *(({name: value, "draft": LEFT}, f"{name} = {value} with a draft model, of which nothing is left out: leave it out")
      for name, value in (("attention", 1), ("mlp", 1), ("search", 3), ("search_seed", 1))),
])
def test_an_option_that_would_not_be_read_is_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        make(PAIR, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("expert", [math.nan, math.inf, "a"])
def test_an_exponent_that_is_no_finite_number_is_refused_by_its_name(expert: Any) -> None:
    with pytest.raises(ValueError, match=r"^expert = .*: give a finite number"):
        three_experts(PAIR, expert=expert)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options_are_one_line(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        draft_verify(PAIR, **options)
    assert "\n" not in str(caught.value)


def test_a_model_without_layers_is_refused_unless_another_drafts() -> None:
    class Plain:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            if name in ("layers", "without"):
                raise AttributeError(name)
            return getattr(self.inner, name)

    class Two:
        ar, dlm = Plain(PAIR.ar), PAIR.dlm

    with pytest.raises(ValueError, match="has no layers that could be left out: give draft"):
        draft_verify(Two())  # type: ignore[arg-type]
    assert draft_verify(Two(), draft=LEFT).exact  # type: ignore[arg-type]


def test_weights_across_lanes_refuse_a_causal_draft() -> None:
    with pytest.raises(ValueError, match=r"CausalProposal has not.* use OwnWeights\(\)"):
        program(weight=BalanceHeuristic(), lanes=2)

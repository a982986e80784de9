"""Path search, its n-gram law and its lengths: against plain Python, and exact as a proposal with every kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge import (
    ARTarget,
    BlockVerification,
    Defensive,
    DLMProposal,
    GumbelCoupling,
    Mixture,
    ProductOfExperts,
    Rejection,
    Sampler,
    Target,
    TreeWalk,
)
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.presets import smc
from smc_bridge.engine.weights import always
from smc_bridge.names import RESAMPLERS
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.adaptive import AdaptiveLength
from smc_bridge.proposals.ngram import NGram
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.proposals.search import Candidates, PathSearch, best_paths, candidates
from smc_bridge.randomness import Source
from smc_bridge.testing import (
    NotEnumerableError,
    assert_biased,
    assert_proper,
    check,
    enumerate_sampler,
    exact_law,
    mutants,
    tabular_pair,
)
from tests.smc_bridge.claims import claim, mean_test
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_full_enumeration import raw_enumeration

#: Lengths that vary on tables of three tokens.
SHORT = AdaptiveLength(1, 3, 1)
PAIR = tabular_pair(3, 3)
DOMINATING = {"mixture": Mixture(0.5), "target": Target(), "defensive": Defensive(ProductOfExperts(0.4), 0.2)}


def counted(text: list[int], context: tuple[int, ...], token: int, size: int, prior: float) -> float:
    """The n-gram law as its formula says it."""
    found = 1.0 / size
    for k in range(len(context) + 1):
        before = context[len(context) - k :]
        places = [i for i in range(k, len(text)) if tuple(text[i - k : i]) == before]
        seen = sum(text[i] == token for i in places)
        found = (seen + prior * found) / (len(places) + prior)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_ngram_law_is_its_formula_on_ragged_rows(order: int) -> None:
    draw = np.random.default_rng(order)
    texts = [draw.integers(0, 3, size=n).tolist() for n in (0, 1, 2, 9, 30)]
    tokens = np.full((5, 30), PAD)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    law = NGram.of_rows(tokens.clip(min=0), np.array([len(t) for t in texts]), 3, order=order, prior=0.7)
    contexts = list(itertools.product(range(3), repeat=order - 1))
    every = np.array(contexts, dtype=np.int64).reshape(len(contexts), order - 1)
    for r, text in enumerate(texts):
        found = np.exp(law.log_prob(r, every, np.arange(3)[None]))
        assert np.abs(found.sum(-1) - 1).max() < 1e-12
        for row, context in zip(found, contexts, strict=True):
            for token in range(3):
                assert row[token] == pytest.approx(counted(text, context, token, 3, 0.7), abs=1e-12)


def test_an_ngram_law_of_texts_counts_all_of_them_and_no_gram_between_two() -> None:
    law = NGram([[0, 1], [0, 1], [1, 0]], 2, order=2)
    p = np.exp(law.log_prob(0, np.array([[0]]), np.array([[1]])))[0, 0]
    assert p == pytest.approx((2 + (3 + 0.5) / (6 + 1)) / (2 + 1))
    start = law.log_prob(0, np.array([[PAD]]), np.array([[1]]))
    assert start == pytest.approx(math.log((3 + 0.5) / (6 + 1)))


def brute_force(found: Candidates, ngram: NGram, context: tuple[int, ...], share: float, ends: tuple[int, ...]) -> Any:
    """All paths, place by place, without a beam."""
    paths: dict[tuple[int, ...], float] = {(): 0.0}
    for place in range(found.tokens.shape[1]):
        longer: dict[tuple[int, ...], float] = {}
        for path, score in paths.items():
            for token, log_q in zip(found.tokens[0, place].tolist(), found.log_q[0, place].tolist(), strict=True):
                if log_q > -math.inf:
                    before = np.array([(*context, *path)[-2:]])
                    gain = float(ngram.log_prob(0, before, np.array([[token]]))[0, 0])
                    longer[(*path, token)] = score + share * log_q + (1 - share) * gain
        best = max(longer, key=lambda path: longer[path])
        if best[-1] in ends:
            return best
        paths = {path: score for path, score in longer.items() if path[-1] not in ends}
    return best


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_path_of_all(seed: int, share: float) -> None:
    logits = 1.5 * torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(seed)).double()
    found = candidates(Dense(torch.log_softmax(logits, -1)), 5, mass=0.8, most=4, ends=(5,))
    text = torch.randint(6, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    ngram, last = NGram([text], 6), tuple(text[-2:])
    path, length = best_paths(
        found, np.array([5]), ngram, np.array([0]), np.array([last]), beam=10**4, share=share, ends=(5,)
    )
    assert tuple(path[0, : length[0]].tolist()) == brute_force(found, ngram, last, share, (5,))
    narrow, _ = best_paths(found, np.array([5]), ngram, np.array([0]), np.array([last]), beam=1, share=1.0, ends=())
    assert np.array_equal(narrow[0], logits[0].argmax(-1).numpy()) or share < 0.8


def test_candidates_are_the_fewest_tokens_of_that_mass_and_all_ends() -> None:
    law = Dense(torch.tensor([[[0.5, 0.2, 0.15, 0.1, 0.05], [0.9, 0.04, 0.03, 0.02, 0.01]]]).double().log())
    for most, mass, expected in ((15, 0.8, [{0, 1, 2, 4}, {0, 4}]), (2, 0.8, [{0, 1, 4}, {0, 4}]),
                                 (15, 1.0, [{0, 1, 2, 3, 4}] * 2), (1, 0.9, [{0, 4}] * 2)):
        found = candidates(law, 2, mass=mass, most=most, ends=(4,))
        for place in range(2):
            kept = found.tokens[0, place][found.log_q[0, place] > -np.inf].tolist()
            assert (set(kept), len(kept)) == (expected[place], len(expected[place]))


def test_lengths_follow_moving_averages_of_what_was_drafted_and_accepted() -> None:
    rule = AdaptiveLength(20, 30, 10)
    averages = np.full((2, 2), np.nan)
    assert rule.places(averages).tolist() == [20, 20]
    seen = []
    for drafted, accepted in (([20, 20], [20, 3]), ([30, 20], [30, 20]), ([30, 9], [4, 9])):
        averages = rule.after(averages, np.array(drafted), np.array(accepted))
        seen.append(rule.places(averages).tolist())
    # g: 20, 25, 27.5 and 20, 20, 14.5; b: 20, 25, 14.5 and 3, 11.5, 10.25.
    assert averages.tolist() == [[27.5, 14.5], [14.5, 10.25]]
    assert seen == [[30, 20], [30, 20], [27, 20]]


def program(pair: Any = PAIR, **options: Any) -> Sampler:
    """Two particles, windows of up to three places whose lengths follow the past."""
    search = {"lengths": SHORT, **{k: options.pop(k) for k in list(options) if k in PathSearch.__annotations__}}
    given: dict[str, Any] = {"window": 3, "particles": 2, "intermediate": Mixture(0.5), **options}
    return Sampler(PathSearch(DLMProposal(pair.dlm, lookahead=3), **search), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("kernel", [Rejection, BlockVerification, lambda: TreeWalk(3)])
@pytest.mark.parametrize("intermediate", DOMINATING)
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_path_is_exact_on_every_outcome(kernel: Callable[[], Any], intermediate: str, lanes: int) -> None:
    assert_proper(program(
        kernel=kernel(), intermediate=DOMINATING[intermediate], lanes=lanes, particles=3 - lanes, lengths=None
    ))


@pytest.mark.parametrize(("kernel", "particles"), [
    (Rejection, 1), (BlockVerification, 1), (lambda: TreeWalk(3), 1), (Rejection, 2),
])
def test_a_path_of_adaptive_length_is_exact_on_every_outcome(
    kernel: Callable[[], Any], particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No state is merged with another: the real engine is run once for every outcome of all its draws."""
    widths: set[tuple[int, int]] = set()
    real = PathSearch.draft

    def draft(self: PathSearch, state: Any, asked: Asked, *, source: Source | None) -> Draft:
        found = real(self, state, asked, source=source)
        widths.update(zip(asked.room[asked.rows].tolist(), found.width.tolist(), strict=True))
        return found

    monkeypatch.setattr(PathSearch, "draft", draft)
    pair = tabular_pair(2, 3, eos=False) if particles == 1 else tabular_pair(2, 3, seed=3)
    sampler = program(pair, kernel=kernel(), particles=particles, trigger=always)
    gap, where = worst(raw_enumeration(sampler, 3)[0], target_law(sampler, 3))
    assert gap < 1e-12, where
    # Of two tokens of room, two after an accepted draft, and one after a refused one (which here ends a sequence).
    assert {width for room, width in widths if room == 2} == ({1, 2} if particles == 1 else {2}), widths
    assert {width for room, width in widths if room == 3} == {1}


def test_enumeration_by_prefixes_declines_a_proposal_that_follows_its_past() -> None:
    with pytest.raises(NotEnumerableError, match="prefixes alone are no state"):
        enumerate_sampler(program(), 3)
    assert check(program(particles=1), runs=300).how == "Monte Carlo"


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_it_is_exact_under_every_resampler(resampler: str) -> None:
    assert_proper(program(tabular_pair(2, 3), resampler=resampler, trigger=always, lengths=None))


@pytest.mark.parametrize("kernel", [Rejection, BlockVerification, GumbelCoupling])
def test_it_is_exact_by_the_kernels_closed_form(kernel: Callable[[], Any]) -> None:
    sampler = program(tabular_pair(2, 3, eos=False), kernel=kernel(), lengths=None)
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


def test_retained_sequences_are_followed_where_lengths_follow_the_past() -> None:
    """`E[1 / Z_hat] = 1` over exact retained draws, in runs of the real engine."""
    sampler = program()
    law = exact_law(sampler.target, 3)
    draw, every = np.random.default_rng(5), list(law)
    retained = [every[i] for i in draw.choice(len(every), 1_000, p=list(law.values()))]
    results = sampler.run([[]] * 1_000, seed=range(1_000), max_new_tokens=3, retained=retained)
    inverse = np.exp([[-result.log_evidence] for result in results])
    claim(mean_test(inverse, np.ones(1)), "path search of adaptive length, E[1 / Z] of conditional runs")
    assert inverse.std() / 1_000**0.5 < 0.02, "a bias of .15 has a p-value below 1e-10"


def test_a_retained_sequence_is_drafted_along_the_path() -> None:
    sampler = program(tabular_pair(2, 3, eos=False), lengths=None)
    law = target_law(sampler, 3)
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


def distance(sampler: Sampler) -> float:
    """Total variation between the output and the AR law, by enumeration; weights are one."""
    found, law = enumerate_sampler(sampler, 3).proper, exact_law(sampler.target, 3)
    return sum(abs(found.get(s, 0.0) - law.get(s, 0.0)) for s in {*found, *law}) / 2


def test_the_ratio_test_on_a_path_is_far_from_the_target_and_the_point_mass_is_not() -> None:
    """The checked fact of `.49` against noise, on tables: here by enumeration, so that there is no noise."""
    pair, likeliest = tabular_pair(3, 3, seed=3), {"beam": 1, "most": 1, "share": 1.0, "lengths": None}
    ratio = program(pair, **likeliest, ratio=True, intermediate=Target(), particles=1)
    exact = program(pair, **likeliest, intermediate=Target(), particles=1)
    assert 0.35 < distance(ratio) < 0.65, distance(ratio)
    assert distance(exact) < 1e-12
    assert not ratio.proper
    assert ratio.why_improper() == ["proposal PathSearch is not proper"]
    assert_biased(ratio, least=0.1)


@pytest.mark.parametrize("kernel", [mutants.CorrectionFromTarget, mutants.LenientAcceptance, mutants.StopsByTheFuture])
def test_a_wrong_kernel_is_caught_on_a_path(kernel: Callable[[], Any]) -> None:
    assert_biased(program(kernel=kernel(), intermediate=Target(), lengths=None, particles=1), least=1e-3)


def asked_for(prefix: Prefix, *, window: int = 3, room: int = 3) -> Asked:
    rows = torch.arange(prefix.length.numel())
    return Asked(rows, prefix, torch.full_like(rows, room), 1, window, Chunks())


def test_one_beam_one_candidate_and_no_ngram_is_the_likeliest_path() -> None:
    base, prefix = DLMProposal(tabular_pair(4, 5, seed=2).dlm, lookahead=3), Prefix.of([[], [0], [1, 2], [2]])
    plain, search = MostLikelyPath(base), PathSearch(base, beam=1, most=1, share=1.0, lengths=None)
    expected = plain.draft(plain.open(prefix, particles=1), asked_for(prefix), source=None)
    found = search.draft(search.open(prefix, particles=1), asked_for(prefix), source=None)
    for path, same, width in zip(found.tokens, expected.tokens, found.width.tolist(), strict=True):
        assert torch.equal(path[:width], same[:width])
        assert width == 3 or path[width - 1] == 3


def test_lengths_follow_ancestors_and_are_forgotten_at_a_refill() -> None:
    pair = tabular_pair(3, 6, eos=False)
    proposal = PathSearch(DLMProposal(pair.dlm, lookahead=3), lengths=SHORT)
    prefix = Prefix.of([[0], [0], [1]])
    state = proposal.open(prefix, particles=3)
    draft = proposal.draft(state, asked_for(prefix), source=None)
    first = draft.tokens[:, 0]
    assert draft.width.tolist() == [1, 1, 1]
    # Particles 0 and 2 come from 1, whose token was accepted; particle 1 from 2, whose was refused.
    ancestors, refused = torch.tensor([1, 2, 1]), (first + 1) % 3
    block = torch.stack([first[1], refused[2], first[1]])[:, None]
    proposal.commit(state, ancestors, block, torch.tensor([1, 1, 1]), torch.tensor([False] * 3))
    assert state.averages.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]
    grown = Prefix.of([[0, int(first[1])], [1, int(refused[2])], [0, int(first[1])]])
    assert proposal.draft(state, asked_for(grown), source=None).width.tolist() == [2, 1, 2]
    proposal.reseat(state, grown.length, torch.tensor([2]), Prefix.of([[1]]))
    last = Prefix.of([[0, int(first[1])], [1, int(refused[2])], [1]])
    assert proposal.draft(state, asked_for(last), source=None).width.tolist() == [2, 1, 1]


def test_no_draft_leaves_its_block_its_window_or_its_room() -> None:
    pair = tabular_pair(3, 6, block_size=2, eos=False)
    proposal = PathSearch(DLMProposal(pair.dlm, lookahead=4), lengths=AdaptiveLength(4, 4))
    prefix = Prefix.of([[0], [0, 1], []])
    found = proposal.draft(proposal.open(prefix, particles=1), asked_for(prefix, room=5), source=None)
    assert found.width.tolist() == [1, 2, 2]
    [one] = {int(w) for w in proposal.draft(
        proposal.open(prefix, particles=1), asked_for(prefix, room=1), source=None).width}
    assert one == 1
    assert_proper(program(tabular_pair(2, 3, block_size=2), particles=1))


@pytest.mark.parametrize("lanes", [1, 2])
def test_draws_and_costs_do_not_depend_on_the_batch(lanes: int) -> None:
    sampler = program(tabular_pair(3, 8), lanes=lanes, trigger=always, lengths=AdaptiveLength(1, 3, 2))
    prompts: list[list[int]] = [[], [0], [1, 0], [0, 1, 0]]
    runs = [sampler.run(prompts, seed=3, max_new_tokens=5, batch=batch) for batch in (None, 2)]
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=5)
        for run in runs:
            assert (run[place].sequences, run[place].forwards) == (alone.sequences, alone.forwards)
            assert run[place].log_weights == pytest.approx(alone.log_weights, abs=1e-12)


def test_the_path_is_one_for_all_temperatures_and_serves_any_program_by_name() -> None:
    cold, hot = (
        smc(PAIR, 2, proposal="search", intermediate="mixture", temperature=t, proposal_temperature=own)
        for t, own in ((1.0, 0.0), (1.0, 2.0))
    )
    found = [s.run([[], [0]], seed=4, max_new_tokens=3) for s in (cold, hot)]
    assert [r.sequences for r in found[0]] == [r.sequences for r in found[1]]
    assert cold.proper
    starved = smc(PAIR, 2, proposal="search", intermediate="poe")
    assert "Defensive" in starved.why_improper()[0]


@pytest.mark.parametrize(("options", "words"), [
    ({"beam": 0}, "beam = 0: give a whole number of at least 1"), ({"share": 1.5}, r"share = 1.5: give a share in"),
    ({"mass": -0.1}, r"mass = -0.1: give a mass in"), ({"most": 0}, "most = 0"), ({"order": 0}, "order = 0"),
    ({"ratio": 1}, "ratio = 1: give True or False"),
    ({"ngram": NGram([[0]], 5)}, r"ngram = NGram: give NGram\(texts, 3\)"),
])
def test_bad_arguments_are_named_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        PathSearch(DLMProposal(PAIR.dlm), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: AdaptiveLength(5, 4), "longest = 4 with shortest = 5: give at least as many places"),
    (lambda: AdaptiveLength(0), "shortest = 0"), (lambda: AdaptiveLength(rate=2), "rate = 2: give a share"),
    (lambda: NGram([[7]], 5), r"texts\[0\] has a token outside 0..4, 7"),
    (lambda: NGram([], 5), "texts is empty"), (lambda: NGram([[1]], 5, prior=0), "prior = 0: give a positive number"),
])
def test_bad_parts_are_named_in_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)



"""Slots begun by the diffusion model and filled by the AR model: exact as a proposal; by thresholds as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smc_bridge import ARTarget, DLMProposal, Mixture, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.canvas.slot_filling import SlotFilling
from smc_bridge.canvas.slots import Rests, Text, first_of, of_slots, planned
from smc_bridge.decode import decode
from smc_bridge.facts import UnsuitedError
from smc_bridge.methods.refusion import refusion
from smc_bridge.models.protocols import MASKED
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.proposals.slots import Slots
from smc_bridge.randomness import PromptSource
from smc_bridge.requests import requests_of
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role
from smc_bridge.testing import assert_biased, assert_proper, exact_law, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.claims import LEVEL, chi_square
from tests.smc_bridge.smc_enumeration import assert_exact_around_retained


def program(pair: Any, *, slot: int = 2, temperature: Any = 1.0, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 3, "particles": 1, "intermediate": ProductOfExperts(0.4), **options}
    base = DLMProposal(pair.dlm, temperature=temperature, lookahead=3)
    return Sampler(Slots(base, pair.ar, slot), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("kernel", ["rejection", "block"])
@pytest.mark.parametrize("slot", [2, 3])
def test_the_proposal_is_exact_on_every_outcome(kernel: str, slot: int) -> None:
    assert_proper(program(tabular_pair(3, 3), slot=slot, kernel=kernel))
    assert_proper(program(tabular_pair(2, 3), slot=slot, kernel=kernel, lanes=2, temperature=[0.6, 1.4]))
    assert_proper(program(tabular_pair(2, 3), slot=slot, kernel=kernel, particles=2, window=2))


def test_the_drawn_form_is_properly_weighted() -> None:
    assert_proper(refusion(tabular_pair(3, 3), form="drawn", slot=2, lookahead=3))
    assert_proper(refusion(tabular_pair(2, 3), form="drawn", slot=2, lookahead=3, temperature=0.7))


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel"])
def test_it_is_exact_by_the_kernels_closed_form_and_along_a_retained_sequence(kernel: str) -> None:
    sampler = program(tabular_pair(2, 3), kernel=kernel, particles=2, intermediate=Mixture(0.5))
    assert_exact_around_retained(sampler, 3)


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_laws_along_a_block_are_those_that_it_was_drafted_from(temperature: Any) -> None:
    pair = tabular_pair(3, 5, seed=3)
    proposal = Slots(DLMProposal(pair.dlm, temperature=temperature, lookahead=5), pair.ar, 2)
    assert proposal_fault(proposal, lanes=2, limit=4) is None


def test_a_draft_that_is_scored_by_its_marginals_is_caught() -> None:
    class Marginals(Slots):
        def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
            found = super().draft(state, asked, source=source)
            return found._replace(q=self.plain.draft(state.marginals, asked, source=None).q)

    pair = tabular_pair(2, 3, eos=False)
    proposal = Marginals(DLMProposal(pair.dlm, lookahead=3), pair.ar, 3)
    assert_biased(Sampler(proposal, ARTarget(pair.ar), window=3, particles=1), least=1e-3)


def test_a_pair_whose_tokens_need_their_places_does_not_suit() -> None:
    with pytest.raises(UnsuitedError, match="give form = drawn"):
        refusion(load_pair("adult"))
    assert refusion(load_pair("adult"), form="drawn").name == "refusion"


def test_every_forward_of_both_models_is_counted() -> None:
    """Of a window of six places in slots of four, four are filled by a forward each; one more verifies them."""
    pair = load_pair("arithmetic")
    prompt = pair.encode("Ann has 3 apples.").tolist()
    networks: list[Any] = [pair.dlm.model, pair.ar.model]  # type: ignore[attr-defined]
    for decoder in (
        smc(pair, 1, proposal="refusion", window=6, lookahead=6, kernel="accept-all"), refusion(pair, lookahead=16),
        refusion(pair, lookahead=16, tau_slot=0.0, tau_token=0.95),
    ):
        ran = [0, 0]

        def count(which: int, ran: list[int] = ran) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                ran[which] += 1

            return hook

        handles = [network.register_forward_hook(count(i)) for i, network in enumerate(networks)]
        try:
            [run] = decode(decoder, [prompt], seed=1, max_new_tokens=6)
        finally:
            for handle in handles:
                handle.remove()
        assert [run.forwards.dlm_forwards, run.forwards.ar_forwards] == ran, decoder.name
    pair = tabular_pair(3, 6, eos=False)
    [run] = smc(pair, 1, proposal="refusion", window=6, lookahead=6, kernel="accept-all").run([[]], max_new_tokens=6)
    assert (run.forwards.dlm_forwards, run.forwards.ar_forwards, run.forwards.ar_tokens) == (1, 5, 2 + 3 + 4 + 6 + 6)


FORMS: dict[str, dict[str, Any]] = {
    "as published": {}, "short slots": {"slot": 2, "tau_slot": 0.3, "tau_token": 0.2},
    "one by one": {"slot": 3, "tau_slot": 0.35, "tau_token": 0.7, "temperature": 0.8}, "narrow": {"slot": 2, "span": 2},
    "in parts": {"slot": 3, "lookahead": 2, "tau_slot": 0.2}, "drawn": {"form": "drawn", "slot": 2},
}


@pytest.mark.parametrize("form", FORMS)
def test_draws_and_costs_do_not_depend_on_the_batch(form: str) -> None:
    pair = tabular_pair(3, 8, seed=1)
    decoder, prompts = refusion(pair, **FORMS[form]), [[], [0], [1], [0, 1]]
    together = decode(decoder, prompts, seed=3, max_new_tokens=6, batch=3)
    for place, prompt in enumerate(prompts):
        [alone] = decode(decoder, [prompt], seed=3, max_new_tokens=6)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)


def by_hand(decoder: SlotFilling, pair: Any, seed: int, limit: int) -> tuple[list[int], int]:
    """A continuation of the empty prompt as the algorithm reads, one token at a time, and forwards of the AR model."""
    [request] = requests_of([[]], decoder.models, seed=seed, max_new_tokens=limit, stream=Role.DLM)
    source = PromptSource([request.generator()])
    canvas, k, calls = [MASKED] * limit, decoder.slot, 0
    nothing = torch.zeros(1, 0, dtype=torch.long)
    dlm, ar = (model.session(nothing, torch.zeros(1, dtype=torch.long)) for model in (pair.dlm, pair.ar))

    def laws(text: list[int]) -> Any:
        return ar.score(torch.tensor([0]), torch.tensor([text]))[0].log_softmax(-1)

    def draw(law: Any, point: Any) -> int:
        return int(inverse_cdf(decoder.proposal.log_probs(law[None, None], 1)[0, 0, 0], point))

    while True:
        gap = canvas.index(MASKED) if MASKED in canvas else limit
        if gap == limit or pair.ar.eos_id in canvas[:gap]:
            stop = canvas.index(pair.ar.eos_id) + 1 if pair.ar.eos_id in canvas[:gap] else limit
            return canvas[:stop], calls
        uniform = source.uniform((k, limit))[0]
        width = min(limit, gap + decoder.proposal.lookahead)
        span = width if decoder.span is None else gap // decoder.span * decoder.span + decoder.span
        log_q = dlm.score(torch.tensor([0]), torch.tensor([canvas[:width]]))[0].log_softmax(-1)
        slots: dict[int, list[int]] = {}
        for i in range(min(width, span)):
            if canvas[i] == MASKED:
                slots.setdefault(i // k, []).append(i)
        drafts = {i: draw(log_q[i], uniform[0, i]) for places in slots.values() for i in places}
        sure = {n: float(log_q[places[0], drafts[places[0]]].exp()) for n, places in slots.items()}
        chosen = [n for n in slots if sure[n] > decoder.tau_slot] or [max(slots, key=lambda n: (sure[n], -n))]
        # The text of finished and chosen places, in order.
        own = {i for n in chosen for i in slots[n]}
        text = [i for i in range(max(own) + 1) if canvas[i] != MASKED or i in own]
        row = [drafts[i] if i in own else canvas[i] for i in text]
        log_p, calls = laws(row), calls + 1
        stands, over = set(), False
        for j, i in enumerate(text):
            first = any(i == slots[n][0] for n in chosen)
            if i in own and not first and not over and float(log_p[j, row[j]].exp()) <= decoder.tau_token:
                break
            stands.add(i)
            over |= row[j] == pair.ar.eos_id
        kept = [n for n in chosen if set(slots[n]) <= stands]
        for n in kept:
            for i in slots[n]:
                canvas[i] = drafts[i]
        if kept:
            continue
        work, settled, turn = {n: [drafts[i] for i in slots[n]] for n in chosen}, 1, 1
        while open_still := [n for n in chosen if settled < len(slots[n])]:
            seen = {}
            for n in open_still:
                before = [canvas[i] for i in range(slots[n][0]) if canvas[i] != MASKED]
                seen[n] = laws(before + work[n])[len(before) :]
            calls += 1
            counts = []
            for n in open_still:
                good = settled
                while good < len(work[n]) and float(seen[n][good, work[n][good]].exp()) > decoder.tau_token:
                    good += 1
                counts.append(good)
            settled = min(counts)
            for n in open_still:
                for j in range(settled, len(work[n])):
                    work[n][j] = draw(seen[n][j], uniform[turn, slots[n][j]])
            settled, turn = settled + 1, turn + 1
        for n in chosen:
            for i, token in zip(slots[n], work[n], strict=True):
                canvas[i] = token


@pytest.mark.parametrize("form", [name for name in FORMS if name != "drawn"])
def test_it_fills_slots_as_the_algorithm_reads(form: str) -> None:
    pair, limit = tabular_pair(3, 8, seed=2), 7
    decoder: Any = refusion(pair, **FORMS[form])
    several = set()
    for seed in range(25):
        [result] = decode(decoder, [[]], seed=seed, max_new_tokens=limit)
        tokens, calls = by_hand(decoder, pair, seed, limit)
        assert (result.sequences[0], result.forwards.ar_forwards) == (tokens, calls), seed
        several.add((result.forwards.dlm_forwards, calls))
    assert len(several) > 1, several


def test_by_thresholds_it_has_another_law_than_the_ar_model() -> None:
    pair, runs = tabular_pair(2, 3, eos=False), 3_000
    law = exact_law(ARTarget(pair.ar), 3)
    results = decode(refusion(pair, slot=3), [[]] * runs, seed=range(runs), max_new_tokens=3)
    assert not any(result.proper for result in results)
    counts, cells = Counter(tuple(result.sequences[0]) for result in results), sorted(law)
    assert chi_square([counts[cell] for cell in cells], [law[cell] for cell in cells]) < LEVEL


# Slots and texts.


def test_slots_and_what_of_them_is_masked() -> None:
    masked = torch.tensor([[True, True, False, False, True, True, True], [False, True, True, True, True, False, True]])
    assert first_of(masked, 3).tolist() == [
        [True, False, False, False, True, False, True], [False, True, False, True, False, False, True],
    ]
    one = torch.zeros_like(masked).index_fill(1, torch.tensor([4]), True)
    assert of_slots(one, 3)[0].tolist() == [False, False, False, True, True, True, False]
    rests = Rests.of(masked, 3)
    assert rests.row.tolist() == [0, 0, 0, 1, 1, 1]
    assert rests.size.tolist() == [2, 2, 1, 2, 2, 1]
    assert rests.place.tolist() == [[0, 1, 1], [4, 5, 5], [6, 6, 6], [1, 2, 2], [3, 4, 4], [6, 6, 6]]
    text = Text.of(torch.arange(14).reshape(2, 7), ~masked, one & masked)
    assert [row[:n] for row, n in zip(text.place.tolist(), text.length.tolist(), strict=True)] == [[2, 3, 4], [0, 4]]


def test_slots_are_chosen_by_their_first_token_or_the_best_one_is() -> None:
    log_q = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]).log()[None]
    drafted, masked = torch.tensor([[0, 1, 0, 1]]), torch.ones(1, 4, dtype=torch.bool)
    assert planned(log_q, drafted, masked, 2, 0.5).tolist() == [[True, True, True, True]]
    assert planned(log_q, drafted, masked, 2, 0.65).tolist() == [[True, True, False, False]]
    assert planned(log_q, drafted, masked, 2, 0.95).tolist() == [[True, True, False, False]]
    assert planned(log_q, 1 - drafted, masked, 2, 0.95).tolist() == [[False, False, True, True]]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "form": (lambda: refusion(tabular_pair(), form="other"), "form = 'other': give thresholded or drawn"),  # type: ignore[arg-type]
    "threshold": (lambda: refusion(tabular_pair(), form="drawn", tau_slot=0.5), "tau_slot = 0.5 with form = drawn"),
    "tau_token": (lambda: refusion(tabular_pair(), tau_token=1.5), "tau_token = 1.5: give a probability"),
    "slot": (lambda: refusion(tabular_pair(), slot=0), "slot = 0: "),
    "slot of none": (lambda: smc(tabular_pair(), slot=2), "slot = 2 with proposal = 'marginals', which has none"),
    "alphabets": (
        lambda: Slots(DLMProposal(tabular_pair().dlm), tabular_pair(3).ar), "the models' alphabets differ: 2 tokens and"
    ),
    "reuse": (lambda: Slots(DLMProposal(tabular_pair().dlm, reuse=0.5), tabular_pair().ar), "reuse = 0.5 of a chain's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

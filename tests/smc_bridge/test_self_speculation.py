"""Self-speculation equals the step-wise greedy decoder token by token, in fewer forwards and more rows."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from smc_bridge import DLMProposal, load_pair
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.self_speculation import Choices, SelfSpeculation
from smc_bridge.canvas.state import CanvasState, open_places
from smc_bridge.decode import decode
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDiffusionSession, TabularDLM
from smc_bridge.registry import spelled
from smc_bridge.result import Result
from smc_bridge.tasks import TASKS
from tests.toys import toy_pair

LIMIT = 5
PROMPTS: list[list[int]] = [[0], [1, 0], [2], [], [2, 2], [1]]


def table(seed: int, eos_id: int | None = None) -> TabularDLM:
    return TabularDLM(TabularAR.random(3, 7, seed=seed, concentration=0.4, eos_id=eos_id), noise=0.6, seed=seed)


def greedy(model: Any, span: int | None = None, lookahead: int = LIMIT, **more: Any) -> Canvas:
    return Canvas(DLMProposal(model, temperature=0.0, lookahead=lookahead), Ranked(), span, **more)


def by_hand(model: TabularDLM, prompt: list[int], span: int | None, lookahead: int) -> list[int]:
    """The greedy decoder as a loop over lists: the most confident open place, its likeliest token, and again."""
    ends = [] if model.eos_id is None else [model.eos_id]
    canvas = [MASKED] * LIMIT
    session = model.session(torch.tensor([prompt], dtype=torch.long), torch.tensor([len(prompt)]))
    while MASKED in canvas:
        gap = canvas.index(MASKED)
        if any(end in canvas[:gap] for end in ends):
            break
        shown = canvas[: min(LIMIT, gap + lookahead)]
        laws = session.score(torch.tensor([0]), torch.tensor([shown]))[0].softmax(-1).tolist()
        open_ = [i for i, x in enumerate(shown) if x == MASKED and (span is None or i // span == gap // span)]
        place = max(open_, key=lambda i: (max(laws[i]), -i))
        canvas[place] = laws[place].index(max(laws[place]))
    stops = [canvas.index(end) + 1 for end in ends if end in canvas]
    return canvas[: min(stops, default=LIMIT)]


@pytest.mark.parametrize("span", [None, 2, 3])
@pytest.mark.parametrize("draft", [0, 1, 3, 9])
def test_its_tokens_are_those_of_the_step_wise_greedy_decoder(span: int | None, draft: int) -> None:
    fewer = 0
    for seed in range(4):
        for eos_id, lookahead in ((None, LIMIT), (0, 3)):
            model = table(seed, eos_id)
            step_wise = greedy(model, span, lookahead)
            one = decode(step_wise, PROMPTS, max_new_tokens=LIMIT)
            several = decode(SelfSpeculation(step_wise, draft), PROMPTS, max_new_tokens=LIMIT, batch=4)
            assert [r.sequences for r in several] == [r.sequences for r in one]
            assert [r.sequences[0] for r in one] == [by_hand(model, p, span, lookahead) for p in PROMPTS]
            for own, other in zip(several, one, strict=True):
                assert own.complete
                assert own.forwards.dlm_forwards <= other.forwards.dlm_forwards
                assert own.forwards.dlm_rows <= own.forwards.dlm_forwards * (draft + 1)
                fewer += other.forwards.dlm_forwards - own.forwards.dlm_forwards
    assert (fewer > 0) is (draft > 0)


class OneRow(SelfSpeculation):
    """Verifies all guesses in one row that has all of them filled, as a third-party engine does: not lossless."""

    def verified(self, state: CanvasState, rows: Tensor, canvas: Tensor, prompt: Tensor) -> Choices:
        """Each guess is held against what the fullest row of its prompt says at its place."""
        right = super().verified(state, rows, canvas, prompt)
        filled = (canvas != MASKED).sum(1)
        fullest = torch.stack([torch.where(rows == row, filled, -1).argmax() for row in rows])
        proposal, span = self.greedy.proposal, self.greedy.span
        shown, _ = open_places(canvas[fullest], proposal.lookahead, span, model=proposal.model, prompt=prompt)
        likeliest = state.session.score(rows, shown).argmax(-1)
        for own in range(len(rows) - 1):
            if rows[own] == rows[own + 1]:
                place = int((canvas[own] != canvas[own + 1]).to(torch.uint8).argmax())
                if place < likeliest.shape[1]:
                    right.place[own, 0], right.token[own, 0] = place, likeliest[own, place]
        return right


def test_one_row_with_all_guesses_filled_is_caught() -> None:
    """Of 36 prompts on 6 tables at least 10 get other tokens than the greedy decoder's."""
    other = 0
    for seed in range(6):
        step_wise = greedy(table(seed))
        one, wrong = (decode(d, PROMPTS, max_new_tokens=LIMIT) for d in (step_wise, OneRow(step_wise, 3)))
        other += sum(a.sequences != b.sequences for a, b in zip(one, wrong, strict=True))
    assert other >= 10, other


def test_on_the_embedded_pair_tokens_are_the_same_in_fewer_than_two_thirds_of_the_forwards() -> None:
    """Without the prefix cache, under which the greedy decoder's own laws depend on what it filled when."""
    pair, task = load_pair("arithmetic", dlm_cache="none"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(4)]
    step_wise = greedy(pair.dlm, 32, 32)
    one, several = (decode(d, prompts, max_new_tokens=24) for d in (step_wise, SelfSpeculation(step_wise, 3)))
    assert [r.sequences for r in several] == [r.sequences for r in one]
    before, after = (sum(r.forwards.dlm_forwards for r in found) for found in (one, several))
    assert after < before * 2 / 3, (after, before)


def test_every_forward_and_every_row_is_counted() -> None:
    calls, rows = 0, 0
    score = TabularDiffusionSession.score

    def counting(self: TabularDiffusionSession, which: Tensor, canvas: Tensor) -> Tensor:
        nonlocal calls, rows
        calls, rows = calls + 1, rows + len(which)
        return score(self, which, canvas)

    with mock.patch.object(TabularDiffusionSession, "score", counting):
        for prompt in PROMPTS:
            calls, rows = 0, 0
            [result] = decode(SelfSpeculation(greedy(table(3)), 2), [prompt], max_new_tokens=LIMIT)
            assert (result.forwards.dlm_forwards, result.forwards.dlm_rows) == (calls, rows)
        rows = 0
        found = decode(SelfSpeculation(greedy(table(3)), 2), PROMPTS, max_new_tokens=LIMIT, batch=2)
        assert sum(r.forwards.dlm_rows for r in found) == rows


def test_a_prompts_tokens_and_costs_do_not_depend_on_the_batch() -> None:
    decoder = SelfSpeculation(greedy(table(5, 0), 3), 2)

    def facts(found: list[Result]) -> list[Any]:
        return [(r.sequences, r.forwards) for r in found]

    together = decode(decoder, PROMPTS, max_new_tokens=LIMIT)
    assert facts(decode(decoder, PROMPTS, max_new_tokens=LIMIT, batch=2)) == facts(together)
    assert [f for p in PROMPTS for f in facts(decode(decoder, [p], max_new_tokens=LIMIT))] == facts(together)


def test_more_guesses_than_places_are_as_many_as_places() -> None:
    decoders = [SelfSpeculation(greedy(table(1)), draft) for draft in (LIMIT, 10**15)]
    few, many = (decode(decoder, PROMPTS, max_new_tokens=LIMIT) for decoder in decoders)
    assert [(r.sequences, r.forwards) for r in many] == [(r.sequences, r.forwards) for r in few]
    state = decoders[1].open([None], LIMIT)
    assert state.guesses.place.shape == (1, LIMIT)


def test_anchors_stay_and_tokens_are_the_greedy_decoders_around_them() -> None:
    for seed in range(6):
        step_wise = greedy(table(seed), anchors={1: 2, 3: 0})
        one, several = (decode(d, PROMPTS, max_new_tokens=LIMIT) for d in (step_wise, SelfSpeculation(step_wise, 3)))
        assert [r.sequences for r in several] == [r.sequences for r in one]
        assert all((r.sequences[0][1], r.sequences[0][3]) == (2, 0) for r in one)


def test_the_method_is_the_decoder_and_refuses_bad_parameters_in_one_line() -> None:
    pair = toy_pair()
    found = decode(spelled("ssd,draft=2,span=2").make(pair, lookahead=3), [[1], [2, 1]], max_new_tokens=4)
    expected = decode(spelled("low-confidence,temperature=0,span=2").make(pair, lookahead=3), [[1], [2, 1]],
                      max_new_tokens=4)
    assert [r.sequences for r in found] == [r.sequences for r in expected]
    assert not found[0].proper
    assert found[0].settings["draft"] == 2
    with pytest.raises(ValueError, match=r"^draft = -1: guess a whole number of fills, 0 for none"):
        spelled("ssd,draft=-1").make(pair)
    warm = Canvas(DLMProposal(pair.dlm), Ranked())
    two = Canvas(DLMProposal(pair.dlm, temperature=0.0), Ranked(tokens=2))
    for wrong in (warm, two):
        with pytest.raises(ValueError, match=r"^greedy = Ranked.* at temperature .: give a canvas with"):
            SelfSpeculation(wrong)

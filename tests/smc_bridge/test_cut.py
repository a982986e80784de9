"""Canvases that are cut at a foreseen end: their law by enumeration, what it is not, and who takes the option."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from smc_bridge import DLMProposal, load_pair
from smc_bridge.canvas.cut import CutAtEnd
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import Commit, CommitRule, Look, Ordered
from smc_bridge.canvas.self_speculation import SelfSpeculation
from smc_bridge.canvas.thresholds import Threshold
from smc_bridge.decode import decode
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.registry import METHODS, spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing.frontier import SequenceLaw
from tests.smc_bridge.canvas_enumeration import canvas_law, distance
from tests.toys import toy_pair

LIMIT, END = 4, 2
PROMPTS: list[list[int]] = [[0], [1, 0], [2], [], [2, 1], [1]]


def table(seed: int = 3) -> TabularDLM:
    """Three tokens, of which the last, the likeliest, ends a text; marginals of places given others are perturbed."""
    ar = TabularAR.random(3, LIMIT + 2, seed=seed, concentration=0.6, eos_id=END)
    return TabularDLM(ar, noise=0.7, seed=seed)


def canvas(rule: CommitRule, model: Any = None, **more: Any) -> Canvas:
    return Canvas(DLMProposal(table() if model is None else model, lookahead=LIMIT), rule, None, **more)


def law_of(decoder: Canvas) -> SequenceLaw:
    return canvas_law(decoder, LIMIT)


def by_hand(
    model: TabularDLM, choose: Callable[[list[list[float]], list[int]], list[int]], *, cuts: bool = True
) -> SequenceLaw:
    """The law of the decoder by recursion over lists: cut at the surest foreseen end, fill, and again."""
    session = model.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    found: dict[tuple[int, ...], float] = {}

    def grow(row: list[int], mass: float) -> None:
        gap = row.index(MASKED) if MASKED in row else len(row)
        if END in row[:gap] or gap == len(row):
            end = row.index(END) + 1 if END in row[:gap] else gap
            found[tuple(row[:end])] = found.get(tuple(row[:end]), 0.0) + mass
            return
        laws = session.score(torch.tensor([0]), torch.tensor([row]))[0].softmax(-1).tolist()
        ending = [i for i, x in enumerate(row) if x == MASKED and laws[i].index(max(laws[i])) == END]
        if cuts and ending:
            row = row[: max(ending, key=lambda i: (max(laws[i]), -i)) + 1]
        places = choose(laws, [i for i, x in enumerate(row) if x == MASKED])

        def fill(left: Sequence[int], row: list[int], mass: float) -> None:
            if not left:
                grow(row, mass)
                return
            for token, probability in enumerate(laws[left[0]]):
                fill(left[1:], [token if i == left[0] else x for i, x in enumerate(row)], mass * probability)

        fill(places, row, mass)

    grow([MASKED] * LIMIT, 1.0)
    return found


def surest(laws: list[list[float]], masked: list[int]) -> list[int]:
    return [max(masked, key=lambda i: (max(laws[i]), -i))]


def sure(laws: list[list[float]], masked: list[int]) -> list[int]:
    return sorted({*surest(laws, masked), *(i for i in masked if max(laws[i]) >= 0.6)})


def first(laws: list[list[float]], masked: list[int]) -> list[int]:
    return masked[:1]


#: Rules, and the same on lists.
RULES: dict[str, tuple[CommitRule, Any]] = {
    "left to right": (Ordered(), first), "surest": (Ranked(), surest), "threshold": (Threshold(0.6), sure),
}


@pytest.mark.parametrize("name", RULES)
def test_the_law_is_that_of_the_definition_and_not_the_uncut_one(name: str) -> None:
    rule, choose = RULES[name]
    cut, model = law_of(canvas(CutAtEnd(rule, (END,)))), table()
    assert distance(cut, by_hand(model, choose)) < 1e-12
    uncut = law_of(canvas(rule))
    assert distance(uncut, by_hand(model, choose, cuts=False)) < 1e-12
    assert distance(cut, uncut) > 0.05, "a sequence may end short, without an end"
    assert any(len(s) < LIMIT and END not in s for s in cut)
    assert not any(len(s) < LIMIT and END not in s for s in uncut)


class CutsAtTheFirst(CutAtEnd):
    """Cuts behind the first foreseen end, however sure."""

    def cut(self, look: Look) -> Tensor:
        ending = (look.log_q_plain.argmax(-1) == END) & (look.canvas == MASKED)
        return torch.where(ending.any(1), ending.to(torch.uint8).argmax(1) + 1, look.canvas.shape[1])


def test_a_cut_at_another_end_than_the_surest_is_caught() -> None:
    gaps = [
        distance(law_of(canvas(CutsAtTheFirst(Ordered(), (END,)), table(seed))), by_hand(table(seed), first))
        for seed in range(3)
    ]
    assert max(gaps) > 0.01, gaps


class SettlesOnThe(Ordered):
    """Left to right, and sure of one place."""

    def settles(self, look: Look) -> Tensor:
        return torch.arange(look.canvas.shape[1]).expand_as(look.canvas) >= 1


def test_a_rule_that_judges_places_is_believed_before_the_surest_end() -> None:
    model = table()
    laws = model.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)).score(
        torch.tensor([0]), torch.full((1, LIMIT), MASKED)
    ).log_softmax(-1)
    laws[0, :, END] += torch.tensor([0.0, 4.0, 0.0, 8.0])  # ends are foreseen at places 1 and 3, the latter surer
    laws = laws.log_softmax(-1)
    every = torch.ones(1, LIMIT, dtype=torch.bool)
    look = Look(laws, lambda: laws, torch.full((1, LIMIT), MASKED), every, torch.zeros(1, dtype=torch.long))
    assert CutAtEnd(Ordered(), (END,)).cut(look).tolist() == [4]
    assert CutAtEnd(SettlesOnThe(), (END,)).cut(look).tolist() == [2]


def test_self_speculation_is_the_step_wise_greedy_decoder_of_the_cut_canvas() -> None:
    fewer, cut = 0, 0
    for seed in range(6):
        proposal = DLMProposal(table(seed), temperature=0.0, lookahead=LIMIT)
        plain, step_wise = (Canvas(proposal, rule, None) for rule in (Ranked(), CutAtEnd(Ranked(), (END,))))
        before, one, several = (
            decode(d, PROMPTS, max_new_tokens=LIMIT, batch=4) for d in (plain, step_wise, SelfSpeculation(step_wise, 3))
        )
        assert [r.sequences for r in several] == [r.sequences for r in one]
        assert all(r.complete for r in several)
        fewer += sum(a.forwards.dlm_forwards - b.forwards.dlm_forwards for a, b in zip(one, several, strict=True))
        cut += sum(a.forwards.dlm_forwards - b.forwards.dlm_forwards for a, b in zip(before, one, strict=True))
    assert fewer > 0
    assert cut > 0


#: Methods that decode a canvas by the diffusion model alone.
TAKE_IT = ["dlm", "confidence", "fast-dllm", "dimple", "dinfer", "dream", "prophet", "ssd"]


@pytest.mark.parametrize("name", TAKE_IT)
def test_every_canvas_takes_the_option_and_its_draws_do_not_depend_on_the_batch(name: str) -> None:
    prompts, changed = [[1], [2, 1], [2], [1, 2]] * 3, 0
    for seed in (4, 5):
        pair, seeds = toy_pair(seed=seed), range(len(prompts))
        plain, cut = (spelled(f"{name}{option}").make(pair, lookahead=LIMIT) for option in ("", ",cut_at_end=true"))
        before, together = (decode(d, prompts, seed=seeds, max_new_tokens=LIMIT) for d in (plain, cut))
        refilled = decode(cut, prompts, seed=seeds, max_new_tokens=LIMIT, batch=5)
        assert [(r.sequences, r.forwards) for r in refilled] == [(r.sequences, r.forwards) for r in together]
        assert all(r.complete and "CutAtEnd" in r.settings["rule"] for r in together)
        changed += sum(
            (a.sequences, a.forwards) != (b.sequences, b.forwards) for a, b in zip(before, together, strict=True)
        )
    assert changed > 0


def test_on_the_embedded_pair_a_cut_canvas_takes_fewer_and_shorter_forwards() -> None:
    pair, widths = load_pair("arithmetic", dlm_cache="none"), list[int]()
    prompts = [pair.encode(item.prompt).tolist() for item in TASKS["arithmetic"].problems(1)]
    session = type(pair.dlm.session(torch.tensor(prompts), torch.tensor([len(prompts[0])])))
    score = session.score

    def watched(self: Any, rows: Tensor, shown: Tensor) -> Tensor:
        widths.append(shown.shape[1])
        return score(self, rows, shown)

    text = "low-confidence,tokens=4,temperature=0"
    [plain] = decode(spelled(text).make(pair), prompts, max_new_tokens=96)
    with mock.patch.object(session, "score", watched):
        [cut] = decode(spelled(f"{text},cut_at_end=true").make(pair), prompts, max_new_tokens=96)
    assert cut.complete
    assert cut.forwards.dlm_forwards == len(widths) < plain.forwards.dlm_forwards
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 96 > widths[-1] >= cut.tokens


def test_nothing_is_cut_off_before_a_planted_token() -> None:
    for seed in range(6):
        decoder = canvas(CutAtEnd(Ordered(), (END,)), table(seed), anchors={2: 0})
        for result in decode(decoder, PROMPTS, seed=seed, max_new_tokens=LIMIT):
            [sequence] = result.sequences
            assert END in sequence[:2] or sequence[2] == 0


class CutsOff:
    """Fills the first place of two, and cuts it off."""

    before_sampling, looks_back = True, False

    def __call__(self, look: Look) -> Commit:
        places = Ordered()(look).places
        return Commit(places, cut=places.to(torch.uint8).argmax(1))


def test_a_rule_that_cuts_off_what_it_fills_is_refused() -> None:
    says = "rule CutsOff cuts off place 0 of row 0, which is filled now or was planted: cut behind it"
    with pytest.raises(ValueError, match=re.escape(says)):
        decode(canvas(CutsOff()), [[]], max_new_tokens=LIMIT)


def test_the_option_is_a_bool() -> None:
    with pytest.raises(ValueError, match=r"^cut_at_end = 'x': give True or False$"):
        METHODS["dream"].make(toy_pair(), cut_at_end="x")

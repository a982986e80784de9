"""A filter of confidences as a rule: its law by enumeration, what it reads of filled places, extremes, options."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import DLMProposal
from smc_bridge.canvas.cut import CutAtEnd
from smc_bridge.canvas.decoder import Canvas
from smc_bridge.canvas.filtered import Filtered
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import Look, Ordered
from smc_bridge.decode import decode
from smc_bridge.models.learned.confidence_filter import ConfidenceFilter
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDiffusionSession, TabularDLM
from smc_bridge.registry import METHODS, spelled
from smc_bridge.testing.frontier import SequenceLaw
from tests.smc_bridge.canvas_enumeration import canvas_law, distance
from tests.toys import toy_pair

LIMIT, BLOCK, END = 4, 3, 2
TAU = 0.5


def network(seed: int = 0) -> ConfidenceFilter:
    """With random weights, of blocks of three places (the last one of a canvas of four has one)."""
    torch.manual_seed(seed)
    module = ConfidenceFilter(BLOCK, 4)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0.0, 2.0)
    return module.eval().requires_grad_(False)


def table() -> TabularDLM:
    ar = TabularAR.random(3, LIMIT + 2, seed=3, concentration=0.6, eos_id=END)
    return TabularDLM(ar, noise=0.7, seed=3)


@pytest.fixture(autouse=True)
def _doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that say of a filled place what they would say of it masked, and so are not sure of it."""
    score = TabularDiffusionSession.score

    def doubting(self: TabularDiffusionSession, rows: Tensor, shown: Tensor, **more: Any) -> Any:
        blind = score(self, rows, shown.masked_fill(shown >= 0, MASKED))
        return torch.where((shown >= 0)[..., None], blind, score(self, rows, shown, **more))

    monkeypatch.setattr(TabularDiffusionSession, "score", doubting)


def canvas(rule: Any, model: TabularDLM | None = None) -> Canvas:
    return Canvas(DLMProposal(table() if model is None else model, lookahead=LIMIT), rule, BLOCK)


def by_hand(model: TabularDLM, net: ConfidenceFilter, *, cuts: bool) -> SequenceLaw:
    """The law by recursion over lists."""
    session = model.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    found: dict[tuple[int, ...], float] = {}

    def settled(laws: list[list[float]], row: list[int], first: int) -> list[int]:
        own = [max(laws[i]) if i < len(row) else 1.0 for i in range(first, first + BLOCK)]
        passed = net(torch.tensor(own)).sigmoid().tolist()
        return [first + i for i, p in enumerate(passed) if p > TAU and first + i in range(len(row))
                and row[first + i] == MASKED]

    def grow(row: list[int], mass: float) -> None:
        gap = row.index(MASKED) if MASKED in row else len(row)
        if END in row[:gap] or gap == len(row):
            end = row.index(END) + 1 if END in row[:gap] else gap
            found[tuple(row[:end])] = found.get(tuple(row[:end]), 0.0) + mass
            return
        laws = session.score(torch.tensor([0]), torch.tensor([row]))[0].softmax(-1).tolist()
        first = gap // BLOCK * BLOCK
        ending = [i for i, x in enumerate(row) if x == MASKED and laws[i].index(max(laws[i])) == END]
        if cuts and ending:
            sure = [i for i in settled(laws, row, first) if i in ending]
            row = row[: (sure[0] if sure else max(ending, key=lambda i: (max(laws[i]), -i))) + 1]
        masked = [i for i in range(first, min(first + BLOCK, len(row))) if row[i] == MASKED]
        places = sorted({*settled(laws, row, first), max(masked, key=lambda i: (max(laws[i]), -i))})

        def fill(left: list[int], row: list[int], mass: float) -> None:
            if not left:
                return grow(row, mass)
            for token, probability in enumerate(laws[left[0]]):
                fill(left[1:], [token if i == left[0] else x for i, x in enumerate(row)], mass * probability)

        fill(places, row, mass)

    grow([MASKED] * LIMIT, 1.0)
    return found


@pytest.mark.parametrize("cuts", [False, True])
def test_the_law_is_that_of_the_definition_and_not_the_models_joint(cuts: bool) -> None:
    rule, net = Filtered(network(), TAU), network()
    law = canvas_law(canvas(CutAtEnd(rule, (END,)) if cuts else rule), LIMIT)
    assert distance(law, by_hand(table(), net, cuts=cuts)) < 1e-6, "the network is in float32"
    assert distance(law, canvas_law(canvas(Ordered()), LIMIT)) > 0.02


class Shown(torch.nn.Module):
    """Lets the second place pass, and remembers what it was shown."""

    places = BLOCK

    def forward(self, confidences: Tensor) -> Tensor:
        self.seen = confidences
        return torch.tensor([-9.0, 9.0, -9.0]).expand_as(confidences)


def test_a_filled_place_is_shown_as_the_model_sees_it_now_and_a_missing_one_as_sure() -> None:
    laws = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3], [0.2, 0.1, 0.7]]).log()
    canvas, net = torch.tensor([[0, 1, MASKED, MASKED, MASKED], [0, 0, 0, 1, MASKED]]), Shown()
    laws, open_ = laws.expand(2, -1, -1), (canvas == MASKED) & torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    look = Look(laws.flip(1), lambda: laws, canvas, open_, torch.zeros(2, dtype=torch.long))
    commit = Filtered(net, TAU)(look)
    torch.testing.assert_close(net.seen, torch.tensor([[0.5, 0.8, 0.6], [0.4, 0.7, 1.0]]))
    assert commit.places.tolist() == [[False, False, True, False, False], [False, False, False, False, True]]
    assert Filtered(net, TAU).settles(look).tolist() == [[False] * 5, [False, False, False, False, True]]


def test_at_its_extremes_it_is_the_surest_place_per_forward_or_a_block_at_once() -> None:
    def run(rule: Any) -> list[Any]:
        found = decode(canvas(rule), [[0], [1], [0, 1]], seed=5, max_new_tokens=LIMIT)
        return [(r.sequences, r.forwards) for r in found]

    assert run(Filtered(network(), 1.0)) == run(Ranked())
    assert run(Filtered(network(), 1.0, Ordered("confidence", 2))) == run(Ranked(tokens=2))
    assert run(Filtered(network(), 1.0, Ordered())) == run(Ordered())
    found = decode(canvas(Filtered(network(), 0.0)), [[0]] * 4, seed=range(4), max_new_tokens=LIMIT)
    assert all(r.forwards.dlm_forwards == -(-len(r.sequences[0]) // BLOCK) for r in found)


def test_draws_do_not_depend_on_the_batch_and_every_forward_is_counted() -> None:
    prompts, seeds = [[1], [2, 1], [2], [1, 2]] * 3, range(12)
    decoder = METHODS["learn2pd"].make(toy_pair(), threshold=TAU, confidence_filter=network())
    assert (decoder.rule.ends, decoder.span) == ((0,), BLOCK)
    together, refilled = (
        decode(decoder, prompts, seed=seeds, max_new_tokens=4, batch=batch) for batch in (None, 5)
    )
    assert [(r.sequences, r.forwards) for r in refilled] == [(r.sequences, r.forwards) for r in together]
    assert not any(r.proper for r in together)
    assert all(r.complete and 1 <= r.forwards.dlm_forwards <= 4 for r in together)


def test_the_methods_own_filter_is_the_pairs() -> None:
    from smc_bridge import load_pair

    pair = load_pair("arithmetic")
    decoder: Any = spelled("learn2pd,threshold=0.8,cut_at_end=false").make(pair)
    assert isinstance(decoder.rule, Filtered)
    assert (decoder.rule.network, decoder.rule.threshold) == (pair.part("confidence_filter"), 0.8)


@pytest.mark.parametrize(("options", "says"), [
    ({"threshold": 2.0}, "threshold = 2.0: give a probability in [0, 1]"),
    ({"tokens": 0}, "tokens = 0: commit at least 1, a whole number"),
    ({"confidence_filter": torch.nn.Linear(2, 2)}, "give a ConfidenceFilter"),
    ({"confidence_filter": None}, "the pair 'toy' has no trained confidence_filter: train one for it"),
])
def test_bad_parameters_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        METHODS["learn2pd"].make(toy_pair(), **{"confidence_filter": network(), **options})
    assert "\n" not in str(caught.value)

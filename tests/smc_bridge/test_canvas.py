"""Canvas decoders: what a commit rule sees, what it may decide, and that a canvas fills whatever the rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from smc_bridge import ARTarget, DLMProposal, ar_sampling, diffusion
from smc_bridge.canvas.decoder import PATIENCE, Canvas
from smc_bridge.canvas.rules import AllAtOnce, Commit, CommitRule, Look, Ordered, Reconsider, checked
from smc_bridge.decode import decode
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.models.tabular import TabularAR, TabularDiffusionSession, TabularDLM
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.registry import spelled
from tests.toys import toy_pair

LIMIT = 5
DLM = TabularDLM(TabularAR.random(3, 8, seed=1), noise=0.7, seed=2)
PROMPTS: list[list[int]] = [[0], [1, 0], [2], []]


def canvas(rule: CommitRule, **law: Any) -> Canvas:
    """A decoder of a small table without an end of sequence."""
    return Canvas(DLMProposal(DLM, lookahead=LIMIT, **law), rule, 3)


def look(probs: list[list[float]], *, canvas: list[int] | None = None, open: list[bool] | None = None) -> Look:
    """One row whose places have these laws."""
    log_q = torch.tensor([probs], dtype=torch.float64).log()
    shown = torch.tensor([canvas or [MASKED] * len(probs)])
    return Look(
        log_q, lambda: log_q, shown, shown == MASKED if open is None else torch.tensor([open]), torch.tensor([0]))


LAWS = [[0.5, 0.5, 0.0], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]


@pytest.mark.parametrize(("order", "expected"), [("left_to_right", [0]), ("entropy", [2]), ("confidence", [2])])
def test_orders_fill_the_place_that_they_name(order: Any, expected: list[int]) -> None:
    assert Ordered(order)(look(LAWS)).places[0].nonzero().flatten().tolist() == expected
    assert Ordered(order, 5)(look(LAWS, open=[True, False, True])).places[0].tolist() == [True, False, True]
    assert AllAtOnce()(look(LAWS, open=[False, True, True])).places[0].tolist() == [False, True, True]


def test_entropy_and_confidence_order_places_differently() -> None:
    """Of two places: the first has less entropy, the second the likelier token."""
    first = look([[0.5, 0.5, 0.0], [0.6, 0.2, 0.2]])
    assert Ordered("entropy")(first).places.tolist() == [[True, False]]
    assert Ordered("confidence")(first).places.tolist() == [[False, True]]


def test_an_order_reads_the_law_that_is_drawn_from_or_the_models_own() -> None:
    tempered, plain = (torch.tensor([rows], dtype=torch.float64).log() for rows in (
        [[0.9, 0.1], [0.8, 0.2]], [[0.6, 0.4], [0.7, 0.3]]))
    shown = torch.full((1, 2), MASKED)
    both = Look(tempered, lambda: plain, shown, shown == MASKED, torch.tensor([0]))
    assert Ordered("confidence", tempered=True)(both).places.tolist() == [[True, False]]
    assert Ordered("confidence")(both).places.tolist() == [[False, True]]


def test_the_least_sure_tokens_are_masked_again_while_a_row_is_young() -> None:
    seen = look(LAWS, canvas=[1, 2, MASKED])  # of probability 0.5 and 0.2
    commit = Reconsider(Ordered(), tokens=1)(seen)
    assert commit.places.tolist() == [[False, False, True]]
    assert commit.remask is not None
    assert commit.remask.tolist() == [[False, True, False]]
    old = Reconsider(Ordered(), forwards=1)(replace(seen, step=seen.step + 1))
    assert old.remask is not None
    assert not old.remask.any()


class Watching:
    """Left to right; keeps what it saw."""

    def __init__(self, *, before_sampling: bool) -> None:
        self.before_sampling, self.looks = before_sampling, list[Look]()

    def __call__(self, look: Look) -> Commit:
        self.looks.append(look)
        return Ordered()(look)


def test_a_rule_sees_the_models_own_law_beside_the_one_that_is_drawn_from() -> None:
    for law in ({}, {"temperature": 0.5}, {"temperature": 0.5, "top_p": 0.7}, {"banned_ids": [1]}):
        rule = Watching(before_sampling=True)
        decode(canvas(rule, **law), PROMPTS[:1], max_new_tokens=LIMIT)
        seen = rule.looks[0]
        session = DLM.session(torch.tensor([[0]]), torch.tensor([1]))
        logits = session.score(torch.tensor([0]), torch.full((1, LIMIT), MASKED))
        banned = {"banned_ids": law["banned_ids"]} if "banned_ids" in law else {}
        plain = DLMProposal(DLM, lookahead=LIMIT, **banned).shaping.log_probs(logits)  # type: ignore[arg-type]
        drawn = DLMProposal(DLM, lookahead=LIMIT, **law).shaping.log_probs(logits)  # type: ignore[arg-type]
        assert torch.equal(seen.log_q_plain, plain), law
        assert torch.equal(seen.log_q, drawn), law


def test_a_rule_that_sees_tokens_commits_the_very_ones() -> None:
    """A place's uniform is its own, so that tokens drawn before and after the decision are the same."""
    before, after = Watching(before_sampling=True), Watching(before_sampling=False)
    found = [decode(canvas(rule), PROMPTS, seed=7, max_new_tokens=LIMIT) for rule in (before, after)]
    assert [r.sequences for r in found[0]] == [r.sequences for r in found[1]]
    assert all(seen.tokens is None for seen in before.looks)
    first = after.looks[0]
    assert first.tokens is not None
    assert first.tokens[:, 0].tolist() == [r.sequences[0][0] for r in found[1]]


def test_what_a_rule_sees_says_how_far_every_row_is() -> None:
    rule = Watching(before_sampling=True)
    decode(canvas(rule), PROMPTS, max_new_tokens=LIMIT, batch=2)
    for seen in rule.looks:
        filled = seen.filled.sum(1)
        assert torch.equal(filled, seen.step), "one place is filled per forward"
        assert bool(seen.open.any(1).all())
        assert not bool((seen.open & (seen.canvas != MASKED)).any())
        assert not bool((seen.canvas == ABSENT).any())


def test_tokens_that_are_taken_back_cost_forwards_and_the_canvas_fills() -> None:
    plain, again = (
        decode(canvas(rule, temperature=0.8), PROMPTS, seed=3, max_new_tokens=LIMIT)
        for rule in (Ordered("confidence"), Reconsider(Ordered("confidence"), tokens=1, forwards=4))
    )
    for one, other in zip(plain, again, strict=True):
        assert one.complete
        assert other.complete
        assert len(other.sequences[0]) == LIMIT
        assert other.forwards.dlm_forwards > one.forwards.dlm_forwards
        assert not other.proper
    assert [r.sequences for r in plain] != [r.sequences for r in again]


def test_a_rule_that_never_ends_is_stopped_by_name() -> None:
    with pytest.raises(ValueError, match=f"^rule Reconsider has not filled {LIMIT} places in {PATIENCE * LIMIT} forw"):
        decode(canvas(Reconsider(Ordered(), forwards=10**9)), PROMPTS, max_new_tokens=LIMIT)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"tokens": -1}, "tokens = -1: mask at least 1 again"), ({"tokens": 1.5}, "tokens = 1.5: "),
    ({"forwards": 0}, "forwards = 0: reconsider in at least 1 forward"), ({"rule": Ordered}, "rule = <class "),
    ({"rule": "entropy"}, "rule = 'entropy': give a commit rule"),
])
def test_bad_arguments_of_reconsider_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        Reconsider(**arguments)


def test_the_method_takes_tokens_back_and_orders_by_either_law_by_name() -> None:
    def made(text: str) -> CommitRule:
        decoder = spelled(text).make(toy_pair())
        assert isinstance(decoder, Canvas)
        [result] = decode(decoder, [[1]], seed=1, max_new_tokens=6)
        assert result.complete
        return decoder.rule

    assert made("dlm,tokens=2,order=confidence,remask=1") == Reconsider(Ordered("confidence", 2), 1)
    assert made("dlm,order=entropy,tempered=true") == Ordered("entropy", tempered=True)
    assert made("dlm,order=entropy") == Ordered("entropy", tempered=False)
    for text, says in (
        ("dlm-all,remask=1", "remask = 1 with tokens = None: nothing is left to fill"),
        ("dlm,remask=-1", "remask = -1: mask none again, or a whole number"),
        ("dlm,tempered=true", "tempered = True with order = left_to_right, which reads no law"),
        ("dlm,order=entropy,tempered=true,temperature=0", "tempered = True with temperature = 0: point masses rank no"),
        (
            "dlm,order=entropy,tempered=true,remask=1,temperature=0",
            "tempered = True with temperature = 0: point masses rank no",
        ),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(says)):
            spelled(text).make(toy_pair())


def rule_of(decide: Callable[[Look], Any]) -> CommitRule:
    """A rule of a user's, `Mine`."""

    class Mine:
        before_sampling = True

        def __call__(self, look: Look) -> Commit:
            found: Commit = decide(look)
            return found

    return Mine()


#: What a rule returned, and how the line goes on after its name.
WRONG: dict[str, tuple[Callable[[Look], Any], str]] = {
    "a mask": (lambda x: x.open, "rule Mine returned tensor"),
    "numbers": (lambda x: Commit(x.open.long()), "places of rule Mine returned a tensor of int64, shape [1, 3]"),
    "nothing": (lambda x: Commit(None), "places of rule Mine returned None: return"),  # type: ignore[arg-type]
    "another shape": (lambda x: Commit(x.open[0]), "places of rule Mine returned a tensor of bool, shape [3]: return"),
    "a list": (lambda x: Commit(x.open, [0]), "remask of rule Mine returned [0]: return"),  # type: ignore[arg-type]
    "a closed place": (
        lambda x: Commit(torch.ones_like(x.open)), "rule Mine fills place 0 of row 0, which is not open: keep to"),
    "no place": (lambda x: Commit(x.open & False), "rule Mine fills no place of row 0: fill at least one open place"),
    "an empty place again": (
        lambda x: Commit(x.open, x.open), "rule Mine masks place 1 of row 0, which holds no token: keep to"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_rule_that_breaks_its_word_is_named_in_one_line(case: str) -> None:
    decide, words = WRONG[case]
    with pytest.raises(ValueError, match="^" + re.escape(words)) as caught:
        checked(rule_of(decide), look(LAWS, canvas=[0, MASKED, MASKED]))
    assert "\n" not in str(caught.value)


#: What a rule writes into what it sees.
WRITTEN: dict[str, Callable[[Look], Any]] = {
    "log_q": lambda x: x.log_q.fill_(-9.0), "log_q_plain": lambda x: x.log_q_plain.fill_(-9.0),
    "canvas": lambda x: x.canvas.fill_(1), "step": lambda x: x.step.fill_(99),
    "tokens": lambda x: None if x.tokens is None else x.tokens.fill_(77),
}


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}], ids=str)
@pytest.mark.parametrize("wrap", [False, True], ids=["itself", "reconsidered"])
@pytest.mark.parametrize("field", WRITTEN)
def test_a_rule_that_writes_into_what_it_sees_changes_no_draw(
    field: str, wrap: bool, law: dict[str, float], before: bool
) -> None:
    def made(write: Callable[[Look], Any]) -> CommitRule:
        class Mine(Ordered):
            before_sampling = before

            def __call__(self, look: Look) -> Commit:
                found = super().__call__(look)
                write(look)
                return found

        return Reconsider(Mine(), forwards=2) if wrap else Mine()

    calm, writing = (
        decode(canvas(made(write), **law), PROMPTS, max_new_tokens=LIMIT) for write in (lambda x: None, WRITTEN[field])
    )
    assert [result.sequences for result in writing] == [result.sequences for result in calm]


def test_a_rule_cannot_open_places() -> None:
    with pytest.raises(ValueError, match=r"^rule Mine fills place 0 of row 0, which is not open"):
        checked(rule_of(lambda x: Commit(x.open.fill_(True))), look(LAWS, canvas=[0, MASKED, MASKED]))


@pytest.mark.parametrize("wrong", ["x", PrefixFilled(DLMProposal(DLM)), DLMProposal], ids=["text", "chain", "class"])
def test_a_canvas_draws_from_marginals_alone(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^proposal = .*: give a DLMProposal, whose marginals") as caught:
        Canvas(wrong)
    assert "\n" not in str(caught.value)


def test_what_is_no_rule_is_refused() -> None:
    for wrong in ("entropy", Ordered, lambda look: look):
        with pytest.raises(ValueError, match=r"^rule = .*: give a commit rule, such as Ordered\(\)"):
            canvas(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^order = 'random': give one of left_to_right, entropy, confidence"):
        Ordered("random")  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "options"), [
    ("dlm-1", {}),
    ("dlm-2", {"tokens_per_forward": 2}),
    ("dlm-2-entropy", {"tokens_per_forward": 2, "order": "entropy"}),
    ("dlm-1-confidence,span=2", {"order": "confidence", "window": 2}),
    ("dlm,tokens=none", {"tokens_per_forward": None}),
])
def test_a_spelling_is_the_decoder_of_the_function(text: str, options: dict[str, Any]) -> None:
    pair = toy_pair()
    decoder = spelled(text).make(pair, temperature=0.7, lookahead=3, window=1)
    found = decode(decoder, [[1], [2, 1]], seed=3, max_new_tokens=LIMIT)
    proposal = DLMProposal(pair.dlm, temperature=0.7, lookahead=3)
    expected = diffusion(proposal, [[1], [2, 1]], seed=3, max_new_tokens=LIMIT, **{"window": 3, **options})
    assert [(r.sequences, r.forwards) for r in found] == [(r.sequences, r.forwards) for r in expected]
    assert {result.method for result in found} == {text}


def test_all_at_once_is_one_forward_and_has_no_order() -> None:
    decoder = spelled("dlm-all").make(toy_pair(), lookahead=2)
    assert {r.forwards.dlm_forwards for r in decode(decoder, [[1], [2, 1]], max_new_tokens=LIMIT)} == {1}
    with pytest.raises(ValueError, match=r"^order = 'entropy' with tokens = None: all at once has no order"):
        spelled("dlm-all,order=entropy").make(toy_pair())


def test_exact_samples_have_a_spelling() -> None:
    pair = toy_pair()
    found = decode(spelled("ar,top_k=2").make(pair, temperature=0.7), [[1], [2, 1]], seed=3, max_new_tokens=LIMIT)
    expected = ar_sampling(ARTarget(pair.ar, temperature=0.7, top_k=2), [[1], [2, 1]], seed=3, max_new_tokens=LIMIT)
    assert [r.sequences for r in found] == [r.sequences for r in expected]
    assert found[0].settings["exact"]


@pytest.mark.parametrize("order", ["left_to_right", "entropy", "confidence"])
def test_a_session_that_is_given_what_is_filled_scores_the_same_places(order: Any) -> None:
    """A session with a cache holds tokens as they come; one whose scores are a function of them gives the same."""

    exact = DLMProposal(TabularDLM(TabularAR.random(3, 8, seed=1)), lookahead=3)

    def run() -> list[Any]:
        return decode(Canvas(exact, Ordered(order, 2), 3), PROMPTS * 2, seed=range(8), max_new_tokens=LIMIT, batch=3)

    plain, committed, commit = run(), [], TabularDiffusionSession.commit

    def watched(self: TabularDiffusionSession, block: torch.Tensor, count: torch.Tensor) -> None:
        committed.append(int(count.sum()))
        commit(self, block, count)

    with (
        mock.patch.object(TabularDiffusionSession, "has_history", True, create=True),
        mock.patch.object(TabularDiffusionSession, "commit", watched, create=True),
    ):
        cached = run()
    assert [result.sequences for result in cached] == [result.sequences for result in plain]
    assert sum(committed) > sum(map(len, PROMPTS))

"""The confidence family by name: what each spelling is, anchors, early commit, and draws that do not depend on the
batch."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from smc_bridge import DLMProposal, load_pair
from smc_bridge.canvas.anchors import read_anchors
from smc_bridge.canvas.credit import Credit
from smc_bridge.canvas.decoder import AFTER, WHY, Canvas
from smc_bridge.canvas.early_commit import EarlyCommit
from smc_bridge.canvas.entropy_bound import EntropyBound
from smc_bridge.canvas.ranked import Ranked
from smc_bridge.canvas.rules import Look, Ordered
from smc_bridge.canvas.second_thoughts import SecondThoughts
from smc_bridge.canvas.thresholds import Confident, Factor, Hierarchy, Threshold
from smc_bridge.decode import decode
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularAR, TabularDiffusionSession, TabularDLM
from smc_bridge.registry import spelled
from smc_bridge.tasks import TASKS
from tests.toys import LIMIT, toy_pair

PROMPTS: list[list[int]] = [[1], [2, 1], [2], [1, 2], [1, 1], [2, 2]]

#: What a spelling stands for: rule, places that are open at a time, credit.
SPELLINGS: dict[str, tuple[Any, int | None, Any]] = {
    "confidence": (Threshold(0.9), 32, None),
    "confidence,rule=threshold,threshold=0.8,sampled=true": (Threshold(0.8, sampled=True), 32, None),
    "confidence,rule=factor": (Factor(1.0), 32, None),
    "confidence,rule=hierarchy,low=0.3": (Hierarchy(0.9, 0.3), 32, None),
    "confidence,rule=margin,tokens=2,alg_temp=0.1": (Ranked("margin", 2, 0.1), 32, None),
    "confidence,rule=entropy": (Ranked("entropy"), 32, None),
    "confidence,rule=random,span=none": (Ranked("random"), None, None),
    "confidence,credit=0.7": (Threshold(0.9), 32, Credit(0.7)),
    "confidence,remask=0.4,edit=0.9": (SecondThoughts(Threshold(0.9), 0.4, 0.9), 32, None),
    "low-confidence": (Ranked("probability"), 32, None),
    "low-confidence,sampled=true": (Ranked("probability", sampled=True), 32, None),
    "eb-sampler": (EntropyBound(0.1), 32, None),
    "fast-dllm": (Threshold(0.9), 32, None),
    "fast-dllm,factor=1": (Factor(1.0), 32, None),
    "dinfer": (Hierarchy(0.9, 0.4), 32, None),
    "dinfer,decoding=threshold,remask=0.4": (SecondThoughts(Threshold(0.9), 0.4), 32, None),
    "dinfer,decoding=credit": (Threshold(0.9), 32, Credit(0.7, 0.8, 0.2)),
    "dream": (Ranked("entropy"), None, None),
    "dream,alg=origin,tokens=2": (Ranked("random", 2), None, None),
    "dream,alg=maskgit_plus,sampled=true,alg_temp=0.3": (Ranked("probability", 1, 0.3, True), None, None),
    "dream,alg=topk_margin": (Ranked("margin"), None, None),
    "dimple": (Confident(0.95, Ranked(aligned=True)), None, None),
    "dimple,alg=random,sampled=true,tokens=2": (
        Confident(0.95, Ranked("random", 2, aligned=True), sampled=True), None, None),
    "prophet": (EarlyCommit(Ranked(), None, 5, (7.5, 5.0, 2.5)), 32, None),
    "prophet,answer_start=2,gaps=3/2/1": (EarlyCommit(Ranked(), 2, 5, (3.0, 2.0, 1.0)), 32, None),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_spelling_is_its_rule_and_its_draws_do_not_depend_on_the_batch(text: str) -> None:
    decoder = spelled(text).make(toy_pair(), temperature=0.8, lookahead=LIMIT)
    assert isinstance(decoder, Canvas)
    assert (decoder.rule, decoder.span, decoder.credit) == SPELLINGS[text]
    many = PROMPTS * 4
    seeds = range(len(many))
    together = decode(decoder, many, seed=seeds, max_new_tokens=LIMIT)
    refilled = decode(decoder, many, seed=seeds, max_new_tokens=LIMIT, batch=5)
    alone = [decode(decoder, [p], seed=s, max_new_tokens=LIMIT)[0] for p, s in zip(many, seeds, strict=True)]
    for found in (refilled, alone):
        assert [(r.sequences, r.forwards) for r in found] == [(r.sequences, r.forwards) for r in together]
    assert len({str(r.sequences) for r in together}) > 4
    assert not any(r.proper for r in together)


@pytest.mark.parametrize("text", [
    "confidence", "eb-sampler", "dinfer", "dinfer,decoding=credit", "dimple", "dream,tokens=4", "fast-dllm,factor=1",
    "confidence,remask=0.4,edit=0.9", "prophet",
])
def test_on_the_embedded_pair_a_forward_fills_several_places(text: str) -> None:
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    decoder = spelled(text).make(pair, temperature=0.2, lookahead=32)
    for result in decode(decoder, prompts, max_new_tokens=32):
        assert result.complete
        assert result.forwards.dlm_forwards == result.forwards.dlm_rows
        assert result.tokens_per_dlm_forward > 1.2


@pytest.mark.parametrize(("text", "after"), [
    ("low-confidence", False), ("low-confidence,sampled=true", True),
    ("low-confidence,sampled=true,temperature=0", False),
    ("confidence,sampled=true,remask=0.4", True), ("dimple,sampled=true", True), ("eb-sampler", False),
])
def test_a_result_says_where_drawn_tokens_decide_which_places_are_filled(text: str, after: bool) -> None:
    [result] = decode(spelled(text).make(toy_pair()), [[1]], seed=1, max_new_tokens=LIMIT)
    assert (result.proper, result.reasons) == (False, [WHY, AFTER] if after else [WHY])


def test_every_forward_is_counted() -> None:
    rows, score = 0, TabularDiffusionSession.score

    def counting(self: TabularDiffusionSession, which: Tensor, canvas: Tensor) -> Tensor:
        nonlocal rows
        rows += len(which)
        return score(self, which, canvas)

    for text in ("dinfer,decoding=credit", "prophet,gaps=1/1/1", "dimple"):
        rows = 0
        with mock.patch.object(TabularDiffusionSession, "score", counting):
            found = decode(spelled(text).make(toy_pair(), lookahead=LIMIT), PROMPTS, max_new_tokens=LIMIT, batch=2)
        assert sum(r.forwards.dlm_rows for r in found) == rows


def test_a_canvas_fills_though_tokens_are_masked_again_and_replaced() -> None:
    """A session that says of a filled place what it would say of a masked one: many tokens are improbable."""
    score = TabularDiffusionSession.score

    def blind(self: TabularDiffusionSession, which: Tensor, canvas: Tensor) -> Tensor:
        return score(self, which, canvas.masked_fill(canvas >= 0, MASKED))

    proposal = DLMProposal(TabularDLM(TabularAR.random(3, 8, seed=1), noise=0.7, seed=2), lookahead=6)
    rules = (Ranked(tokens=3), SecondThoughts(Ranked(tokens=3), 0.5), SecondThoughts(Ranked(tokens=3), 0.0, 0.5))
    with mock.patch.object(TabularDiffusionSession, "score", blind):
        plain, again, edited = (
            decode(Canvas(proposal, rule), PROMPTS * 3, seed=range(18), max_new_tokens=6) for rule in rules
        )
    assert all(r.complete for r in (*again, *edited))
    counts = [sum(r.forwards.dlm_forwards for r in found) for found in (plain, again, edited)]
    assert counts[1] > counts[0], "improbable tokens are drawn anew"
    assert [r.sequences for r in edited] != [r.sequences for r in plain]


def never_sure(rule: EarlyCommit, look: Look) -> Tensor:
    """A gap that suffices in no stage."""
    return look.log_q.new_full(look.step.shape, -1.0)


def test_early_commit_is_the_plain_decoder_or_one_forward_at_its_extremes() -> None:
    pair = toy_pair()

    def run(text: str) -> list[Any]:
        return decode(spelled(text).make(pair, lookahead=LIMIT), PROMPTS, seed=3, max_new_tokens=LIMIT)

    with mock.patch.object(EarlyCommit, "gap", never_sure):
        never = run("prophet")
    plain = run("low-confidence")
    assert [(r.sequences, r.forwards) for r in never] == [(r.sequences, r.forwards) for r in plain]
    at_once, greedy = run("prophet,gaps=0/0/0"), run("dlm-all,temperature=0")
    assert [r.sequences for r in at_once] == [r.sequences for r in greedy]
    assert {r.forwards.dlm_forwards for r in at_once} == {1}


def test_the_region_of_the_answer_follows_the_anchors() -> None:
    pair = toy_pair()
    decoder = spelled("prophet,anchors=1:2|2:1").make(pair)
    assert isinstance(decoder, Canvas)
    assert decoder.rule == EarlyCommit(Ranked(), 3)
    for result in decode(decoder, PROMPTS, max_new_tokens=LIMIT):
        assert result.sequences[0][1:3] == [2, 1][: len(result.sequences[0]) - 1]
        assert result.settings["anchors"] == {"1": 2, "2": 1}


@pytest.mark.parametrize("text", ["dinfer,decoding=threshold,remask=0.4", "dream,alg=origin", "low-confidence"])
def test_what_is_decoded_around_an_anchor_follows_the_conditional_law(text: str) -> None:
    """`p(x_0 | x_1 = 2)` of an exact model, however it decodes: TV of 2,000 runs below 0.074 (McDiarmid, 10**-5)."""
    ar, runs = TabularAR.random(3, 3, seed=5, concentration=0.4), 2000
    pair: Any = type("Pair", (), {"dlm": TabularDLM(ar), "ar": ar})
    found = decode(spelled(f"{text},anchors=1:2").make(pair), [[1]] * runs, seed=range(runs), max_new_tokens=2)
    assert {tuple(r.sequences[0][1:]) for r in found} == {(2,)}
    joint = ar.tables[1][1][:, None] * ar.tables[2].reshape(3, 3, 3)[1]
    law = joint[:, 2] / joint[:, 2].sum()
    seen = torch.tensor([r.sequences[0][0] for r in found]).bincount(minlength=3) / runs
    assert float((seen - law).abs().sum() / 2) < 0.02 + 0.054
    assert float((ar.tables[1][1] - law).abs().sum() / 2) > 0.3, "else the law without the anchor would pass"


def test_anchors_past_a_rows_own_lookahead_count_whatever_stands_beside_the_row() -> None:
    """Of six places without anchors two are a third, where the second bound begins; of all eight they are less."""
    ar = TabularAR.random(3, 11, seed=1)
    pair: Any = type("Pair", (), {"dlm": TabularDLM(ar, noise=0.7, seed=2), "ar": ar})
    stages: set[tuple[int, int]] = set()
    stage = EarlyCommit.stage

    def noted(self: EarlyCommit, look: Look) -> Tensor:
        found = stage(self, look)
        stages.update(zip(look.filled.sum(1).tolist(), found.tolist(), strict=True))
        return found

    decoder = spelled("prophet,anchors=6:1|7:1,answer_start=0").make(pair, lookahead=4)
    with mock.patch.object(EarlyCommit, "stage", noted), mock.patch.object(EarlyCommit, "gap", never_sure):
        for batch in (1, 2):
            decode(decoder, PROMPTS, seed=3, max_new_tokens=8, batch=batch)
    assert stages == {(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 2)}
    decoder = spelled("prophet,anchors=6:1|7:1,answer_start=0,gaps=1.2/0.6/0.3").make(pair, lookahead=4)
    together = decode(decoder, PROMPTS, seed=3, max_new_tokens=8, batch=2)
    alone = [decode(decoder, [prompt], seed=3, max_new_tokens=8)[0] for prompt in PROMPTS]
    assert [(r.sequences, r.forwards) for r in together] == [(r.sequences, r.forwards) for r in alone]


def test_a_region_past_the_continuation_is_refused_when_a_run_begins() -> None:
    for text, start in ((f"prophet,answer_start={LIMIT}", LIMIT), (f"prophet,anchors={LIMIT - 1}:1", LIMIT)):
        says = f"answer_start = {start} with max_new_tokens = {LIMIT}: begin the answer's region"
        with pytest.raises(ValueError, match="^" + re.escape(says)) as caught:
            decode(spelled(text).make(toy_pair()), PROMPTS, max_new_tokens=LIMIT)
        assert "\n" not in str(caught.value)
    last = spelled(f"prophet,answer_start={LIMIT - 1}").make(toy_pair())
    assert all(r.complete for r in decode(last, PROMPTS, max_new_tokens=LIMIT))


def test_anchors_are_read_as_text_or_as_ids() -> None:
    tokenizer = load_pair("arithmetic").tokenizer
    found = read_anchors("4:So|9:####", tokenizer)
    assert tokenizer.decode([found[i] for i in sorted(found) if i < 9]) == "So"
    assert tokenizer.decode([found[9]]) == "####"
    assert read_anchors("3:7|5: 8") == {3: 7, 5: 8}
    assert read_anchors({3: 7}) == {3: 7}
    assert read_anchors(None) == read_anchors("") == {}


@pytest.mark.parametrize(("anchors", "says"), [
    ("3", "anchors = '3': write place:text with | between them"), ("x:3", "anchors = 'x:3': write place:text"),
    (3, "anchors = 3: write place:text"), ("1:2|1:3", "anchors = '1:2|1:3': two tokens claim place 1; move one"),
    ("1:The", "anchors = '1:The': there is no tokenizer for 'The'; write ids"),
])
def test_anchors_that_cannot_be_read_are_refused(anchors: Any, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        read_anchors(anchors)


@pytest.mark.parametrize(("anchors", "says"), [
    ({0: 9}, "anchors = {0: 9}: 9 is no token of the model; give another"),
    ({-1: 1}, "anchors = -1: count places of the continuation from 0"),
    ("1:1", "anchors = '1:1': give tokens by their"),
    ({7: 1}, f"anchors at place 7 with max_new_tokens = {LIMIT}: plant it before that place"),
    (dict.fromkeys(range(LIMIT), 1), f"anchors at all {LIMIT} places: leave one to be filled"),
])
def test_anchors_that_cannot_be_planted_are_refused(anchors: Any, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        decode(Canvas(DLMProposal(toy_pair().dlm), Ordered(), anchors=anchors), PROMPTS, max_new_tokens=LIMIT)


@pytest.mark.parametrize(("text", "says"), [
    ("confidence,rule=factor,threshold=0.8", "threshold = 0.8 with rule = factor, which has none: leave it out"),
    ("confidence,rule=margin,sampled=true", "sampled = True with rule = margin, which has none: leave it out"),
    ("confidence,bound=1", "bound = 1.0 with rule = threshold, which has none: leave it out"),
    ("confidence,threshold=2", "threshold = 2.0: give a probability in [0, 1]"),
    ("confidence,credit=-1", "alpha of the credit = -1.0: give a weight of at least 0"),
    ("fast-dllm,threshold=0.9,factor=1", "threshold = 0.9 with factor = 1.0: give one of them"),
    ("dinfer,decoding=credit,low=0.3", "low = 0.3 with decoding = credit, which has none: leave it out"),
    ("dream,sampled=true", "sampled = True with alg = entropy, which reads no token: leave it out"),
    ("dream,alg=origin,alg_temp=1", "alg_temp = 1.0 with alg = origin, which is noise already: leave it out"),
    ("dimple,tokens=0", "tokens = 0: commit at least 1"),
    ("prophet,gaps=1/2", "gaps = (1.0, 2.0): give 3 gaps of at least 0, in nats"),
    ("prophet,answer_start=-1", "answer_start = -1: count places of the continuation from 0"),
    ("prophet,span=0", "span = 0: open at least 1 place"),
])
def test_bad_options_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)) as caught:
        spelled(text).check()
    assert "\n" not in str(caught.value)


def test_what_is_no_credit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^credit = 0\.7: give a Credit, or None"):
        Canvas(DLMProposal(toy_pair().dlm), Ordered(), credit=0.7)  # type: ignore[arg-type]

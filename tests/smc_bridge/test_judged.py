"""Candidates judged by the AR model: their log-probabilities, EDLM's law to round-off, traps, and its proper form."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget
from smc_bridge.canvas.denoising import Denoiser
from smc_bridge.canvas.judged import judge
from smc_bridge.decode import decode
from smc_bridge.engine.sampler import Sampler
from smc_bridge.methods import edlm as module
from smc_bridge.models.tabular import TabularAR, TabularCausalSession, TabularDiffusionSession
from smc_bridge.registry import spelled
from smc_bridge.testing import assert_proper, exact_law, tabular_pair
from tests.smc_bridge.canvas_enumeration import distance, output_law
from tests.smc_bridge.denoising_oracle import best_of_two, denoised, independent
from tests.toys import LIMIT, toy_pair

PAIR = tabular_pair(2, 3, seed=0, noise=0.9)
PROMPTS: list[list[int]] = [[1], [2], [1, 1], [2, 1], [1, 2], [2, 2]]


def law_of(text: str, limit: int) -> dict[tuple[int, ...], float]:
    """The output law of a spelling on the small pair."""
    decoder = spelled(text).make(PAIR)
    assert isinstance(decoder, Denoiser)
    return output_law(decoder, limit)


def test_candidates_are_scored_one_by_one_up_to_their_end() -> None:
    ar = TabularAR.random(3, 4, seed=5, eos_id=0)
    prompts = torch.tensor([[1, 2], [2, 0]])
    session = ar.session(prompts, torch.tensor([2, 1]))
    candidates = torch.tensor([[[1, 0, 2], [2, 2, 1]], [[0, 1, 1], [1, 1, 0]]])
    judged = judge(session, ARTarget(ar), torch.tensor([0, 1]), candidates, torch.tensor([2, 3]))
    assert judged.length.tolist() == [[2, 2], [1, 3]]
    for row, prompt in enumerate(([1, 2], [2])):
        for j in range(2):
            sequence, total = list(prompt), 0.0
            for token in candidates[row, j, : judged.length[row, j]].tolist():
                law = ar.log_conditional(torch.tensor([sequence]), torch.tensor([len(sequence)]))
                total += float(law[0, token])
                sequence.append(token)
            assert float(judged.total[row, j]) == pytest.approx(total, abs=1e-12)
    assert (judged.cost(0).ar_rows, judged.cost(0).ar_tokens) == (2, 4)
    assert (judged.cost(0, 2).ar_rows, judged.cost(0, 2).ar_tokens) == (4, 12)


def test_candidates_of_a_row_are_judged_behind_the_prefix_of_that_row() -> None:
    """The trap of the released code: sample-major candidates regrouped by a view belong to other rows."""
    ar = TabularAR.random(3, 4, seed=5)
    session = ar.session(torch.tensor([[1], [2]]), torch.tensor([1, 1]))
    candidates = torch.tensor([[[0, 1], [1, 2]], [[2, 2], [0, 0]]])
    both = judge(session, ARTarget(ar), torch.tensor([0, 1]), candidates, torch.tensor([2, 2])).total
    alone = [
        judge(session, ARTarget(ar), torch.tensor([r]), candidates[r : r + 1], torch.tensor([2])).total[0]
        for r in range(2)
    ]
    assert torch.equal(both, torch.stack(alone))
    sample_major = candidates.transpose(0, 1).reshape(4, 2).reshape(2, 2, 2)
    trapped = judge(session, ARTarget(ar), torch.tensor([0, 1]), sample_major, torch.tensor([2, 2])).total
    assert not torch.equal(both, trapped)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_without_candidates_it_is_the_ancestral_sampler_of_the_diffusion_model(steps: int) -> None:
    found, expected = law_of(f"edlm,candidates=1,steps={steps}", 3), denoised(PAIR, 3, steps)
    assert distance(found, expected) < 1e-12


@pytest.mark.parametrize(("options", "start", "end", "power"), [
    ("is_start=1,is_end=0", 1.0, 0.0, 1.0), ("is_start=1,is_end=0.6", 1.0, 0.6, 1.0), ("", 0.6, 0.4, 1.0),
    ("is_start=1,is_end=0,is_temp=2", 1.0, 0.0, 0.5), ("is_start=1,is_end=0,sign=inverted", 1.0, 0.0, -1.0),
    ("is_start=1,is_end=0,carry_over=true", 1.0, 0.0, 1.0),
])
def test_its_law_is_that_of_the_formula(options: str, start: float, end: float, power: float) -> None:
    """The weight is of whole candidates up to the end of sequence, at times in the window alone."""
    found = law_of(",".join(filter(None, ("edlm,steps=2", options))), 2)
    carry_over = "carry_over" in options
    expected = denoised(PAIR, 2, 2, best_of_two(PAIR, start=start, end=end, power=power, carry_over=carry_over))
    assert distance(found, expected) < 1e-12
    assert distance(found, denoised(PAIR, 2, 2, independent)) > 1e-3, "candidates change nothing"


def test_the_released_sign_is_farther_from_the_ar_law_than_no_weighting() -> None:
    law = exact_law(ARTarget(PAIR.ar), 2)
    none, formula, released = (
        distance(law_of(f"edlm,steps=2,{option}", 2), law) for option in (
            "candidates=1", "is_start=1,is_end=0,sign=formula", "is_start=1,is_end=0,sign=inverted",
        )
    )
    assert formula < none - 0.03, f"formula {formula:.4f}, none {none:.4f}"
    assert released > none + 0.03, f"released {released:.4f}, none {none:.4f}"
    assert formula > 0.01, "finitely many candidates leave a bias"


@pytest.mark.parametrize(("steps", "most"), [(1, 4), (2, 3)])
def test_more_candidates_come_nearer_to_the_ar_law(steps: int, most: int) -> None:
    law, window = exact_law(ARTarget(PAIR.ar), 2), ",is_start=1,is_end=0"
    found = [
        distance(law_of(f"edlm,steps={steps},candidates={k}{window if k > 1 else ''}", 2), law)
        for k in range(1, most + 1)
    ]
    assert found == sorted(found, reverse=True), found


def test_tokens_filled_before_have_their_say_in_the_weight() -> None:
    law = exact_law(ARTarget(PAIR.ar), 2)
    whole, carried = (
        distance(law_of(f"edlm,steps=2,is_start=1,is_end=0,candidates=3,carry_over={each}", 2), law)
        for each in ("false", "true")
    )
    assert whole < carried - 0.005, f"whole candidates {whole:.4f}, open places alone {carried:.4f}"


@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_the_one_shot_form_is_proper(candidates: int) -> None:
    sampler = spelled(f"edlm,form=one-shot,candidates={candidates},lookahead=3").make(tabular_pair(2, 3))
    assert isinstance(sampler, Sampler)
    assert sampler.proper
    assert_proper(sampler)


def test_what_the_ar_model_excludes_is_never_picked_beside_another_and_always_under_the_released_sign() -> None:
    ar = TabularAR([[[0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]]])
    pair = tabular_pair(2, 2, eos=False)._replace(ar=ar)
    for sign in ("formula", "inverted"):
        decoder = spelled(f"edlm,steps=1,is_start=1,is_end=0,sign={sign}").make(pair)
        assert isinstance(decoder, Denoiser)
        q = output_law(Denoiser(decoder.proposal, steps=1), 2)[0, 1]
        excluded = output_law(decoder, 2)[0, 1]  # formula: both candidates are it; released: one of them is
        assert excluded == pytest.approx(q**2 if sign == "formula" else 1 - (1 - q) ** 2, abs=1e-12)


@pytest.mark.parametrize("text", [
    "edlm,is_start=1,is_end=0,steps=3,candidates=3", "edlm,steps=4,lookahead=2",
    "fk-steering,steps=3,every=2,samples=2,particles=3", "fk-steering,steps=4,every=2,lookahead=2,potential=add",
    "self-rewarding-smc,steps=3,every=1,particles=3,final=weights,lookahead=3",
])
def test_draws_do_not_depend_on_the_batch(text: str) -> None:
    """With refill, prompts of unequal lengths, and canvases in two parts."""
    decoder = spelled(text).make(toy_pair())
    alone = [decode(decoder, [prompt], seed=3, max_new_tokens=LIMIT)[0] for prompt in PROMPTS]
    for batch in (2, 4, None):
        together = decode(decoder, PROMPTS, seed=3, max_new_tokens=LIMIT, batch=batch)
        for one, other in zip(alone, together, strict=True):
            assert one.sequences == other.sequences
            assert one.log_weights == pytest.approx(other.log_weights, abs=1e-9)
            assert one.forwards == other.forwards
            assert other.complete
            assert not other.proper
    again = decode(decoder, PROMPTS, seed=4, max_new_tokens=LIMIT)
    assert [r.sequences for r in again] != [r.sequences for r in alone]


@pytest.mark.parametrize("text", [
    "edlm,is_start=1,is_end=0,steps=4,candidates=3", "edlm,steps=4", "fk-steering,steps=4,every=2,samples=3",
    "fk-steering,steps=6,every=3,samples=0,potential=max,lookahead=2",
    "self-rewarding-smc,steps=4,every=2,particles=3", "guided,lookahead=3", "guided,rule=top-k,likeliest=1",
])
def test_costs_are_those_that_counting_models_see(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"dlm": [], "ar": []}
    score, asked = TabularDiffusionSession.score, TabularCausalSession.score

    def counted(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
        seen["dlm"].append(len(rows))
        return score(self, rows, canvas)

    def counted_ar(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        seen["ar"].append(drafts.numel())
        seen.setdefault("rows", []).append(len(rows))
        return asked(self, rows, drafts)

    pair = toy_pair()
    monkeypatch.setattr(TabularDiffusionSession, "_condition", uncounted)
    monkeypatch.setattr(TabularDiffusionSession, "score", counted)
    monkeypatch.setattr(TabularCausalSession, "score", counted_ar)
    for seed in range(6):
        for calls in seen.values():
            calls.clear()
        [result] = decode(spelled(text).make(pair), [[1, 2]], seed=seed, max_new_tokens=LIMIT)
        cost = result.forwards
        assert (cost.dlm_forwards, cost.dlm_rows) == (len(seen["dlm"]), sum(seen["dlm"]))
        rows = sum(seen.get("rows", []))
        assert (cost.ar_forwards, cost.ar_rows, cost.ar_tokens) == (len(seen["ar"]), rows, sum(seen["ar"]))


def uncounted(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
    """Some law that depends on the canvas; the table's own asks its AR table, which would be counted."""
    return torch.cos(canvas[..., None].double() + torch.arange(self.model.vocab_size) + canvas.sum(1)[:, None, None])


@pytest.mark.parametrize(("text", "says"), [
    ("edlm,candidates=0", "candidates = 0: give a whole number of at least 1"),
    ("edlm,steps=0", "steps = 0: denoise in at least 1 step"),
    ("edlm,is_start=1.5", "is_start = 1.5: give a time in [0, 1]"),
    ("edlm,is_start=0.2", "is_end = 0.4 with is_start = 0.2: time falls from 1 to 0; give is_end <= is_start"),
    *((f"edlm,is_temp={x}", f"is_temp = {float(x)}: give a number from 0.001 to 1000, 1 for plain weights")
      for x in ("0", "1e-308", "1e308", "inf", "nan")),
    ("edlm,form=one-shot,candidates=0", "candidates = 0: give a whole number of at least 1"),
    ("edlm,form=one-shot,lookahead=0", "lookahead = 0: draft at least 1 position"),
    *(
        (f"edlm,candidates=1,{name}={value}", f"{name} = {says} with candidates = 1, which is not weighed: leave it")
        for name, value, says in (
            ("sign", "inverted", "'inverted'"), ("is_start", "0.7", "0.7"), ("is_end", "0.1", "0.1"),
            ("is_temp", "2", "2.0"), ("carry_over", "true", "True"),
        )
    ),
    ("edlm,form=one-shot,steps=4", "steps = 4 with form = one-shot, which has none: leave it out"),
    ("edlm,form=one-shot,sign=inverted", "sign = 'inverted' with form = one-shot, which has none: leave it out"),
])
def test_bad_options_are_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)) as caught:
        spelled(text).make(toy_pair())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "says"), [
    ({"sign": "own"}, "sign = 'own': give one of formula, inverted"),
    ({"form": "own"}, "form = 'own': give one of denoising, one-shot"),
    ({"temperature": -1}, "temperature of the proposal = -1"),
])
def test_bad_arguments_are_one_line(option: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(says)):
        module.edlm(toy_pair(), **option)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^the models' alphabets differ: 4 "):
        module.edlm(toy_pair(dlm_size=4))

"""SMC speculative decoding, and the token of the target behind a whole draft."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smc_bridge.distributions.intermediate import Proposal
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import always, never
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Verified
from smc_bridge.methods.smc_sd import smc_sd
from smc_bridge.models.host import known, sent
from smc_bridge.names import RESAMPLERS
from smc_bridge.prefix import PAD
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.testing import assert_biased, assert_proper, mutated, tabular_pair
from tests.smc_bridge.programs import program, target_law, worst
from tests.smc_bridge.test_full_enumeration import raw_enumeration

PAIR = tabular_pair(2, 3)


@pytest.mark.parametrize("options", [
    {}, {"proposal": "chain"}, {"trigger": "always"}, {"trigger": "never"}, {"lanes": 2, "particles": 1},
    {"proposal_temperature": 0.7}, {"particles": 3, "window": 1}, {"lookahead": 3},
    {"bonus": True}, {"bonus": True, "proposal": "chain"}, {"bonus": True, "trigger": "always", "window": 1},
], ids=str)
def test_it_is_properly_weighted(options: dict[str, Any]) -> None:
    assert_proper(smc_sd(PAIR, **{"particles": 2, "window": 2, **options}))


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_it_is_proper_under_every_resampler(resampler: str) -> None:
    assert_proper(smc_sd(PAIR, particles=2, window=2, trigger="always", resampler=resampler))


def test_its_step_commits_gamma_tokens_of_every_particle_and_drafts_anew() -> None:
    pair = tabular_pair(3, 8, eos=False)
    [result] = smc_sd(pair, particles=4, window=3).run([[0]], seed=2, max_new_tokens=7)
    assert [record.length for record in result.trace] == [[[3]] * 4, [[3]] * 4, [[1]] * 4]
    # A forward of the DLM for every window: marginals of gamma places do not outlive one.
    assert result.forwards.dlm_forwards == result.forwards.ar_forwards == 3


def test_with_a_bonus_its_step_commits_one_more_token_for_the_same_forwards() -> None:
    pair = tabular_pair(3, 8, eos=False)
    [result] = smc_sd(pair, particles=4, window=3, bonus=True).run([[0]], seed=2, max_new_tokens=7)
    assert [record.length for record in result.trace] == [[[4]] * 4, [[3]] * 4]
    assert result.forwards.dlm_forwards == result.forwards.ar_forwards == 2


def test_the_weight_is_the_ratio_of_target_and_draft() -> None:
    pair = tabular_pair(3, 4, eos=False)
    [result] = smc_sd(pair, particles=5, window=4, trigger="never").run([[]], seed=4, max_new_tokens=4)
    marginal = pair.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)).score(
        torch.tensor([0]), torch.full((1, 4), -1)
    )[0].log_softmax(-1)
    for sequence, log_weight in zip(result.sequences, result.log_weights, strict=True):
        log_q = sum(float(marginal[i, token]) for i, token in enumerate(sequence))
        log_p = sum(float(table.log()[(*sequence[:i], sequence[i])]) if table.dim() > 2 else float(
            table[sum(t * 3 ** (i - 1 - j) for j, t in enumerate(sequence[:i])), sequence[i]].log()
        ) for i, table in enumerate(pair.ar.tables))
        assert log_weight == pytest.approx(log_p - log_q)


def test_keeping_the_particle_of_greatest_weight_is_caught() -> None:
    """How the published program ends: a selection that is not drawn from the weights."""
    from smc_bridge.testing import mutants

    sampler = smc_sd(PAIR, particles=2, window=2, trigger="always")
    sampler.resampler = mutants.KeepsTheBest()
    assert_biased(sampler)


def test_weights_that_are_not_reset_are_caught() -> None:
    with mutated("weights not reset"):
        assert_biased(smc_sd(PAIR, particles=2, window=2, trigger="always"))


@pytest.mark.parametrize(("options", "message"), [
    ({"window": 0}, "window = 0: give a whole number"), ({"particles": 0}, "particles = 0"),
    ({"lookahead": -1}, "lookahead = -1: give a whole number"),
    ({"resampler": "multinomial", "trigger": "never"}, "leave one of them out"),
])
def test_bad_parameters_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        smc_sd(PAIR, **options)
    assert "\n" not in str(caught.value)


def test_draws_do_not_depend_on_the_batch() -> None:
    sampler = smc_sd(tabular_pair(3, 6), particles=3, window=2)
    prompts, seeds = [[0], [1], [0, 1]], [5, 6, 7]
    together = sampler.run(prompts, seed=seeds, max_new_tokens=4, batch=2)
    for prompt, seed, result in zip(prompts, seeds, together, strict=True):
        [alone] = sampler.run([prompt], seed=seed, max_new_tokens=4)
        assert (alone.sequences, alone.log_weights) == (result.sequences, result.log_weights)


def opened(draft: Draft) -> Draft:
    """The draft with one more place behind it, as far as the window goes, where the proposal has no opinion."""
    width = known(draft.width)
    place = torch.arange(draft.tokens.shape[1])
    last = sent(width - 1, draft.tokens.device)[:, None] == place
    last &= draft.width[:, None] > 1  # something is drafted before it
    q = draft.q.dense().masked_fill(last[..., None], -math.inf)
    return draft._replace(tokens=draft.tokens.masked_fill(last, PAD), q=Dense(q))


class OpenEnded(DLMProposal):
    """The last place of each draft is left open."""

    def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
        return opened(super().draft(state, asked, source=source))


class OpenEndedChain(PrefixFilled):
    """The same of the chain: places behind an end of sequence are no business of anybody."""

    def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
        return opened(super().draft(state, asked, source=source))


def with_bonus(kernel: AcceptAll, *, chain: bool = False, **options: Any) -> tuple[Sampler, dict[Any, float]]:
    """A program whose drafts end with an open place, and its target's law."""
    sampler = program(kernel, **options)
    expected = target_law(sampler, 3)
    model = sampler.proposal.model
    base = OpenEnded(model, temperature=1.2, lookahead=3)  # type: ignore[arg-type]
    sampler.proposal = OpenEndedChain(DLMProposal(model, temperature=1.2, lookahead=3)) if chain else base  # type: ignore[arg-type]
    return sampler, expected


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("trigger", [always, never])
def test_a_bonus_token_of_the_target_keeps_weights_right(
    trigger: Any, window: int, eos: int | None, chain: bool
) -> None:
    """Every draw of the real engine is a branch: `E[Z_hat sum_k W_k 1{x_k = s}] = p(s)` for every sequence."""
    sampler, expected = with_bonus(
        AcceptAll(bonus=True), chain=chain, eos=eos, particles=1, window=window, trigger=trigger
    )
    gap, message = worst(raw_enumeration(sampler, 3)[0], expected)
    assert gap < 1e-12, message


def test_a_bonus_token_weighs_nothing() -> None:
    sampler, _ = with_bonus(AcceptAll(bonus=True), eos=None, particles=4, window=2, trigger=never)
    [result] = sampler.run([[]], seed=3, max_new_tokens=2)
    [record] = result.trace
    assert record.length == [[2]] * 4
    assert record.accepted == [[1]] * 4
    firsts = defaultdict(set)
    for sequence, log_weight in zip(result.sequences, result.log_weights, strict=True):
        firsts[sequence[0]].add(round(log_weight, 12))
    # The weight is that of the drafted token alone, whatever the token of the target behind it.
    assert all(len(weights) == 1 for weights in firsts.values()), dict(firsts)


class WeighedAgainstTheDraft(AcceptAll):
    """The law of the bonus place is taken for that of the proposal: the last token is drawn from p and weighed by
    `p / pi` of a uniform pi."""

    def move(self, draft: Draft, verifier: Any, **options: Any) -> Verified:
        found = super().move(draft, verifier, **options)
        open_place = (draft.tokens == PAD)[..., None]
        uniform = -math.log(found.pi.shape[-1])
        return found._replace(pi=Dense(torch.where(open_place, uniform, found.pi.dense())))


def test_a_bonus_token_that_is_weighed_is_caught() -> None:
    sampler, expected = with_bonus(WeighedAgainstTheDraft(bonus=True), eos=None, particles=1)
    gap, message = worst(raw_enumeration(sampler, 3)[0], expected)
    assert gap > 1e-3, message


@pytest.mark.parametrize("make", [AcceptAll, lambda: AcceptAll(bonus=True)])
def test_both_forms_keep_what_a_kernel_promises(make: Callable[[], AcceptAll]) -> None:
    assert_proper(make())


def test_an_open_place_without_bonus_is_refused_by_name() -> None:
    sampler, _ = with_bonus(AcceptAll(), eos=None, particles=1)
    with pytest.raises(ValueError, match=r"the draft has no token at place 1 .*AcceptAll\(bonus=True\)"):
        sampler.run([[]], seed=1, max_new_tokens=3)
    with pytest.raises(ValueError, match="bonus = 'no': give True or False"):
        AcceptAll(bonus="no")  # type: ignore[arg-type]


def test_draws_of_a_bonus_do_not_depend_on_the_batch() -> None:
    sampler, _ = with_bonus(AcceptAll(bonus=True), eos=1, particles=2, window=2)
    prompts, seeds = [[], [0], [0, 0]], [5, 6, 7]
    together = sampler.run(prompts, seed=seeds, max_new_tokens=3, batch=2)
    for prompt, seed, result in zip(prompts, seeds, together, strict=True):
        [alone] = sampler.run([prompt], seed=seed, max_new_tokens=3)
        assert (alone.sequences, alone.log_weights) == (result.sequences, result.log_weights)
    assert isinstance(sampler.intermediate, Proposal)

"""Chains that fill several places per forward, and the one drawn by self-speculation: exact, and what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, DLMProposal, Mixture, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.distributions.residual import log_committed
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularDiffusionSession
from smc_bridge.names import CHAINS, LEARNED, RESAMPLERS
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.entropy_chain import EntropyChain
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.proposals.self_speculation import SelfSpeculated
from smc_bridge.randomness import PromptSource
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, enumerate_sampler, exact_law, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_proposals import asked_for

PAIR = tabular_pair(3, 3)
Form = Callable[[DLMProposal], Any]
#: A budget with which some forwards fill one place and others several.
BUDGET = 0.8
FORMS: dict[str, Form] = {
    "two places": lambda base: PrefixFilled(base, places=2), "all places": lambda base: PrefixFilled(base, places=9),
    "entropy": lambda base: EntropyChain(base, entropy=BUDGET), "none": lambda base: EntropyChain(base, entropy=0.0),
    "speculated": SelfSpeculated, "two at once": lambda base: SelfSpeculated(base, window=2),
}


def program(form: Form, pair: Any = PAIR, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 3, "particles": 1, "intermediate": Mixture(0.5), **options}
    temperature = given.pop("temperature", 1.0)
    return Sampler(form(DLMProposal(pair.dlm, temperature=temperature, lookahead=3)), ARTarget(pair.ar), **given)


def assert_exact(sampler: Sampler) -> None:
    gap, where = worst(enumerate_sampler(sampler, 3).proper, exact_law(sampler.target, 3))
    assert gap < 1e-12, where


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", ["rejection", "block"])
def test_every_chain_is_exact_on_every_outcome(form: str, kernel: str) -> None:
    assert_exact(program(FORMS[form], kernel=kernel))
    assert_exact(program(FORMS[form], tabular_pair(2, 3), kernel=kernel, lanes=2, intermediate=ProductOfExperts(0.4)))


@pytest.mark.parametrize("form", ["two places", "entropy", "two at once"])
def test_a_chain_passes_for_a_proposal_of_ones_own(form: str) -> None:
    assert_proper(FORMS[form](DLMProposal(tabular_pair(2, 3).dlm, lookahead=3)))


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("form", ["two places", "entropy", "speculated"])
def test_every_chain_is_exact_under_every_resampler(form: str, resampler: str) -> None:
    assert_exact(program(FORMS[form], tabular_pair(2, 3), particles=2, window=2, resampler=resampler))


@pytest.mark.parametrize("form", ["two places", "entropy", "speculated"])
@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel"])
def test_every_chain_is_exact_by_the_kernels_closed_form(form: str, kernel: str) -> None:
    """Also of the coupling, whose noise cannot be listed; and of a retained sequence, by the laws along it."""
    sampler = program(FORMS[form], tabular_pair(2, 3), kernel=kernel, particles=2)
    law = target_law(sampler, 3)
    gap, where = worst(enumerate_program(sampler, 3).proper, law)
    assert gap < 1e-12, where
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_laws_along_a_block_group_its_places_as_its_draft_did(form: str, temperature: Any) -> None:
    pair = tabular_pair(3, 5, seed=3)
    chain = FORMS[form](DLMProposal(pair.dlm, temperature=temperature, lookahead=5))
    assert proposal_fault(chain, lanes=2, limit=4) is None


def test_along_another_grouping_a_retained_sequence_is_caught() -> None:
    """Laws along a block that are grouped otherwise than its draft are none that the draft could come from."""

    class Elsewhere(EntropyChain):
        def along(self, state: Any, asked: Asked, lane: Tensor, block: Tensor) -> Any:
            return PrefixFilled(self.base, places=2).along(state, asked, lane, block)

    chain = Elsewhere(DLMProposal(tabular_pair(3, 5, seed=3).dlm, lookahead=5), entropy=BUDGET)
    fault = proposal_fault(chain, lanes=1, limit=4)
    assert fault is not None
    assert "along differs" in fault


def test_places_that_share_a_forward_and_are_scored_as_if_they_did_not_are_caught() -> None:
    """The draft's tokens are independent where its laws say that each was drawn with those before it in view."""

    class Pretending(EntropyChain):
        def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
            found = super().draft(state, asked, source=source)
            lane = torch.arange(found.width.numel())
            return found._replace(q=PrefixFilled(self.base).along(state, asked, lane, found.tokens))

    assert_biased(program(lambda base: Pretending(base, entropy=5.0), tabular_pair(2, 3, eos=False)), least=1e-3)


def test_a_group_is_what_the_entropies_before_its_last_place_allow() -> None:
    chain = EntropyChain(DLMProposal(PAIR.dlm), entropy=0.5)
    sure, split = [9.0, 0.0, -9.0], [0.0, 0.0, -9.0]  # 0.001 and 0.69 nats
    rows = [[sure, sure, sure], [split, sure, sure], [sure, split, split], [sure, sure, split]]
    assert chain.group(torch.tensor(rows)).tolist() == [3, 1, 2, 3]
    law = Shaping().log_probs(torch.tensor(split))
    exactly = float(-(law.exp() * law).double().sum())
    assert EntropyChain(chain.base, entropy=exactly).group(torch.tensor([[split, split, split]])).tolist() == [2]


def scored(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Canvases of every call of the diffusion model from now on."""
    calls: list[list[list[int]]] = []
    score = TabularDiffusionSession.score

    def counting(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
        calls.append(canvas.tolist())
        return score(self, rows, canvas)

    monkeypatch.setattr(TabularDiffusionSession, "score", counting)
    return calls


def draft_of(chain: Any, *, seed: int, lanes: int = 1, prompts: int = 1) -> Draft:
    prefix = Prefix.of([[]] * prompts)
    state = chain.open(prefix, particles=1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(prompts)]
    asked = asked_for(prefix, lanes=lanes, window=6, room=6)
    found: Draft = chain.draft(state, asked, source=PromptSource(generators, lanes))
    return found


@pytest.mark.parametrize(
    ("places", "shown"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (6, [0]), (7, [0])]
)
def test_a_forward_fills_as_many_places_as_it_is_told(
    places: int, shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tabular_pair(2, 6, eos=False)
    calls = scored(monkeypatch)
    draft = draft_of(PrefixFilled(DLMProposal(pair.dlm, lookahead=6), places=places), seed=1)
    assert [sum(token != MASKED for token in canvas) for [canvas] in calls] == shown
    assert draft.cost is not None
    assert draft.cost.per_prompt(1) == ([len(shown)], [len(shown)])


def test_self_speculation_shows_one_row_for_each_number_of_drafted_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is a draft and a verification; after a draft that was accepted whole the next one needs no forward."""
    pair = tabular_pair(2, 6, eos=False, noise=0.1)
    calls, kinds = scored(monkeypatch), set()
    for seed in range(20):
        del calls[:]
        draft = draft_of(SelfSpeculated(DLMProposal(pair.dlm, lookahead=6), window=2), seed=seed)
        assert draft.cost is not None
        assert draft.cost.per_prompt(1) == ([len(calls)], [sum(map(len, calls))])
        shown = [tuple(sum(token != MASKED for token in canvas) for canvas in call) for call in calls]
        assert shown[:2] == [(0,), (1, 2)], shown
        kinds.add(tuple(shown))
        for before, after in itertools.pairwise(shown):
            if len(before) == 2 and len(after) == 2:  # accepted whole: the last row is the next draft's own
                assert after[0] == before[1] + 1
    assert ((0,), (1, 2), (3, 4), (5,)) in kinds, kinds


def test_self_speculation_draws_from_the_chain_rule_in_fewer_forwards() -> None:
    """On the embedded pair: forwards one after the other per token, and rows; the law is that of the chain (above)."""
    pair, task = load_pair("arithmetic", dlm_cache="none"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(1)]
    used = {}
    for proposal in ("chain", "speculated-chain"):
        runs = smc(pair, 1, window=16, w=0.3, proposal=proposal).run(prompts, seed=1, max_new_tokens=16)
        used[proposal] = sum(r.forwards.dlm_forwards for r in runs) / sum(r.tokens for r in runs)
    assert used["speculated-chain"] < 0.6 * used["chain"], used


@pytest.mark.parametrize("options", [{"proposal": "speculated-chain"}, {"proposal": "chain", "lanes": 3}])
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_every_forward_of_the_network_is_counted(cache: str, options: dict[str, Any]) -> None:
    """Under a cache that keeps what a forward has computed, rows of one prefix in a call are computed in turn."""
    pair = load_pair("arithmetic", dlm_cache=cache)
    network: Any = pair.dlm.model  # type: ignore[attr-defined]
    ran: list[int] = []
    handle = network.register_forward_hook(lambda *_: ran.append(1))
    try:
        [run] = smc(pair, 1, window=4, lookahead=4, w=0.3, **options).run(
            [pair.encode("Ann has 3 apples.").tolist()], seed=1, max_new_tokens=12
        )
    finally:
        handle.remove()
    assert run.forwards.dlm_forwards == len(ran)


@pytest.mark.parametrize("form", FORMS)
def test_draws_and_costs_of_chains_do_not_depend_on_the_batch(form: str) -> None:
    pair = tabular_pair(3, 6, seed=1)
    sampler = program(FORMS[form], pair, lanes=2, particles=2)
    prompts: list[list[int]] = [[], [0], [1], [0, 1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=3)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
        assert alone.log_weights == pytest.approx(together[place].log_weights, abs=1e-12)


def test_what_is_committed_given_the_draft_has_the_law_of_pi() -> None:
    """Acceptance and correction as one law: `sum_d q(d) K(y | d) = pi(y)`, zeros and equal laws included."""
    rows = [[0.5, 0.3, 0.2, 0.0], [0.0, 0.6, 0.1, 0.3], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]
    laws = torch.tensor(rows, dtype=torch.float64).log()
    for q in laws:
        for pi in laws:
            drafted = (q > -torch.inf).nonzero().flatten()
            kernel = log_committed(q.expand(len(drafted), -1), pi.expand(len(drafted), -1), drafted).exp()
            assert float((kernel.sum(-1) - 1).abs().max()) < 1e-12
            assert float((q.exp()[drafted] @ kernel - pi.exp()).abs().max()) < 1e-12
            agreed = float((q.exp()[drafted] * kernel.gather(1, drafted[:, None])[:, 0]).sum())
            assert agreed == pytest.approx(float(torch.minimum(q.exp(), pi.exp()).sum()))


def test_a_chain_without_draws_has_no_law() -> None:
    chain = SelfSpeculated(DLMProposal(PAIR.dlm))
    prefix = Prefix.of([[]])
    with pytest.raises(ValueError, match="source = None: a chain has no law without a draft"):
        chain.draft(chain.open(prefix, particles=1), asked_for(prefix, lanes=1, window=2), source=None)


@pytest.mark.parametrize("proposal", [name for name in CHAINS if name not in LEARNED])
def test_chains_go_by_name_and_say_what_shapes_them(proposal: str) -> None:
    option = {"chain": {"places": 2}, "entropy-chain": {"entropy": 0.3}}.get(proposal, {})
    sampler = smc(PAIR, 1, proposal=proposal, **option)
    found = sampler.settings(max_new_tokens=3)["proposal"]
    assert {**found, **option} == found
    for needs in ({"kernel": "tree"}, {"weight": "balance", "lanes": 2}, {"reuse": 0.5}):
        with pytest.raises(ValueError, match=f"proposal = {proposal}") as caught:
            smc(PAIR, 1, proposal=proposal, **needs)
        assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "places": (lambda: PrefixFilled(DLMProposal(PAIR.dlm), places=0), "places = 0: "),
    "entropy": (lambda: EntropyChain(DLMProposal(PAIR.dlm), entropy=-1.0), "entropy = -1.*: give a budget of at least"),
    "window": (lambda: SelfSpeculated(DLMProposal(PAIR.dlm), window=0), "window = 0: "),
    "places of one": (lambda: SelfSpeculated(DLMProposal(PAIR.dlm), places=2), "places = 2 of a self-speculated chain"),
    "option of another": (lambda: smc(PAIR, proposal="chain", entropy=0.1), "entropy = 0.1 with proposal = 'chain', "),
    "option of none": (lambda: smc(PAIR, places=2), "places = 2 with proposal = 'marginals', which has none: leave"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

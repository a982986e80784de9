"""Proposals that do not factorise, and one that is a point mass: each exact with every kernel that takes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import (
    AcceptAll,
    ARTarget,
    BalanceHeuristic,
    BlockVerification,
    Defensive,
    DLMProposal,
    GumbelCoupling,
    Mixture,
    ProductOfExperts,
    Proposal,
    Rejection,
    Sampler,
    Target,
    TreeWalk,
    load_pair,
)
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.tabular import TabularDiffusionSession
from smc_bridge.names import RESAMPLERS
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import PrefixFilled, prefix_filled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.proposals.protocol import Asked
from smc_bridge.randomness import PromptSource
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(3, 3)
#: What is exact with laws that do not cover the target's.
DOMINATING = {"mixture": Mixture(0.5), "target": Target(), "defensive": Defensive(ProductOfExperts(0.4), 0.2)}
COVERING = {**DOMINATING, "product": ProductOfExperts(0.4), "proposal": Proposal()}
#: Whose draws can be listed.
LISTED: dict[str, Callable[[], StoppingKernel]] = {"rejection": Rejection, "block": BlockVerification}


def program(form: Callable[[DLMProposal], Any], pair: Any = PAIR, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 2, "particles": 2, "intermediate": ProductOfExperts(0.4), **options}
    temperature = given.pop("temperature", 1.0)
    return Sampler(form(DLMProposal(pair.dlm, temperature=temperature, lookahead=3)), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("kernel", LISTED)
@pytest.mark.parametrize("intermediate", COVERING)
@pytest.mark.parametrize("lanes", [1, 2])
def test_the_chain_is_exact_on_every_outcome(kernel: str, intermediate: str, lanes: int) -> None:
    assert_proper(program(
        PrefixFilled, kernel=LISTED[kernel](), intermediate=COVERING[intermediate], lanes=lanes, particles=3 - lanes
    ))


@pytest.mark.parametrize("kernel", [*LISTED, "tree"])
@pytest.mark.parametrize("intermediate", DOMINATING)
@pytest.mark.parametrize("lanes", [1, 2])
def test_the_path_is_exact_on_every_outcome(kernel: str, intermediate: str, lanes: int) -> None:
    build = {**LISTED, "tree": lambda: TreeWalk(3)}[kernel]
    assert_proper(program(
        MostLikelyPath, kernel=build(), intermediate=DOMINATING[intermediate], lanes=lanes, particles=3 - lanes
    ))


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("form", [PrefixFilled, MostLikelyPath])
def test_both_are_exact_under_every_resampler(form: Any, resampler: str) -> None:
    assert_proper(program(form, resampler=resampler, intermediate=Mixture(0.5), pair=tabular_pair(2, 3)))


@pytest.mark.parametrize("form", [PrefixFilled, MostLikelyPath])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("kernel", [Rejection, BlockVerification, GumbelCoupling])
def test_both_are_exact_by_the_kernels_closed_form(
    form: Any, lanes: int, kernel: Callable[[], StoppingKernel]
) -> None:
    """Also of the coupling, whose noise cannot be listed: that its moves have this law is shown by the kernel tests."""
    pair = tabular_pair(2, 3)
    sampler = program(form, pair, kernel=kernel(), intermediate=Mixture(0.5), lanes=lanes, particles=3 - lanes)
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


@pytest.mark.parametrize("form", [PrefixFilled, MostLikelyPath])
def test_a_retained_sequence_is_drafted_along_its_own_laws(form: Any) -> None:
    """Conditional SMC with an exact retained draw: `E[1 / Z_hat] = 1` and the retained lane comes out as drawn."""
    pair = tabular_pair(2, 3)
    sampler = program(form, pair, intermediate=Mixture(0.5))
    law = target_law(sampler, 3)
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    # Of the final particles, weighted, each has the target's law (particle Gibbs leaves it invariant).
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


def test_a_retained_sequence_may_end_before_the_other_particles() -> None:
    sampler = program(PrefixFilled, tabular_pair(3, 6, seed=1), particles=3, window=1)
    results = sampler.run([[0]] * 6, seed=range(6), max_new_tokens=3, retained=[[2]] * 6)
    assert all(result.complete for result in results)


@pytest.mark.parametrize(("found", "words"), [(None, "is a NoneType"), (Dense(torch.zeros(1, 2, 3)), "has shape")])
def test_laws_along_a_block_are_checked(found: Any, words: str) -> None:
    class Along(PrefixFilled):
        def along(self, state: Any, asked: Asked, lane: Tensor, block: Tensor) -> Any:
            return found

    with pytest.raises(ValueError, match=f"Along.along {words}"):
        program(Along).run([[], []], seed=[1, 2], max_new_tokens=3, retained=[[0, 0, 0], [0, 2]])


def test_accepting_all_of_a_chain_is_plain_importance_sampling() -> None:
    assert_proper(program(PrefixFilled, kernel=AcceptAll(), intermediate=Proposal()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tree": ({"kernel": TreeWalk(3)}, r"kernel = TreeWalk\(3.* PrefixFilled .*use Rejection\(\)"),
    "balance": ({"weight": BalanceHeuristic(), "lanes": 2}, r"weight = .* PrefixFilled .*use OwnWeights\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_marginals_refuses_a_chain_by_name(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        program(PrefixFilled, **options)
    assert "\n" not in str(caught.value)


def test_a_path_with_an_intermediate_that_it_starves_is_not_proper() -> None:
    sampler = program(MostLikelyPath)
    assert not sampler.proper
    assert "Defensive" in sampler.why_improper()[0]
    assert_biased(sampler)


def test_accepting_all_of_a_path_is_not_proper() -> None:
    """Every sequence but one is left out, and no intermediate can defend what no kernel draws from."""
    sampler = program(MostLikelyPath, kernel=AcceptAll(), intermediate=Proposal())
    assert not sampler.proper
    assert "leaves out tokens" in sampler.why_improper()[0]
    [result] = sampler.run([[]], seed=1, max_new_tokens=3)
    assert not result.proper
    assert_biased(sampler, least=1e-2)
    with pytest.raises(AssertionError, match="is not proper"):
        assert_proper(sampler)


def test_a_path_scored_as_if_it_were_drawn_is_caught() -> None:
    """The ratio test on a path: accept with `pi / q` of the marginals that it was read from."""

    class Pretending(MostLikelyPath):
        def draft(self, state: Any, asked: Asked, *, source: Any) -> Any:
            found = super().draft(state, asked, source=source)
            return found._replace(q=self.base.draft(state, asked, source=None).q)

    assert_biased(program(Pretending, intermediate=Target()))


def asked_for(prefix: Prefix, *, lanes: int, window: int, room: int = 3) -> Asked:
    rows = torch.arange(prefix.length.numel())
    return Asked(rows, prefix, torch.full_like(rows, room), lanes, window, Chunks())


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_the_laws_of_a_draft_are_those_along_it(temperature: Any) -> None:
    chain = PrefixFilled(DLMProposal(PAIR.dlm, temperature=temperature, lookahead=3))
    prefix = Prefix.of([[], [0]])
    state, asked = chain.open(prefix, particles=1), asked_for(prefix, lanes=2, window=2, room=2)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    draft = chain.draft(state, asked, source=PromptSource(generators, 2))
    along = chain.along(state, asked, torch.arange(4), draft.tokens)
    ended = (draft.tokens == PAIR.dlm.eos_id).long().cumsum(-1) - (draft.tokens == PAIR.dlm.eos_id).long()
    gap = (draft.q.dense().exp() - along.dense().exp()).abs().amax(-1)
    assert float(gap[ended == 0].max()) < 1e-12


def test_prefix_filled_rows_are_the_models_own_conditionals() -> None:
    session = PAIR.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    block = torch.tensor([[1, 0, 1]])
    found = prefix_filled(session, torch.tensor([0]), block, torch.tensor([3]), 3)
    for i in range(3):
        canvas = torch.where(torch.arange(3) < i, block, MASKED)
        assert torch.equal(found[0, i], session.score(torch.tensor([0]), canvas)[0, i])


@pytest.mark.parametrize("form", [PrefixFilled, MostLikelyPath])
def test_draws_and_costs_do_not_depend_on_the_batch(form: Any) -> None:
    sampler = program(form, intermediate=Mixture(0.5), lanes=2)
    prompts: list[list[int]] = [[], [0], [1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=2)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=2)
        found = together[place]
        assert (alone.sequences, alone.forwards) == (found.sequences, found.forwards)
        assert alone.log_weights == pytest.approx(found.log_weights, abs=1e-12)


@pytest.mark.parametrize("form", [PrefixFilled, MostLikelyPath, lambda base: base])
def test_every_row_that_the_model_scores_is_counted(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = TabularDiffusionSession.score

    def counting(self: TabularDiffusionSession, rows: Tensor, canvas: Tensor) -> Tensor:
        calls.append(rows.numel())
        return score(self, rows, canvas)

    monkeypatch.setattr(TabularDiffusionSession, "score", counting)
    [result] = program(form, intermediate=Mixture(0.5), lanes=2).run([[]], seed=1, max_new_tokens=3)
    assert (result.forwards.dlm_forwards, result.forwards.dlm_rows) == (len(calls), sum(calls))


def test_a_chain_commits_more_tokens_of_a_draft_than_marginals() -> None:
    """On the embedded pair; how many, and what it costs: `python -m benchmarks.proposals`."""
    pair, task = load_pair("arithmetic"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    per_draft = []
    for form in (lambda base: base, PrefixFilled):
        proposal: Any = form(DLMProposal(pair.dlm, lookahead=32))
        sampler = Sampler(proposal, ARTarget(pair.ar), ProductOfExperts(0.3), window=16)
        results = sampler.run(prompts, seed=1, max_new_tokens=40)
        per_draft.append(sum(r.tokens for r in results) / sum(len(r.trace) for r in results))
    assert per_draft[1] > 1.3 * per_draft[0], per_draft
    assert math.isfinite(per_draft[0])


def test_a_sampler_shows_its_proposal_by_name() -> None:
    told = repr(program(PrefixFilled))
    assert re.search(r"^ *proposal +PrefixFilled of TabularDLM", told, flags=re.MULTILINE), told

"""Transitions that the features of a place choose: proper with every kernel, kept with the logits, caught where they
are those of another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, DLMProposal, ProductOfExperts, Sampler, smc
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.learned.markov import MarkovHead
from smc_bridge.models.learned.selector import SelectorHead
from smc_bridge.models.protocols import MASKED
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.markov import MarkovChain
from smc_bridge.randomness import PromptSource
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.smc_enumeration import assert_exact_around_retained
from tests.smc_bridge.test_proposals import asked_for

TWO, THREE = tabular_pair(2, 3), tabular_pair(3, 3)


def head_of(size: int, seed: int = 1) -> SelectorHead:
    """A head that moves every law, and each place in a way of its own."""
    head, generator = SelectorHead(vocabulary=size, hidden=size, rank=2), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return head.eval()


def chain_of(pair: Any, head: Any = None, **options: Any) -> MarkovChain:
    base = DLMProposal(pair.dlm, **{"lookahead": 3, **options})
    return MarkovChain(base, head_of(pair.dlm.vocab_size) if head is None else head)


def program(pair: Any = TWO, proposal: Any = None, **options: Any) -> Sampler:
    given = {"window": 3, "particles": 1, "intermediate": ProductOfExperts(0.4), **options}
    return Sampler(chain_of(pair) if proposal is None else proposal, ARTarget(pair.ar), **given)


PROGRAMS: dict[str, Callable[[], Sampler]] = {
    "rejection": lambda: program(THREE),
    "block": lambda: program(THREE, kernel="block"),
    "a tree": lambda: program(THREE, kernel=TreeWalk(4)),
    "particles on trees": lambda: program(kernel=TreeWalk(3), particles=2),
    "temperatures on trees": lambda: program(
        proposal=chain_of(TWO, temperature=[0.5, 2.0]), lanes=2, window=2, kernel=TreeWalk(2)
    ),
    "elastic": lambda: program(window=1, particles=2),
    "reuse": lambda: program(proposal=chain_of(TWO, reuse=0.1), window=2, particles=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_with_it_is_proper(name: str) -> None:
    assert_proper(PROGRAMS[name]())


@pytest.mark.parametrize("kernel", ["rejection", "gumbel", "tree"])
def test_it_is_exact_by_the_kernels_closed_form_and_around_a_retained_sequence(kernel: str) -> None:
    """Also of the coupling, whose noise cannot be listed."""
    sampler = program(kernel=TreeWalk(3) if kernel == "tree" else kernel, particles=2)
    assert_exact_around_retained(sampler, 3)


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_its_laws_along_a_block_are_those_of_its_draft(temperature: Any) -> None:
    chain = chain_of(tabular_pair(3, 5, seed=3), temperature=temperature, lookahead=5)
    assert proposal_fault(chain, lanes=2, limit=4) is None


def test_laws_are_those_of_the_formula_at_every_place_along_drafts_and_off_them() -> None:
    """Against the network's own forward on the model's features; `given` and `ranked` say the same as the draft."""
    pair, rows = tabular_pair(3, 4, seed=2, eos=False), 5
    chain, prefix = chain_of(pair, lookahead=4), Prefix.of([[]] * rows)
    asked, state = asked_for(prefix, lanes=1, window=3), chain.open(prefix, particles=1)
    draft = chain.draft(state, asked, source=PromptSource([torch.Generator().manual_seed(i) for i in range(rows)], 1))
    canvas = torch.full((rows, 4), MASKED)
    scored = pair.dlm.session(prefix.tokens, prefix.length).score(torch.arange(rows), canvas, hidden=True)
    before = torch.cat([torch.full((rows, 1), -1), draft.tokens[:, :2]], 1)
    head: Any = chain.head
    wanted = (scored.logits[:, :3] + head(before, scored.hidden[:, :3]).detach()).log_softmax(-1)
    law: Any = draft.q
    torch.testing.assert_close(law.dense(), wanted, rtol=0, atol=1e-6)
    all_rows, places = torch.arange(rows), torch.arange(3).expand(rows, 3)
    torch.testing.assert_close(law.given(all_rows, places, before).dense(), wanted, rtol=0, atol=1e-6)
    for i in range(3):
        scores, factor = law.ranked(all_rows, i, before[:, i])
        torch.testing.assert_close((factor * scores).log_softmax(-1), wanted[:, i], rtol=0, atol=1e-6)
    assert float((wanted[:, 1] - wanted[:, 2])[before[:, 1] == before[:, 2]].abs().max()) > 0.01


def test_features_of_another_place_are_caught() -> None:
    class Blurred(SelectorHead):
        """It draws by the features of other places, and says that it did not."""

        drawing = False

        def at(self, features: Tensor) -> Any:
            return super().at(features.flip(1) if self.drawing else features)

    class Drawing(MarkovChain):
        def draft(self, state: Any, asked: Any, *, source: Any) -> Any:
            self.head.drawing = True  # type: ignore[union-attr]
            found = super().draft(state, asked, source=source)
            self.head.drawing = False  # type: ignore[union-attr]
            return found._replace(q=self.along(state, asked, torch.arange(len(found.tokens)), found.tokens))

    head = Blurred(vocabulary=2, hidden=2, rank=2)
    head.load_state_dict(head_of(2).state_dict())
    assert_biased(program(proposal=Drawing(DLMProposal(TWO.dlm, lookahead=3), head)), least=1e-3)


@pytest.mark.parametrize("kernel", ["rejection", "tree"])
def test_draws_and_costs_do_not_depend_on_the_batch(kernel: str) -> None:
    pair = tabular_pair(3, 6, seed=1)
    sampler = program(
        pair, chain_of(pair, temperature=[0.6, 1.5], lookahead=6), lanes=2, particles=2, window=2,
        kernel=TreeWalk(4) if kernel == "tree" else kernel,
    )
    prompts: list[list[int]] = [[], [0], [1], [0, 1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=3)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
        assert alone.log_weights == pytest.approx(together[place].log_weights, abs=1e-12)


def test_without_what_a_place_says_it_is_a_markov_head() -> None:
    head, size = head_of(3), 3
    with torch.no_grad():
        head.place.weight.zero_()
        head.before[0].zero_()
        head.place.bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    markov = MarkovHead(vocabulary=size, rank=2).eval()
    markov.load_state_dict({"before": head.before[1:].detach(), "after": head.after.detach()})
    drafts = []
    for one in (head, markov):
        chain, prefix = chain_of(THREE, one), Prefix.of([[]] * 3)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        draft = chain.draft(chain.open(prefix, particles=1), asked_for(prefix, lanes=1, window=3),
                            source=PromptSource(generators, 1))
        drafts.append(draft)
    assert torch.equal(drafts[0].tokens, drafts[1].tokens)
    torch.testing.assert_close(drafts[0].q.dense(), drafts[1].q.dense(), rtol=0, atol=1e-6)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another alphabet": (
        lambda: chain_of(TWO, SelectorHead(vocabulary=3, hidden=2)), "head has 3 tokens and the diffusion model 2: give"
    ),
    "other features": (
        lambda: chain_of(TWO, SelectorHead(vocabulary=2, hidden=5)),
        "head reads 5 features and the diffusion model gives 2: give one trained for it",
    ),
    "balance": (
        lambda: smc(TWO, proposal="selector", head=head_of(2), weight="balance", lanes=2), "weight = balance: it asks"
    ),
    "rank": (lambda: SelectorHead(vocabulary=3, hidden=3, rank=0), "rank = 0: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)

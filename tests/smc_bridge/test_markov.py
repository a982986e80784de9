"""Marginals chained by the token before: proper with every kernel, known after any token, and caught where they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, Defensive, DLMProposal, Mixture, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.blocks import full_horizon
from smc_bridge.distributions.first_order import FirstOrder
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.kernels.tree_build import Tree, best_first
from smc_bridge.models.learned.markov import TABLE, MarkovHead
from smc_bridge.models.learned.store import save
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.markov import MarkovChain
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import PromptSource
from smc_bridge.registry import spelled
from smc_bridge.tasks import TASKS
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.smc_enumeration import assert_exact_around_retained
from tests.smc_bridge.test_proposals import asked_for
from tests.toys import bare_pair

TWO, THREE = tabular_pair(2, 3), tabular_pair(3, 3)


def head_of(size: int, seed: int = 1) -> MarkovHead:
    """A head that moves every law."""
    head, generator = MarkovHead(vocabulary=size, rank=2), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.before.copy_(torch.randn(size, 2, generator=generator))
        head.after.copy_(torch.randn(2, size, generator=generator))
    return head.eval()


def chain_of(pair: Any, **options: Any) -> MarkovChain:
    return MarkovChain(DLMProposal(pair.dlm, **{"lookahead": 3, **options}), head_of(pair.dlm.vocab_size))


def program(pair: Any = TWO, proposal: Any = None, **options: Any) -> Sampler:
    given = {"window": 3, "particles": 1, "intermediate": ProductOfExperts(0.4), **options}
    return Sampler(chain_of(pair) if proposal is None else proposal, ARTarget(pair.ar), **given)


PROGRAMS: dict[str, Callable[[], Sampler]] = {
    "rejection": lambda: program(THREE),
    "block": lambda: program(THREE, kernel="block"),
    "a tree": lambda: program(THREE, kernel=TreeWalk(4)),
    "a tree by powers": lambda: program(THREE, kernel=TreeWalk(5, exponent=1.7, min_probability=0.05)),
    "particles on trees": lambda: program(kernel=TreeWalk(3), particles=2),
    "lanes that share a tree": lambda: program(kernel=TreeWalk(2, worth=1.5), lanes=2, window=2),
    "temperatures": lambda: program(proposal=chain_of(TWO, temperature=[0.5, 2.0]), lanes=2),
    "temperatures on trees": lambda: program(
        proposal=chain_of(TWO, temperature=[0.5, 2.0]), lanes=2, window=2, kernel=TreeWalk(2)
    ),
    "top-p": lambda: program(THREE, chain_of(THREE, top_p=0.7), intermediate=Defensive(ProductOfExperts(0.5))),
    "top-p on a tree": lambda: program(
        THREE, chain_of(THREE, top_p=0.7), intermediate=Defensive(ProductOfExperts(0.5)), kernel=TreeWalk(4)
    ),
    "one lane greedy": lambda: program(
        TWO, chain_of(TWO, temperature=[0.0, 1.0]), intermediate=Mixture(0.5), lanes=2, window=2
    ),
    "elastic": lambda: program(window=1, particles=2),
    "reuse": lambda: program(proposal=chain_of(TWO, reuse=0.1), window=2, particles=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_with_it_is_proper(name: str) -> None:
    assert_proper(PROGRAMS[name]())


def test_it_passes_for_a_proposal_of_ones_own() -> None:
    assert_proper(chain_of(TWO))


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel", "tree"])
def test_it_is_exact_by_the_kernels_closed_form_and_around_a_retained_sequence(kernel: str) -> None:
    """Also of the coupling, whose noise cannot be listed."""
    sampler = program(kernel=TreeWalk(3) if kernel == "tree" else kernel, particles=2)
    assert_exact_around_retained(sampler, 3)


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_its_laws_along_a_block_are_those_of_its_draft(temperature: Any) -> None:
    chain = chain_of(tabular_pair(3, 5, seed=3), temperature=temperature, lookahead=5)
    assert proposal_fault(chain, lanes=2, limit=4) is None


def drafted(chain: MarkovChain, *, lanes: int = 1, rows: int = 1, source: bool = True) -> Draft:
    prefix = Prefix.of([[]] * rows)
    asked = asked_for(prefix, lanes=lanes, window=3)
    generators = [torch.Generator().manual_seed(i) for i in range(rows)]
    state = chain.open(prefix, particles=1)
    return chain.draft(state, asked, source=PromptSource(generators, lanes) if source else None)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}, {"temperature": 0.5}])
def test_drafts_have_the_law_that_stands_beside_them(options: dict[str, Any]) -> None:
    """Counted against the product of the conditionals, place by place, given the token before."""
    rows = 6_000
    draft = drafted(chain_of(THREE, **options), rows=rows)
    laws = draft.q.dense().exp()
    for i, given in ((0, None), (1, 0), (1, 1), (2, 0), (2, 2)):
        own = torch.ones(rows, dtype=torch.bool) if given is None else draft.tokens[:, i - 1] == given
        if not own.any():  # cut off
            continue
        seen = torch.bincount(draft.tokens[own, i], minlength=3) / own.sum()
        assert float((seen - laws[own, i].mean(0)).abs().max()) < 4 * 0.5 / float(own.sum()) ** 0.5
        assert float((laws[own, i] - laws[own, i][0]).abs().max()) < 1e-12  # of the token before alone


def test_a_tree_ranks_children_given_their_parent() -> None:
    """The nodes are the likeliest continuations under the chain, listed; not those under the marginals."""
    chain = chain_of(tabular_pair(3, 4, seed=2, eos=False), lookahead=4)
    law = drafted(chain, source=False).q
    assert isinstance(law, FirstOrder)
    first = law.given(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[0]])).dense()[0, 0].tolist()
    second = law.given(torch.tensor([0]), torch.tensor([[1, 1, 1]]), torch.tensor([[0, 1, 2]])).dense()[0].tolist()
    listed = {(a,): first[a] for a in range(3)} | {(a, b): first[a] + second[a][b] for a in range(3) for b in range(3)}
    for nodes in (1, 3, 5, 8, 12):
        tree = TreeWalk(nodes).tree(law)
        assert nodes_of(tree) == sorted(listed, key=lambda path: -listed[path])[:nodes]
    assert nodes_of(best_first(law.base, 5, full_horizon(1, 3))) != nodes_of(TreeWalk(5).tree(law))


def nodes_of(tree: Tree) -> list[tuple[int, ...]]:
    """The continuations of the first tree, in order."""
    paths: list[tuple[int, ...]] = [()]
    for token, parent, real in zip(*(x[0].tolist() for x in (tree.tokens, tree.parents, tree.real)), strict=True):
        if real:
            paths.append((*paths[parent], token))
    return paths[1:]


def test_a_tree_that_ranks_by_a_chain_without_a_head_is_that_of_the_marginals() -> None:
    base = DLMProposal(tabular_pair(3, 4, seed=2).dlm, lookahead=4)
    flat = drafted(MarkovChain(base, MarkovHead(vocabulary=3, rank=2).eval()), source=False).q
    prefix = Prefix.of([[]])
    plain = base.draft(base.open(prefix, particles=1), asked_for(prefix, lanes=1, window=3), source=None).q
    for options in ({"nodes": 4}, {"nodes": 9, "exponent": 1.6}, {"nodes": 9, "worth": 2.0, "min_probability": 0.1}):
        kernel = TreeWalk(**options)
        for one, other in zip(kernel.tree(flat), kernel.tree(plain), strict=True):
            assert torch.equal(one, other)


def test_the_bridge_at_a_node_is_that_of_the_conditionals_along_its_path() -> None:
    """Weights of blocks of one step against the formula; of marginals at the nodes they would be others."""
    sampler = program(THREE, kernel=TreeWalk(12), window=3)
    gaps, others = list[float](), list[float]()
    for seed in range(40):
        [run] = sampler.run([[]], seed=seed, max_new_tokens=3)
        if len(run.trace) > 1:
            continue
        block = torch.tensor([run.sequences[0]])
        prefix = Prefix.of([[]])
        chain: Any = sampler.proposal
        asked, state = asked_for(prefix, lanes=1, window=block.shape[1]), chain.open(prefix, particles=1)
        base: Any = chain.draft(state, asked, source=None).q
        log_p = sampler.target.log_probs(
            THREE.ar.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)).score(
                torch.tensor([0]), block
            )
        )
        for law, found in ((chain.along(state, asked, torch.tensor([0]), block), gaps), (base, others)):
            log_pi = sampler.intermediate.log_prob(law.dense(), log_p)
            weight = (log_p - log_pi).gather(-1, block[..., None]).sum()
            found.append(abs(float(weight) - run.log_evidence))
    assert len(gaps) > 10
    assert max(gaps) < 1e-12
    assert max(others) > 0.01


def test_a_draft_scored_by_the_marginals_is_caught() -> None:
    class Pretending(MarkovChain):
        def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
            found = super().draft(state, asked, source=source)
            return found._replace(q=self.base.draft(state, asked, source=None).q)

    base = DLMProposal(TWO.dlm, lookahead=3)
    assert_biased(program(proposal=Pretending(base, head_of(2))), least=1e-3)


def test_a_retained_sequence_that_forgets_the_committed_token_is_caught() -> None:
    class Forgetting(MarkovChain):
        def along(self, state: Any, asked: Asked, lane: Tensor, block: Tensor) -> Any:
            cut = asked._replace(prefix=asked.prefix._replace(length=torch.zeros_like(asked.prefix.length)))
            return super().along(state, cut, lane, torch.ones_like(block))

    fault = proposal_fault(Forgetting(DLMProposal(THREE.dlm, lookahead=3), head_of(3)), lanes=1, limit=3)
    assert fault is not None
    assert "along differs" in fault


@pytest.mark.parametrize("kernel", ["rejection", "tree"])
def test_draws_and_costs_do_not_depend_on_the_batch(kernel: str) -> None:
    pair = tabular_pair(3, 6, seed=1)
    proposal = chain_of(pair, temperature=[0.6, 1.5], lookahead=6)
    sampler = program(
        pair, proposal, lanes=2, particles=2, window=2, kernel=TreeWalk(4) if kernel == "tree" else kernel
    )
    prompts: list[list[int]] = [[], [0], [1], [0, 1]]
    together = sampler.run(prompts, seed=3, max_new_tokens=4, batch=3)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=4)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
        assert alone.log_weights == pytest.approx(together[place].log_weights, abs=1e-12)


def test_it_takes_the_forwards_of_the_marginals_and_commits_more() -> None:
    """On the embedded pair, with the head that it ships; every forward of the network is counted."""
    pair, task = load_pair("arithmetic", dlm_cache="none"), TASKS["arithmetic"]
    prompts = [pair.encode(item.prompt).tolist() for item in task.problems(2)]
    network: Any = pair.dlm.model  # type: ignore[attr-defined]
    ran: list[int] = []
    handle = network.register_forward_hook(lambda *_: ran.append(1))
    used = {}
    try:
        for method in ("speculative", "markov"):
            del ran[:]
            made = spelled(method).make(pair, window=16, lookahead=32, **({"w": 0.0} if method == "markov" else {}))
            runs = [made.run([prompt], seed=1, max_new_tokens=48)[0] for prompt in prompts]  # type: ignore[attr-defined]
            assert sum(run.forwards.dlm_forwards for run in runs) == len(ran)
            used[method] = sum(run.tokens for run in runs) / len(ran)
    finally:
        handle.remove()
    assert used["markov"] > 1.2 * used["speculative"], used


def test_a_large_alphabet_has_no_table_and_the_same_law() -> None:
    head, size = MarkovHead(vocabulary=TABLE + 1, rank=2), TABLE + 1
    torch.nn.init.normal_(head.after)
    small = MarkovHead(vocabulary=7, rank=2).eval()
    small.load_state_dict({"before": head.before[:7].detach(), "after": head.after[:, :7].detach()})
    before, tokens = torch.tensor([-1, 0, 6]), torch.tensor([3, 4, 5])
    assert head.table() is None
    assert small.table() is not None
    torch.testing.assert_close(head.rows(before)[:, :7], small.rows(before))
    torch.testing.assert_close(head.entries(before, tokens), small.entries(before, tokens))
    assert head.rows(before).shape == (3, size)
    assert not small.rows(before)[0].any()


def test_what_is_made_of_a_heads_weights_is_made_anew() -> None:
    head = head_of(3)
    before = head.rows(torch.tensor([1])).clone()
    head.load_state_dict({name: 2 * weight for name, weight in head.state_dict().items()})
    torch.testing.assert_close(head.rows(torch.tensor([1])), 4 * before)
    assert head.double().rows(torch.tensor([1])).dtype == torch.float64


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no head": (lambda: MarkovChain(DLMProposal(TWO.dlm), 7), "head = 7: give a MarkovHead"),  # type: ignore[arg-type]
    "another alphabet": (
        lambda: MarkovChain(DLMProposal(TWO.dlm), head_of(3)), "head has 3 tokens and the diffusion model 2: give one"
    ),
    "a pair without one": (
        lambda: smc(bare_pair(), proposal="markov"), "markov needs a trained network, which this pair does not have"
    ),
    "head of another": (
        lambda: smc(TWO, head=head_of(2)), "head = .* with proposal = 'marginals', which has no learned part"
    ),
    "balance": (
        lambda: smc(TWO, proposal="markov", head=head_of(2), weight="balance", lanes=2), "weight = balance: it asks for"
    ),
    "rank": (lambda: MarkovHead(vocabulary=3, rank=0), "rank = 0: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_head_may_be_a_file_for_any_pair(tmp_path: Path) -> None:
    save(head_of(2), tmp_path / "head.safetensors", kind="markov", facts={})
    pair: Any = SimpleNamespace(dlm=TWO.dlm, ar=TWO.ar)  # no parts of its own
    sampler = smc(pair, 1, proposal="markov", head=str(tmp_path / "head.safetensors"))
    assert sampler.run([[]], seed=0, max_new_tokens=3)[0].proper


def test_it_goes_by_name_with_every_kernel_and_says_what_shapes_it() -> None:
    for kernel in ("rejection", "tree"):
        found = smc(TWO, 1, proposal="markov", head=head_of(2), kernel=kernel).settings(max_new_tokens=3)["proposal"]
        assert found["form"] == "Markov chain"


def test_a_method_takes_a_head_by_its_file() -> None:
    pair = load_pair("arithmetic")
    texts = ("markov", f"markov,head={pair.learned['markov']}")
    samplers: list[Any] = [spelled(text).make(pair) for text in texts]
    first, second = (sampler.settings(max_new_tokens=3)["proposal"] for sampler in samplers)
    assert first == second

"""The small AR network over soft embeddings: a proposal that is exact with every kernel, and runs of a canvas."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import ARTarget, DLMProposal, Mixture, ProductOfExperts, Sampler, load_pair, smc
from smc_bridge.canvas.rules import Look, checked
from smc_bridge.canvas.soft_blocks import SoftRuns
from smc_bridge.decode import decode
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.methods.codila import codila
from smc_bridge.models.learned.codila import SoftAR
from smc_bridge.models.protocols import MASKED
from smc_bridge.models.training.codila import train
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.proposals.soft_blocks import SoftBlocks
from smc_bridge.randomness import PromptSource
from smc_bridge.requests import requests_of
from smc_bridge.sampling import inverse_cdf
from smc_bridge.streams import Role
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from smc_bridge.testing.parts import proposal_fault
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.smc_enumeration import assert_exact_around_retained
from tests.toys import bare_pair


def head(size: int, *, block: int = 2, skip: int = 1, seed: int = 1) -> SoftAR:
    """A network of random weights, whose laws are far from the marginals."""
    torch.manual_seed(seed)
    made = SoftAR(size=size, width=8, heads=2, block=block, skip=skip).double()
    torch.nn.init.normal_(made.head.weight, std=0.5)
    return made.eval().requires_grad_(False)


def program(pair: Any, *, block: int = 2, temperature: Any = 1.0, **options: Any) -> Sampler:
    given: dict[str, Any] = {"window": 3, "particles": 1, "intermediate": ProductOfExperts(0.4), **options}
    base = DLMProposal(pair.dlm, temperature=temperature, lookahead=3)
    return Sampler(SoftBlocks(base, head(pair.dlm.vocab_size, block=block)), ARTarget(pair.ar), **given)


@pytest.mark.parametrize("kernel", ["rejection", "block"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_proposal_is_exact_on_every_outcome(kernel: str, block: int) -> None:
    assert_proper(program(tabular_pair(3, 3), block=block, kernel=kernel))
    assert_proper(program(tabular_pair(2, 3), block=block, kernel=kernel, lanes=2, temperature=[0.6, 1.4]))


def test_it_is_exact_where_everything_is_accepted_and_where_marginals_outlive_a_window() -> None:
    pair = tabular_pair(2, 3)
    assert_proper(smc(pair, 2, proposal="codila", head=head(2), kernel="accept-all", window=2, lookahead=3))
    assert_proper(program(pair, particles=2, window=1, intermediate=Mixture(0.5)))


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel"])
def test_it_is_exact_by_the_kernels_closed_form_and_along_a_retained_sequence(kernel: str) -> None:
    sampler = program(tabular_pair(2, 3), kernel=kernel, particles=2, intermediate=Mixture(0.5))
    assert_exact_around_retained(sampler, 3)


@pytest.mark.parametrize("temperature", [1.0, [0.7, 1.3]])
def test_laws_along_a_block_are_those_that_it_was_drafted_from(temperature: Any) -> None:
    pair = tabular_pair(3, 5, seed=3)
    proposal = SoftBlocks(DLMProposal(pair.dlm, temperature=temperature, lookahead=5), head(3))
    assert proposal_fault(proposal, lanes=2, limit=4) is None


def test_a_draft_that_is_scored_by_its_marginals_is_caught() -> None:
    class Marginals(SoftBlocks):
        def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
            found = super().draft(state, asked, source=source)
            return found._replace(q=self.plain.draft(state, asked, source=None).q)

    pair = tabular_pair(2, 3, eos=False)
    proposal = Marginals(DLMProposal(pair.dlm, lookahead=3), head(2))
    assert_biased(Sampler(proposal, ARTarget(pair.ar), window=3, particles=1), least=1e-3)


def test_one_forward_serves_a_draft_and_the_windows_behind_it() -> None:
    pair = tabular_pair(3, 6, eos=False)
    state_of = SoftBlocks(DLMProposal(pair.dlm, lookahead=6), head(3))
    prefix = Prefix.of([[], []])
    state = state_of.open(prefix, particles=1)
    asked = Asked(torch.arange(2), prefix, torch.full((2,), 6), 2, 3, Chunks())
    source = PromptSource([torch.Generator().manual_seed(i) for i in range(2)], 2)
    costs = []
    for _ in range(2):
        draft = state_of.draft(state, asked, source=source)
        assert draft.cost is not None
        costs.append(draft.cost.per_prompt(2))
        whole = torch.ones(2, dtype=torch.bool)
        state_of.commit(state, None, draft.tokens[::2], draft.width[::2], whole)
        asked = asked._replace(prefix=Prefix.of(draft.tokens[::2].tolist()), room=torch.full((2,), 3))
    assert costs == [([1, 1], [1, 1]), ([0, 0], [0, 0])]


def test_draws_and_costs_do_not_depend_on_the_batch() -> None:
    pair = tabular_pair(3, 6, seed=1)
    prompts: list[list[int]] = [[], [0], [1], [0, 1]]
    program_of = smc(pair, 2, proposal="codila", head=head(3), lanes=2, window=3, lookahead=4)
    for decoder in (program_of, codila(pair, head=head(3), block=2), codila(
        pair, head=head(3), block=2, schedule="dynamic", threshold=0.9, doubt=0.1
    )):
        together = decode(decoder, prompts, seed=3, max_new_tokens=4, batch=3)
        for place, prompt in enumerate(prompts):
            [alone] = decode(decoder, [prompt], seed=3, max_new_tokens=4)
            assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)


# The network.


def blocks(size: int, places: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random marginals, places that there are, and tokens."""
    generator = torch.Generator().manual_seed(seed)
    log_pi = torch.randn(5, places, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    held = torch.arange(places) < torch.tensor([places, 1, places, 2, places])[:, None]
    return log_pi, held, torch.randint(size, (5, places), generator=generator)


@pytest.mark.parametrize("skip", [0, 1])
def test_a_token_at_a_time_it_says_what_it_says_of_a_whole_block(skip: int) -> None:
    network, (log_pi, held, tokens) = head(4, block=5, skip=skip), blocks(4, 4)
    whole = network(log_pi, held, tokens)
    logits, memory = network.read(log_pi, held)
    for j in range(4):
        if j:
            logits, memory = network.follow(memory, tokens[:, j - 1], j, log_pi[:, j])
        torch.testing.assert_close(logits, whole[:, j], rtol=0, atol=1e-12)


def test_it_reads_all_marginals_of_the_block_and_the_tokens_before_a_place() -> None:
    network, (log_pi, held, tokens) = head(4, block=4), blocks(4, 4)
    plain = network(log_pi, held, tokens)
    other = tokens.clone()
    other[:, 2] = (other[:, 2] + 1) % 4
    moved = (network(log_pi, held, other) - plain).abs().amax((0, 2))
    assert moved[:3].max() == 0.0
    assert moved[3] > 1e-6
    flat = log_pi.clone()
    flat[:, 3] = -math.log(4)
    moved = (network(flat, held, tokens) - plain).abs().amax(-1)
    assert bool((moved[held[:, 3], 0] > 1e-6).all())
    assert bool((moved[~held[:, 3], :3] == 0.0).all())


def test_before_it_is_trained_it_is_the_product_of_the_marginals() -> None:
    log_pi, held, tokens = blocks(4, 4)
    found = SoftAR(size=4, width=8, heads=2, block=4).double()(log_pi, held, tokens)
    torch.testing.assert_close(found.log_softmax(-1), log_pi, rtol=0, atol=1e-12)


# Runs of a canvas.


def look_of(*rows: list[float | None]) -> Look:
    """Places of two tokens by the probability of the first; None is a place that is filled."""
    laws = torch.tensor([[[p, 1 - p] for p in (0.5 if x is None else x for x in row)] for row in rows]).double()
    opened = torch.tensor([[x is not None for x in row] for row in rows])
    canvas = torch.where(opened, MASKED, 0)
    plain = laws.log()
    return Look(plain, lambda: plain, canvas, opened, torch.zeros(len(rows), dtype=torch.long))


def chosen(rule: SoftRuns, look: Look) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in checked(rule, look).places]


def test_the_static_schedule_takes_the_surest_block_within_reach() -> None:
    row = [None, 0.6, 0.7, 0.7, 0.9, 0.9, 0.99]
    rule = SoftRuns(head(2), block=2, reach=1)
    assert chosen(rule, look_of(row)) == [[2, 3]]
    assert chosen(replace(rule, reach=0), look_of(row)) == [[1]]
    assert chosen(replace(rule, reach=10), look_of(row)) == [[6]]
    assert chosen(rule, look_of([None, None, 0.6, 0.7, 0.7, 0.9, 0.99])) == [[4, 5]]


def test_the_dynamic_schedule_takes_the_longest_run_that_is_sure_enough() -> None:
    entropy = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)  # noqa: E731
    rule = SoftRuns(head(2, block=3), "dynamic", block=3, reach=2, threshold=entropy(0.9))
    row = [0.6, 0.9, 0.95, 0.6, 0.93, 0.91, 0.99]
    assert chosen(rule, look_of(row)) == [[4, 5, 6]]
    assert chosen(replace(rule, reach=0), look_of(row)) == [[1, 2]]
    assert chosen(rule, look_of([0.6, 0.99, 0.6, None, 0.8, 0.6, 0.8])) == [[1]]  # the surest place alone
    assert chosen(rule, look_of([0.6, 0.99, None, 0.99, 0.6, 0.97, 0.97])) == [[3, 4, 5]]  # a run has no gap


def test_a_place_where_network_and_model_disagree_is_less_sure() -> None:
    """With a network that says the second token whatever the marginals."""
    network = head(2, block=3, skip=0)
    network.head.weight.zero_()
    network.head.bias.copy_(torch.tensor([0.0, 5.0]))
    look = look_of([0.9, 0.9, 0.2, 0.2])
    rule = SoftRuns(network, block=2, reach=1)
    assert chosen(rule, look) == [[0, 1]]
    assert chosen(replace(rule, doubt=1.0), look) == [[2, 3]]
    dynamic = SoftRuns(network, "dynamic", block=3, reach=1, threshold=0.55)
    assert chosen(dynamic, look) == [[0, 1, 2]]
    assert chosen(replace(dynamic, doubt=1.0), look) == [[2, 3]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_run_is_drawn_from_the_networks_joint(temperature: float) -> None:
    """Real draws of a canvas of one run against the chain rule of the network's laws, 4,000 of them."""
    pair, network, runs, places = tabular_pair(2, 3, eos=False), head(2, block=3), 4_000, 3
    decoder = codila(pair, head=network, block=3, temperature=temperature)
    counts = Counter(tuple(r.sequences[0]) for r in decode(decoder, [[]] * runs, seed=range(runs), max_new_tokens=3))
    cells = list(itertools.product(range(2), repeat=places))
    session = pair.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    log_pi = session.score(torch.tensor([0]), torch.full((1, places), MASKED)).log_softmax(-1)
    every = torch.tensor(cells)
    along = network(log_pi.expand(len(cells), -1, -1), torch.ones(len(cells), places, dtype=torch.bool), every)
    law = (along / temperature).log_softmax(-1).gather(2, every[..., None]).sum((1, 2)).exp()
    claim(chi_square([counts[cell] for cell in cells], law.tolist()), f"codila at {temperature}: {dict(counts)}")


def by_hand(
    pair: Any, network: SoftAR, *, block: int, threshold: float, seed: int, limit: int
) -> tuple[list[int], int]:
    """A continuation of the empty prompt under the stopped schedule, a token at a time, and forwards."""
    [request] = requests_of([[]], {"diffusion": pair.dlm}, seed=seed, max_new_tokens=limit, stream=Role.DLM)
    source, tokens, forwards = PromptSource([request.generator()]), list[int](), 0
    session = pair.dlm.session(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    while len(tokens) < limit and pair.dlm.eos_id not in tokens:
        uniform = source.uniform((limit,))[0]
        canvas = torch.tensor([tokens + [MASKED] * (limit - len(tokens))])
        forwards, begun = forwards + 1, len(tokens)
        log_pi = session.score(torch.tensor([0]), canvas)[:, begun : begun + block].log_softmax(-1)
        there = torch.ones(log_pi.shape[:2], dtype=torch.bool)
        for j in range(log_pi.shape[1]):
            run = torch.tensor([tokens[begun:] + [0] * (log_pi.shape[1] - j)])
            law = network(log_pi, there, run)[0, j].log_softmax(-1) if log_pi.shape[1] > 1 else log_pi[0, 0]
            if j and float(-(law.exp() * law).sum()) > threshold:
                break
            tokens.append(int(inverse_cdf(law[None], uniform[begun + j][None])))
    return tokens[: tokens.index(pair.dlm.eos_id) + 1] if pair.dlm.eos_id in tokens else tokens, forwards


def test_a_run_is_stopped_where_the_network_is_not_sure() -> None:
    pair, network, several = tabular_pair(3, 8, seed=4, eos=False), head(3, block=4), set()
    decoder = codila(pair, head=network, schedule="stopped", block=4, threshold=0.7)
    for seed in range(25):
        [result] = decode(decoder, [[]], seed=seed, max_new_tokens=7)
        tokens, forwards = by_hand(pair, network, block=4, threshold=0.7, seed=seed, limit=7)
        assert (result.sequences[0], result.forwards.dlm_forwards) == (tokens, forwards), seed
        several.add(forwards)
    assert len(several) > 2, several


def test_a_forward_fills_a_run_and_is_all_that_is_counted() -> None:
    pair = tabular_pair(2, 6, eos=False)
    [result] = decode(codila(pair, head=head(2, block=3), block=3, reach=0), [[]], max_new_tokens=6)
    assert result.forwards.dlm_forwards == result.forwards.dlm_rows == 2
    assert result.forwards.ar_forwards == 0
    assert not result.proper


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no part": (lambda: codila(bare_pair()), "codila needs a trained network, which this pair does not have: give one"),
    "another alphabet": (lambda: codila(tabular_pair(), head=head(3)), "head reads 3 tokens and the model has 2: "),
    "no network": (lambda: smc(tabular_pair(), proposal="codila", head=torch.nn.Linear(2, 2)), "give a SoftAR"),
    "head of none": (lambda: smc(tabular_pair(), head=head(2)), "head = .* with proposal = 'marginals', which has no"),
    "block": (lambda: codila(tabular_pair(), head=head(2), block=9), "block = 9 of a network that decodes at most 2"),
    "schedule": (lambda: SoftRuns(head(2), "fixed", 2), "schedule = 'fixed': give one of static, dynamic, stop"),  # type: ignore[arg-type]
    "doubt": (lambda: SoftRuns(head(2), "stopped", block=2, doubt=1.0), "doubt = 1.0 with schedule = stopped, which"),
    "threshold": (lambda: SoftRuns(head(2), block=2, threshold=-1), "threshold = -1: give at least 0 nats"),
    "width": (lambda: SoftAR(size=2, width=5, heads=2), "width = 5 of a SoftAR with heads = 2: give a multiple"),
    "reuse": (lambda: SoftBlocks(DLMProposal(tabular_pair().dlm, reuse=0.5), head(2)), "reuse = 0.5 of a chain's"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_parameters_are_told_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# The training.


def test_a_short_training_beats_the_marginals_and_repeats_itself() -> None:
    pair = load_pair("arithmetic")
    first, second = (train(pair, seed=5, steps=40) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))
    assert first.facts["least"] < first.facts["network"] < first.facts["marginals"] - 0.02, first.facts

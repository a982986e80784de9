"""A draft may leave places open (`PAD`, and no mass of q): the kernel commits a token of the intermediate there and
stops. So a draft of j tokens before a gap gives one more, and what is drafted behind the gap is never looked at.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.models.ends import ends_of
from smc_bridge.prefix import PAD
from smc_bridge.proposals.mean_field import DLMProposal, MeanFieldState
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import PromptSource, Source
from smc_bridge.testing import outcomes
from smc_bridge.testing.kernel_laws import committed
from tests.oracle import laws
from tests.oracle.laws import Law, Toy
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.enumeration import horizon_of, log_pi_along, log_q_of, table_of
from tests.smc_bridge.programs import program, target_law, worst
from tests.smc_bridge.test_full_enumeration import raw_enumeration

TOYS = {toy.name: toy for toy in laws.toys() if toy.window > 1}
KERNELS: dict[str, tuple[StoppingKernel, Callable[[Toy], Law]]] = {
    "rejection": (Rejection(), laws.rejection), "block": (BlockVerification(), laws.block_verification),
    "gumbel": (GumbelCoupling(), laws.gumbel),
}
#: Every toy with a gap at every place inside of its window.
CASES = [pytest.param(name, gap, id=f"{name}-{gap}") for name, toy in TOYS.items() for gap in range(toy.window)]


def expected_law(kernel: str, toy: Toy, gap: int) -> Law:
    """The law of a draft of `gap` tokens, where those that end because the draft does get one more token of pi."""
    short: Law = {((), 0): 1.0}
    if gap:
        short = KERNELS[kernel][1](toy._replace(q=toy.q[:gap], window=gap))
    law: Law = defaultdict(float)
    for (block, accepted), probability in short.items():
        if accepted == gap and not (block and block[-1] in ends_of(toy.eos)):
            for token, mass in enumerate(toy.pi[block]):
                law[(*block, token), accepted] += probability * float(mass)
        else:
            law[block, accepted] += probability
    return dict(law)


def with_gap(toy: Toy, gap: int, source: Source, rows: int = 1) -> Draft:
    """A draft without an opinion at one place; what stands behind it is drafted all the same."""
    q = log_q_of(toy, rows)
    tokens = source.categorical(q).index_fill(1, torch.tensor([gap]), PAD)
    return Draft(tokens, Dense(without(q, gap)), horizon_of(toy, rows).window)


def without(q: Tensor, gap: int) -> Tensor:
    """`q: [R, V, A]` with no mass at one place."""
    return q.index_fill(1, torch.tensor([gap]), -math.inf)


@pytest.mark.parametrize(("name", "gap"), CASES)
@pytest.mark.parametrize("kernel", ["rejection", "block"])
def test_a_gap_is_filled_from_the_intermediate(kernel: str, name: str, gap: int) -> None:
    """All of the kernel's own draws, enumerated, against the oracle of the draft up to the gap."""
    toy, (rule, _) = TOYS[name], KERNELS[kernel]

    def move(source: Source) -> tuple[tuple[int, ...], int]:
        draft = with_gap(toy, gap, source)
        pi = Dense(log_pi_along(toy, draft.tokens))
        return committed(rule(draft, pi, source=source, horizon=horizon_of(toy)), table_of(toy))[0]

    found: Law = defaultdict(float)
    for probability, outcome in outcomes(move):
        found[outcome] += probability
    expected = expected_law(kernel, toy, gap)
    for outcome in {*found, *expected}:
        left, right = found.get(outcome, 0.0), expected.get(outcome, 0.0)
        assert abs(left - right) < 1e-12, f"(block, accepted) = {outcome}: kernel {left:.15f}, expected {right:.15f}"


@pytest.mark.parametrize(("name", "gap"), CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_closed_form_knows_of_the_gap(kernel: str, name: str, gap: int) -> None:
    toy, (rule, _) = TOYS[name], KERNELS[kernel]
    expected = laws.blocks(expected_law(kernel, toy, gap))
    every = table_of(toy).blocks()
    width = len(toy.q)
    block = torch.tensor([[*b, *[PAD] * (width - len(b))] for b in every])
    length = torch.tensor([len(b) for b in every])
    q = without(log_q_of(toy, len(every)), gap)
    found = rule.log_density(q, log_pi_along(toy, block), block, length, horizon=horizon_of(toy, len(every))).exp()
    for b, density in zip(every, found.tolist(), strict=True):
        assert abs(density - expected.get(b, 0.0)) < 1e-12, f"{b}: log_density {density}, {expected.get(b, 0.0)}"


@pytest.mark.parametrize(("name", "gap"), [("A3V3-W2-eos", 1), ("A3V3-eos-zeros", 1), ("A2V3", 0), ("A2V3", 2)])
def test_the_gumbel_coupling_draws_what_fills_a_gap_from_the_intermediate(name: str, gap: int) -> None:
    """Its noise is continuous and cannot be listed: 40,000 real draws against the oracle."""
    toy, rows = TOYS[name], 40_000
    source = PromptSource([torch.Generator().manual_seed(6)], rows)
    draft = with_gap(toy, gap, source, rows)
    prefixes, which = torch.unique(draft.tokens, dim=0, return_inverse=True)
    pi = Dense(log_pi_along(toy, prefixes)[which])
    move = GumbelCoupling()(draft, pi, source=source, horizon=horizon_of(toy, rows))
    counts: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
    for outcome in committed(move, table_of(toy)):
        counts[outcome] += 1
    expected = expected_law("gumbel", toy, gap)
    cells = sorted({*counts, *expected})
    p_value = chi_square(
        np.array([counts.get(c, 0) for c in cells]), np.array([expected.get(c, 0.0) for c in cells]))
    claim(p_value, f"a gap at place {gap} of {name}, {rows} blocks")


def test_plain_importance_sampling_has_nothing_to_fill_a_gap_with() -> None:
    toy = TOYS["A2V3"]
    draft = with_gap(toy, 1, PromptSource([torch.Generator().manual_seed(1)], 1))
    words = r"^the draft has no token at place 1 of row 0, .*: use Rejection\(\)"
    with pytest.raises(ValueError, match=words) as caught:
        AcceptAll()(draft, draft.q, source=torch.Generator(), horizon=horizon_of(toy))
    assert "\n" not in str(caught.value)


class Silent(DLMProposal):
    """Has no opinion at the second place of a draft."""

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        draft = super().draft(state, asked, source=source)
        return draft._replace(
            tokens=draft.tokens.index_fill(1, torch.tensor([1]), PAD), q=Dense(without(draft.q.dense(), 1)))


@pytest.mark.parametrize("eos", [None, 1])
@pytest.mark.parametrize("kernel", ["rejection", "block"])
def test_programs_whose_proposal_leaves_gaps_are_properly_weighted(kernel: str, eos: int | None) -> None:
    """Every draw of the real engine is a branch; the intermediate is the target where q has no mass."""
    sampler = program(KERNELS[kernel][0], eos=eos, particles=1)
    expected = target_law(sampler, 3)
    sampler.proposal = Silent(sampler.proposal.model, temperature=1.2, lookahead=3)  # type: ignore[arg-type]
    gap, message = worst(raw_enumeration(sampler, 3)[0], expected)
    assert gap < 1e-12, message

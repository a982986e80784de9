"""Point masses on either side of the bridge: every intermediate stays a law, says rightly what it covers, and programs
with it are properly weighted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge import (
    BalanceHeuristic,
    BlockVerification,
    Chernoff,
    Clamp,
    Defensive,
    GumbelCoupling,
    Intermediate,
    Mixture,
    MostLikelyPath,
    PowerMean,
    PrefixFilled,
    ProductOfExperts,
    Proposal,
    Rejection,
    Target,
    TreeWalk,
    always,
    smc,
)
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.intermediate import checked_log_prob, dominates, keeps_points
from smc_bridge.distributions.table import Dense
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from tests.oracle import intermediates as oracle

A = 4
#: Laws of both sides: point masses, a law that leaves tokens out, and one that leaves out none.
SIDES = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0.3, 0, 0.7, 0], [0, 0.25, 0, 0.75], [0.1, 0.2, 0.3, 0.4]]
PAIRS = [tuple(map(np.array, pair)) for pair in itertools.product(SIDES, SIDES)]

Law = np.ndarray


def chernoff(q: Law, p: Law) -> Law:
    """The product at its own w on the tokens that q and p share; p where there are none."""
    common = (q > 0) & (p > 0)
    if not common.any():
        return p
    w = oracle.chernoff_weight(q, p)
    weight = np.where(common, q**w * p ** (1 - w), 0.0)
    return weight / weight.sum()


#: Intermediates with what each is by hand.
INTERMEDIATES: dict[str, tuple[Intermediate, Callable[[Law, Law], Law]]] = {
    "poe": (ProductOfExperts(0.3), lambda q, p: oracle.product_of_experts(q, p, 0.3, 0.7)),
    "poe, w = 0": (ProductOfExperts(0.0), lambda q, p: p),
    "poe, w = 1": (ProductOfExperts(1.0), lambda q, p: q),
    "poe, own exponent": (ProductOfExperts(0.3, 2.0), lambda q, p: oracle.product_of_experts(q, p, 0.3, 2.0)),
    "poe, target left out": (ProductOfExperts(0.3, 0.0), lambda q, p: oracle.product_of_experts(q, p, 0.3, 0.0)),
    "poe, one lane's exponent": (ProductOfExperts(0.3, [0.4]), lambda q, p: oracle.product_of_experts(q, p, 0.3, 0.4)),
    "mixture": (Mixture(0.3), lambda q, p: 0.3 * q + 0.7 * p),
    "power mean": (PowerMean(0.5, 0.3), lambda q, p: oracle.power_mean(q, p, 0.5, 0.3)),
    "power mean below 0": (PowerMean(-0.7, 0.3), lambda q, p: oracle.power_mean(q, p, -0.7, 0.3)),
    "power mean at 0": (PowerMean(0.0, 0.3), lambda q, p: oracle.product_of_experts(q, p, 0.3, 0.7)),
    "power mean near 0": (PowerMean(-0.01, 0.3), lambda q, p: oracle.power_mean(q, p, -0.01, 0.3)),
    "chernoff": (Chernoff(), chernoff),
    "clamp": (Clamp(3.0), lambda q, p: oracle.clamp(q, p, 3.0)),
    "clamp, target": (Clamp(1.0), lambda q, p: p),
    "defensive clamp": (Defensive(Clamp(3.0), 0.1), lambda q, p: 0.9 * oracle.clamp(q, p, 3.0) + 0.1 * p),
    "defensive": (
        Defensive(ProductOfExperts(0.6), 0.1), lambda q, p: 0.9 * oracle.product_of_experts(q, p, 0.6, 0.4) + 0.1 * p),
    "defensive chernoff": (Defensive(Chernoff(), 0.1), lambda q, p: 0.9 * chernoff(q, p) + 0.1 * p),
    "proposal": (Proposal(), lambda q, p: q),
    "target": (Target(), lambda q, p: p),
}


def forms(intermediate: Intermediate, dtype: torch.dtype) -> dict[str, Tensor]:
    """The intermediate of all pairs of laws, `[pairs, A]`, on every path."""
    q, p = (torch.tensor(np.stack(side), dtype=dtype).log()[:, None] for side in zip(*PAIRS, strict=True))
    lazy = Chunks(bytes=1, whole=0)
    found = {
        "called": checked_log_prob(intermediate, q[:, None], p[:, None])[:, 0],
        "at once": bridge_law(intermediate, Dense(q), Dense(p), lanes=1).dense(),
        "lazy": bridge_law(intermediate, Dense(q, lazy), Dense(p, lazy), lanes=1).dense(),
    }
    law = bridge_law(intermediate, Dense(q, lazy), Dense(p, lazy), lanes=1)
    found["singly"] = torch.stack([law.at(torch.full((len(PAIRS), 1), a)) for a in range(A)], -1)
    return {path: log_pi[:, 0].double().exp() for path, log_pi in found.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", INTERMEDIATES)
def test_it_is_what_it_is_by_hand_on_every_path(name: str, dtype: torch.dtype) -> None:
    intermediate, by_hand = INTERMEDIATES[name]
    expected = torch.tensor(np.stack([by_hand(q, p) for q, p in PAIRS]))
    for path, found in forms(intermediate, dtype).items():
        gap = (found - expected).abs().amax(-1)
        worst = int(gap.argmax())
        assert float(gap[worst]) < (1e-9 if dtype is torch.float64 else 1e-5), (path, PAIRS[worst], found[worst])


@pytest.mark.parametrize("name", INTERMEDIATES)
def test_what_it_says_of_point_masses_and_of_domination_is_true_and_no_less(name: str) -> None:
    intermediate, by_hand = INTERMEDIATES[name]
    laws = [(p, by_hand(q, p)) for q, p in PAIRS]
    assert dominates(intermediate) == all((pi[p > 0] > 0).all() for p, pi in laws)
    assert keeps_points(intermediate) == all(np.allclose(pi, p) for p, pi in laws if p.max() == 1.0)


def test_a_user_who_says_too_much_is_told() -> None:
    class Mine:
        positionwise = True

        def __init__(self, keeps_points: bool) -> None:
            self.keeps_points = keeps_points

        def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
            return Mixture(0.5).log_prob(log_q, log_p)

    assert smc(tabular_pair(), 1, intermediate=Mine(False)).proper
    with pytest.warns(UserWarning, match="Mine says keeps_points = True, but it is not the target where that is a poi"):
        assert not smc(tabular_pair(), 1, intermediate=Mine(True)).proper


#: Temperatures of target and proposal, the intermediate, and whether the program is proper and exact.
PROGRAMS: list[tuple[float, Any, Intermediate, bool, bool]] = [
    (0.0, 0.0, ProductOfExperts(0.3), True, True),
    (0.0, 1.0, ProductOfExperts(0.3), True, True),
    (0.0, [0.0, 0.5], Chernoff(), True, True),
    (0.0, 0.0, PowerMean(-1.0, 0.3), True, True),
    (0.0, 0.0, Defensive(ProductOfExperts(0.3)), True, True),
    (0.0, 0.0, Target(), True, True),
    (0.0, 0.0, Mixture(0.3), True, False),
    (0.0, 0.0, Proposal(), False, False),
    (0.0, 0.0, ProductOfExperts(0.3, 0.0), False, False),
    (0.0, 1.0, ProductOfExperts(0.3, 0.0), True, False),
    (1.0, 0.0, ProductOfExperts(0.3), False, False),
    (1.0, [0.5, 0.0], ProductOfExperts(0.3), False, False),
    (1.0, 0.0, Chernoff(), False, False),
    (0.0, [0.0, 0.5], Clamp(8.0), True, True),
    (1.0, 0.0, Clamp(8.0), True, False),
    (1.0, 0.0, Clamp(1.0), True, True),
    (1.0, 0.0, Defensive(ProductOfExperts(0.3)), True, False),
    (1.0, 0.0, Target(), True, True),
]


@pytest.mark.parametrize(("target", "proposal", "intermediate", "proper", "exact"), PROGRAMS)
def test_a_program_knows_what_it_is(
    target: float, proposal: Any, intermediate: Intermediate, proper: bool, exact: bool
) -> None:
    lanes = len(proposal) if isinstance(proposal, list) else 1
    sampler = smc(
        tabular_pair(), 2, lanes=lanes, temperature=target, proposal_temperature=proposal, intermediate=intermediate)
    assert (sampler.proper, sampler.exact) == (proper, exact)
    if not proper:
        [reason] = sampler.why_improper()
        assert reason == "the proposal leaves out tokens that the target may draw: wrap the intermediate in Defensive"


def test_a_top_k_of_one_is_a_point_mass_as_well() -> None:
    sampler = smc(tabular_pair(), 2, top_k=1, proposal_temperature=0.0)
    assert sampler.proper
    assert sampler.exact


KERNELS = {
    "rejection": Rejection(), "block": BlockVerification(), "gumbel": GumbelCoupling(), "tree": TreeWalk(3),
    "ranked tree": TreeWalk(4, exponent=1.5, min_probability=0.05),
}
#: Temperatures of target and lanes, and other options, under which weights are right.
PROPER: dict[str, dict[str, Any]] = {
    "both at 0": {"temperature": 0.0},
    "target at 0": {"temperature": 0.0, "proposal_temperature": 0.8},
    "proposal at 0": {"proposal_temperature": 0.0, "intermediate": Defensive(ProductOfExperts(0.4), 0.2)},
    "proposal at 0, clamp": {"proposal_temperature": 0.0, "intermediate": Clamp(3.0)},
    "target at 0, clamp": {"temperature": 0.0, "proposal_temperature": 0.8, "intermediate": Clamp(3.0)},
    "proposal at 0, mixture": {"proposal_temperature": 0.0, "intermediate": Mixture(0.4)},
    "target at 0, mixture": {"temperature": 0.0, "proposal_temperature": 0.8, "intermediate": Mixture(0.4)},
    "lanes at 0 and 0.5": {
        "lanes": 2, "proposal_temperature": [0.0, 0.5], "intermediate": Defensive(ProductOfExperts(0.4), 0.2)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", PROPER)
@pytest.mark.parametrize("kernel", KERNELS)
def test_programs_with_point_masses_are_proper(kernel: str, options: str) -> None:
    given = {"particles": 1 if "lanes" in PROPER[options] else 2, **PROPER[options]}
    sampler = smc(tabular_pair(2, 2, seed=3), window=2, trigger=always, kernel=KERNELS[kernel], **given)
    assert_proper(sampler, runs=200)


@pytest.mark.parametrize("weight", [None, BalanceHeuristic()], ids=["own", "balance"])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_lanes_at_0_and_above_are_proper_under_either_weight(weight: Any, target: float) -> None:
    sampler = smc(
        tabular_pair(3, 2, seed=5), 1, lanes=2, temperature=target, proposal_temperature=[0.0, 0.5], window=2,
        weight=weight, intermediate=Defensive(ProductOfExperts(0.4), 0.3),
    )
    assert_proper(sampler)


@pytest.mark.parametrize("form", [MostLikelyPath, PrefixFilled])
@pytest.mark.parametrize("own", [0.0, [0.0, 0.5]], ids=str)
def test_other_forms_of_a_greedy_proposal_are_proper(form: Any, own: Any) -> None:
    lanes = len(own) if isinstance(own, list) else 1
    sampler = smc(
        tabular_pair(2, 3, seed=6), 1, lanes=lanes, proposal_temperature=own, window=2, intermediate=Mixture(0.5),
        proposal="path" if form is MostLikelyPath else "chain",
    )
    assert isinstance(sampler.proposal, form)
    assert not sampler.proposal.covers
    assert_proper(sampler)


def test_without_a_defence_the_bias_is_found() -> None:
    sampler = smc(tabular_pair(2, 2, seed=3), 2, proposal_temperature=0.0, window=2)
    assert not sampler.proper
    assert_biased(sampler)


def test_a_product_that_falls_back_weighs_one_and_refuses_the_draft() -> None:
    """A target at 0 and a path of the other tokens: nothing of it is accepted, and every weight is one."""
    pair = tabular_pair(2, 3, seed=0, noise=0.0, eos=False)
    flipped = pair._replace(dlm=type(pair.dlm)(type(pair.ar)([table.flip(-1) for table in pair.ar.tables])))
    [result] = smc(flipped, 2, temperature=0.0, window=3).run([[]], max_new_tokens=3)
    assert result.log_evidence == 0.0
    assert list(result.log_weights) == [0.0, 0.0]
    assert result.forwards.ar_forwards == 3, "each of three drafts is refused at its first token"

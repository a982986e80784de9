"""`check` passes every proper preset, and names the part that breaks any other program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.mock import MockPair
from smc_bridge import (
    AcceptAll,
    BalanceHeuristic,
    BlockVerification,
    Check,
    Defensive,
    DLMProposal,
    GumbelCoupling,
    Horizon,
    Prefix,
    ProductOfExperts,
    Proposal,
    Rejection,
    Sampler,
    TreeWalk,
    always,
    check,
    paper,
    plain_is,
    released,
    smc,
    speculative,
    tree_walk,
)
from smc_bridge.distributions.table import Dense
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.testing import NotEnumerableError, enumerate_sampler, exact_law, tabular_pair
from smc_bridge.testing.mutants import (
    CorrectionFromTarget,
    KeepsTheBest,
    LengthNormalised,
    LooksAhead,
    Sharpened,
    StopsByTheFuture,
)
from tests.smc_bridge.programs import KERNELS, TablePotential, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_probe import Ahead, Drawn, OtherLanes, Past
from tests.smc_bridge.test_watch import LikeliestTwo

PAIR = tabular_pair(2, 2)
#: No end of sequence: a window of three positions, where looking ahead is of use.
LONG = tabular_pair(2, 3, eos=False, seed=4)
#: Models that are no tables.
OTHER = MockPair.make(alphabet=50, lanes=1, window=4, seed=0)


def per_token(prefix: Prefix) -> Tensor:
    """Every token 0 halves phi."""
    return (prefix.tokens == 0).sum(1) * math.log(0.5)


PROPER: dict[str, Callable[[], Sampler]] = {
    "smc": lambda: smc(PAIR, 8),
    "smc, no end": lambda: smc(LONG, 1),
    "lanes": lambda: smc(PAIR, 4, lanes=4),
    "paper": lambda: paper(PAIR, lanes=2),
    "speculative": lambda: speculative(PAIR),
    "plain IS": lambda: plain_is(PAIR),
    "tree walk": lambda: tree_walk(PAIR, nodes=2),
    "block verification": lambda: smc(PAIR, 2, kernel=BlockVerification()),
    "balance heuristic": lambda: smc(
        PAIR, 1, lanes=2, weight=BalanceHeuristic(), proposal_temperature=[0.7, 1.3]),
    "defended truncation": lambda: smc(
        PAIR, 2, proposal_top_p=0.7, intermediate=Defensive(ProductOfExperts(0.3), 0.1)),
    "potential": lambda: smc(PAIR, 2, potential=per_token),
    "allowed or not": lambda: smc(PAIR, 2, potential=lambda prefix: ~prefix.done | (prefix.tokens != 0).all(1)),
    "a user's": lambda: smc(LONG, 1, intermediate=Past()),
    **{name: lambda name=name: smc(PAIR, 2, resampler=name, trigger=always) for name in RESAMPLERS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", PROPER)
def test_a_proper_program_passes_to_round_off(name: str) -> None:
    found = check(PROPER[name]())
    assert found.proper, str(found)
    assert found.how == "enumeration"
    assert found.gap < 1e-12
    assert found.part is None
    assert found.outcomes > 1


def test_what_draws_continuous_variables_is_compared_by_runs() -> None:
    found = check(smc(PAIR, 2, kernel=GumbelCoupling()), runs=400)
    assert found.proper, str(found)
    assert (found.how, found.outcomes) == ("Monte Carlo", 400)
    assert found.p_value is not None


class Shorter(Rejection):
    """Token-level rejection that says that it stops half as often: only conditional runs would notice."""

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        return super().log_continue(q, pi, block, horizon=horizon) / 2


def revives(prefix: Prefix) -> Tensor:
    """Zero while there is a token 0, and one in the end."""
    return torch.where(prefix.done | ~(prefix.tokens == 0).any(1), 0.0, -math.inf)


WRONG: dict[str, tuple[Callable[[], Sampler], str, str | None, float]] = {
    # program, part, what the reasons say, least gap
    "drops tokens": (lambda: smc(tabular_pair(3, 2), 2, intermediate=LikeliestTwo()), "intermediate", "probability 0",
                     1e-2),
    "looks ahead": (lambda: smc(LONG, 1, intermediate=LooksAhead()), "intermediate", "beyond the position", 1e-2),
    "looks ahead a little": (lambda: smc(LONG, 1, intermediate=Ahead()), "intermediate", "beyond the position", 1e-4),
    "couples lanes": (
        lambda: smc(PAIR, 1, lanes=2, intermediate=OtherLanes(), weight=BalanceHeuristic()), "intermediate",
        "other lanes", 1e-5),
    "draws": (lambda: smc(PAIR, 1, intermediate=Drawn()), "intermediate", "asked again", 0.0),
    "truncates": (lambda: smc(tabular_pair(3, 2), 2, proposal_top_p=0.6), "proposal", "leaves out tokens", 1e-2),
    "wrong correction": (lambda: smc(PAIR, 1, kernel=CorrectionFromTarget()), "kernel", "log_density", 1e-3),
    "stops by the future": (lambda: smc(LONG, 1, kernel=StopsByTheFuture()), "kernel", "log_density", 1e-3),
    "wrong log_continue": (lambda: smc(PAIR, 1, kernel=Shorter()), "kernel", "log_density", 0.0),
    "wrong weight": (lambda: smc(LONG, 1, weight=LengthNormalised()), "weight", None, 1e-3),
    "argmax": (lambda: smc(LONG, 2, resampler=KeepsTheBest()), "resampler", "mean shares", 1e-3),
    "biased resampler": (lambda: smc(PAIR, 2, resampler=Sharpened(1.2)), "resampler", "mean shares", 0.0),
    "reviving potential": (lambda: smc(LONG, 1, potential=revives), "potential", None, 1e-3),
    "released": (lambda: released(PAIR, lanes=2), "kernel", "ReleasedScore is not proper", 1e-3),
}


@pytest.mark.filterwarnings("ignore:intermediate")
@pytest.mark.parametrize("name", WRONG)
def test_a_part_that_breaks_the_program_is_named(name: str) -> None:
    make, part, reason, gap = WRONG[name]
    found = check(make(), runs=300)
    assert not found.proper
    assert found.part == part, str(found)
    assert reason is None or any(reason in line for line in found.reasons), found.reasons
    assert found.gap >= gap, f"the gap is only {found.gap}"
    assert f"not proper: gap {found.gap:.2g}" in str(found)


def test_the_parts_of_a_sampler_on_a_real_pair_are_put_on_a_table() -> None:
    found: Check = check(speculative(OTHER))
    assert found.proper, str(found)
    assert found.gap < 1e-12
    assert check(smc(OTHER, 1, kernel=CorrectionFromTarget())).part == "kernel"


def test_a_part_that_needs_another_alphabet_is_refused_with_a_remedy() -> None:
    class Biased:
        positionwise = True
        bias = torch.linspace(0, 1, 50)

        def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
            return torch.log_softmax(0.3 * log_q + 0.7 * log_p + self.bias, -1)

    with pytest.raises(ValueError, match=r"does not run on a table of a few tokens.*tabular_pair\(size\)"):
        check(smc(OTHER, 1, intermediate=Biased()))


class Delegating:
    """A proposal as a user may write one: no base, nothing that can be set, and no more than `Proposal` asks for."""

    factorised, covers, identical_lanes, lookahead = True, True, True, 3

    def __init__(self, model: Any, *, lanes: int | None = None, lies: bool = False) -> None:
        self.inner, self.lanes, self.lies = DLMProposal(model, lookahead=3), lanes, lies

    @property
    def model(self) -> Any:
        return self.inner.model

    @property
    def banned_ids(self) -> tuple[int, ...]:
        return self.inner.banned_ids

    def settings(self) -> dict[str, Any]:
        return {"form": "delegating"}

    def check(self, lanes: int) -> None:
        if self.lanes not in (None, lanes):
            raise ValueError(f"lanes = {lanes}: give {self.lanes}")

    def open(self, prefix: Prefix, *, particles: int) -> Any:
        return self.inner.open(prefix, particles=particles)

    def draft(self, state: Any, asked: Asked, *, source: Any) -> Draft:
        found = self.inner.draft(state, asked, source=source)
        return found._replace(q=Dense(torch.log_softmax(found.q.dense() / 2, -1))) if self.lies else found

    def along(self, state: Any, asked: Asked, lane: Tensor, block: Tensor) -> Any:
        return self.inner.along(state, asked, lane, block)

    def commit(self, *taken: Any) -> None:
        self.inner.commit(*taken)

    def reseat(self, *taken: Any) -> None:
        self.inner.reseat(*taken)


class Wrapping(Delegating):
    """A user's proposal that happens to call what it delegates to `base`."""

    @property
    def base(self) -> DLMProposal:
        return self.inner


@pytest.mark.parametrize("form", [Delegating, Wrapping])
@pytest.mark.parametrize("options", [{}, {"particles": 2}, {"lanes": 2}, {"lanes": 3}, {"particles": 2, "lanes": 2}],
                         ids=str)
def test_a_users_own_proposal_on_a_tabular_pair_is_left_as_it_is(form: Any, options: dict[str, int]) -> None:
    sampler = smc(PAIR, **{"particles": 1, **options})
    lanes = options.get("lanes")
    assert check(replace(sampler, proposal=form(PAIR.dlm, lanes=lanes))).proper
    found = check(replace(sampler, proposal=form(PAIR.dlm, lanes=lanes, lies=True)))
    assert (found.proper, found.part, found.how) == (False, "proposal", "enumeration"), str(found)


@pytest.mark.parametrize("form", [Delegating, Wrapping])
def test_a_users_own_proposal_on_other_models_is_refused_with_a_remedy(form: Any) -> None:
    with pytest.raises(ValueError, match=rf"^proposal {form.__name__} is on .*tabular_pair\(size\)$") as caught:
        check(replace(smc(OTHER, 1), proposal=form(OTHER.dlm)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "says"), [({"runs": 0}, "runs = 0"), ({"level": 0.0}, "level = 0.0"),
                                               ({"level": 1.0}, "level = 1.0")])
def test_arguments_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(smc(PAIR), **options)


@pytest.mark.parametrize("potential", [None, TablePotential(2, 2, dead=(0, 1))], ids=["plain", "potential"])
@pytest.mark.parametrize("scheme", RESAMPLERS)
@pytest.mark.parametrize("kernel", ["rejection", "block-verification", "accept-all", "tree-walk"])
def test_the_kernels_own_code_has_the_law_of_its_closed_form_in_a_whole_program(
    kernel: str, scheme: str, potential: TablePotential | None
) -> None:
    """Two enumerations that share the engine only: one runs the kernels' draws, one knows their densities."""
    sampler = program(
        KERNELS[kernel], eos=None if kernel == "tree-walk" else 1, resampler=named("resampler", scheme), trigger=always,
        potential=potential,
    )
    drawn, scripted = enumerate_sampler(sampler, 2), enumerate_program(sampler, 2)
    for found, expected in (
        (drawn.proper, scripted.proper), (drawn.output, scripted.output), (drawn.proper, target_law(sampler, 2)),
        (exact_law(sampler.target, 2), target_law(sampler, 2)),
    ):
        gap, message = worst(found, expected)
        assert gap < 1e-12, message
    assert abs(drawn.log_evidence - scripted.log_evidence) < 1e-12
    assert abs(drawn.dead - scripted.dead) < 1e-12


def test_too_many_outcomes_and_continuous_draws_are_refused() -> None:
    with pytest.raises(NotEnumerableError, match="more than 10 outcomes"):
        enumerate_sampler(smc(PAIR, 2, lookahead=2, window=2), 2, most=10)
    with pytest.raises(NotEnumerableError, match="exponential"):
        enumerate_sampler(smc(PAIR, 1, lookahead=2, window=2, kernel=GumbelCoupling()), 2)


def test_a_wrong_kernel_is_told_from_a_right_one_where_it_accepts_everything() -> None:
    assert check(smc(PAIR, 1, kernel=AcceptAll(), intermediate=Proposal())).proper
    assert check(smc(PAIR, 1, kernel=TreeWalk(1))).proper

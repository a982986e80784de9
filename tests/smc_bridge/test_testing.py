"""`smc_bridge.testing` tells right from wrong: every shipped part passes `assert_proper`, every mutant is refused."""

from __future__ import annotations

import doctest
import importlib
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.mock import MockPair
from smc_bridge import (
    AcceptAll,
    BalanceHeuristic,
    BlockVerification,
    Chernoff,
    Clamp,
    Defensive,
    DLMProposal,
    GumbelCoupling,
    Horizon,
    Mixture,
    OwnWeights,
    PowerMean,
    ProductOfExperts,
    Rejection,
    Sampler,
    Target,
    TreeWalk,
    paper,
    plain_is,
    released,
    smc,
    speculative,
    tree_walk,
)
from smc_bridge.engine.resampling import UniformResampler, from_points
from smc_bridge.engine.weights import always, never
from smc_bridge.methods.released import Argmax, ReleasedRejection, ReleasedScore
from smc_bridge.models.learned.store import save
from smc_bridge.models.training import TRAININGS
from smc_bridge.names import RESAMPLERS, named
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import PrefixFilled
from smc_bridge.proposals.path import MostLikelyPath
from smc_bridge.randomness import PromptSource
from smc_bridge.testing import (
    KernelTable,
    NotEnumerableError,
    assert_biased,
    assert_proper,
    block_law,
    engine_mutants,
    kernel_density,
    kernel_law,
    kernel_table,
    mutants,
    mutated,
    stopping_gap,
    tabular_pair,
)
from tests.smc_bridge.test_proposals import asked_for

PAIR = tabular_pair(2, 2)
#: The tables that the mutants among the proposals are on.
DRAFTS = tabular_pair(2, 3, eos=False, noise=1.5, seed=4).dlm
MUTANTS = [*mutants.KERNELS, *mutants.WEIGHTS, *mutants.RESAMPLERS, *mutants.INTERMEDIATES, *mutants.PROPOSALS]

PROPER: dict[str, Callable[[], Any]] = {
    "rejection": Rejection, "block verification": BlockVerification, "gumbel": GumbelCoupling, "accept all": AcceptAll,
    "tree of one": lambda: TreeWalk(1), "tree": lambda: TreeWalk(3), "edited by nothing": mutants.EditedRejection,
    **{name: partial(named, "resampler", name) for name in RESAMPLERS},
    "own weights": OwnWeights, "balance heuristic": BalanceHeuristic,
    "product": ProductOfExperts, "power mean": PowerMean, "mixture": Mixture, "chernoff": Chernoff, "clamp": Clamp,
    "target": Target,
    "defended": lambda: Defensive(ProductOfExperts(0.3), 0.1),
    "marginals": lambda: DLMProposal(DRAFTS), "truncated marginals": lambda: DLMProposal(DRAFTS, top_p=0.7),
    "marginals of two lanes": lambda: DLMProposal(DRAFTS, temperature=[0.4, 2.5]),
    "chain": lambda: PrefixFilled(DLMProposal(DRAFTS)), "path": lambda: MostLikelyPath(DLMProposal(DRAFTS)),
    "chain, with an end": lambda: PrefixFilled(DLMProposal(tabular_pair(3, 3).dlm)),
    "smc": lambda: smc(PAIR, 2), "paper": lambda: paper(PAIR, lanes=2), "speculative": lambda: speculative(PAIR),
    "plain IS": lambda: plain_is(PAIR, lanes=2), "tree walk": lambda: tree_walk(PAIR, nodes=2),
    "smc, gumbel": lambda: smc(PAIR, 2, kernel=GumbelCoupling()),
}


@pytest.mark.parametrize("name", PROPER)
def test_what_says_that_it_is_proper_is_and_has_no_bias(name: str) -> None:
    thing = PROPER[name]()
    assert_proper(thing, runs=400)
    with pytest.raises(AssertionError, match="no bias of"):
        assert_biased(thing, runs=400)


@pytest.mark.filterwarnings("ignore:intermediate")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_refused_with_two_numbers(mutant: type) -> None:
    with pytest.raises(AssertionError) as refusal:
        assert_proper(mutant())
    assert str(refusal.value).startswith(f"{mutant.__name__} is not proper:")
    if mutant is mutants.NothingOnRefusal:
        assert "commits 0 tokens" in str(refusal.value)
    else:
        numbers = re.search(r"(?:is|has) (\S+), must (?:be|have) (\S+)", str(refusal.value))
        assert numbers is not None, str(refusal.value)
        found, right = (float(number) for number in numbers.groups())
        assert abs(found - right) > 1e-3, str(refusal.value)
    assert_biased(mutant(), least=1e-3)


IMPROPER = {
    "argmax": Argmax, "released score": ReleasedScore, "released kernel": ReleasedRejection,
    "released": lambda: released(PAIR, lanes=2), "truncated": lambda: smc(tabular_pair(3, 2), 1, proposal_top_p=0.6),
    "mutant in a program": lambda: smc(PAIR, 2, kernel=mutants.CorrectionFromTarget()),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_what_says_that_it_is_not_proper_is_refused_and_biased(name: str) -> None:
    with pytest.raises(AssertionError, match="is not proper"):
        assert_proper(IMPROPER[name]())
    assert_biased(IMPROPER[name](), least=1e-3)


@pytest.mark.parametrize("name", [name for name in engine_mutants.ENGINE_MUTANTS if "potential" not in name])
def test_a_program_under_a_broken_engine_is_biased_and_the_same_program_is_not(name: str) -> None:
    lanes = 2 if "lane" in name else 1
    trigger = never if name in ("finished particles reweighted", "weight of the kept lane") else always
    sampler = smc(tabular_pair(2, 3, seed=3), 3 - lanes, lanes=lanes, trigger=trigger)
    with mutated(name):
        assert_biased(sampler, least=1e-4)
    assert_proper(sampler)


def test_every_mutant_says_which_condition_it_breaks_and_together_they_break_all() -> None:
    changes = [change for _, change in engine_mutants.ENGINE_MUTANTS.values()]
    said = {thing.__name__: set(re.findall(r"C[1-8]", thing.__doc__ or "")) for thing in (*MUTANTS, *changes)}
    assert all(said.values()), [name for name, conditions in said.items() if not conditions]
    assert set.union(*said.values()) == {f"C{i}" for i in range(1, 9)}


class Shorter(Rejection):
    """Says that it stops half as often as it does: conditional runs would be wrong, and no ordinary one is."""

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        return super().log_continue(q, pi, block, horizon=horizon) / 2


@pytest.mark.parametrize("thing", [Shorter(), smc(PAIR, 1, kernel=Shorter())], ids=["kernel", "program"])
def test_a_wrong_closed_form_is_refused_and_is_no_bias(thing: Any) -> None:
    with pytest.raises(AssertionError, match="log_density gives block"):
        assert_proper(thing)
    with pytest.raises(AssertionError, match="no bias of"):
        assert_biased(thing)


class Leaning(UniformResampler):
    """One uniform too small in ten."""

    def dimension(self, candidates: int, count: int) -> int:
        return count

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return from_points(weights, uniforms**1.1)


class Even(Leaning):
    """Multinomial, of one's own."""

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return from_points(weights, uniforms)


def test_a_resampler_that_cannot_be_enumerated_is_tried_by_draws_of_stated_power() -> None:
    assert_biased(Leaning())
    with pytest.raises(AssertionError, match=r"10,000 draws: p = .*a gap of 0\.0\d+ is found with probability 0\.99"):
        assert_proper(Leaning())
    assert_proper(Even())
    with pytest.raises(AssertionError, match=r"a gap of 0\.0\d+ is found with probability 0\.99"):
        assert_biased(Even())


def test_a_program_that_cannot_be_enumerated_says_what_bias_it_would_have_found() -> None:
    with pytest.raises(AssertionError, match=r"400 runs, p = .*a gap of 0\.\d+ is found with probability 0\.99"):
        assert_biased(smc(PAIR, 2, kernel=GumbelCoupling()), runs=400)


def test_a_gap_below_the_least_one_is_no_bias() -> None:
    slight = mutants.Sharpened(1.0 + 1e-5)
    assert_biased(slight, least=1e-7)
    with pytest.raises(AssertionError, match=r"no bias of Sharpened of at least 0\.01"):
        assert_biased(slight, least=1e-2)
    with pytest.raises(AssertionError, match="Sharpened is not proper"):
        assert_proper(slight)
    assert_proper(slight, tolerance=1e-4)


@pytest.mark.parametrize(("options", "says"), [({"runs": 0}, "runs = 0"), ({"level": 2.0}, "level = 2.0")])
def test_arguments_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        assert_proper(Rejection(), **options)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e-3, "a", None], ids=str)
def test_a_gap_that_is_no_number_in_range_is_refused(wrong: Any) -> None:
    """Comparisons with NaN hold of nothing, so that a mutant would pass."""
    for ask in (
        lambda: assert_proper(mutants.SharpenedDraft(), tolerance=wrong),
        lambda: assert_biased(mutants.KeepsTheBest(), least=wrong),
    ):
        with pytest.raises(ValueError, match=r"^(tolerance|least) = .*: give a number in \[0, 1\]$"):
            ask()


@pytest.mark.parametrize("thing", [3, torch.zeros(1), lambda x: x, PrefixFilled],
                         ids=["number", "tensor", "function", "class"])
def test_what_is_no_part_is_refused(thing: Any) -> None:
    with pytest.raises(ValueError, match="give a sampler, a kernel, a resampler, an intermediate, a weight rule or a"):
        assert_proper(thing)


def test_a_proposal_on_no_table_is_refused_with_a_remedy() -> None:
    pair = MockPair.make(alphabet=50, lanes=1, window=4, seed=0)
    with pytest.raises(ValueError, match=r"^proposal DLMProposal is on .*tabular_pair\(size\)\.dlm$"):
        assert_proper(DLMProposal(pair.dlm))


def test_the_law_of_a_kernel_on_a_table() -> None:
    table = kernel_table(3, 2, seed=1, eos_id=0)
    found = block_law(kernel_law(Rejection(), table))
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-12)
    assert set(found) <= set(table.blocks())
    assert stopping_gap(found, table)[0] < 1e-12
    density = kernel_density(Rejection(), table, list(found))
    assert max(abs(a - b) for a, b in zip(density, found.values(), strict=True)) < 1e-12
    with pytest.raises(NotEnumerableError, match="exponential"):
        kernel_law(GumbelCoupling(), table)


def test_laws_that_are_functions_become_a_table() -> None:
    table = kernel_table(2, 3, seed=6)
    again = KernelTable.of_laws(table.log_q, table.along)
    assert all(torch.equal(a, b) for a, b in zip(again.log_pi, table.log_pi, strict=True))
    assert (again.window, again.eos_id) == (3, None)
    assert len(again.paths()) == 8


@pytest.mark.parametrize("name", ["", ".asserts", ".kernel_laws", ".enumeration"])
def test_examples_of_the_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"smc_bridge.testing{name}")
    assert doctest.testmod(module).failed == 0


def test_a_sampler_is_named() -> None:
    sampler: Sampler = released(PAIR, lanes=2)
    with pytest.raises(AssertionError, match=r"^released is not proper"):
        assert_proper(sampler)


def test_laws_along_a_block_that_are_not_those_of_the_draft_are_told() -> None:
    """Free runs never ask for them, so that only conditional runs would be biased."""

    class Elsewhere(PrefixFilled):
        def along(self, state: Any, asked: Any, lane: Tensor, block: Tensor) -> Any:
            return super().along(state, asked, lane, block * 0)

    with pytest.raises(AssertionError, match="proposal Elsewhere: along differs from the laws of its drafts by 0"):
        assert_proper(Elsewhere(DLMProposal(tabular_pair(3, 3).dlm, lookahead=3)))


def test_a_kernel_that_does_not_say_if_it_is_proper_is_asked_to() -> None:
    class Silent(Rejection):
        proper = None  # type: ignore[assignment]

    with pytest.raises(ValueError, match="kernel Silent does not say if it is proper"):
        assert_proper(Silent())


def test_a_proposal_of_ones_own_is_no_name() -> None:
    with pytest.raises(ValueError, match=r"^proposal = .*: give one of marginals, .* search; .* Sampler\(proposal"):
        smc(PAIR, proposal=DLMProposal(PAIR.dlm))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_tables_have_learned_parts_of_random_weights_of_which_none_is_left_at_zero(name: str, tmp_path: Path) -> None:
    """The same in every call, in float64, whatever the global generator; a file or a network may be given instead."""
    pair, state = tabular_pair(3, 3), torch.get_rng_state()
    module, again = pair.part(name), pair.part(name)
    assert torch.equal(torch.get_rng_state(), state)
    for (key, weight), other in zip(module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other)
        assert weight.dtype == torch.float64
        assert float(weight.abs().mean()) > 0.1 * weight.shape[-1] ** -0.5, key
    save(module, tmp_path / "part.safetensors", kind=name, facts={})
    read = pair.part(name, tmp_path / "part.safetensors")
    assert all(torch.allclose(x, y, atol=1e-2) for x, y in zip(read.parameters(), module.parameters(), strict=True))
    assert {weight.dtype for weight in read.parameters()} == {torch.float64}
    assert pair.part(name, module) is module


@pytest.mark.parametrize("method", ["markov", "adjust", "codila"])
def test_a_chain_by_the_part_of_tables_is_a_chain(method: str) -> None:
    """Its second law is another one after another first token, by far, and no token is all but cut off."""
    pair = tabular_pair(3, 3)
    chain: Any = smc(pair, proposal=method, window=3, lookahead=3).proposal
    prefix, block = Prefix.of([[]] * 3), torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    asked = asked_for(prefix, lanes=1, window=3)
    state = chain.open(prefix, particles=1)
    chain.draft(state, asked, source=PromptSource([torch.Generator().manual_seed(i) for i in range(3)], 1))
    second = chain.along(state, asked, torch.arange(3), block).dense()[:, 1].exp()
    assert float((second[0] - second[1]).abs().sum()) > 0.1
    assert float(second.min()) > 1e-4


@pytest.mark.parametrize("name", ["table_diffusion", "markow", 3])
def test_a_part_that_tables_have_not_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^part = .*: tables have adjust, codila, .*; give one, or a network$"):
        tabular_pair().part(name)

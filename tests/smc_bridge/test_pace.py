"""Sizes that are chosen by costs and by the past: the program stays proper, and its draws depend on nothing else.

Costs are given everywhere; those of a machine are never measured here but for the shape of what is found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from smc_bridge import load_pair
from smc_bridge.blocks import full_horizon
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.overhead import step_seconds
from smc_bridge.engine.pace import Pace, Plan, Sizes, note
from smc_bridge.engine.presets import smc
from smc_bridge.engine.resampling import Multinomial
from smc_bridge.engine.sampler import Sampler
from smc_bridge.engine.weights import EssBelow, always
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.poe_bridge import paper
from smc_bridge.methods.tree_walk import tree_walk
from smc_bridge.models.costs import Costs
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.registry import spelled
from smc_bridge.testing import assert_biased, assert_proper, check, tabular_pair
from tests.oracle import smc as oracle
from tests.smc_bridge.programs import KERNELS, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

TOLERANCE = 1e-12
#: A forward of the AR model costs little, and each of its positions much: one refusal makes the window narrower.
COSTS = Costs.linear(dlm=(0.05, 0.01), ar=(0.9, 0.65))
PACE = Pace(costs=COSTS, acceptance=(0.75,), trust=0.5)
SIZES = Sizes(particles=1, lanes=4, rows=4, window=32, lookahead=256)


@contextmanager
def plans() -> Iterator[set[tuple[int, int]]]:
    """All pairs (V, M) that are planned until the block ends."""
    met: set[tuple[int, int]] = set()
    real = Pace.plan

    def plan(self: Pace, seen: Any, sizes: Sizes) -> Plan:
        found = real(self, seen, sizes)
        met.update(zip(*found, strict=True))
        return found

    with mock.patch.object(Pace, "plan", plan):
        yield met


def paced(kernel: Any, **parts: Any) -> Sampler:
    """A program of two tokens whose windows are chosen among one to three."""
    return program(kernel, window=3, pace=PACE, **{"trigger": EssBelow(0.95), "resampler": Multinomial(), **parts})


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_program_whose_sizes_follow_the_past_is_properly_weighted(kernel: str, lanes: int) -> None:
    with plans() as met:
        sampler = paced(KERNELS[kernel], lanes=lanes, eos=None if kernel == "tree-walk" else 1)
        found = enumerate_program(sampler, 3)
    gap, message = worst(found.proper, target_law(sampler, 3))
    assert gap < TOLERANCE, message
    assert len({window for window, _ in met}) > 1 or kernel == "accept-all", f"only {met} was planned"


def test_the_engine_itself_is_enumerated_with_sizes_that_vary() -> None:
    sampler = smc(tabular_pair(2, 3), particles=2, w=0.5)
    sampler.window, sampler.pace, sampler.trigger = 3, PACE, always
    with plans() as met:
        assert_proper(sampler)
        assert check(sampler).how == "enumeration"
    assert len({window for window, _ in met}) > 1, f"only {met} was planned"


def test_conditional_runs_are_exact_where_sizes_follow_the_past() -> None:
    sampler = paced(Rejection(), trigger=always)
    law = target_law(sampler, 3)
    conditional, plain = enumerate_program(sampler, 3, retained=law), enumerate_program(sampler, 3)
    assert abs(conditional.inverse_evidence - 1.0) < TOLERANCE
    gap, message = worst(conditional.output, law)
    assert gap < TOLERANCE, message
    assert oracle.kl(law, plain.output) <= conditional.log_evidence + TOLERANCE


class Peeking(DLMProposal):
    """A mutant: the window ends before a token that it does not like, which is then drawn again (C1 broken)."""

    def draft(self, state: Any, asked: Asked, **options: Any) -> Draft:
        """As the marginals, but for the width."""
        found = super().draft(state, asked, **options)
        return found._replace(width=torch.where(found.tokens[:, 1] == 1, 1, found.width))


def test_a_width_that_looks_at_the_draft_is_caught() -> None:
    pair = tabular_pair(2, 3)
    sampler = smc(pair, particles=1, w=0.5)
    sampler.window = 2
    assert_proper(sampler)
    sampler.proposal = Peeking(pair.dlm, lookahead=3)
    assert_biased(sampler)


@pytest.mark.parametrize("method", ["smc-2", "paper", "tree-walk,nodes=auto", "speculative", "smc-2,proposal=chain"])
def test_draws_of_a_prompt_do_not_depend_on_the_batch(method: str) -> None:
    pair = tabular_pair(3, 6)
    prompts = [[], [0], [1, 0], [0, 1]]
    with plans() as met:
        found = spelled(f"{method},window=auto,lookahead=auto")
        sampler = found.method.make(pair, **{**found.options, "costs": COSTS})
        together = sampler.run(prompts, seed=[3, 4, 5, 6], max_new_tokens=4)
        two = sampler.run(prompts, seed=[3, 4, 5, 6], max_new_tokens=4, batch=2)
        alone = [sampler.run([p], seed=3 + i, max_new_tokens=4)[0] for i, p in enumerate(prompts)]
    assert [r.sequences for r in together] == [r.sequences for r in alone] == [r.sequences for r in two]
    for one, other in zip(together, alone, strict=True):
        assert one.log_weights == pytest.approx(other.log_weights)
    assert met


def test_a_run_is_repeated_from_its_settings() -> None:
    pair = tabular_pair(3, 6)
    first = paper(pair, window="auto", lookahead="auto", costs=COSTS, at_once=2).run([[0]], seed=5, max_new_tokens=4)[0]
    settings = json.loads(json.dumps(first.settings))["pace"]
    again = paper(pair, window="auto", lookahead="auto", costs=settings["costs"], at_once=settings["at_once"])
    assert again.pace == Pace(**settings)
    assert again.run([[0]], seed=5, max_new_tokens=4)[0].sequences == first.sequences
    tree = tree_walk(pair, nodes="auto", costs=COSTS)
    assert f"worth={tree.pace.worth(tree.sizes)!r}" in str(tree.run([[0]], seed=5, max_new_tokens=4)[0].settings)


def rows_of(*steps: tuple[int, int]) -> np.ndarray:
    """Counts after blocks of one lane, (length, accepted) each."""
    seen = np.zeros((1, 2, 32), dtype=np.int64)
    for length, accepted in steps:
        note(seen, np.array([0]), np.array([[length]]), np.array([[accepted]]), np.array([[False]]))
    return seen


def test_trials_and_acceptances_are_counted_by_place() -> None:
    seen = rows_of((3, 2), (1, 0), (2, 2))
    assert seen[0, 0, :4].tolist() == [3, 2, 1, 0]
    assert seen[0, 1, :4].tolist() == [2, 2, 0, 0]
    before = seen.copy()
    for accepted in (1, 2):  # a block that ends the sequence with its second token, which is drafted or not
        note(seen := before.copy(), np.array([0]), np.array([[2]]), np.array([[accepted]]), np.array([[True]]))
        assert (seen - before)[0, :, :3].tolist() == [[1, 0, 0], [1, 0, 0]]


def test_windows_follow_what_was_accepted_and_what_it_costs() -> None:
    pace = Pace(costs=Costs.linear(dlm=(1.0, 0.002), ar=(1.0, 0.01)))
    [first], _ = pace.plan(rows_of(), SIZES)
    [short], _ = pace.plan(rows_of(*[(2, 1)] * 20), SIZES)
    [long], _ = pace.plan(rows_of(*[(20, 20)] * 20), SIZES)
    assert short < first < long, (short, first, long)
    [dear], _ = Pace(costs=Costs.linear(dlm=(1.0, 0.002), ar=(1.0, 0.1))).plan(rows_of(), SIZES)
    [many], _ = Pace(costs=Costs.linear(dlm=(1.0, 0.002), ar=(1.0, 0.01)), at_once=16).plan(rows_of(), SIZES)
    assert dear < first, (dear, first)
    assert many < first, (many, first)
    [slow], _ = Pace(costs=Costs.linear(dlm=(1.0, 0.0), ar=(1.0, 0.1), step=(3.0, 0.0))).plan(rows_of(), SIZES)
    assert slow > dear, "steps that take long themselves should go further"


def test_a_dear_diffusion_model_looks_further_than_a_window() -> None:
    costs = Costs.linear(dlm=(50.0, 0.01), ar=(0.1, 0.1))
    [window], [lookahead] = Pace(costs=costs).plan(rows_of(), SIZES)
    assert lookahead > window, (window, lookahead)
    [_], [fixed] = Pace(costs=costs, lookahead=False).plan(rows_of(), SIZES)
    assert fixed == SIZES.lookahead
    [kept], [_] = Pace(costs=costs, window=False).plan(rows_of(), SIZES)
    assert kept == SIZES.window


def test_the_expected_tokens_per_second_are_those_of_the_formula() -> None:
    """Brute force over pairs (V, M), in plain Python."""
    a, costs = 0.8, Costs.linear(dlm=(3.0, 0.05), ar=(0.2, 0.05))

    def rate(v: int, m: int) -> float:
        forwards = sum(a**i for i in range(0, m, v))
        return sum(a**i for i in range(m)) / (costs.dlm(1, m) + costs.ar(4, min(v, m)) * forwards)

    best = max(((v, v * r) for v in range(1, 33) for r in range(1, 5)), key=lambda pair: rate(*pair))
    assert Pace(costs=costs, acceptance=(a,)).plan(rows_of(), SIZES) == ([best[0]], [best[1]])


def test_a_tree_ends_where_another_node_does_not_pay() -> None:
    q = torch.log_softmax(torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(2)).double() * 2, -1)
    horizon = full_horizon(3, 6)
    whole = TreeWalk(64).tree(Dense(q), horizon=horizon)
    for worth in (2.0, 8.0, 30.0, 1e4):
        tree = TreeWalk(64, worth=worth).tree(Dense(q), horizon=horizon)
        for row in range(3):
            chances = []
            for token, parent, depth in zip(*(x[row].tolist() for x in whole[:3]), strict=True):
                chances.append((1.0 if parent == 0 else chances[parent - 1]) * float(q[row, depth - 1, token].exp()))
            rates = [(1 + sum(chances[:n])) / (worth + n) for n in range(1, 65)]
            assert int(tree.real[row].sum()) == 1 + int(np.argmax(rates)), worth


def test_a_tree_that_ends_where_it_pays_is_properly_weighted() -> None:
    assert_proper(smc(tabular_pair(2, 3), particles=2, w=0.5, kernel=TreeWalk(6, worth=2.5)))


def test_costs_are_measured_when_a_run_begins_and_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMC_BRIDGE_CACHE", str(tmp_path))
    sampler = tree_walk(load_pair("arithmetic"), nodes="auto")
    assert not list(tmp_path.iterdir()), "a sampler that is only made measures nothing"
    result = sampler.run([[5, 6]], max_new_tokens=2)[0]
    [kept] = (tmp_path / "costs").iterdir()
    costs = Costs.of(result.settings["pace"]["costs"])
    assert costs == Costs.of(json.loads(kept.read_text())["costs"])
    assert sampler.pace.costs is None
    assert sampler.kernel.worth is None, "a run leaves the sampler as it is"
    assert sampler.run([[5, 6]], max_new_tokens=2)[0].settings == result.settings


def test_models_without_a_network_are_measured_once_in_a_process(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMC_BRIDGE_CACHE", str(tmp_path))
    pair = tabular_pair(2, 4)
    first, second = (tree_walk(pair, nodes="auto").run([[0]], max_new_tokens=2)[0].settings for _ in range(2))
    assert first["pace"] == second["pace"]
    assert not list(tmp_path.iterdir())


def test_a_pace_without_a_tree_chooses_no_nodes() -> None:
    with pytest.raises(ValueError, match=r"kernel = .*Rejection.* has no nodes .* give TreeWalk"):
        replace(smc(tabular_pair(2, 3)), pace=Pace(False, False, True))


def test_a_tree_that_says_where_it_ends_keeps_that() -> None:
    costs = Costs.linear(dlm=(1.0, 0.1), ar=(1.0, 0.1))
    sampler = smc(tabular_pair(2, 3), kernel=TreeWalk(6, worth=3.0), nodes="auto", costs=costs)
    assert "worth=3.0" in str(sampler.run([[0]], max_new_tokens=2)[0].settings["kernel"])


def test_a_step_of_the_models_alone_takes_no_negative_time() -> None:
    assert min(step_seconds(smc(tabular_pair(3, 4)))) >= 0.0


def test_places_that_are_not_verified_are_not_counted() -> None:
    pair = tabular_pair(3, 6)
    whole = smc(pair, particles=1, window=8).run([[0]], max_new_tokens=6)[0].forwards
    few = smc(pair, particles=1, window="auto", costs=Costs.linear(dlm=(0.0001, 0.1), ar=(0.0001, 0.1))).run(
        [[0]], max_new_tokens=6
    )[0].forwards
    assert few.ar_tokens / few.ar_forwards < 6 <= whole.ar_tokens / whole.ar_forwards


def test_samplers_show_what_is_chosen() -> None:
    pair = tabular_pair(2, 3)
    assert "V <= 32, M = 16" in repr(smc(pair, window="auto", lookahead=16))
    assert "V = 32, M <= 256" in repr(smc(pair, lookahead="auto"))


def test_sizes_are_spelled() -> None:
    sampler = spelled("paper,window=auto,lookahead=auto,at_once=16").make(tabular_pair(2, 3), lookahead=32, window=16)
    assert (sampler.window, sampler.proposal.lookahead, sampler.pace) == (32, 256, Pace(at_once=16))
    assert spelled("tree-walk,nodes=auto").make(tabular_pair(2, 3)).pace == Pace(False, False, True)
    assert spelled("smc-2,kernel=tree,nodes=auto").make(tabular_pair(2, 3)).kernel.nodes == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "wide"}, "window = 'wide': give a whole number of at least 1, or 'auto'"),
        ({"lookahead": 0}, "lookahead = 0: give a whole number of at least 1, or 'auto'"),
        ({"at_once": 2}, "at_once = 2 where no size is chosen: leave it out, or give window"),
        ({"costs": COSTS}, "where no size is chosen: leave it out"),
        ({"window": "auto", "at_once": 0}, "at_once = 0: give a whole number of at least 1"),
        ({"window": "auto", "costs": 3}, "costs = 3: give Costs, their data(), or None"),
        ({"nodes": "auto"}, "nodes = 128 with kernel = rejection"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        smc(tabular_pair(2, 3), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": False, "lookahead": False}, "all False"),
        ({"acceptance": ()}, "acceptance = (): give probabilities in (0, 1)"),
        ({"acceptance": (0.5, 1.0)}, "acceptance = 1.0: give probabilities in (0, 1)"),
        ({"trust": 0}, "trust = 0: give a positive number of trials"),
        ({"window": "auto"}, "window = 'auto': give True or False"),
    ],
)
def test_bad_paces_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Pace(**options)
    assert message in str(caught.value)


def test_a_spelling_refuses_other_words() -> None:
    with pytest.raises(ValueError, match=r"window = 'atuo': did you mean auto\? give a whole number or auto"):
        spelled("smc-4,window=atuo")
    with pytest.raises(ValueError, match="pace = 3: give a Pace, or None"):
        Sampler(
            proposal=DLMProposal(tabular_pair(2, 3).dlm), target=smc(tabular_pair(2, 3)).target, pace=3  # type: ignore
        )

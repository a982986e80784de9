"""Products of any number of experts with any exponents: proper with every kernel, negative exponents too."""

from __future__ import annotations

import math
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
    Experts,
    GumbelCoupling,
    ProductOfExperts,
    Rejection,
    Sampler,
    TreeWalk,
    smc,
)
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.intermediate import checked_log_prob, covered, dominates, log_ratio_bound
from smc_bridge.distributions.law import LOG_RARE
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.weights import always
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.tabular import TabularAR, TabularCausalSession
from smc_bridge.names import RESAMPLERS
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from tests.smc_bridge.programs import target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program

PAIR = tabular_pair(2, 3)
#: Another table, and the target's own without some of its layers.
OTHERS = (TabularAR.random(2, 3, seed=9, concentration=1.5, eos_id=1), PAIR.ar.without([0], [1]))
PRODUCTS = {
    "three": Experts([0.3], w=0.4), "guided": Experts([-0.6], w=0.3), "all signs": Experts([0.2, -0.3], w=-0.2),
    "target below zero": Experts([0.8], w=0.6, target_exponent=-0.4),
}
KERNELS: dict[str, Kernel] = {"rejection": Rejection(), "block": BlockVerification(), "tree": TreeWalk(3)}


def program(bridge: Any, pair: Any = PAIR, particles: int = 2, **options: Any) -> Sampler:
    count = getattr(bridge, "experts", 0)
    return smc(pair, particles, experts=OTHERS[:count], intermediate=bridge, **{"window": 2, **options})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_kernel_is_exact_with_every_product(kernel: str, product: str) -> None:
    assert_proper(program(PRODUCTS[product], kernel=KERNELS[kernel]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_lanes_with_temperatures_of_their_own_are_exact(kernel: str) -> None:
    assert_proper(program(
        PRODUCTS["guided"], particles=1, lanes=2, proposal_temperature=[0.7, 1.4], kernel=KERNELS[kernel]
    ))


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_every_resampler_is_exact(resampler: str) -> None:
    assert_proper(program(PRODUCTS["all signs"], resampler=resampler, trigger=always))


def test_the_gumbel_coupling_is_exact_by_its_closed_form() -> None:
    sampler = program(PRODUCTS["guided"], kernel=GumbelCoupling())
    gap, where = worst(enumerate_program(sampler, 3).proper, target_law(sampler, 3))
    assert gap < 1e-12, where


def test_a_retained_sequence_is_weighed_by_all_experts() -> None:
    sampler = program(PRODUCTS["three"])
    law = target_law(sampler, 3)
    found = enumerate_program(sampler, 3, retained=law)
    assert abs(found.inverse_evidence - 1.0) < 1e-12
    gap, where = worst(found.output, law)
    assert gap < 1e-12, where


def test_weights_that_forget_an_expert_are_caught() -> None:
    """Drawn from the product of three, weighed by the product of two."""

    class Forgets:
        proper = lanewise = True

        def __call__(self, lanes: Any, *, kernel: Any, intermediate: Any) -> Tensor:
            pi = ProductOfExperts(0.4, 0.3).log_prob(lanes.q.dense(), lanes.p.dense())
            block = lanes.move.block.clamp_min(0)[..., None]
            ratio = (lanes.p.dense() - pi).gather(-1, block)[..., 0]
            inside = torch.arange(block.shape[-2]) < lanes.move.length[..., None]
            return torch.where(inside, ratio, 0.0).sum(-1)

    assert_biased(program(PRODUCTS["three"], weight=Forgets()), least=1e-3)


def laws(count: int, *shape: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.log_softmax(2 * torch.randn(shape, generator=generator).double(), -1) for _ in range(count)]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("defended", [False, True])
def test_the_lazy_product_is_the_dense_one(product: str, defended: bool) -> None:
    bridge: Any = Defensive(PRODUCTS[product], 0.2) if defended else PRODUCTS[product]
    every = laws(2 + PRODUCTS[product].experts, 3, 4, 5)
    for law in every:  # a token that one law excludes, another for each
        law[0, 0, int(law[0, 0].argmin())] = -math.inf
    expected = checked_log_prob(bridge, *every)
    lazy = Chunks(bytes=1, whole=0)
    q, p, *others = (Dense(law, lazy) for law in every)
    found = bridge_law(bridge, q, p, lanes=1, experts=others)
    assert not found.held
    assert torch.allclose(found.dense().exp(), expected.exp(), atol=1e-12)
    token = every[0].argmax(-1)
    along = bridge_law(bridge, q, p, lanes=1, experts=others).at(token)
    assert torch.allclose(along, expected.gather(-1, token[..., None])[..., 0], atol=1e-12)


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_token_that_the_target_may_draw_is_below_the_lower_bound(product: str) -> None:
    every = laws(2 + PRODUCTS[product].experts, 6, 3, 4)
    q, p, *others = (Dense(law, Chunks(whole=0)) for law in every)
    for law, values in zip((q, *others), (every[0], *every[2:]), strict=True):
        law.lower_bound = (  # type: ignore[method-assign]
            lambda rows, positions, values=values: values.amin(-1)[rows, positions]  # type: ignore[misc]
        )
    found = bridge_law(PRODUCTS[product], q, p, lanes=1, experts=others)
    rows, positions = (x.flatten() for x in torch.meshgrid(torch.arange(6), torch.arange(3), indexing="ij"))
    least = torch.where(every[1] > LOG_RARE, found.dense(), math.inf).amin(-1)[rows, positions]
    assert bool((found.lower_bound(rows, positions) <= least + 1e-9).all())


def test_an_expert_of_exponent_zero_changes_no_draw() -> None:
    two = smc(PAIR, 2, window=2, w=0.4).run([[], [0]], seed=[1, 2], max_new_tokens=3)
    three = program(Experts([0.0], w=0.4)).run([[], [0]], seed=[1, 2], max_new_tokens=3)
    for one, other in zip(two, three, strict=True):
        assert one.sequences == other.sequences
        assert one.log_weights == pytest.approx(other.log_weights, abs=1e-12)


@pytest.mark.parametrize(("bridge", "whole"), [
    (Experts([0.3], w=0.3), False), (Experts([0.3], w=0.0), False), (Experts([-0.3], w=0.3), False),
    (Experts([-0.3], w=0.0), True), (Experts([-0.3], w=-0.2), True), (Defensive(Experts([0.3], w=0.3)), True),
])
def test_domination_is_told_as_it_is(bridge: Any, whole: bool) -> None:
    """Whether a token that q and r exclude keeps mass where p has some."""
    q, p, r = laws(3, 1, 4)
    q[:, 1], r[:, 2] = -math.inf, -math.inf
    pi = checked_log_prob(bridge, q, p, r)
    assert dominates(bridge) is whole
    assert bool((pi > -math.inf).all()) is whole


def test_which_laws_must_cover_depends_on_the_signs() -> None:
    assert covered(Experts([-0.3], w=0.3), True, [False])
    assert not covered(Experts([-0.3], w=0.3), False, [True])
    assert not covered(Experts([0.3, -0.1], w=0.3), True, [False, True])
    assert covered(Experts([0.3, -0.1], w=0.3), True, [True, False])


@pytest.mark.parametrize("bridge", [Experts([-0.3], w=0.0, target_exponent=1.0), Experts([0.0], w=0.0)])
def test_the_ratio_keeps_its_bound(bridge: Experts) -> None:
    q, p, r = laws(3, 500, 4)
    r[:, 0] = -1e9
    r = torch.log_softmax(r, -1)
    ratio = float((p - bridge.log_prob(q, p, r)).max())
    assert ratio <= log_ratio_bound(bridge) + 1e-12, (ratio, log_ratio_bound(bridge))


def test_a_truncated_expert_is_told_where_it_matters() -> None:
    cut = ARTarget(OTHERS[0], top_p=0.6)
    for bridge, proper in ((Experts([0.3], w=0.3), False), (Experts([-0.3], w=0.3), True),
                           (Defensive(Experts([0.3], w=0.3), 0.2), True)):
        sampler = smc(PAIR, 2, window=2, experts=[cut], intermediate=bridge)
        assert sampler.proper is proper, bridge
        if proper:
            assert_proper(sampler)
        else:
            assert "law of experts[0] leaves out tokens" in sampler.why_improper()[0]
            assert_biased(sampler, least=1e-3)


def test_an_expert_that_excludes_a_token_is_seen_at_run_time() -> None:
    tables: list[Any] = [[[1.0, 0.0]], *(table.numpy() for table in OTHERS[0].tables[1:])]
    sampler = smc(PAIR, 2, window=2, experts=[TabularAR(tables, eos_id=1)], intermediate=Experts([0.3], w=0.3))
    with pytest.warns(UserWarning, match="Experts has probability 0 where the target has not"):
        [result] = sampler.run([[]], seed=1, max_new_tokens=3)
    assert not result.proper


def test_an_expert_of_a_users_own_intermediate_is_tried_and_runs() -> None:
    class Averaged:
        experts = 1

        def log_prob(self, log_q: Tensor, log_p: Tensor, log_r: Tensor) -> Tensor:
            return torch.log_softmax((log_q + log_p + log_r) / 3, -1)

    class Ahead(Averaged):
        def log_prob(self, log_q: Tensor, log_p: Tensor, log_r: Tensor) -> Tensor:
            later = torch.cat([log_r[..., 1:, :], log_r[..., :1, :]], -2)
            return torch.log_softmax((log_q + log_p + later) / 3, -1)

    for kernel in KERNELS.values():
        assert_proper(program(Averaged(), kernel=kernel))
    with pytest.warns(UserWarning, match="reads log_p beyond the position"):
        assert not program(Ahead()).proper


@pytest.mark.parametrize("kernel", KERNELS)
def test_sessions_of_experts_hold_the_particles_prefixes(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every commit, with resampling in each step and prompts that take the seats of others."""
    held: list[bool] = []
    note = SMCState.note

    def noting(self: SMCState, step: Any) -> None:
        for session in self.experts:
            tokens, length = session.tokens, session.length  # type: ignore[attr-defined]
            inside = torch.arange(self.prefix.tokens.shape[1]) < self.prefix.length[:, None]
            held.append(torch.equal(length, self.prefix.length) and torch.equal(
                torch.where(inside, tokens, 0), torch.where(inside, self.prefix.tokens, 0)
            ))
        note(self, step)

    monkeypatch.setattr(SMCState, "note", noting)
    pair = tabular_pair(2, 6, eos=False)
    sampler = smc(
        pair, 3, window=2, experts=[pair.ar.without([0]), pair.ar.without([], [2])], trigger=always,
        intermediate=Experts([0.4, -0.2], w=0.3), kernel=KERNELS[kernel],
    )
    sampler.run([[0], [1], [0, 1], [1, 1]], seed=range(4), max_new_tokens=4, batch=2)
    assert len(held) >= 8
    assert all(held)


def test_draws_and_costs_do_not_depend_on_the_batch() -> None:
    sampler = program(PRODUCTS["all signs"], particles=3)
    prompts: list[list[int]] = [[], [0], [0, 0]]
    together = sampler.run(prompts, seed=3, max_new_tokens=2, batch=2)
    for place, prompt in enumerate(prompts):
        [alone] = sampler.run([prompt], seed=3, max_new_tokens=2)
        assert (alone.sequences, alone.forwards) == (together[place].sequences, together[place].forwards)
        assert alone.log_weights == pytest.approx(together[place].log_weights, abs=1e-12)


def test_every_forward_of_every_causal_model_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    score = TabularCausalSession.score

    def counting(self: TabularCausalSession, rows: Tensor, drafts: Tensor) -> Tensor:
        calls.append(rows.numel())
        return score(self, rows, drafts)

    monkeypatch.setattr(TabularCausalSession, "score", counting)
    [result] = program(PRODUCTS["all signs"], particles=3).run([[]], seed=2, max_new_tokens=3)
    assert len(calls) == 3 * len(result.trace)
    assert (result.forwards.ar_forwards, result.forwards.ar_rows) == (len(calls), sum(calls))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"experts": (), "intermediate": Experts([0.3])}, r"experts has 0 models .* reads 1: give as many"),
    "unread": ({"experts": OTHERS[:1], "intermediate": "poe"}, r"experts has 1 models .* reads 0: give as many"),
    "alphabet": (
        {"experts": [tabular_pair(3, 3).ar], "intermediate": Experts([0.3])}, r"experts\[0\] has 3 tokens .* share"
    ),
    "kind": ({"experts": 3, "intermediate": Experts([0.3])}, "experts = 3: give a list"),
    "balance": (
        {"experts": OTHERS[:1], "intermediate": Experts([0.3]), "weight": BalanceHeuristic(), "lanes": 2},
        r"with experts: .* use OwnWeights\(\)",
    ),
    "accept-all": (
        {"experts": OTHERS[:1], "intermediate": Experts([0.3]), "kernel": AcceptAll()}, r"Experts.* use Proposal\(\)"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_line(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        smc(PAIR, 2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), [
    (([],), r"others = \[\]: give the exponent"), ((0.3,), "others = 0.3: give the exponent"),
    (([math.inf],), "others = inf: give a finite number"), ((["a"],), "others = 'a': give a finite number"),
])
def test_bad_exponents_are_one_line(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experts(*arguments)


def test_experts_cannot_change_during_a_run() -> None:
    sampler = program(PRODUCTS["three"])
    state = sampler.start([[]], max_new_tokens=3)
    sampler.experts = (ARTarget(OTHERS[1]),)
    with pytest.raises(ValueError, match=r"experts = .* is not what the run began with"):
        sampler.step(state)

"""What a step keeps on the host, and what users' parts see of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smc_bridge import load_pair, paper, smc
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.engine.weights import EssBelow
from smc_bridge.models.host import sent
from smc_bridge.randomness import Reserve, ReservedSource
from smc_bridge.testing import tabular_pair


class InPlace:
    """A product of experts that writes to what it is given."""

    positionwise = True

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return torch.log_softmax(log_q.mul_(0.3).add_(log_p.mul_(0.7)), -1)


def test_an_intermediate_may_write_to_what_it_is_given() -> None:
    pair = load_pair("arithmetic")
    prompt = [int(token) for token in pair.encode("Ann has 3 apples.")]
    own, other = (
        smc(pair, 2, lanes=2, lookahead=16, window=8, **option).run([prompt], seed=3, max_new_tokens=12)[0]
        for option in ({"w": 0.3}, {"intermediate": InPlace()})
    )
    assert own.sequences == other.sequences
    assert own.log_weights == pytest.approx(other.log_weights, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("whole", [0, 4 * 2 * 3 * 50, 8 * 2 * 3 * 50, 1 << 20])
def test_a_law_of_some_positions_has_all_of_them(dtype: torch.dtype, whole: int) -> None:
    """Positions past those that are given repeat the last one, whichever way the law is held."""
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    law = model_law(logits, None, Shaping(), chunks=Chunks(whole=whole), width=5)
    assert tuple(law.shape) == (2, 5, 50)
    expected = torch.log_softmax(logits, -1)[:, [0, 1, 2, 2, 2]]
    assert float((law.dense() - expected).abs().max()) < 1e-5


def test_rows_of_a_reserve_come_in_the_order_that_is_asked_for() -> None:
    def source() -> ReservedSource:
        reserve = Reserve([torch.Generator().manual_seed(i) for i in range(2)])
        return ReservedSource(reserve, [0, 1], 2, device=torch.device("cpu"))

    drawn = source().uniform((3,))
    for rows in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 0, 1], [1]):
        index = torch.tensor(rows)
        for asked in (index, sent(rows, index.device)):
            assert torch.equal(source().select(asked).uniform((3,)), drawn[index])


def test_a_reserve_hands_out_the_generators_numbers_in_their_order() -> None:
    reserve = Reserve([torch.Generator().manual_seed(i) for i in range(3)])
    expected = [torch.rand(20_000, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    used = [0, 0, 0]
    for seats, count in (([0], 5), ([0, 2], 700), ([1, 0], 1500), ([0, 1, 2], 9000), ([2], 1), ([0, 1], 2048)):
        for seat, found in zip(seats, reserve.take(seats, count), strict=True):
            assert found.tolist() == expected[seat][used[seat] : used[seat] + count].tolist()
            used[seat] += count


class Broken:
    """A resampler that returns an ancestor that is not there."""

    proper = True

    def __call__(self, log_weights: Tensor, count: int, *, source: Any) -> Tensor:
        return torch.full((*log_weights.shape[:-1], count), -1)


def test_a_step_that_fails_leaves_the_sessions_where_they_were() -> None:
    sampler = smc(tabular_pair(3, 6), particles=3, window=1, lookahead=1, trigger="always")
    state = next(
        state for seed in range(20)
        if (state := sampler.step(sampler.start([[0]], seed=seed, max_new_tokens=6))).active().numel()
    )
    length = state.ar.length.tolist()  # type: ignore[attr-defined]
    sampler.resampler = Broken()
    with pytest.raises(ValueError, match="returned the ancestor -1: give indices from 0 to 2"):
        sampler.step(state)
    assert state.ar.length.tolist() == length == state.prefix.length.tolist()  # type: ignore[attr-defined]


class Own(EssBelow):
    """A trigger of one's own, on a base of the package."""

    asked = 0

    def __call__(self, log_weights: Tensor) -> Tensor:
        Own.asked += 1
        return super().__call__(log_weights)


def test_a_trigger_that_is_derived_is_asked_for_one_particle_too() -> None:
    replace(smc(tabular_pair(2, 3), particles=1), trigger=Own()).run([[0]], max_new_tokens=2)
    assert Own.asked > 0


def test_logits_with_a_gradient_can_be_stepped_on() -> None:
    pair = tabular_pair(2, 3)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    sampler = smc(pair, particles=2, potential=lambda prefix: prefix.length * weight)
    state = sampler.start([[0]], max_new_tokens=3)
    while state.active().numel():
        state = sampler.step(state)
    assert all(sampler.result(state, 0).sequences)


@pytest.mark.parametrize("option", [{"top_p": 0.9}, {"top_k": 2}, {}], ids=str)
def test_no_law_is_named_under_truncation_too(option: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = load_pair("arithmetic")
    head = pair.ar.model.lm_head.weight
    with torch.no_grad():
        kept = head.clone()
        head.fill_(torch.nan)
    try:
        with pytest.raises(ValueError, match=r"^logits of .* hold NaN at row 0, position 2: check the model's weights"):
            paper(pair, **option).run([[5, 6]], max_new_tokens=4)
    finally:
        with torch.no_grad():
            head.copy_(kept)

"""`Block`: laws of the next tokens with honest shapes, support and normalisation."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from smc_bridge.distributions.intermediate import Mixture, ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.pyro_program.block import (
    Block,
    LastCall,
    all_blocks,
    intermediate_block,
    proposal_block,
    target_block,
)
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.programs import TABLES, TEMPERATURE, table_model

WINDOW = 2
#: One-token prefixes of the two rows.
PREFIXES = torch.tensor([[0], [1]])
LOG_Q = torch.tensor([[[0.7, 0.3], [0.45, 0.55]], [[0.2, 0.8], [0.6, 0.4]]], dtype=torch.float64).log()


def laws(w: float = 0.4) -> dict[str, Block]:
    """q, p and pi of two rows."""
    q = proposal_block(LOG_Q)
    session = table_model(None).session(PREFIXES, torch.ones(2, dtype=torch.long))
    p = target_block(session, torch.arange(2), ARTarget(table_model(None), temperature=TEMPERATURE), window=WINDOW)
    return {"proposal": q, "target": p, "intermediate": intermediate_block(ProductOfExperts(w), q, p)}


def brute_force(name: str, row: int, block: tuple[int, ...], w: float = 0.4) -> list[float]:
    """Conditional of each token of `block`, in numpy from the tables."""
    out = []
    for i, token in enumerate(block):
        code = row * 2**i + sum(t * 2 ** (i - 1 - j) for j, t in enumerate(block[:i]))
        p = TABLES[i + 1][code] ** (1 / TEMPERATURE)
        q = LOG_Q[row, i].exp().numpy()
        pi = {"proposal": q, "target": p, "intermediate": q**w * (p / p.sum()) ** (1 - w)}[name]
        out.append(pi[token] / pi.sum())
    return out


@pytest.mark.parametrize("name", ["proposal", "target", "intermediate"])
def test_log_prob_is_the_product_of_the_conditionals_and_sums_to_one(name: str) -> None:
    law = laws()[name]
    every = law.enumerate_support()
    log_prob = law.log_prob(every)
    assert log_prob.shape == (4, 2)
    assert (log_prob.exp().sum(0) - 1).abs().max() < 1e-12, log_prob.exp().sum(0)
    for c, row in itertools.product(range(4), range(2)):
        block = tuple(every[c, row].tolist())
        expected = np.prod(brute_force(name, row, block))
        assert abs(log_prob[c, row].exp() - expected) < 1e-12, (block, float(log_prob[c, row].exp()), expected)


@pytest.mark.parametrize("name", ["proposal", "target", "intermediate"])
def test_prefix_log_prob_is_the_marginal_of_the_first_tokens(name: str) -> None:
    law = laws()[name]
    every = law.enumerate_support()
    for length in range(WINDOW + 1):
        found = law.prefix_log_prob(every, torch.full((4, 2), length)).exp()
        for c in range(4):
            agree = (every[:, 0, :length] == every[c, 0, :length]).all(-1)
            marginal = law.log_prob(every).exp()[agree].sum(0)
            assert (found[c] - marginal).abs().max() < 1e-12, (length, found[c], marginal)


def test_entries_past_the_prefix_may_be_padding() -> None:
    law = laws()["target"]
    padded, filled = torch.tensor([[1, -1], [0, -1]]), torch.tensor([[1, 1], [0, 1]])
    one = torch.ones(2, dtype=torch.long)
    assert torch.equal(law.prefix_log_prob(padded, one), law.prefix_log_prob(filled, one))


@pytest.mark.parametrize("name", ["proposal", "target", "intermediate"])
def test_shapes_follow_the_batch(name: str) -> None:
    law = laws()[name]
    assert law.batch_shape == (2,)
    assert law.event_shape == (WINDOW,)
    assert law.enumerate_support(expand=False).shape == (4, 1, WINDOW)
    large = law.expand((3, 2))
    assert large.batch_shape == (3, 2)
    assert isinstance(large, Block)
    assert large.sample((5,)).shape == (5, 3, 2, WINDOW)
    assert large.enumerate_support().shape == (4, 3, 2, WINDOW)
    value = large.sample()
    assert torch.equal(large.log_prob(value), law.log_prob(value))
    assert law.expand_by((3,)).batch_shape == (3, 2)
    assert law.batch_shape == (2,), "expand changed its receiver"
    chosen = law.select(torch.tensor([1, 0, 1]))
    assert chosen.batch_shape == (3,)
    every = law.enumerate_support()
    assert torch.equal(chosen.log_prob(every[:, [1, 0, 1]]), law.log_prob(every)[:, [1, 0, 1]])


def test_sites_stand_in_plates() -> None:
    def model() -> Tensor:
        with pyro.plate("rows", 2):
            return pyro.sample("block", laws()["intermediate"])

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["block"]["log_prob"].shape == (2,)
    assert trace.nodes["block"]["fn"].support.check(trace.nodes["block"]["value"]).all()


def test_validation_refuses_what_lies_outside_the_support() -> None:
    law = laws()["target"]
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor([[0, 2], [0, 1]]))
    with pytest.raises(ValueError, match="support"):
        law.log_prob(torch.tensor([[0, -1], [0, 1]]))
    with pytest.raises(ValueError, match="rows"):
        Block(law.conditional, torch.tensor([-1]), window=2, vocab_size=2, validate_args=True)
    with pytest.raises(ValueError, match="window = 0"):
        Block(law.conditional, torch.tensor([0]), window=0, vocab_size=2)
    unchecked = Block(law.conditional, torch.arange(2), window=2, vocab_size=2, validate_args=False)
    assert unchecked.log_prob(torch.tensor([[0, 1], [0, 1]])).shape == (2,)


def test_enumeration_is_refused_when_there_are_too_many_blocks() -> None:
    assert all_blocks(2, 16).shape == (65536, 16)
    with pytest.raises(ValueError, match=r"window = 17 over 2 tokens .* shorten"):
        proposal_block(torch.full((1, 17, 2), 0.5).log()).enumerate_support()


@pytest.mark.parametrize("name", ["proposal", "target", "intermediate"])
def test_samples_have_the_law(name: str) -> None:
    pyro.set_rng_seed(3)
    law = laws()[name]
    drawn = law.sample((4000,))
    every = law.enumerate_support(expand=False)[:, 0]
    counts = torch.stack([(drawn[:, row, None] == every).all(-1).sum(0) for row in range(2)], dim=1)
    # Fixing both rows' totals only makes the statistic smaller.
    claim(chi_square(counts.numpy(), law.log_prob(every[:, None]).exp().numpy() / 2), f"samples of the {name} block")


def test_samples_repeat_with_pyros_seed() -> None:
    law = laws()["intermediate"]
    pyro.set_rng_seed(1)
    first = law.sample((50,))
    pyro.set_rng_seed(1)
    assert torch.equal(law.sample((50,)), first)


def test_ends_of_the_bridge_are_the_two_models() -> None:
    every = laws()["target"].enumerate_support()
    for w, name in ((0.0, "target"), (1.0, "proposal")):
        ends = laws(w)
        assert torch.equal(ends["intermediate"].log_prob(every), ends[name].log_prob(every))


def test_the_model_is_called_once_for_one_block() -> None:
    calls = []

    def conditional(rows: Tensor, block: Tensor) -> Tensor:
        calls.append(block)
        return LOG_Q[rows]

    law = Block(LastCall(conditional), torch.arange(2), window=WINDOW, vocab_size=2)
    pi = intermediate_block(Mixture(0.5), proposal_block(LOG_Q), law)
    block = torch.tensor([[0, 1], [1, 1]])
    pi.log_prob(block)
    law.log_prob(block)
    assert len(calls) == 1, f"{len(calls)} calls"
    law.log_prob(block.flip(0))
    assert len(calls) == 2, f"{len(calls)} calls"


def test_what_cannot_be_a_law_is_refused() -> None:
    with pytest.raises(ValueError, match="raw logits"):
        proposal_block(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"log_q has shape \(2, 3\)"):
        proposal_block(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"log_q has NaN at .* \[0, 1\]"):
        proposal_block(torch.tensor([[[0.0, -torch.inf], [torch.nan, 0.0]]]))
    broken = Block(lambda rows, block: LOG_Q[rows] * torch.nan, torch.arange(2), window=2, vocab_size=2)
    with pytest.raises(ValueError, match="conditional has NaN"):
        broken.log_prob(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="different shapes"):
        intermediate_block(Mixture(), proposal_block(LOG_Q[:1]), laws()["target"])
    lanes = intermediate_block(ProductOfExperts(0.5, torch.tensor([0.4, 0.6])), *list(laws().values())[:2])
    with pytest.raises(ValueError, match="2 lanes"):
        lanes.log_prob(torch.zeros(2, 2, dtype=torch.long))

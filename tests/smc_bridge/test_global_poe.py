"""The block-level product of experts: one normaliser per block, which depends on the prefix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.intermediate import ProductOfExperts
from smc_bridge.distributions.target import ARTarget
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.pyro_program.block import intermediate_block, proposal_block, target_block
from smc_bridge.pyro_program.global_poe import GlobalProductOfExperts
from smc_bridge.pyro_program.stopped import StoppedPrefix
from tests.smc_bridge.programs import TEMPERATURE, table_model
from tests.smc_bridge.test_block import LOG_Q, brute_force, laws

W = 0.4


def numpy_law(row: int, w: float = W) -> tuple[np.ndarray, float]:
    """Probabilities of the four blocks after prefix `row`, and `log Z`."""
    mass = []
    for block in np.ndindex(2, 2):
        q, p = np.prod(brute_force("proposal", row, block)), np.prod(brute_force("target", row, block))
        mass.append(q**w * p ** (1 - w))
    return np.array(mass) / sum(mass), float(np.log(sum(mass)))


def test_log_prob_is_that_of_brute_force() -> None:
    law = GlobalProductOfExperts(laws()["proposal"], laws()["target"], W)
    found = law.log_prob(law.enumerate_support()).exp().numpy()
    for row in range(2):
        expected, log_z = numpy_law(row)
        assert np.abs(found[:, row] - expected).max() < 1e-12, (found[:, row], expected)
        assert abs(float(law.log_normaliser[row]) - log_z) < 1e-12


def test_normaliser_depends_on_the_prefix_and_is_at_most_one() -> None:
    law = GlobalProductOfExperts(laws()["proposal"], laws()["target"], W)
    assert bool((law.log_normaliser < 0).all())
    assert abs(float(law.log_normaliser[0] - law.log_normaliser[1])) > 1e-3, law.log_normaliser


def test_it_differs_from_the_local_one_between_the_ends_and_agrees_there() -> None:
    q, p = laws()["proposal"], laws()["target"]
    for w, differs in ((0.0, False), (W, True), (1.0, False)):
        law, local = GlobalProductOfExperts(q, p, w), intermediate_block(ProductOfExperts(w), q, p)
        every = law.enumerate_support()
        gap = float((law.log_prob(every).exp() - local.log_prob(every).exp()).abs().max())
        assert (gap > 1e-3) == differs, f"w = {w}: largest difference {gap}"
        assert differs or gap < 1e-12


def test_conditionals_are_normalised_and_shapes_follow() -> None:
    law = GlobalProductOfExperts(laws()["proposal"], laws()["target"], W)
    every = law.enumerate_support()
    assert law.along(every).logsumexp(-1).abs().max() < 1e-12
    large = law.expand((3, 2))
    assert large.sample((4,)).shape == (4, 3, 2, 2)
    assert torch.equal(large.log_normaliser, law.log_normaliser.expand(3, 2))
    assert torch.equal(large.log_prob(every[:, None]), law.log_prob(every)[:, None].expand(4, 3, 2))


def test_a_kernel_can_be_run_towards_it() -> None:
    q, p = laws()["proposal"], laws()["target"]
    pi = GlobalProductOfExperts(q, p, W)
    stopped = StoppedPrefix(pi, Rejection(), q, pi, Horizon(torch.tensor([2, 2]), ()))
    total = stopped.log_prob(stopped.enumerate_support()).exp().sum(0)
    assert (total - 1).abs().max() < 1e-12, total


def test_log_prob_names_the_local_one_where_blocks_cannot_be_listed() -> None:
    model = table_model(None)
    q = proposal_block(torch.full((1, 20, 2), 0.5).log())
    session = model.session(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long))
    p = target_block(session, torch.arange(1), ARTarget(model, temperature=TEMPERATURE), window=20)
    law = GlobalProductOfExperts(q, p)
    with pytest.raises(ValueError, match="locally normalised ProductOfExperts"):
        law.log_prob(torch.zeros(1, 20, dtype=torch.long))


def test_where_experts_have_no_common_block_the_target_stands_in() -> None:
    """Of two prefixes the first has experts without a common block, the second a common first token."""
    log_q = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]], dtype=torch.float64).log()
    log_p = torch.tensor([[[0.0, 1.0], [0.2, 0.8]], [[0.5, 0.5], [0.2, 0.8]]], dtype=torch.float64).log()
    law = GlobalProductOfExperts(proposal_block(log_q), proposal_block(log_p), W)
    found = law.log_prob(law.enumerate_support()).exp()  # [4, 2]: blocks 00, 01, 10, 11
    halves = torch.tensor([0.2, 0.8], dtype=torch.float64) ** (1 - W)
    second = [*(halves / halves.sum()).tolist(), 0.0, 0.0]
    assert torch.allclose(found, torch.tensor([[0.0, 0.0, 0.2, 0.8], second], dtype=torch.float64).T, atol=1e-12), found
    assert abs(float(law.log_normaliser[0])) < 1e-12


def test_an_exponent_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w = 1\.5"):
        GlobalProductOfExperts(proposal_block(LOG_Q), proposal_block(LOG_Q), 1.5)

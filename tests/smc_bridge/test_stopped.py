"""`StoppedPrefix`: laws of stopped blocks; `kappa` is one on both sides, so it leaves the importance weight."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from smc_bridge.blocks import Horizon, prefix_sum
from smc_bridge.distributions.intermediate import Intermediate, ProductOfExperts, Proposal
from smc_bridge.distributions.table import Dense
from smc_bridge.distributions.target import ARTarget
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import Kernel, StoppingKernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.ends import ends_of
from smc_bridge.pyro_program.block import Block, at_tokens, intermediate_block, proposal_block, target_block
from smc_bridge.pyro_program.stopped import StoppedPrefix, stopped_length
from smc_bridge.randomness import PromptSource
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.enumeration import drafted
from tests.smc_bridge.programs import KERNELS as PROGRAM_KERNELS
from tests.smc_bridge.programs import TEMPERATURE, table_model

WINDOW = 3
LOG_Q = torch.tensor(
    [[[0.7, 0.3], [0.45, 0.55], [0.65, 0.35]], [[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]]], dtype=torch.float64
).log()
#: A tree of two nodes leaves some tokens of the window out of the tree and keeps others.
KERNELS: dict[str, Kernel] = {**PROGRAM_KERNELS, "tree-walk-2": TreeWalk(2)}
ENDS = [pytest.param(None, id="no-eos"), pytest.param(1, id="eos")]


def sides(
    kernel: Kernel, *, eos: int | None = None, window: tuple[int, ...] = (WINDOW, WINDOW),
) -> tuple[StoppedPrefix, StoppedPrefix]:
    """The guide's site and the model's, for two empty prefixes with different marginals."""
    assert isinstance(kernel, StoppingKernel)
    model = table_model(eos)
    q = proposal_block(LOG_Q)
    session = model.session(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    p = target_block(session, torch.arange(2), ARTarget(model, temperature=TEMPERATURE), window=WINDOW)
    intermediate: Intermediate = Proposal() if isinstance(kernel, AcceptAll) else ProductOfExperts(0.4)
    pi = intermediate_block(intermediate, q, p)
    horizon = Horizon(torch.tensor(window), ends_of(eos))
    return StoppedPrefix(pi, kernel, q, pi, horizon), StoppedPrefix(p, kernel, q, pi, horizon)


def log_ratio(target: Block, intermediate: Block, value: Tensor) -> Tensor:
    """`sum_{i<=L} [log p(x_i) - log pi(x_i)]`."""
    block, length = value.clamp_min(0), stopped_length(value)
    return prefix_sum(at_tokens(target.along(block) - intermediate.along(block), block), length)


@pytest.mark.parametrize("eos", ENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_both_sides_are_normalised_over_their_support(name: str, eos: int | None) -> None:
    for side, law in zip(("guide", "model"), sides(KERNELS[name], eos=eos), strict=True):
        every = law.enumerate_support()
        assert every.shape[0] == (2 + 4 + 8 if eos is None else 2 + 2 + 2)
        assert law.support.check(every).all()
        total = law.log_prob(every).exp().sum(0)
        assert (total - 1).abs().max() < 1e-12, f"{side}: {total.tolist()}"


@pytest.mark.parametrize("eos", ENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_the_guides_site_is_the_kernels_own_law(name: str, eos: int | None) -> None:
    kernel = KERNELS[name]
    guide, _ = sides(kernel, eos=eos)
    every = guide.enumerate_support()
    for row in range(2):
        value = every[:, row]
        pi = guide.base.select(torch.full((value.shape[0],), row)).along(value.clamp_min(0))
        expected = kernel.log_density(
            LOG_Q[row].expand_as(pi), pi, value, stopped_length(value), horizon=Horizon(
                torch.full((value.shape[0],), WINDOW), ends_of(eos)))
        assert (guide.log_prob(every)[:, row].exp() - expected.exp()).abs().max() < 1e-12


@pytest.mark.parametrize("eos", ENDS)
@pytest.mark.parametrize("name", KERNELS)
def test_kappa_cancels_in_the_weight(name: str, eos: int | None) -> None:
    guide, model = sides(KERNELS[name], eos=eos)
    every = guide.enumerate_support()
    g = guide.log_prob(every)
    possible = g > -torch.inf
    gap = (model.log_prob(every) - g - log_ratio(model.base, guide.base, every))[possible]
    assert gap.abs().max() < 1e-12, gap
    # Where the kernel cannot stop, neither can the target.
    assert bool((model.log_prob(every)[~possible] == -torch.inf).all())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("side", ["guide", "model"])
def test_samples_have_the_law(name: str, side: str) -> None:
    pyro.set_rng_seed(11)
    law = sides(KERNELS[name], eos=1, window=(2, 3))[("guide", "model").index(side)]
    drawn = law.sample((3000,))
    assert law.support.check(drawn).all()
    counts, probabilities = [], []
    for row in range(2):
        place = torch.tensor([row])
        single = StoppedPrefix(
            law.base.select(place), law.kernel, law.proposal.select(place), law.intermediate.select(place),
            Horizon(law.horizon.window[place], (1,)))
        every = single.enumerate_support()
        counts.append((drawn[:, row, None] == every[:, 0]).all(-1).sum(0))
        probabilities.append(single.log_prob(every)[:, 0].exp() / 2)
    # Fixing both rows' totals only makes the statistic smaller.
    claim(chi_square(torch.cat(counts).numpy(), torch.cat(probabilities).numpy()), f"{side} site of {name}")


@pytest.mark.parametrize("name", KERNELS)
def test_running_the_kernel_and_simulating_its_stop_are_one_law(name: str) -> None:
    pyro.set_rng_seed(12)
    guide, _ = sides(KERNELS[name])
    q, pi = guide.proposal, guide.intermediate
    copy = intermediate_block(
        Proposal() if isinstance(guide.kernel, AcceptAll) else ProductOfExperts(0.4), q, sides(guide.kernel)[1].base)
    simulated = StoppedPrefix(copy, guide.kernel, q, pi, guide.horizon)  # not the same object: drawn token by token
    drawn = simulated.sample((3000,))[:, 0]
    every = guide.enumerate_support(expand=False)
    counts = (drawn[:, None] == every[:, 0]).all(-1).sum(0).numpy()
    claim(chi_square(counts, guide.log_prob(every)[:, 0].exp().numpy()), f"simulated stop of {name}")


@pytest.mark.parametrize("name", KERNELS)
def test_shapes_follow_the_batch(name: str) -> None:
    for law in sides(KERNELS[name]):
        assert (law.batch_shape, law.event_shape) == ((2,), (WINDOW,))
        large = law.expand((4, 2))
        assert isinstance(large, StoppedPrefix)
        assert (large.base is large.intermediate) == (law.base is law.intermediate)
        value = large.sample((5,))
        assert value.shape == (5, 4, 2, WINDOW)
        assert torch.equal(large.log_prob(value), law.log_prob(value))
        assert large.enumerate_support().shape == (14, 4, 2, WINDOW)
        assert law.enumerate_support(expand=False).shape == (14, 1, WINDOW)
        assert law.batch_shape == (2,), "expand changed its receiver"


def test_a_row_without_window_is_absorbed() -> None:
    for law in sides(KERNELS["rejection"], window=(0, 2)):
        value = law.sample((20,))
        assert bool((value[:, 0] == -1).all())
        assert bool((stopped_length(value[:, 1]) > 0).all())
        assert bool((law.log_prob(value)[:, 0] == 0).all())
    absorbed, _ = sides(KERNELS["rejection"], window=(0, 0))
    assert absorbed.enumerate_support().tolist() == [[[-1] * WINDOW] * 2]


def test_the_support_is_honest() -> None:
    law, _ = sides(KERNELS["rejection"], eos=1, window=(2, 3))
    legal = torch.tensor([[0, 0, -1], [0, 0, 1]])
    assert law.support.check(legal).all()
    for bad, what in (
        ([0, 0, 0], "longer than the window"), ([-1, -1, -1], "empty"), ([1, 0, -1], "after the end of sequence"),
        ([0, -1, 0], "a hole"), ([2, -1, -1], "outside the alphabet"), ([-2, -1, -1], "not padding"),
    ):
        value = torch.tensor([bad, [0, 0, 1]])
        assert law.support.check(value).tolist() == [False, True], what
        with pytest.raises(ValueError, match="support"):
            law.log_prob(value)


def test_what_cannot_be_stopped_is_refused() -> None:
    guide, model = sides(KERNELS["rejection"])
    q, pi, p, horizon = guide.proposal, guide.base, model.base, guide.horizon

    class NoLaw:
        proper = False

    with pytest.raises(ValueError, match="NoLaw has no stopping law"):
        StoppedPrefix(p, NoLaw(), q, pi, horizon)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different shapes"):
        StoppedPrefix(p, guide.kernel, proposal_block(LOG_Q[:, :2]), pi, horizon)
    with pytest.raises(ValueError, match=r"horizon.window has shape \(1,\)"):
        StoppedPrefix(p, guide.kernel, q, pi, Horizon(torch.tensor([2]), ()))
    with pytest.raises(ValueError, match=r"horizon.window = \[4, 2\]"):
        StoppedPrefix(p, guide.kernel, q, pi, Horizon(torch.tensor([4, 2]), ()))
    mixed, _ = sides(KERNELS["rejection"], window=(1, 2))
    with pytest.raises(ValueError, match="split the batch"):
        mixed.enumerate_support()


def test_sites_stand_in_plates() -> None:
    def model() -> None:
        with pyro.plate("particles", 2):
            pyro.sample("block", sides(KERNELS["gumbel"], eos=1)[1])

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["block"]["log_prob"].shape == (2,)


@pytest.mark.parametrize("name", KERNELS)
def test_the_last_token_is_the_drafts_own_as_often_as_the_kernel_says(name: str) -> None:
    pyro.set_rng_seed(13)
    kernel = KERNELS[name]
    guide, _ = sides(kernel, eos=1)
    if isinstance(kernel, TreeWalk):
        every = guide.enumerate_support()
        reached = stopped_length(every) == WINDOW
        assert torch.equal(guide.log_last_accepted(every) == 0, reached), "a walk accepts what reaches the window"
        return
    assert isinstance(kernel, StoppingKernel)
    runs = 4000
    log_q = LOG_Q[:1].expand(runs, -1, -1)
    source = PromptSource([torch.Generator().manual_seed(5)], runs)
    draft = drafted(log_q, source)
    pi = Dense(guide.base.select(torch.zeros(runs, dtype=torch.long)).along(draft.tokens))
    move = kernel(draft, pi, source=source, horizon=Horizon(torch.full((runs,), WINDOW), (1,)))
    every = guide.enumerate_support(expand=False)
    last, log_g = guide.log_last_accepted(every)[:, 0].exp(), guide.log_prob(every)[:, 0]
    expected = torch.cat([log_g.exp() * last, log_g.exp() * (1 - last)])
    same = (move.block[:, None] == every[:, 0]).all(-1)
    own = (move.accepted == move.length)[:, None]
    counts = torch.cat([(same & own).sum(0), (same & ~own).sum(0)])
    claim(chi_square(counts.numpy(), expected.numpy()), f"blocks and accepted counts of {name}")

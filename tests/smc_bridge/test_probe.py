"""What a user's intermediate must not look at is found when the sampler is made."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from smc_bridge import Defensive, Intermediate, ProductOfExperts, Sampler, Target, smc
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.testing import TabularPair

AR = TabularAR.random(3, 4, seed=3, eos_id=2)
PAIR = TabularPair(TabularDLM(AR, noise=0.5), AR)


def product(log_q: Tensor, log_p: Tensor, w: Tensor | float) -> Tensor:
    return torch.log_softmax(w * log_q + (1 - w) * log_p, -1)


def sure(log_p: Tensor) -> Tensor:
    """Half the largest probability, `[..., 1]`."""
    return 0.5 * log_p.amax(-1, keepdim=True).exp()


class Confident:
    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_p))


class Past:
    """Trusts the proposal as far as the target was sure of the token before."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        w = sure(log_p)
        return product(log_q, log_p, torch.cat([torch.zeros_like(w[..., :1, :]), w[..., :-1, :]], -2))


class FutureProposal:
    """Marginals of later positions are known before the draft."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_q).mean((1, 2), keepdim=True))


class OwnPlace:
    """Another w at each place of the window."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, torch.linspace(0, 0.5, log_p.shape[-2])[:, None])


class WholeWindow:
    """Holds numbers for windows of 16."""

    weights = torch.linspace(0, 0.5, 16)[:, None]

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, self.weights)


class Single(Confident):
    positionwise = True


class Ahead:
    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        w = sure(log_p)
        return product(log_q, log_p, torch.cat([w[..., 1:, :], torch.zeros_like(w[..., :1, :])], -2))


class Last:
    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_p[..., -1:, :]))


class OtherLanes:
    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_p).mean(1, keepdim=True))


class OtherParticles:
    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_p).mean(0, keepdim=True))


class Drawn:
    positionwise = True

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, torch.rand(*log_p.shape[:-1], 1))


class NotSingle(Past):
    positionwise = True


class PlaceOfSingle(OwnPlace):
    positionwise = True


class Boastful(Confident):
    log_ratio_bound = 0.0


class Grown(Target):
    """Another law, of which its base's bound does not speak."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return product(log_q, log_p, sure(log_p))


def made(intermediate: Intermediate) -> tuple[Sampler, list[str]]:
    """A sampler, and what was told when it was made."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sampler = smc(PAIR, 2, lanes=3, window=16, lookahead=16, intermediate=intermediate)
    return sampler, [str(warning.message) for warning in told]


@pytest.mark.parametrize(
    "intermediate",
    [Confident(), Past(), FutureProposal(), OwnPlace(), WholeWindow(), Single(), Defensive(Past(), 0.1), Grown(),
     ProductOfExperts(0.3, torch.tensor([0.2, 0.5, 1.0]))],
    ids=lambda i: type(i).__name__,
)
def test_a_function_of_the_past_is_proper(intermediate: Intermediate) -> None:
    sampler, told = made(intermediate)
    assert sampler.proper, sampler.why_improper()
    assert told == []


WRONG: list[tuple[Intermediate, str]] = [
    (Ahead(), "reads log_p beyond the position"), (Last(), "reads log_p beyond the position"),
    (Defensive(Ahead(), 0.1), "reads log_p beyond the position"), (OtherLanes(), "drafts of other lanes"),
    (OtherParticles(), "laws of other particles"), (Drawn(), "another law when it is asked again"),
    (NotSingle(), "says positionwise = True"), (Boastful(), "says log_ratio_bound = 0, but log p - log pi is"),
    (PlaceOfSingle(), "says positionwise = True"),
]


@pytest.mark.parametrize(("intermediate", "reason"), WRONG, ids=lambda x: type(x).__name__)
def test_an_intermediate_that_looks_where_it_must_not_is_told_and_marked(
    intermediate: Intermediate, reason: str
) -> None:
    sampler, told = made(intermediate)
    assert not sampler.proper
    (found,) = sampler.why_improper()
    assert found.startswith(f"intermediate {type(intermediate).__name__} ")
    assert reason in found
    assert told == [f"{found}; results are marked as not proper"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told when it is found, not with every run
        result = sampler.run([[]], max_new_tokens=3)[0]
    assert not result.proper
    assert result.reasons == [found]


def test_an_intermediate_that_is_set_later_is_tried_too() -> None:
    sampler, _ = made(Confident())
    sampler.intermediate = Ahead()
    with pytest.warns(UserWarning, match="beyond the position"):
        assert not sampler.proper


def test_the_probe_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    made(Drawn())
    assert torch.equal(torch.rand(3), expected)

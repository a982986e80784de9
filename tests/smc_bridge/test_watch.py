"""Condition C3 at run time: an intermediate that is zero where the target is not is seen, told once, and marked."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from smc_bridge import (
    BlockVerification,
    Clamp,
    Defensive,
    GumbelCoupling,
    Intermediate,
    Kernel,
    Mixture,
    PowerMean,
    ProductOfExperts,
    Proposal,
    Rejection,
    Result,
    Target,
    TreeWalk,
    smc,
)
from smc_bridge.distributions.intermediate import checked_log_prob, dominates, log_ratio_bound
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.pyro_program import run_program
from smc_bridge.testing import TabularPair

AR = TabularAR.random(3, 4, seed=3, eos_id=2)


class LikeliestTwo:
    """A product of experts cut to its two likeliest tokens."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        pi = (log_q + log_p) / 2
        return torch.log_softmax(torch.where(pi >= pi.topk(2, -1).values[..., 1:], pi, -math.inf), -1)


class CellwiseTwo(LikeliestTwo):
    """The same, one position at a time."""

    positionwise = True


class ClaimsToDominate(CellwiseTwo):
    """The same where the target is unsure, which the probe does not meet, and says otherwise."""

    dominates, log_ratio_bound = True, 1.0

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        unsure = log_p.amax(-1, keepdim=True) < math.log(0.7)
        return torch.where(unsure, super().log_prob(log_q, log_p), log_p)


def holes(value: float = -math.inf) -> TabularDLM:
    """A diffusion model that excludes token 1 after the first position, by -inf or by a number that stands for it."""
    dlm = TabularDLM(AR)
    dlm._flat[:, 1:, 1] = value
    return dlm


def runs(
    intermediate: Intermediate, *, dlm: TabularDLM | None = None, kernel: Kernel | None = None, count: int = 60,
    **options: object,
) -> tuple[list[Result], list[str]]:
    """Results, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sampler = smc(
            TabularPair(dlm or TabularDLM(AR), AR), 2, window=2, lookahead=3, intermediate=intermediate, kernel=kernel
        )
        results = sampler.run([[]] * count, seed=range(count), max_new_tokens=4, **options)  # type: ignore[arg-type]
    return results, [str(warning.message) for warning in told]


LEAVING: dict[str, tuple[Intermediate, TabularDLM | None]] = {
    "window-wise": (LikeliestTwo(), None), "cell-wise": (CellwiseTwo(), None), "liar": (ClaimsToDominate(), None),
    "poe": (ProductOfExperts(0.3), holes()), "poe, -1e4": (ProductOfExperts(0.3), holes(-1e4)),
    "proposal": (Proposal(), holes()), "power mean": (PowerMean(-1.0, 0.3), holes()),
}


@pytest.mark.parametrize("kernel", [Rejection(), BlockVerification(), GumbelCoupling(), TreeWalk(2)],
                         ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("name", LEAVING)
def test_a_token_that_is_left_out_is_told_once_and_marks_the_results(name: str, kernel: Kernel) -> None:
    intermediate, dlm = LEAVING[name]
    results, told = runs(intermediate, dlm=dlm, kernel=kernel)
    assert len(told) == 1, told
    assert "probability 0 where the target has not" in told[0], told
    assert "wrap it in Defensive" in told[0], told
    marked = [run for run in results if not run.proper]
    # A run that ended with its first token went past no such place of the diffusion model's.
    assert all(run.proper == (dlm is not None and all(len(s) == 1 for s in run.sequences)) for run in results)
    assert all("wrap it in Defensive" in run.reasons[0] for run in marked)
    assert len(marked) > 50
    with pytest.raises(ValueError, match=r"has no certificate: intermediate .* wrap it in Defensive"):
        marked[0].certificate()


@pytest.mark.parametrize("kernel", [Rejection(), TreeWalk(2)], ids=["rejection", "tree"])
@pytest.mark.parametrize(
    ("intermediate", "dlm"),
    [(ProductOfExperts(0.3), None), (Target(), holes()), (Mixture(0.3), holes()), (PowerMean(0.5, 0.3), holes()),
     (Clamp(50.0), holes()), (Defensive(ProductOfExperts(0.3), 0.1), holes()),
     (Defensive(LikeliestTwo(), 0.1), None), (Proposal(), None)],
    ids=str,
)
def test_a_law_that_covers_the_target_is_not_accused(
    intermediate: Intermediate, dlm: TabularDLM | None, kernel: Kernel
) -> None:
    results, told = runs(intermediate, dlm=dlm, kernel=kernel)
    assert told == []
    assert all(run.proper for run in results)


def test_what_is_seen_of_a_prompt_does_not_depend_on_the_batch() -> None:
    alone, _ = runs(ProductOfExperts(0.3), dlm=holes(), batch=1)
    together, _ = runs(ProductOfExperts(0.3), dlm=holes())
    assert [(run.proper, run.reasons) for run in alone] == [(run.proper, run.reasons) for run in together]
    assert {run.proper for run in alone} == {True, False}


def test_tokens_that_both_models_ban_are_no_holes() -> None:
    ar = TabularAR.random(4, 3, seed=1, banned_ids=(3,))
    sampler = smc(TabularPair(TabularDLM(ar), ar), 2, window=2, lookahead=3)
    assert all(run.proper for run in sampler.run([[]] * 20, seed=range(20), max_new_tokens=3))


def test_a_retained_sequence_that_the_intermediate_excludes_is_refused() -> None:
    sampler = smc(TabularPair(holes(), AR), 2, window=2, lookahead=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"retained has weight infinity.*Defensive"):
            sampler.run([[]], max_new_tokens=3, retained=[[0, 1, 0]])


# ---- bounds of the ratio

BOUNDED = [
    Target(), Mixture(0.3), Mixture(0.97), PowerMean(0.05, 0.3), PowerMean(0.5, 0.9), PowerMean(1.0, 0.4),
    PowerMean(3.0, 0.6), PowerMean(0.5, 0.0), Clamp(1.0), Clamp(2.0), Clamp(50.0),
    Defensive(ProductOfExperts(0.9), 0.02), Defensive(Mixture(0.5), 0.5),
]


@pytest.mark.parametrize("intermediate", BOUNDED, ids=str)
def test_the_bound_of_the_ratio_holds_and_is_reached(intermediate: Intermediate) -> None:
    """q on one token and p on the other is the worst case, for p certain or nearly so."""
    share = torch.logspace(-12, 0, 200, dtype=torch.float64)
    p = torch.stack([1 - share, share], -1)
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(p)
    spread = torch.distributions.Dirichlet(torch.full((4,), 0.3, dtype=torch.float64))
    torch.manual_seed(0)
    pairs = [(q, p), (spread.sample((500,)), spread.sample((500,)))]
    ratio = [torch.where(b > 0, b.log() - intermediate.log_prob(a.log(), b.log()), -math.inf) for a, b in pairs]
    bound = log_ratio_bound(intermediate)
    assert max(float(r.max()) for r in ratio) <= bound + 1e-9, f"p / pi passes its bound {bound}"
    if not isinstance(intermediate, PowerMean) or intermediate.alpha <= 1:
        assert float(ratio[0].max()) > bound - 0.02, f"{float(ratio[0].max())} is far below the bound {bound}"


@pytest.mark.parametrize(
    "intermediate", [ProductOfExperts(0.3), Proposal(), PowerMean(-1.0, 0.5), Mixture(1.0), PowerMean(0.5, 1.0)],
    ids=str,
)
def test_no_bound_is_claimed_where_there_is_none(intermediate: Intermediate) -> None:
    assert log_ratio_bound(intermediate) == math.inf


def test_what_a_base_class_says_of_another_law_does_not_count() -> None:
    class Own(Mixture):
        def log_prob(self, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
            return log_q

    class Named(Mixture):
        """The law of its base."""

    assert (dominates(Own(0.3)), log_ratio_bound(Own(0.3))) == (False, math.inf)
    assert (dominates(Named(0.3)), log_ratio_bound(Named(0.3))) == (True, log_ratio_bound(Mixture(0.3)))


def test_a_bound_that_means_nothing_is_told() -> None:
    pair = TabularPair(TabularDLM(AR), AR)
    (note,) = smc(pair, intermediate=PowerMean(0.05, 0.95)).notes()
    assert "e^59.9 at each token" in note
    result = smc(pair, lookahead=3, intermediate=PowerMean(0.05, 0.95)).run([[]], max_new_tokens=2)[0]
    assert result.proper
    assert result.settings["notes"] == [note]
    for plain in (PowerMean(0.5, 0.3), ProductOfExperts(0.3), Defensive(ProductOfExperts(0.3), 0.01)):
        assert smc(pair, intermediate=plain).notes() == []
    assert smc(pair, lookahead=3).run([[]], max_new_tokens=2)[0].settings["log_ratio_bound"] is None


# ---- a user's normaliser


class NearlyNormalised:
    """A law whose log-sum is off by a constant, in a given precision."""

    def __init__(self, off: float, dtype: torch.dtype = torch.float32) -> None:
        self.off, self.dtype = off, dtype

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (torch.log_softmax(0.3 * log_q + 0.7 * log_p, -1) + self.off).to(self.dtype)


def test_a_normaliser_within_tolerance_does_not_add_up_over_a_sequence() -> None:
    """0.9e-3 nats at each of 4 tokens would be 3.6e-3 of log Z."""
    plain, _ = runs(NearlyNormalised(0.0, torch.float64), count=5)
    off, _ = runs(NearlyNormalised(9e-4, torch.float64), count=5)
    worst = max(abs(a.log_evidence - b.log_evidence) for a, b in zip(plain, off, strict=True))
    assert worst < 1e-12, f"log Z moves by {worst}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_any_precision_is_divided_out_over_a_large_alphabet(dtype: torch.dtype) -> None:
    scores = 3 * torch.randn(2, 1, 1, 1, 151_936, generator=torch.Generator().manual_seed(0))
    log_q, log_p = torch.log_softmax(scores, -1)
    pi = checked_log_prob(NearlyNormalised(0.0, dtype), log_q, log_p)
    assert pi.dtype == torch.float32
    assert abs(float(pi.double().logsumexp(-1))) < 2e-6


def test_a_law_that_is_off_by_more_than_rounding_is_refused() -> None:
    log_p = torch.log_softmax(torch.zeros(1, 1, 1, 5), -1)
    for off in (2e-3, -2e-3, math.nan):
        with pytest.raises(ValueError, match=r"NearlyNormalised\.log_prob is not normalised"):
            checked_log_prob(NearlyNormalised(off), log_p, log_p)


# ---- the same in Pyro


def test_the_pyro_program_is_watched_too() -> None:
    sampler = smc(TabularPair(holes(), AR), 2, window=2, lookahead=3)
    with pytest.warns(UserWarning, match="probability 0 where the target has not, first at token 1 of"):
        results = [run_program(sampler, [], seed=seed, max_new_tokens=4) for seed in range(8)]
    marked = [result for result in results if not result.proper]
    assert marked
    assert all("wrap it in Defensive" in result.reasons[0] for result in marked)
    covered = smc(TabularPair(TabularDLM(AR), AR), 2, window=2, lookahead=3)
    assert run_program(covered, [], seed=1, max_new_tokens=4).proper

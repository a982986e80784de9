"""Intermediate distributions: normalised, right at both ends, equal to plain numpy, and never NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import (
    Chernoff,
    Clamp,
    Defensive,
    Intermediate,
    Mixture,
    PowerMean,
    ProductOfExperts,
    Proposal,
    Target,
    checked_log_prob,
    dominates,
)
from tests.oracle import intermediates as oracle
from tests.smc_bridge.enumeration import log

EVERY: dict[str, Intermediate] = {
    "poe(.3)": ProductOfExperts(0.3),
    "poe(0)": ProductOfExperts(0.0),
    "poe(1)": ProductOfExperts(1.0),
    "poe(.4,.9)": ProductOfExperts(0.4, 0.9),
    "poe(.5,0)": ProductOfExperts(0.5, 0.0),
    "mixture(.3)": Mixture(0.3),
    "power(.5)": PowerMean(0.5, 0.3),
    "power(-1)": PowerMean(-1.0, 0.6),
    "power(3)": PowerMean(3.0, 0.6),
    "power(0)": PowerMean(0.0, 0.4),
    "chernoff": Chernoff(),
    "clamp(1)": Clamp(1.0),
    "clamp(8)": Clamp(8.0),
    "clamp(1e6)": Clamp(1e6),
    "defensive": Defensive(ProductOfExperts(0.7), 0.1),
    "proposal": Proposal(),
    "target": Target(),
}


def random_laws(count: int, size: int, *, seed: int, zeros: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of laws `[count, A]`; each token is dropped with probability `zeros`, never all of them."""
    rng = np.random.default_rng(seed)

    def one() -> np.ndarray:
        law = rng.dirichlet(0.7 * np.arange(1, size + 1), size=count)
        dropped = rng.random((count, size)) < zeros
        dropped[np.arange(count), rng.integers(size, size=count)] = False
        law = np.where(dropped, 0.0, law)
        return law / law.sum(1, keepdims=True)

    return one(), one()


def probabilities(intermediate: Intermediate, q: np.ndarray, p: np.ndarray) -> np.ndarray:
    return intermediate.log_prob(log(q), log(p)).exp().numpy()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_without_nan_and_in_the_input_dtype(
    name: str, zeros: float, dtype: torch.dtype, device: str
) -> None:
    q, p = (log(law).to(device, dtype) for law in random_laws(300, 5, seed=1, zeros=zeros))
    pi = EVERY[name].log_prob(q, p)
    assert pi.dtype == dtype
    assert not pi.isnan().any(), f"{name} gives NaN"
    total = pi.exp().sum(-1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert float((total - 1).abs().max()) < tolerance, f"{name} sums to {float(total.min())} .. {float(total.max())}"


@pytest.mark.parametrize("make", [ProductOfExperts, Mixture, lambda w: PowerMean(0.5, w)])
def test_weight_zero_is_the_target_and_weight_one_the_proposal_exactly(make: Callable[[float], Intermediate]) -> None:
    q, p = (log(law) for law in random_laws(50, 4, seed=2, zeros=0.3))
    assert torch.equal(make(0.0).log_prob(q, p), p)
    assert torch.equal(make(1.0).log_prob(q, p), q)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("poe(.4,.9)", "poe(.5,0)")])
def test_equal_experts_give_their_common_law(name: str) -> None:
    q, _ = random_laws(100, 4, seed=3, zeros=0.3)
    gap = np.abs(probabilities(EVERY[name], q, q) - q).max()
    assert gap < 1e-12, f"{name} moves q = p by {gap}"


ORACLE: dict[str, tuple[Intermediate, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "poe(.3)": (ProductOfExperts(0.3), lambda q, p: oracle.product_of_experts(q, p, 0.3, 0.7)),
    "poe(.4,.9)": (ProductOfExperts(0.4, 0.9), lambda q, p: oracle.product_of_experts(q, p, 0.4, 0.9)),
    "poe(.5,0)": (ProductOfExperts(0.5, 0.0), lambda q, p: oracle.product_of_experts(q, p, 0.5, 0.0)),
    "poe(0,.4)": (ProductOfExperts(0.0, 0.4), lambda q, p: oracle.product_of_experts(q, p, 0.0, 0.4)),
    "mixture": (Mixture(0.3), lambda q, p: 0.3 * q + 0.7 * p),
    "power(.5)": (PowerMean(0.5, 0.3), lambda q, p: oracle.power_mean(q, p, 0.5, 0.3)),
    "power(-1)": (PowerMean(-1.0, 0.6), lambda q, p: oracle.power_mean(q, p, -1.0, 0.6)),
    "power(3)": (PowerMean(3.0, 0.6), lambda q, p: oracle.power_mean(q, p, 3.0, 0.6)),
    "clamp(1.3)": (Clamp(1.3), lambda q, p: oracle.clamp(q, p, 1.3)),
    "clamp(8)": (Clamp(8.0), lambda q, p: oracle.clamp(q, p, 8.0)),
    "clamp(1000)": (Clamp(1000.0), lambda q, p: oracle.clamp(q, p, 1000.0)),
    "defensive": (
        Defensive(ProductOfExperts(0.7), 0.1),
        lambda q, p: 0.9 * oracle.product_of_experts(q, p, 0.7, 1.0 - 0.7) + 0.1 * p,
    ),
    "defensive power": (
        Defensive(PowerMean(-2.0, 0.5), 0.25), lambda q, p: 0.75 * oracle.power_mean(q, p, -2.0, 0.5) + 0.25 * p,
    ),
    "proposal": (Proposal(), lambda q, p: q),
    "target": (Target(), lambda q, p: p),
}


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("name", ORACLE)
def test_equals_plain_numpy(name: str, zeros: float) -> None:
    intermediate, expected = ORACLE[name]
    q, p = random_laws(80, 5, seed=4, zeros=zeros)
    found = probabilities(intermediate, q, p)
    for row in range(80):
        right = expected(q[row], p[row])
        assert np.abs(found[row] - right).max() < 1e-12, f"q {q[row]}, p {p[row]}: {found[row]}, numpy {right}"


def test_power_mean_of_one_is_the_mixture_and_of_zero_the_product() -> None:
    q, p = random_laws(100, 5, seed=5)
    product = probabilities(ProductOfExperts(0.3), q, p)
    assert np.abs(probabilities(PowerMean(1.0, 0.3), q, p) - probabilities(Mixture(0.3), q, p)).max() < 1e-12
    assert np.abs(probabilities(PowerMean(0.0, 0.3), q, p) - product).max() < 1e-12
    gaps = [np.abs(probabilities(PowerMean(a, 0.3), q, p) - product).max() for a in (1e-2, 1e-4, 1e-6, -1e-6)]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2], f"distances to the product as alpha falls: {gaps}"
    assert max(gaps[2:]) < 1e-5, f"distances to the product as alpha falls: {gaps}"


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_chernoff_stands_equally_far_from_both_experts(zeros: float) -> None:
    """KL(pi || q) = KL(pi || p) where the minimum lies inside; else the w of the nearer end, as numpy finds it."""
    q, p = random_laws(200, 4, seed=6, zeros=zeros)
    found, interior = probabilities(Chernoff(), q, p), 0
    for row in range(200):
        if not ((q[row] > 0) & (p[row] > 0)).any():
            assert np.abs(found[row] - p[row]).max() < 1e-12
            continue
        w = oracle.chernoff_weight(q[row], p[row])
        with np.errstate(divide="ignore", invalid="ignore"):
            common = np.where((q[row] > 0) & (p[row] > 0), q[row] ** w * p[row] ** (1.0 - w), 0.0)
        assert np.abs(found[row] - common / common.sum()).max() < 1e-6, f"{found[row]}, numpy {common / common.sum()}"
        if 1e-6 < w < 1 - 1e-6:
            interior += 1
            left, right = oracle.kl(found[row], q[row]), oracle.kl(found[row], p[row])
            assert abs(left - right) < 1e-9, f"KL(pi || q) = {left}, KL(pi || p) = {right}"
    assert interior > 50


@pytest.mark.parametrize("eps", [0.01, 0.3])
@pytest.mark.parametrize("base", [Proposal(), ProductOfExperts(0.9), PowerMean(-2.0, 0.5), Chernoff()], ids=repr)
def test_defensive_bounds_the_weight(base: Intermediate, eps: float) -> None:
    q, p = random_laws(300, 5, seed=7, zeros=0.5)
    pi = probabilities(Defensive(base, eps), q, p)
    assert (pi[p > 0] > 0).all(), "a token of the target has no mass"
    worst = (p[p > 0] / pi[p > 0]).max()
    assert worst <= (1 + 1e-12) / eps, f"p / pi reaches {worst}, above 1 / eps = {1 / eps}"


@pytest.mark.parametrize(
    "intermediate",
    [ProductOfExperts(0.3), ProductOfExperts(0.5, 0.5), PowerMean(-1.0, 0.5), PowerMean(0.0, 0.5), Chernoff(),
     Clamp(8.0)],
    ids=["poe", "poe(.5,.5)", "power(-1)", "power(0)", "chernoff", "clamp"],
)
def test_disjoint_experts_fall_back_to_the_target(intermediate: Intermediate) -> None:
    q, p = np.array([[0.3, 0.7, 0.0, 0.0]]), np.array([[0.0, 0.0, 0.6, 0.4]])
    found = probabilities(intermediate, q, p)
    assert np.abs(found - p).max() < 1e-15, f"{found} is not p = {p}"


@pytest.mark.parametrize("name", EVERY)
def test_claimed_domination_is_true(name: str) -> None:
    q, p = random_laws(500, 5, seed=8, zeros=0.5)
    pi = probabilities(EVERY[name], q, p)
    uncovered = bool(((p > 0) & (pi == 0)).any())
    assert uncovered != dominates(EVERY[name]), f"{name} says dominates = {dominates(EVERY[name])}, yet {uncovered=}"


def test_each_lane_may_have_its_own_exponent() -> None:
    exponents = torch.tensor([0.0, 0.5, 1.3])
    q, p = random_laws(24, 4, seed=9, zeros=0.4)
    shape = (2, 3, 4, 4)  # R, K, V, A
    found = ProductOfExperts(0.4, exponents).log_prob(log(q).reshape(shape), log(p).reshape(shape))
    for k, b in enumerate(exponents.double().tolist()):
        one = ProductOfExperts(0.4, b).log_prob(log(q).reshape(shape)[:, k], log(p).reshape(shape)[:, k])
        assert float((found[:, k].exp() - one.exp()).abs().max()) < 1e-7
        row = oracle.product_of_experts(q[4 * k], p[4 * k], 0.4, b)
        assert np.abs(found[0, k, 0].exp().numpy() - row).max() < 1e-7


def test_lane_exponents_survive_a_defensive_wrapper() -> None:
    lanes = ProductOfExperts(0.4, torch.tensor([0.2, 1.0]))
    assert Defensive(lanes, 0.1).per_lane is True
    assert Defensive(ProductOfExperts(0.4), 0.1).per_lane is False


def test_a_paper_temperature_on_the_product_is_an_exponent_pair() -> None:
    """softmax((w l_D + (1 - w) l_A) / tau) = q_tau^w p_taup^((1 - w) taup / tau)."""
    w, tau, tau_p = 0.3, 0.5, 0.8
    generator = torch.Generator().manual_seed(10)
    drafted, scored = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    expected = torch.softmax((w * drafted + (1 - w) * scored) / tau, -1)
    q, p = torch.log_softmax(drafted / tau, -1), torch.log_softmax(scored / tau_p, -1)
    found = ProductOfExperts(w, (1 - w) * tau_p / tau).log_prob(q, p).exp()
    assert float((found - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("name", EVERY)
def test_arguments_are_left_alone(name: str) -> None:
    q, p = (log(law) for law in random_laws(10, 4, seed=11, zeros=0.3))
    before: tuple[Tensor, Tensor] = (q.clone(), p.clone())
    EVERY[name].log_prob(q, p)
    assert torch.equal(q, before[0])
    assert torch.equal(p, before[1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ProductOfExperts(-0.1), r"w = -0.1.*\[0, 1\]"),
        (lambda: ProductOfExperts(1.1), r"w = 1.1.*\[0, 1\]"),
        (lambda: ProductOfExperts(math.nan), "w = nan"),
        (lambda: ProductOfExperts(0.5, -1.0), "target_exponent = -1.0"),
        (lambda: ProductOfExperts(0.5, torch.tensor([0.5, -1.0])), "target_exponent"),
        (lambda: ProductOfExperts(0.5, math.nan), "target_exponent = nan"),
        (lambda: Mixture(2.0), "w = 2.0"),
        (lambda: PowerMean(math.inf, 0.5), "alpha = inf"),
        (lambda: PowerMean(0.5, -1.0), "w = -1.0"),
        (lambda: Chernoff(0), "iterations = 0"),
        (lambda: Clamp(0.9), r"beta = 0.9.*from 1, which is the target"),
        (lambda: Clamp(math.nan), "beta = nan"),
        (lambda: Clamp(math.inf), "beta = inf"),
        (lambda: Defensive(Proposal(), 0.0), "eps = 0.0"),
        (lambda: Defensive(Proposal(), 1.0), "eps = 1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_value(make: Callable[[], Intermediate], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_intermediate_of_a_user_that_is_not_a_law_is_refused() -> None:
    class Lazy:
        def log_prob(self, log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
            return 0.3 * log_q + 0.7 * log_p

    log_q, log_p = torch.log_softmax(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), -1)
    with pytest.raises(ValueError, match=r"Lazy\.log_prob is not normalised.*subtract logsumexp"):
        checked_log_prob(Lazy(), log_q, log_p)
    with pytest.raises(ValueError, match="Lazy"):
        Defensive(Lazy(), 0.1).log_prob(log_q, log_p)

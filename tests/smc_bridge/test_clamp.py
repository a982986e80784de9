"""The acceptance-optimal bridge: its scale solves `sum pi = 1`, no law beats it, and programs with it are proper."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from smc_bridge import Clamp, Defensive, ProductOfExperts, paper, plain_is, smc, speculative
from smc_bridge.describe import describe
from smc_bridge.distributions import clamp as module
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.clamp import clamp_scale
from smc_bridge.distributions.intermediate import Intermediate, checked_log_prob, positionwise
from smc_bridge.distributions.table import Dense
from smc_bridge.engine.weights import EssBelow, always
from smc_bridge.testing import assert_biased, assert_proper, tabular_pair
from tests.oracle import intermediates as oracle
from tests.oracle import laws
from tests.smc_bridge.enumeration import enumerated_law, log
from tests.smc_bridge.programs import KERNELS, program, target_law, worst
from tests.smc_bridge.smc_enumeration import enumerate_program
from tests.smc_bridge.test_intermediates import probabilities, random_laws
from tests.smc_bridge.test_kernel_laws import KERNELS as BLOCKS
from tests.smc_bridge.test_kernel_laws import assert_equal_laws

BETAS = [1.0, 1.5, 8.0, 300.0]
#: `sum pi` is 1 up to this much, so that what is off is not the scale.
ROUND_OFF = 1e-12
#: Kernels of a block whose law is enumerated; to accept all is no test of pi.
EXACT_KERNELS = [name for name in BLOCKS if name not in ("gumbel", "accept_all")]


def objective(pi: np.ndarray, q: np.ndarray, p: np.ndarray, beta: float) -> np.ndarray:
    """`P(accept) - lambda KL(pi || p)` of laws `[..., A]`, -inf where pi has mass and p has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(pi > 0, pi * (np.log(pi) - np.log(p)), 0.0)
    return np.asarray(np.minimum(pi, q).sum(-1) - terms.sum(-1) / math.log(beta))


def rivals(pi: np.ndarray, q: np.ndarray, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other laws `[n, A]` on the support of p: random ones, near ones, and what other intermediates are."""
    size = p.size
    drawn = [rng.dirichlet(np.full(size, a), 400) for a in (0.1, 0.5, 1.0, 5.0)]
    shaken = [pi * np.exp(s * rng.standard_normal((400, size))) for s in (1e-3, 1e-2, 0.1, 1.0)]
    moved = []  # a little mass from one token to another
    for step in (1e-6, 1e-3, 0.05):
        a, b = rng.integers(size, size=(2, 200))
        some = np.repeat(pi[None], 200, 0)
        amount = np.minimum(step, some[np.arange(200), a])
        some[np.arange(200), a] -= amount
        some[np.arange(200), b] += amount
        moved.append(some)
    share = np.linspace(0, 1, 101)[:, None]
    blends = [share * a + (1 - share) * b for a, b in ((q, p), (q, pi), (p, pi))]
    products = [probabilities(ProductOfExperts(w), q[None], p[None]) for w in np.linspace(0.01, 0.99, 99)]
    others = [probabilities(Clamp(b), q[None], p[None]) for b in np.geomspace(1.0, 1e5, 60)]
    every = np.where(p > 0, np.concatenate([*drawn, *shaken, *moved, *blends, *products, *others]), 0.0)
    every = every[every.sum(-1) > 0]
    return np.asarray(every / every.sum(-1, keepdims=True))


def cases(zeros: float, count: int = 12) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    q, p = random_laws(count, 6, seed=21, zeros=zeros)
    return zip(q, p, strict=True)


# ---- the law

@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("beta", BETAS[1:])
def test_no_law_is_better(beta: float, zeros: float) -> None:
    rng, compared = np.random.default_rng(5), 0
    for q, p in cases(zeros):
        pi = probabilities(Clamp(beta), q[None], p[None])[0]
        best, every = float(objective(pi, q, p, beta)), rivals(pi, q, p, rng)
        compared += len(every)
        found = float(objective(every, q, p, beta).max())
        assert found <= best + ROUND_OFF, f"q {q}, p {p}: a law has {found}, Clamp({beta:g}) {best}"
    assert compared > 30_000


@pytest.mark.parametrize("beta", BETAS[1:])
def test_a_numerical_optimiser_finds_the_same_law_and_none_better(beta: float) -> None:
    """Sequential quadratic programming on `sum t - lambda KL(pi || p)`, `t <= pi`, `t <= q`, `sum pi = 1`."""
    for q, p in cases(0.0, 6):
        best = float(objective(probabilities(Clamp(beta), q[None], p[None])[0], q, p, beta))
        size = p.size

        def loss(x: np.ndarray, p: np.ndarray = p, size: int = size) -> float:
            pi = np.maximum(x[:size], 1e-300)
            return float((pi * np.log(pi / p)).sum() / math.log(beta) - x[size:].sum())

        found = minimize(
            loss, np.concatenate([p, np.minimum(p, q)]), method="SLSQP", options={"maxiter": 500, "ftol": 1e-13},
            bounds=[(0.0, 1.0)] * size + [(0.0, each) for each in q],
            constraints=[
                {"type": "eq", "fun": lambda x, size=size: x[:size].sum() - 1.0},
                {"type": "ineq", "fun": lambda x, size=size: x[:size] - x[size:]},
            ],
        )
        pi = np.maximum(found.x[:size], 0.0)
        value = float(objective(pi / pi.sum(), q, p, beta))
        assert value <= best + 1e-9, f"the optimiser reaches {value}, Clamp({beta:g}) {best}"
        assert value >= best - 1e-4, f"the optimiser ends at {value} under {best}, so it is no test"


@pytest.mark.parametrize("zeros", [0.0, 0.5])
@pytest.mark.parametrize("beta", BETAS)
def test_it_is_a_clamp_of_q_whose_scale_lies_where_it_must(beta: float, zeros: float) -> None:
    """What KKT says: pi / p is c below q, c beta above it, and else pi is q; c in [1 / beta, 1]."""
    q, p = random_laws(300, 6, seed=22, zeros=zeros)
    pi = probabilities(Clamp(beta), q, p)
    assert np.abs(pi.sum(-1) - 1).max() < ROUND_OFF
    assert (pi[p == 0] == 0).all(), "what the target leaves out has mass"
    ratio = pi[p > 0] / p[p > 0]
    assert 1 / beta - ROUND_OFF <= ratio.min(), f"pi / p falls to {ratio.min()}, under 1 / {beta}"
    assert ratio.max() <= beta * (1 + ROUND_OFF), f"pi / p reaches {ratio.max()}, over {beta}"
    for one, a, b in zip(pi, q, p, strict=True):
        raised, cut = (one > a + 1e-14) & (b > 0), one < a - 1e-14
        scales = [*(one[raised] / b[raised]), *(one[cut & (b > 0)] / (beta * b[cut & (b > 0)]))]
        if scales:
            assert max(scales) - min(scales) < 1e-9, f"tokens of one position have scales {scales}"
            assert 1 / beta - 1e-9 <= scales[0] <= 1 + 1e-9


def test_the_price_of_more_acceptance_never_falls() -> None:
    """Over beta both P(accept) and KL(pi || p) grow, from those of the target to those of the proposal."""
    for q, p in cases(0.3):
        laws_of = [probabilities(Clamp(beta), q[None], p[None])[0] for beta in np.geomspace(1.0, 1e6, 40)]
        accepted = [float(np.minimum(pi, q).sum()) for pi in laws_of]
        spent = [oracle.kl(pi, p) for pi in laws_of]
        assert all(b >= a - ROUND_OFF for a, b in itertools.pairwise(accepted)), accepted
        assert all(b >= a - ROUND_OFF for a, b in itertools.pairwise(spent)), spent
        assert abs(accepted[0] - np.minimum(p, q).sum()) < ROUND_OFF
        assert spent[0] == 0.0


def test_one_is_the_target_and_many_the_proposal_where_that_is_covered() -> None:
    q, p = random_laws(200, 5, seed=23)
    assert torch.equal(Clamp(1.0).log_prob(log(q), log(p)), log(p))
    wide = (q / p).max(-1) / (q / p).min(-1) <= 1e4
    assert wide.sum() > 50
    assert np.abs(probabilities(Clamp(1e4), q, p) - q)[wide].max() < ROUND_OFF
    # What q leaves out keeps the mass that the scale gives it, which vanishes where p covers q; what p leaves out is
    # dropped.
    hole = np.array([[0.5, 0.5, 0.0]]), np.array([[0.4, 0.4, 0.2]])
    for beta in (1e3, 1e6, 1e9):
        assert 0 < probabilities(Clamp(beta), *hole)[0, 2] < 2 / beta
    gone = np.array([[0.5, 0.3, 0.2]]), np.array([[0.5, 0.5, 0.0]])
    assert np.allclose(probabilities(Clamp(1e9), *gone), [[0.5, 0.5, 0.0]])
    # Both at once: what is dropped goes to what q leaves out, if nothing of q can be lifted by as much.
    both = np.array([[0.5, 0.5, 0.0]]), np.array([[0.5, 0.0, 0.5]])
    for beta in (1e3, 1e9, 1e30):
        assert np.allclose(probabilities(Clamp(beta), *both), [[0.5, 0.0, 0.5]])


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(whole=0)], ids=["table", "lazy"])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_refused_where_it_is(which: int, chunks: Chunks) -> None:
    both = [log(x)[:, None].repeat(1, 3, 1) for x in random_laws(4, 6, seed=26)]
    both[which][2, 1, 3] = math.nan
    says = r"^log_probs has NaN at \(row, position\) \[2, 1\]: check the model's logits there$"
    with pytest.raises(ValueError, match=says):
        Clamp(8.0).log_prob(*both)
    with pytest.raises(ValueError, match=says):
        bridge_law(Clamp(8.0), Dense(both[0], chunks), Dense(both[1], chunks), lanes=1).at(torch.zeros(4, 3).long())


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(whole=0)], ids=["table", "lazy"])
def test_a_place_without_a_draft_has_the_target(chunks: Chunks) -> None:
    q, p = (log(x)[:, None] for x in random_laws(5, 6, seed=27))
    q[3] = -math.inf
    law = bridge_law(Clamp(8.0), Dense(q, chunks), Dense(p, chunks), lanes=1).dense()
    assert torch.allclose(law[3], p[3], rtol=0, atol=ROUND_OFF)
    assert not torch.allclose(law[2], p[2], rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0001, 3.0, 1e3, 1e12, 1e30])
def test_extreme_logits_give_a_law_within_its_bound(beta: float, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(4, 60, 4000, generator=generator, dtype=torch.float64)
    scale = torch.tensor([0.0, 1.0, 30.0, 1e4]).double()[:, None, None]
    q = torch.log_softmax((scale * raw).to(dtype), -1)
    p = torch.log_softmax((scale.flip(0) * raw.flip(1)).to(dtype), -1)
    q[:, 0], p[:, 1] = -math.inf, -math.inf
    q[:, 1, 7] = p[:, 1, 9] = 0.0  # a point mass under p, a law and none under q
    q[:, 2, ::2], p[:, 3, ::2] = -math.inf, -math.inf
    q, p = (torch.where(x == -math.inf, x, x - x.logsumexp(-1, keepdim=True)).to(device) for x in (q, p))
    pi = Clamp(beta).log_prob(q, p)
    small = 1e-12 if dtype is torch.float64 else 1e-5
    assert not pi.isnan().any()
    assert float((pi.exp().sum(-1) - 1).abs().max()) < small
    assert torch.equal(pi == -math.inf, p == -math.inf), "the support is not that of the target"
    ratio = torch.where(p == -math.inf, 0.0, p - pi)
    # Log-probabilities of -1e4 carry round-off of that size.
    round_off = 4 * torch.finfo(dtype).eps * (1 + p.clamp_min(-1e9).abs())
    assert float((ratio.abs() - math.log(beta) - round_off).max()) < small
    without, target = pi[:, 0].exp(), p[:, 0].exp()  # q has no mass: the target
    assert float((without - target).abs().max()) < small


def test_float32_is_the_law_of_float64_up_to_round_off() -> None:
    raw = torch.randn(2, 30, 20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q, p = torch.log_softmax(2 * raw[0] + raw[1], -1), torch.log_softmax(2 * raw[0], -1)
    for beta in (2.0, 8.0, 64.0):
        single = Clamp(beta).log_prob(q.float(), p.float()).double()
        gap = float((single.exp() - Clamp(beta).log_prob(q, p).exp()).abs().sum(-1).max())
        assert gap < 1e-5, f"beta = {beta:g}: total variation {gap / 2}"
        rough = Clamp(beta).log_prob(q.bfloat16(), p.bfloat16())
        assert rough.dtype == torch.bfloat16
        assert not rough.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 640])
def test_the_scale_of_a_row_is_its_own(size: int, dtype: torch.dtype) -> None:
    """Draws do not depend on the batch: the steps of other rows change nothing."""
    q, p = (torch.from_numpy(x).to(dtype) for x in random_laws(200, size, seed=24, zeros=0.3))
    together = clamp_scale(q, p, 40.0)[0]
    alone = torch.cat([clamp_scale(q[i : i + 1], p[i : i + 1], 40.0)[0] for i in range(200)])
    assert torch.equal(together, alone)


def test_a_scale_takes_few_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a pass over the alphabet; what they take: `benchmarks.bridges`."""
    sums, real = [0], module._between

    def counted(*arguments: Tensor) -> None:
        sums[-1] += 1
        real(*arguments)

    monkeypatch.setattr(module, "_between", counted)
    generator = torch.Generator().manual_seed(0)
    for beta in (1.5, 8.0, 64.0, 1000.0):
        for _ in range(10):
            q = 4 * torch.randn(1, 20_000, generator=generator)
            p = 0.7 * q + 3 * torch.randn(1, 20_000, generator=generator)
            clamp_scale(q.softmax(-1), p.softmax(-1), beta)
            sums.append(0)
    assert max(sums) <= 6, sums
    assert np.mean(sums[:-1]) < 4.5, sums


# ---- programs

@pytest.mark.parametrize(("law", "proper"), [
    (Clamp(1e3), True), (Clamp(1e6), False), (Defensive(ProductOfExperts(0.5), 1e-3), True),
    (Defensive(ProductOfExperts(0.5), 1e-6), False),
])
def test_a_share_that_round_off_loses_is_not_proper(law: Intermediate, proper: bool) -> None:
    """Of a token that the proposal cuts off; where it has all tokens, a refusal loses nothing."""
    cut, whole = (smc(tabular_pair(), 1, proposal_top_p=share, intermediate=law) for share in (0.5, 1.0))
    assert cut.proper == proper
    assert any("round-off loses: give a smaller beta, or a larger eps" in why for why in cut.why_improper()) != proper
    assert whole.proper


@pytest.mark.parametrize("beta", [1.5, 8.0])
@pytest.mark.parametrize("name", EXACT_KERNELS)
def test_enumerated_kernels_have_the_oracles_law(name: str, beta: float) -> None:
    build, expected = BLOCKS[name]
    for toy in laws.toys():
        bridged, by_hand = (
            toy._replace(pi={c: make(toy.q[len(c)], p) for c, p in toy.pi.items()})
            for make in (
                lambda q, p: probabilities(Clamp(beta), q[None], p[None])[0], lambda q, p: oracle.clamp(q, p, beta),
            )
        )
        assert_equal_laws(enumerated_law(build(), bridged), expected(by_hand))


@pytest.mark.parametrize("options", [
    {"trigger": always}, {"trigger": EssBelow(0.95)}, {"lanes": 2, "temperature": [0.7, 1.3], "trigger": always},
], ids=["always", "ess", "lanes"])
# Enumerating gumbel's programs takes half a minute; what it reads of a bridge is what any kernel reads.
@pytest.mark.parametrize("kernel", [name for name in KERNELS if name not in ("accept-all", "gumbel")])
def test_the_program_is_properly_weighted(kernel: str, options: dict[str, object]) -> None:
    sampler = program(KERNELS[kernel], intermediate=Clamp(2.0), eos=None if kernel == "tree-walk" else 1, **options)  # type: ignore[arg-type]
    assert sampler.proper
    found = enumerate_program(sampler, 3)
    gap, message = worst(found.proper, target_law(sampler, 3))
    assert gap < ROUND_OFF, message
    assert abs(found.evidence - 1) < ROUND_OFF


@pytest.mark.parametrize("beta", [2.0, 64.0])
def test_a_truncated_proposal_needs_no_defence(beta: float) -> None:
    sampler = smc(tabular_pair(), 2, intermediate=Clamp(beta), proposal_top_p=0.7, window=2)
    assert sampler.proper
    assert_proper(sampler)
    lost = smc(tabular_pair(), 2, intermediate=ProductOfExperts(0.3), proposal_top_p=0.7, window=2)
    assert_biased(lost)


@pytest.mark.parametrize("beta", [1.0, 1.7, 8.0])
def test_a_block_weighs_within_its_bound(beta: float) -> None:
    runs = smc(tabular_pair(), 1, intermediate=Clamp(beta)).run([[]] * 200, seed=range(200), max_new_tokens=4)
    each = [abs(run.log_evidence) / len(run.sequences[0]) for run in runs]
    assert max(each) <= math.log(beta) + 1e-9, f"{max(each)} nats a token, {math.log(beta)} allowed"


# ---- mutants

def unsolved(q: Tensor, p: Tensor, beta: float, *room: Tensor) -> tuple[Tensor, Tensor]:
    """c = 1, and no normaliser."""
    return torch.zeros_like(q[..., :1]), torch.zeros_like(q[..., :1])


def divided(q: Tensor, p: Tensor, beta: float, *room: Tensor) -> tuple[Tensor, Tensor]:
    """c = 1, and what sums to more is divided by its sum."""
    return torch.zeros_like(q[..., :1]), torch.clamp(q, p, beta * p).sum(-1, keepdim=True).log()


def test_a_scale_that_is_not_solved_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "clamp_scale", unsolved)
    sampler = program(KERNELS["rejection"], intermediate=Clamp(2.0), trigger=always)
    with pytest.raises(AssertionError, match="a lane's outcomes have probabilities that sum to"):
        enumerate_program(sampler, 3)

    class Mine:
        def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
            return Clamp(2.0).log_prob(log_q, log_p)

    with pytest.raises(ValueError, match=r"Mine\.log_prob is not normalised"):
        checked_log_prob(Mine(), *(log(law) for law in random_laws(5, 4, seed=25)))


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(whole=0)], ids=["table", "lazy"])
def test_dividing_in_the_place_of_solving_is_caught(chunks: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a law, and properly weighted; it is not the best one."""
    monkeypatch.setattr(module, "clamp_scale", divided)
    q, p = random_laws(20, 6, seed=21)
    law = bridge_law(Clamp(8.0), Dense(log(q)[:, None], chunks), Dense(log(p)[:, None], chunks), lanes=1)
    found = law.dense()[:, 0].exp().numpy()
    assert np.abs(found.sum(-1) - 1).max() < ROUND_OFF
    right = np.stack([oracle.clamp(a, b, 8.0) for a, b in zip(q, p, strict=True)])
    assert np.abs(found - right).max() > 0.01
    lost = objective(right, q, p, 8.0) - objective(found, q, p, 8.0)
    assert lost.min() >= 0
    assert lost.max() > 0.01, f"greatest objective lost {lost.max()}"


# ---- what it says of itself

def test_it_is_a_value_like_the_others() -> None:
    assert Clamp(16) == Clamp(16.0) != Clamp(8.0)
    assert pickle.loads(pickle.dumps(Clamp(16.0))) == Clamp(16.0)
    assert len({Clamp(2.0), Clamp(2), Clamp()}) == 2
    assert "Clamp" in str(describe(Clamp(16.0)))
    assert "16" in str(describe(Clamp(16.0)))
    assert positionwise(Clamp())


def test_by_name_it_reads_beta_and_nothing_else_does() -> None:
    pair = tabular_pair()
    assert smc(pair, intermediate="clamp").intermediate == Clamp(8.0)
    assert smc(pair, intermediate="clamp", beta=64).intermediate == Clamp(64.0)
    with pytest.raises(ValueError, match=r"^beta = 64 with intermediate = poe, which has none: leave it out, or"):
        smc(pair, beta=64)
    with pytest.raises(ValueError, match=r"^beta = 64 with intermediate = Clamp\(beta=8.0\): give one of them"):
        smc(pair, intermediate=Clamp(), beta=64)
    with pytest.raises(ValueError, match=r"^w = 0.5 with intermediate = clamp, which has none"):
        smc(pair, intermediate="clamp", w=0.5)
    with pytest.raises(ValueError, match=r"^beta = 0.5: give a number from 1"):
        smc(pair, intermediate="clamp", beta=0.5)
    for make, says in (
        (paper, r"^beta = 8 with intermediate = poe, which has none: .* intermediate = clamp$"),
        (speculative, r"^beta = 8 with speculative, which has none: leave it out, or use smc$"),
        (plain_is, r"^beta = 8 with plain_is, which has none: leave it out, or use smc$"),
        (partial(smc, kernel="accept-all"), r"^beta = 8 with kernel = accept-all, which has none: .*= clamp$"),
    ):
        with pytest.raises(ValueError, match=says):
            make(pair, beta=8)  # type: ignore[operator]
    assert paper(pair, intermediate="clamp", beta=4).intermediate == Clamp(4.0)

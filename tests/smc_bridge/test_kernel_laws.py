"""The law of every proper kernel, by enumeration of all its randomness, and on the real random path."""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, full_horizon, log1mexp
from smc_bridge.distributions.table import Dense
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling, race
from smc_bridge.kernels.importance import AcceptAll
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models.ends import ends_of
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import PromptSource, UniformSource
from smc_bridge.testing import kernel_outcomes
from tests.oracle import laws
from tests.oracle.laws import Law, Toy
from tests.smc_bridge.claims import chi_square, claim
from tests.smc_bridge.enumeration import (
    drafted,
    enumerated_law,
    horizon_of,
    log,
    log_pi_along,
    log_q_of,
    table_of,
)

TOYS = {toy.name: toy for toy in laws.toys()}
#: AcceptAll is lossless for q only, so its toys have pi = q.
Q_TOYS = {
    name: toy._replace(pi={prefix: toy.q[len(prefix)] for prefix in toy.pi}) for name, toy in TOYS.items()
}

KERNELS: dict[str, tuple[Callable[[], Any], Callable[[Toy], Law]]] = {
    "rejection": (Rejection, laws.rejection),
    "block": (BlockVerification, laws.block_verification),
    "gumbel": (GumbelCoupling, laws.gumbel),
    "accept_all": (AcceptAll, laws.accept_all),
    **{f"tree{b}": (lambda b=b: TreeWalk(b), lambda toy, b=b: laws.tree_walk(toy, b)) for b in (1, 2, 3, 5, 40)},
    "tree_threshold": (lambda: TreeWalk(40, min_probability=0.07), lambda toy: laws.tree_walk(toy, 40, at_least=0.07)),
    "tree_power": (
        lambda: TreeWalk(5, min_probability=0.05, exponent=0.4),
        lambda toy: laws.tree_walk(toy, 5, at_least=0.05, power=0.4),
    ),
}
DISCRETE = [name for name in KERNELS if name != "gumbel"]


def toy_for(kernel: str, name: str) -> Toy:
    return (Q_TOYS if kernel == "accept_all" else TOYS)[name]


def every_block(toy: Toy) -> list[tuple[int, ...]]:
    """All token strings of 1 to V tokens, also those that the kernel cannot commit."""
    return [b for n in range(1, toy.q.shape[0] + 1) for b in itertools.product(range(toy.size), repeat=n)]


def padded(toy: Toy, blocks: list[tuple[int, ...]], fill: int) -> tuple[Tensor, Tensor]:
    width = toy.q.shape[0]
    block = torch.tensor([[*b, *[fill] * (width - len(b))] for b in blocks])
    return block, torch.tensor([len(b) for b in blocks])


def densities(kernel: StoppingKernel, toy: Toy, blocks: list[tuple[int, ...]], *, fill: int = -1) -> np.ndarray:
    block, length = padded(toy, blocks, fill)
    rows = len(blocks)
    found = kernel.log_density(
        log_q_of(toy, rows), log_pi_along(toy, block), block, length, horizon=horizon_of(toy, rows)
    )
    assert not found.isnan().any()
    assert found.dtype == torch.float64
    return found.exp().numpy()


def assert_equal_laws(found: Law, expected: Law) -> None:
    for outcome in sorted(set(found) | set(expected)):
        left, right = found.get(outcome, 0.0), expected.get(outcome, 0.0)
        assert abs(left - right) < 1e-12, f"(block, accepted) = {outcome}: kernel {left:.15f}, oracle {right:.15f}"


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("kernel", DISCRETE)
def test_enumerated_law_is_the_oracles_and_the_closed_form(kernel: str, name: str) -> None:
    toy, (build, oracle) = toy_for(kernel, name), KERNELS[kernel]
    law = enumerated_law(build(), toy)
    assert_equal_laws(law, oracle(toy))
    blocks, found = every_block(toy), laws.blocks(law)
    for block, density in zip(blocks, densities(build(), toy, blocks), strict=True):
        expected = found.get(block, 0.0)
        assert abs(density - expected) < 1e-12, f"block {block}: log_density gives {density}, enumeration {expected}"


@pytest.mark.parametrize("name", TOYS)
def test_gumbel_log_density_is_the_integral_of_the_joint_law(name: str) -> None:
    toy = TOYS[name]
    found, blocks = laws.blocks(laws.gumbel(toy)), every_block(toy)
    for block, density in zip(blocks, densities(GumbelCoupling(), toy, blocks), strict=True):
        expected = found.get(block, 0.0)
        assert abs(density - expected) < 1e-12, f"block {block}: log_density gives {density}, integral {expected}"


def test_the_gumbel_oracle_has_the_right_margins() -> None:
    """The off-diagonal integrals and the diagonal formula are derived apart; only together do they sum to q and pi."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 4, 6):
        q, pi = rng.dirichlet(np.ones(size)), rng.dirichlet(np.arange(1.0, size + 1))
        for left, right in ((q, pi), (np.roll(np.append(q, 0.0), 1), np.append(pi, 0.0))):
            joint = laws.gumbel_joint(left, right)
            assert np.abs(joint.sum(1) - left).max() < 1e-12, f"draft {joint.sum(1)}, q {left}"
            assert np.abs(joint.sum(0) - right).max() < 1e-12, f"sample {joint.sum(0)}, pi {right}"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TOYS)
def test_stopping_identity_holds_on_every_path(kernel: str, name: str) -> None:
    toy, built = toy_for(kernel, name), KERNELS[kernel][0]()
    for path in toy.paths():
        prefixes = [path[:n] for n in range(1, len(path) + 1)]
        block, length = padded(toy, prefixes, -1)
        rows = len(prefixes)
        args = (log_q_of(toy, rows), log_pi_along(toy, block), block, length)
        stop = built.log_stop(*args, horizon=horizon_of(toy, rows)).exp()
        assert abs(float(stop.sum()) - 1.0) < 1e-12, f"path {path}: kappa sums to {float(stop.sum())}"
        mass = np.array([toy.mass(b) for b in prefixes])
        if mass[-1] > 0.0:
            total = float((densities(built, toy, prefixes) / mass).sum())
            assert abs(total - 1.0) < 1e-12, f"path {path}: g / pi sums to {total}"


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_first_token_has_the_intermediates_law(kernel: str, name: str) -> None:
    toy, (build, oracle) = toy_for(kernel, name), KERNELS[kernel]
    law = oracle(toy) if kernel == "gumbel" else enumerated_law(build(), toy)
    first = np.zeros(toy.size)
    for (block, _), probability in law.items():
        first[block[0]] += probability
    assert np.abs(first - toy.pi[()]).max() < 1e-12, f"first token {first}, pi_1 {toy.pi[()]}"


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_oracle_law_is_a_stopping_time_of_the_intermediate(kernel: str, name: str) -> None:
    toy = toy_for(kernel, name)
    defect = laws.stopping_defect(laws.blocks(KERNELS[kernel][1](toy)), toy)
    assert defect < 1e-12, f"sum_L g / pi deviates from 1 by {defect}"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TOYS)
def test_density_ignores_what_stands_past_the_length(kernel: str, name: str) -> None:
    toy, built = toy_for(kernel, name), KERNELS[kernel][0]()
    blocks = [b for b in every_block(toy) if len(b) < toy.q.shape[0]]
    if not blocks:
        assert toy.q.shape[0] == 1
        return
    plain = densities(built, toy, blocks)
    for fill in range(toy.size):
        assert np.array_equal(densities(built, toy, blocks, fill=fill), plain), f"token {fill} past the length counts"


@pytest.mark.parametrize("kernel", KERNELS)
def test_going_on_depends_on_the_past_only(kernel: str) -> None:
    """Condition C1: another token or another intermediate later in the window changes no earlier `c_i`."""
    q, pi, other = torch.log_softmax(torch.randn(3, 4, 5, 3, generator=torch.Generator().manual_seed(1)).double(), -1)
    built = KERNELS[kernel][0]()
    pi, other = (q, q) if kernel == "accept_all" else (pi, other)
    block = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0], [1, 0, 0, 2, 1], [0, 0, 0, 0, 0]])
    horizon = full_horizon(*block.shape)
    before = built.log_continue(Dense(q), Dense(pi), block, horizon=horizon)
    for i in range(4):
        changed_pi, changed = pi.clone(), block.clone()
        changed_pi[:, i + 1 :], changed[:, i + 1 :] = other[:, i + 1 :], (block[:, i + 1 :] + 1) % 3
        after = built.log_continue(Dense(q), Dense(changed_pi), changed, horizon=horizon)
        assert torch.equal(before[:, : i + 1], after[:, : i + 1]), f"c_{i + 1} looks past position {i + 1}"


@pytest.mark.parametrize("name", TOYS)
def test_block_verification_accepts_at_least_as_many_tokens_as_rejection(name: str) -> None:
    toy = TOYS[name]
    by_block = laws.mean_length(enumerated_law(BlockVerification(), toy))
    by_token = laws.mean_length(enumerated_law(Rejection(), toy))
    assert by_block >= by_token - 1e-12, f"block verification commits {by_block}, rejection {by_token}"


def test_block_verification_accepts_strictly_more_tokens_somewhere() -> None:
    gain = {
        name: laws.mean_length(enumerated_law(BlockVerification(), toy))
        - laws.mean_length(enumerated_law(Rejection(), toy))
        for name, toy in TOYS.items()
    }
    assert max(gain.values()) > 1e-3, f"gains {gain}"


def test_accept_all_refuses_an_intermediate_that_is_not_the_proposal() -> None:
    with pytest.raises(ValueError, match=r"Proposal\(\)"):
        enumerated_law(AcceptAll(), TOYS["A2V3"])


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel", "tree2"])
def test_a_window_shorter_than_the_draft_is_the_same_as_a_short_draft(kernel: str) -> None:
    toy, built = TOYS["A2V3-W2"], KERNELS[kernel][0]()
    short = toy._replace(q=toy.q[:2])
    blocks = every_block(short)
    assert np.array_equal(densities(built, toy, blocks), densities(built, short, blocks))


def test_two_walks_on_one_tree_are_independent() -> None:
    toy = TOYS["A2V3-eos"]
    single = laws.blocks(laws.tree_walk(toy, 2))
    pair: dict[Any, float] = {}
    for probability, ((first, _), (second, _)) in kernel_outcomes(TreeWalk(2), table_of(toy), rows=2):
        key = (first, second)
        pair[key] = pair.get(key, 0.0) + probability
    for left, right in itertools.product(single, repeat=2):
        found, expected = pair.get((left, right), 0.0), single[left] * single[right]
        assert abs(found - expected) < 1e-12, f"walks {left}, {right}: {found}, product {expected}"


def test_log1mexp_is_accurate_at_both_ends() -> None:
    values = [-1e-300, -1e-12, -0.5, -0.7, -40.0]
    found = log1mexp(torch.tensor(values, dtype=torch.float64)).tolist()
    with decimal.localcontext(prec=400):
        expected = [float((1 - decimal.Decimal(x).exp()).ln()) for x in values]
    for x, left, right in zip(values, found, expected, strict=True):
        assert abs(left - right) <= 4e-16 * abs(right), f"log(1 - exp({x})): {left}, to 400 digits {right}"
    certain = log1mexp(torch.tensor([0.0, 1e-17, -torch.inf], dtype=torch.float64)).tolist()
    assert certain == [-torch.inf, -torch.inf, 0.0], f"at 0, just above 0 and -inf: {certain}"


def test_race_is_the_shared_noise_definition() -> None:
    """Given any noise E: when the draft wins under q at time T, the sample under pi is `argmin E / pi`."""
    rng = np.random.default_rng(3)
    for trial in range(300):
        size = int(rng.integers(2, 6))
        q, pi, noise = rng.dirichlet(np.ones(size)), rng.dirichlet(np.ones(size)), rng.exponential(size=size)
        if trial % 3 == 0:
            pi[int(rng.integers(size))] = 0.0
            pi /= pi.sum()
        with np.errstate(divide="ignore"):
            draft, expected = int(np.argmin(noise / q)), int(np.argmin(noise / pi))
        time = noise[draft] / q[draft]
        given_draft = noise - q * time
        given_draft[draft] = time
        found = race(log(pi), log(q), torch.tensor(draft), torch.from_numpy(given_draft))
        assert int(found) == expected, f"noise {noise}: race gives {int(found)}, argmin E / pi is {expected}"


def counted(move: Any) -> dict[tuple[tuple[int, ...], int], int]:
    """How often each (block, accepted) was committed."""
    table = torch.cat([move.block, move.accepted[:, None]], dim=1).cpu()
    values, counts = torch.unique(table, dim=0, return_counts=True)
    return {
        (tuple(t for t in value[:-1] if t >= 0), value[-1]): count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    }


@pytest.mark.parametrize("name", ["A3V3-W2-eos", "A3V3-eos-zeros", "A2V3"])
@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel", "accept_all", "tree3"])
def test_real_draws_follow_the_oracles_law(kernel: str, name: str, device: str) -> None:
    toy, (build, oracle), rows = toy_for(kernel, name), KERNELS[kernel], 40_000
    built, source = build(), PromptSource([torch.Generator().manual_seed(5)], rows, device=device)
    q = Dense(log_q_of(toy, rows).to(device))
    horizon = Horizon(torch.full((rows,), toy.window, device=device), ends_of(toy.eos))
    if isinstance(built, TreeWalk):
        tree = built.tree(q, horizon=horizon)
        first = torch.zeros(1, dtype=torch.long, device=device)
        one = built.tree(q.of_rows(first), horizon=horizon.of_rows(first))
        assert torch.equal(tree.tokens, one.tokens.expand(rows, -1)), "equal rows have equal trees"
        prefixes: list[tuple[int, ...]] = [()]
        for parent, token, real in zip(one.parents[0], one.tokens[0], one.real[0], strict=True):
            prefixes.append((*prefixes[int(parent)], int(token)) if bool(real) else ())
        node_law = torch.stack([log(toy.pi[p]) for p in prefixes]).to(device).expand(rows, -1, -1)
        move, _ = built.walk(tree, Dense(node_law), walks=1, source=source, window=toy.q.shape[0], horizon=horizon)
    else:
        draft = drafted(q, source)
        move = built(draft, Dense(log_pi_along(toy, draft.tokens)), source=source, horizon=horizon)
    law, counts = oracle(toy), counted(move)
    cells = sorted(set(law) | set(counts))
    p_value = chi_square(
        np.array([counts.get(c, 0) for c in cells]), np.array([law.get(c, 0.0) for c in cells])
    )
    claim(p_value, f"{kernel} on {name}: {rows} blocks against the oracle's law")


def test_real_gumbel_draft_and_sample_have_the_oracles_joint_law(device: str) -> None:
    rng, rows = np.random.default_rng(8), 60_000
    q, pi = rng.dirichlet([1.0, 2.0, 0.7, 0.4]), rng.dirichlet([0.5, 1.0, 1.5, 1.0])
    source = PromptSource([torch.Generator().manual_seed(9)], rows, device=device)
    log_q, log_pi = (log(law).to(device).expand(rows, 1, -1) for law in (q, pi))
    draft = drafted(log_q, source)
    horizon = full_horizon(rows, 1, device=device)
    sample = GumbelCoupling()(draft, Dense(log_pi), source=source, horizon=horizon).block
    counts = torch.bincount((draft.tokens * 4 + sample).flatten().cpu(), minlength=16).numpy()
    claim(chi_square(counts, laws.gumbel_joint(q, pi)), "joint law of draft and sample under shared noise")


@pytest.mark.parametrize("kernel", ["rejection", "block", "gumbel"])
def test_float32_laws_give_no_nan_and_legal_blocks(kernel: str) -> None:
    """Round-off: laws that differ in the last bit leave residuals of pure noise."""
    rows, built, generator = 2_000, KERNELS[kernel][0](), torch.Generator().manual_seed(2)
    raw = 20 * torch.randn(rows, 4, 50, generator=generator)
    q = torch.log_softmax(raw, -1)
    pi = torch.log_softmax(raw + 1e-7 * torch.randn(raw.shape, generator=generator), -1)
    source = PromptSource([generator], rows)
    move = built(drafted(q, source), Dense(pi), source=source, horizon=full_horizon(rows, 4))
    chosen = pi.gather(-1, move.block.clamp_min(0)[..., None])[..., 0]
    inside = torch.arange(4) < move.length[:, None]
    assert bool((chosen[inside] > -torch.inf).all()), "a token of probability zero was committed"
    density = built.log_density(q, pi, move.block, move.length)
    assert not density.isnan().any()


def test_block_verification_gives_no_nan_after_a_token_that_pi_excludes() -> None:
    """A path of probability zero under pi that goes on where q has no mass: `-inf + inf` must not arise."""
    pi = torch.tensor([[[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]]).log()
    q = torch.tensor([[[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]]]).log()
    for length in (1, 2, 3):
        count = torch.tensor([length])
        density = BlockVerification().log_density(q, pi, torch.zeros(1, 3, dtype=torch.long), count)
        assert float(density) == -math.inf, (length, float(density))


class Noise(UniformSource):
    """Hands out one table of uniforms `[R, V, A]`, as many positions at a time as are asked for."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.used, self.calls = table, 0, 0

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        first, self.used, self.calls = self.used, self.used + size[0], self.calls + 1
        return self.table[:, first : self.used]


def test_gumbel_noise_made_a_few_positions_at_a_time_commits_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, window, size = 200, 5, 4
    q, pi = (torch.randn(rows, window, size, generator=generator).double().log_softmax(-1) for _ in range(2))
    tokens = torch.distributions.Categorical(logits=q).sample()
    table = torch.rand(rows, window, size, generator=generator, dtype=torch.float64)
    horizon = Horizon(torch.randint(1, window + 1, (rows,), generator=generator), (2,))
    moves = []
    for positions, calls in ((window, 1), (2, 3), (1, 5)):
        monkeypatch.setattr("smc_bridge.kernels.gumbel.NOISE", positions * size)
        source = Noise(table)
        draft = Draft(tokens, Dense(q), horizon.window)
        moves.append(GumbelCoupling()(draft, Dense(pi), source=source, horizon=horizon))
        assert (source.calls, source.used) == (calls, window)
    assert all(torch.equal(a, b) for move in moves[1:] for a, b in zip(moves[0], move, strict=True))
    assert len(set(moves[0].length.tolist())) > 2

"""Laws that are computed where they are read are the dense laws, whatever the chunk, and hold next to nothing."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smc_bridge.blocks import Horizon, Move, full_horizon
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.chunks import Chunks
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
)
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law, truncated
from smc_bridge.distributions.residual import ResidualLaw
from smc_bridge.distributions.shaping import Shaping
from smc_bridge.distributions.table import Dense, as_law
from smc_bridge.distributions.target import ARTarget
from smc_bridge.distributions.views import Patched
from smc_bridge.engine.sampler import Sampler
from smc_bridge.kernels.block_verification import BlockVerification
from smc_bridge.kernels.gumbel import GumbelCoupling
from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, Lanes, OwnWeights
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.rejection import Rejection
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.methods.released import Argmax, ReleasedProposal, ReleasedRejection, ReleasedScore
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import CausalSession, Session
from smc_bridge.models.rows import Rows
from smc_bridge.models.tabular import TabularAR, TabularDLM
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import PromptSource, Randomness
from smc_bridge.sampling import compiled_softmax, inverse_cdf, search, segment_width
from smc_bridge.testing import outcomes
from smc_bridge.testing.kernel_laws import committed
from tests.oracle import laws
from tests.smc_bridge.enumeration import drafted, log_pi_along, log_q_of, table_of

B, K, V, A = 3, 2, 4, 300
TEMPERATURES = (0.5, 1.3)
#: One cell at a time and one position per round; a few; everything at once.
CHUNKS = [
    Chunks(bytes=1, ahead=1, whole=0), Chunks(bytes=5 * A * 8, ahead=8 * A, whole=0),
    Chunks(bytes=1 << 24, ahead=1 << 30, whole=0), Chunks(),
]
EXPONENTS = torch.tensor([0.4, 0.0], dtype=torch.float64)


class Tilted:
    """A user's intermediate that treats lanes and positions differently, through the shape it is called with."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        lanes, width = log_p.shape[1], log_p.shape[2]
        w = (torch.arange(lanes * width).reshape(lanes, width, 1) + 1.0) / (lanes * width + 1)
        return torch.log_softmax(w * log_q + (1 - w) * log_p, -1)


class Halfway:
    """A user's intermediate that says that it looks at one position at a time."""

    positionwise = True

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return torch.log_softmax((log_q + log_p) / 2, -1)


INTERMEDIATES: list[Intermediate] = [
    Proposal(), Target(), ProductOfExperts(0.3), ProductOfExperts(0.0), ProductOfExperts(1.0),
    ProductOfExperts(0.3, 0.5), ProductOfExperts(0.0, 0.5), ProductOfExperts(0.4, EXPONENTS), Mixture(0.3),
    Mixture(1.0), PowerMean(0.5, 0.3), Chernoff(), Defensive(ProductOfExperts(0.5), 0.1),
    Clamp(1.0), Clamp(8.0), Clamp(1000.0), Defensive(Clamp(3.0), 0.1),
    Defensive(ProductOfExperts(0.4, EXPONENTS), 0.1), Defensive(Tilted(), 0.2), Tilted(), Halfway(),
]
LAWS = [
    Shaping(0.7), Shaping(1.0, banned_ids=(0, 299)), Shaping(1.2, top_p=0.8), Shaping(1.0, top_k=7),
    Shaping(0.9, 0.7, 20, (5,)),
]


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference, equal infinities being none."""
    return float(torch.where(found == expected, 0.0, found - expected).abs().max())


def at_tokens(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """`Law.at`, of a tensor."""
    return log_probs.gather(-1, tokens.clamp_min(0)[..., None])[..., 0]


def row_at(log_probs: Tensor, position: Tensor) -> Tensor:
    """`Law.row`, of a tensor `[R, V, A]`."""
    return log_probs[torch.arange(position.numel()), position]


def pair_of_laws(chunks: Chunks, *, law: Shaping = LAWS[0]) -> tuple[Law, Law, Tensor, Tensor]:
    """q (lanes of two temperatures, two particles on one window) and p, where they are read and `[B, K, V, A]`."""
    raw_q, raw_p = logits(2, V + 2, A), logits(B * K, V, A, seed=1)
    raw_p[0, 1, 3:] = -math.inf
    model = TabularDLM(TabularAR.random(2, 1, seed=0))
    proposal = DLMProposal(model, temperature=TEMPERATURES)
    place = torch.arange(V) + torch.tensor([[1], [V + 4]])
    owner = torch.tensor([0, 1, 0])
    window = raw_q.reshape(-1, A)[place][owner]
    q = proposal.law(raw_q, place.numpy(), owner.numpy(), K, chunks=chunks)
    p = model_law(raw_p, torch.arange(B * K * V).reshape(-1, V), law, chunks=chunks)
    return q, p, proposal.log_probs(window, K), law.log_probs(raw_p).reshape(B, K, V, A)


@pytest.mark.parametrize("chunks", CHUNKS, ids=["cell", "some", "all", "table"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_models_law_is_the_dense_one(law: Shaping, chunks: Chunks) -> None:
    raw = logits(5, V, A)
    raw[0, 0, :200] = -math.inf
    raw[1, 1] = raw[1, 1].round()  # ties
    lazy, dense = model_law(raw, torch.arange(5 * V).reshape(5, V), law, chunks=chunks), law.log_probs(raw)
    tokens = torch.randint(A, (5, V), generator=torch.Generator().manual_seed(2))
    assert gap(lazy.at(tokens), at_tokens(dense, tokens)) < 1e-12
    position = torch.tensor([0, 1, 2, 3, 3])
    assert gap(lazy.row(position), row_at(dense, position)) < 1e-12
    index = torch.tensor([4, 0, 4])
    assert gap(lazy.of_rows(index).at(tokens[index]), at_tokens(dense, tokens)[index]) < 1e-12
    assert gap(lazy.dense(), dense) < 1e-12


@pytest.mark.parametrize("chunks", CHUNKS, ids=["cell", "some", "all", "table"])
@pytest.mark.parametrize("intermediate", INTERMEDIATES, ids=lambda i: f"{i!r:.40}")
def test_an_intermediate_is_the_dense_one(intermediate: Intermediate, chunks: Chunks) -> None:
    q, p, log_q, log_p = pair_of_laws(chunks)
    dense = intermediate.log_prob(log_q, log_p).reshape(-1, V, A)
    lazy = bridge_law(intermediate, q, p, lanes=K)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        tokens = torch.randint(-1, A, (B * K, V), generator=generator)
        found, expected = (torch.where(tokens < 0, 0.0, x) for x in (lazy.at(tokens), at_tokens(dense, tokens)))
        assert gap(found, expected) < 1e-11, "at tokens"
    position = torch.tensor([0, 3, 1, 2, 3, 0])
    assert gap(lazy.row(position), row_at(dense, position)) < 1e-11, "rows"
    assert gap(lazy.dense(), dense) < 1e-11, "dense"


@pytest.mark.parametrize(
    "intermediate", [*INTERMEDIATES[:5], PowerMean(0.5, 0.3), Chernoff(), Clamp(8.0), Halfway()],
    ids=lambda pi: type(pi).__name__,
)
def test_walks_on_one_cell_may_ask_for_different_tokens_of_it(intermediate: Intermediate) -> None:
    """As the lanes of a tree walk do, which share the tree's laws."""
    q, p, log_q, log_p = pair_of_laws(CHUNKS[0])
    dense = intermediate.log_prob(log_q, log_p).reshape(-1, V, A)
    lazy = bridge_law(intermediate, q, p, lanes=K)
    rows, positions = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([1, 1, 2, 1, 2])
    for tokens in (torch.tensor([7, 9, 7, 11, 5]), torch.tensor([9, 11, 5, 9, 5])):
        found = lazy.log_probs(rows, positions, tokens)[:, 0]
        assert gap(found, dense[rows, positions, tokens]) < 1e-11


@pytest.mark.parametrize("chunks", CHUNKS, ids=["cell", "some", "all", "table"])
def test_draws_are_those_of_the_dense_law(chunks: Chunks) -> None:
    q, p, log_q, log_p = pair_of_laws(chunks, law=LAWS[2])
    uniform = torch.rand(B * K, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    uniform[0] = torch.tensor([0.0, 1 - 2**-53, 0.0, 1 - 2**-53])
    for lazy, dense in ((q, log_q), (p, log_p)):
        expected = inverse_cdf(dense.reshape(-1, V, A), uniform)
        found = inverse_cdf(lazy, uniform)
        assert torch.equal(found, expected), f"{found} of the lazy law, {expected} of the dense one"
        assert bool((at_tokens(dense.reshape(-1, V, A), found) > -math.inf).all())


def test_the_residual_is_the_dense_one_at_the_refused_position() -> None:
    q, p, log_q, log_p = pair_of_laws(CHUNKS[0])
    pi = bridge_law(ProductOfExperts(0.3), q, p, lanes=K)
    position = torch.tensor([0, 3, 1, 2, 3, 0])
    needed = torch.tensor([True, True, False, True, True, True])
    found = ResidualLaw(q, pi, position, needed, None).dense()[:, 0]
    log_pi = ProductOfExperts(0.3).log_prob(log_q, log_p).reshape(-1, V, A)
    left = (row_at(log_pi, position).exp() - row_at(log_q.reshape(-1, V, A), position).exp()).clamp_min(0.0)
    assert gap(found[needed].exp(), (left / left.sum(-1, keepdim=True))[needed]) < 1e-12
    assert found[2, 0] == 0.0, "a row that needs no correction has a law without choices"


def test_a_residual_without_mass_is_the_intermediate() -> None:
    """Where round-off leaves nothing of `(pi - q)_+`."""
    log_pi = torch.log_softmax(logits(2, 1, 5), -1)
    none = ResidualLaw(Dense(log_pi), Dense(log_pi), torch.zeros(2).long(), torch.ones(2).bool(), None)
    assert gap(none.dense(), log_pi) < 1e-12


def test_leading_dimensions_are_the_same_rows_in_another_shape() -> None:
    q, _, log_q, _ = pair_of_laws(CHUNKS[1])
    tokens = torch.randint(A, (B, K, V), generator=torch.Generator().manual_seed(8))
    for law in (q.shaped(B, K), q.shaped(B * K).shaped(B, K)):
        assert (law.shape, law.dtype, law.device, law.rows) == (log_q.shape, log_q.dtype, log_q.device, B * K)
        assert gap(law.at(tokens), at_tokens(log_q, tokens)) < 1e-12
        assert gap(law.dense(), log_q) < 1e-12
    chosen = q.shaped(B, K).of_rows(torch.tensor([5, 0, 5])).of_rows(torch.tensor([2, 1]))
    assert gap(chosen.dense(), log_q.reshape(-1, V, A)[[5, 0]]) < 1e-12


def test_a_tensor_is_a_law_of_its_own_entries() -> None:
    tensor = torch.log_softmax(logits(B, K, V, A), -1)
    law = as_law(tensor)
    assert law.dense() is tensor
    assert as_law(law) is law
    tokens = torch.randint(A, (B, K, V), generator=torch.Generator().manual_seed(8))
    assert torch.equal(law.at(tokens), at_tokens(tensor, tokens))
    with pytest.raises(TypeError, match="Dense is not made of a model's logits"):
        law.logits(tokens)


def test_logits_at_tokens_are_the_models_own() -> None:
    """Before temperature, truncation and bans, also through views of a law."""
    raw = logits(B * K, V, A)
    tokens = torch.randint(-1, A, (B, K, V), generator=torch.Generator().manual_seed(9))
    for shaping in LAWS:
        law = model_law(raw, torch.arange(B * K * V).reshape(-1, V), shaping).shaped(B, K)
        expected = at_tokens(raw.reshape(B, K, V, A), tokens)
        assert torch.equal(law.logits(tokens)[tokens >= 0], expected[tokens >= 0])


@pytest.mark.parametrize("chunks", CHUNKS, ids=["cell", "some", "all", "table"])
def test_a_patched_law_has_some_rows_of_another(chunks: Chunks) -> None:
    """However it is read: at tokens, in rows, whole, and drawn from."""
    q, _, log_q, _ = pair_of_laws(chunks)
    rows, other = torch.tensor([4, 1]), torch.log_softmax(logits(2, V, A, seed=6), -1)
    expected = log_q.reshape(-1, V, A).index_copy(0, rows, other)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(-1, A, (B * K, V), generator=generator)
    position = torch.randint(V, (B * K,), generator=generator)
    uniform = torch.rand(B * K, V, generator=generator, dtype=torch.float64)
    law = Patched(q, rows, Dense(other))
    asked = tokens >= 0
    assert gap(law.at(tokens)[asked], at_tokens(expected, tokens)[asked]) < 1e-12
    assert gap(law.row(position), row_at(expected, position)) < 1e-12
    assert torch.equal(law.inverse_cdf(uniform), inverse_cdf(expected, uniform))
    assert gap(law.dense(), expected) < 1e-12
    index = torch.tensor([1, 1, 3, 4])
    assert gap(law.of_rows(index).dense(), expected[index]) < 1e-12
    assert gap(q.dense(), log_q.reshape(-1, V, A)) < 1e-12, "the law beneath is as it was"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_cell_is_named_when_it_is_read(bad: float) -> None:
    raw = logits(2, V, A)
    raw[1, 2, 7] = bad
    place = torch.arange(2 * V).reshape(2, V)
    with pytest.raises(ValueError, match=r"NaN at .*\[1, 2\].*logits"):
        model_law(raw, place, Shaping())  # small, so it is read at once
    law = model_law(raw, place, Shaping(), chunks=Chunks(whole=0))
    law.at(torch.tensor([[3, 3, 3, 3], [3, 3, -1, 3]]))
    for read in (lambda: law.at(torch.full((2, V), 3)), lambda: law.inverse_cdf(torch.full((2, V), 0.5).double())):
        with pytest.raises(ValueError, match=r"NaN at .*\[1, 2\].*logits"):
            read()


#: Kernels, and how the tokens that they verify are drawn.
KERNELS: dict[str, tuple[Kernel, Shaping]] = {
    "rejection": (Rejection(), Shaping()), "block": (BlockVerification(), Shaping()),
    "released": (ReleasedRejection(1), Shaping(top_p=0.7)),
}


@pytest.mark.parametrize("toy", [laws.random_toy(3, 3, seed=7, eos=2), laws.random_toy(2, 3, seed=3)],
                         ids=lambda toy: toy.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_have_one_law_whatever_the_chunks(kernel: str, toy: laws.Toy) -> None:
    """By enumeration: looking at one position after the other changes nothing."""
    rule, shaping = KERNELS[kernel]
    horizon = Horizon(torch.full((1,), toy.window), ends_of(toy.eos))

    def law_in(chunks: Chunks) -> dict[Any, float]:
        def move(source: Any) -> Any:
            q = Dense(log_q_of(toy), chunks)
            tokens = source.categorical(truncated(q, shaping))
            pi = Dense(log_pi_along(toy, tokens), chunks)
            moved = rule(Draft(tokens, q, horizon.window), pi, source=source, horizon=horizon)
            return committed(moved, table_of(toy))[0]

        found: dict[Any, float] = {}
        for probability, outcome in outcomes(move):
            found[outcome] = found.get(outcome, 0.0) + probability
        return found

    found, expected = law_in(CHUNKS[0]), law_in(CHUNKS[2])
    worst = max(abs(found.get(k, 0.0) - expected.get(k, 0.0)) for k in {*found, *expected})
    assert worst < 1e-13, f"{kernel}: laws differ by {worst}"
    if kernel != "released":
        oracle = {"rejection": laws.rejection, "block": laws.block_verification}[kernel](toy)
        worst = max(abs(found.get(k, 0.0) - oracle.get(k, 0.0)) for k in {*found, *oracle})
        assert worst < 1e-12, f"{kernel}: {worst} from the oracle"


@pytest.mark.parametrize("chunks", CHUNKS, ids=["cell", "some", "all", "table"])
@pytest.mark.parametrize("kernel", [Rejection(), BlockVerification(), GumbelCoupling()], ids=lambda k: type(k).__name__)
def test_kernels_move_alike_on_laws_of_models_and_of_tensors(kernel: Any, chunks: Chunks) -> None:
    q, p, log_q, log_p = pair_of_laws(chunks)
    pi = bridge_law(ProductOfExperts(0.3), q, p, lanes=K)
    dense_q = Dense(log_q.reshape(-1, V, A))
    dense_pi = Dense(ProductOfExperts(0.3).log_prob(log_q, log_p).reshape(-1, V, A))
    horizon = Horizon(torch.tensor([4, 4, 2, 3, 4, 1]), (2,))
    for seed in range(20):
        sources = [PromptSource([torch.Generator().manual_seed(seed)], B * K) for _ in range(2)]
        moves = []
        for laws_of, source in zip(((q, pi), (dense_q, dense_pi)), sources, strict=True):
            draft = drafted(laws_of[0], source, horizon.window)
            moves.append(kernel(draft, laws_of[1], source=source, horizon=horizon))
        assert all(torch.equal(a, b) for a, b in zip(*moves, strict=True)), f"seed {seed}: {moves}"
        block, length = moves[0].block, moves[0].length
        found, expected = (
            kernel.log_density(*x, block, length, horizon=horizon) for x in ((q, pi), (dense_q, dense_pi))
        )
        assert gap(found, expected) < 1e-11


@pytest.mark.parametrize("rule", [OwnWeights(), BalanceHeuristic()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("intermediate", INTERMEDIATES[2:], ids=lambda i: f"{i!r:.40}")
def test_weights_are_those_of_the_dense_laws(rule: Any, intermediate: Intermediate) -> None:
    q, p, log_q, log_p = pair_of_laws(CHUNKS[1])
    pi = bridge_law(intermediate, q, p, lanes=K)
    source = PromptSource([torch.Generator().manual_seed(5)], B * K)
    move = Rejection()(drafted(q, source), pi, source=source, horizon=full_horizon(B * K, V))
    shaped = Move(move.block.reshape(B, K, V), move.length.reshape(B, K), move.accepted.reshape(B, K))
    rest = (shaped, full_horizon(B, V))
    lazy = Lanes(q.shaped(B, K), p.shaped(B, K), pi.shaped(B, K), *rest)
    dense = Lanes(Dense(log_q), Dense(log_p), Dense(intermediate.log_prob(log_q, log_p)), *rest)
    found, expected = (rule(x, kernel=Rejection(), intermediate=intermediate) for x in (lazy, dense))
    assert gap(found, expected) < 1e-10, f"{found}, {expected}"


AR = TabularAR.random(3, 6, seed=1, eos_id=1)
DLM = TabularDLM(AR, noise=0.5)
PROGRAMS: dict[str, dict[str, Any]] = {
    "rejection": {"particles": 3, "lanes": 2},
    "balance": {"weight": BalanceHeuristic(), "lanes": 3, "particles": 2, "temperature": [0.6, 1.0, 1.4]},
    "block": {"kernel": BlockVerification(), "particles": 3},
    "gumbel": {"kernel": GumbelCoupling(), "particles": 2, "lanes": 2},
    "plain": {"kernel": AcceptAll(), "intermediate": Proposal(), "particles": 3},
    "tree": {"kernel": TreeWalk(4), "particles": 3, "lanes": 2},
    "users": {"intermediate": Tilted(), "particles": 3, "lanes": 2},
    "released": {"kernel": ReleasedRejection(2), "weight": ReleasedScore(), "resampler": Argmax(), "lanes": 2},
}


def decoded(name: str, *, retained: Any = None, **options: Any) -> list[tuple[Any, ...]]:
    parts = {"intermediate": ProductOfExperts(0.5), "window": 3, **PROGRAMS[name], **options}
    kind = ReleasedProposal if name == "released" else DLMProposal
    sampler = Sampler(kind(DLM, temperature=parts.pop("temperature", 1.0)), ARTarget(AR), **parts)
    results = sampler.run([[], [0], [2, 0], [2]], seed=[1, 2, 3, 4], max_new_tokens=3, retained=retained)
    # A cap makes more calls of the AR model, of the same rows, and narrow drafts then need no places of wide ones.
    return [(r.sequences, r.log_weights, replace(r.forwards, ar_forwards=0, ar_tokens=0)) for r in results]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_cap_changes_no_draw_and_no_weight(name: str) -> None:
    whole = decoded(name)
    for cap in (1, 300, 700, 10**9):
        assert decoded(name, max_logit_bytes=cap) == whole, f"max_logit_bytes = {cap}"


def test_the_cap_changes_no_conditional_run() -> None:
    retained = [[0, 1], [2, 2, 0], [1], [0, 0, 2]]
    assert decoded("rejection", retained=retained) == decoded("rejection", retained=retained, max_logit_bytes=1)


def test_the_model_never_scores_more_than_the_cap() -> None:
    asked: list[int] = []

    class Counting(Rows):
        def __init__(self, session: CausalSession) -> None:
            self.session, self.commit, self.gather, self.crop = session, session.commit, session.gather, session.crop

        def score(self, rows: Tensor, drafts: Tensor) -> Tensor:
            asked.append(drafts.numel() * 3 * 8)
            return self.session.score(rows, drafts)

    class Model:
        vocab_size, eos_id, banned_ids, device, max_length, min_length = 3, 1, (), AR.device, None, 0

        def session(self, tokens: Tensor, length: Tensor) -> Counting:
            return Counting(AR.session(tokens, length))

    sampler = Sampler(DLMProposal(DLM), ARTarget(Model()), particles=4, lanes=2, window=3)  # type: ignore[arg-type]
    for cap, most in ((300, 288), (10**6, 4 * 3 * 144)):
        asked.clear()
        replace(sampler, max_logit_bytes=cap).run([[], [0], [2]], max_new_tokens=3)
        assert 0 < max(asked) <= most, f"{max(asked)} bytes under a cap of {cap}"


def test_a_cap_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="max_logit_bytes = 0"):
        Sampler(DLMProposal(DLM), ARTarget(AR), max_logit_bytes=0)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_arithmetic_is_the_plain_one() -> None:
    scores = logits(4, A)
    scores[0, :200] = -math.inf
    law: Any = model_law(scores[:, None], torch.arange(4)[:, None], Shaping(), chunks=Chunks(compile=True))
    plain: Any = model_law(scores[:, None], torch.arange(4)[:, None], Shaping())
    assert law._normalise is compiled_softmax()
    tokens = torch.tensor([[250], [0], [1], [2]])
    assert gap(law.at(tokens), plain.at(tokens)) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 63, 255, 256, 257, 320, 1000])
@pytest.mark.parametrize("shared", [False, True])
def test_a_search_finds_the_first_token_past_the_uniform_also_at_the_ends_of_blocks(size: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    probs = torch.rand(40, size, generator=generator, dtype=torch.float64)
    probs = probs * (torch.rand(40, size, generator=generator) < 0.1)
    probs[:, ::64] = 0.0
    probs[probs.sum(-1) == 0, -1] = 1.0
    width = segment_width(size)
    cdf, law = probs.cumsum(-1), torch.arange(40).repeat(8) if shared else torch.arange(40)
    # Uniforms at the very ends of blocks and of the range, where round-off decides, and anywhere.
    sums = probs.view(40, -1, width).sum(-1).cumsum(-1) if size % width == 0 else cdf[:, -1:]
    ends = sums / sums[:, -1:]
    uniform = torch.rand(law.shape, generator=generator, dtype=torch.float64)
    which = torch.randint(ends.shape[1], law[::2].shape, generator=generator)
    uniform[::2] = ends[law[::2], which].clamp_max(1 - 2**-53)
    uniform[::7] = 0.0
    found, bad = search(probs, width, law if shared else None, uniform)
    assert not bool(bad.any())
    point = uniform * cdf[law, -1]
    inside = probs[law, found]
    assert bool((inside > 0).all())
    assert bool((cdf[law, found] - inside <= point + 1e-12).all())
    assert bool((point <= cdf[law, found] + 1e-12).all())


def test_a_compiler_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def fails(*arguments: object) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fails)
    with pytest.raises(ValueError, match=r"compile = True: .* \(No working C\+\+ compiler .*\); install"):
        compiled_softmax.__wrapped__()(logits(1, A), 1.0)


class LiveBytes(TorchDispatchMode):
    """Greatest number of bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            pointer = storage.data_ptr()
            if pointer in known or pointer in self.live:
                continue
            self.live[pointer] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            _when_freed(storage, lambda pointer=pointer: self._free(pointer))
        return out

    def _free(self, pointer: int) -> None:
        self.held -= self.live.pop(pointer, 0)


def _when_freed(storage: torch.UntypedStorage, act: Callable[[], None]) -> None:
    import weakref

    weakref.finalize(storage, act)


class Wide(Rows):
    """A session of a model on a large alphabet, whose logits are there already."""

    def __init__(self, tokens: Tensor, length: Tensor, logits: Tensor) -> None:
        super().__init__(tokens, length)
        self.logits = logits

    def score(self, rows: Tensor, places: Tensor) -> Tensor:
        return self.logits


class WideModel:
    eos_id, banned_ids, device, max_length, min_length = None, (), torch.device("cpu"), None, 0

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.vocab_size = logits, logits.shape[-1]

    def session(self, tokens: Tensor, length: Tensor) -> Session:
        return Wide(tokens, length, self.logits)


def test_a_step_on_a_large_alphabet_holds_a_fraction_of_the_logits() -> None:
    """A = 151,936, K = 4, V = 32: beyond the models' logits, less than a tenth of one `[K, V, A]` tensor."""
    size, lanes, window = 151_936, 4, 32
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, window, size, generator=generator)
    base[..., 5] += 14
    raw_p = base.expand(lanes, -1, -1) + 0.1
    dlm: Any = WideModel(base)
    ar: Any = WideModel(raw_p)
    proposal = DLMProposal(dlm, temperature=[0.5, 0.5, 1.0, 1.0], lookahead=window)
    sampler = Sampler(proposal, ARTarget(ar), ProductOfExperts(0.3), lanes=lanes, window=window)
    state = sampler.start([[]], max_new_tokens=window)
    with torch.inference_mode(False), torch.no_grad(), LiveBytes() as meter:
        state = sampler.step(state)
        share = meter.peak / (4 * lanes * window * size)
        copies = [raw_p.clone() for _ in range(2)]
    assert int(state.prefix.length) > 0
    assert 0 < share < 0.1, f"{share:.3f} of a [K, V, A] tensor"
    measured = meter.peak / (4 * lanes * window * size)
    assert len(copies) <= measured < len(copies) + 0.1, f"two copies are measured as {measured:.3f}"


def test_nothing_after_a_refusal_is_computed() -> None:
    """The normalisers of the target and of the intermediate are known up to the refusals, and no further."""
    q, p, _, _ = pair_of_laws(Chunks(ahead=1, whole=0))
    pi: Any = bridge_law(ProductOfExperts(0.3), q, p, lanes=K)
    source = PromptSource([torch.Generator().manual_seed(0)], B * K)
    move = Rejection()(drafted(q, source), pi, source=source, horizon=full_horizon(B * K, V))
    expected = torch.arange(V) < move.length[:, None]
    assert torch.equal(pi.normaliser.known, expected), f"{pi.normaliser.known} for lengths {move.length.tolist()}"
    assert bool((move.length < V).any())


def test_kernels_that_do_tensor_arithmetic_run_in_the_engine() -> None:
    """A user's kernel may work on whole tensors: the same draws, the same weights."""

    class Plain(Rejection):
        def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
            q = Dense(torch.log(draft.q.dense().exp()))
            return super().__call__(draft._replace(q=q), Dense(pi.dense() + 0.0), source=source, horizon=horizon)

    kernel: Kernel = Plain()
    for (left, a, _), (right, b, _) in zip(decoded("rejection"), decoded("rejection", kernel=kernel), strict=True):
        assert left == right
        assert max(abs(x - y) for x, y in itertools.zip_longest(a, b)) < 1e-12

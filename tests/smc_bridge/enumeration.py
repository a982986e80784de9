"""The exact law of a kernel's code on a toy, by `smc_bridge.testing.enumeration`."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.draft import Draft
from smc_bridge.distributions.law import Dense, as_law
from smc_bridge.distributions.law import Law as TokenLaw
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.randomness import Source
from smc_bridge.testing.enumeration import EnumeratingSource, outcomes
from tests.oracle.laws import Block, Law, Toy


def log(probabilities: np.ndarray) -> Tensor:
    """Log-probabilities as a float64 tensor, log 0 = -inf."""
    return torch.from_numpy(np.array(probabilities, dtype=float)).log()


def horizon_of(toy: Toy, rows: int = 1) -> Horizon:
    """Where blocks of the toy must end."""
    return Horizon(torch.full((rows,), toy.window), toy.eos)


def log_q_of(toy: Toy, rows: int = 1) -> Tensor:
    """`[R, V, A]`."""
    return log(toy.q).expand(rows, -1, -1)


def log_pi_along(toy: Toy, draft: Tensor) -> Tensor:
    """The intermediate along `draft: [R, V]`, `[R, V, A]`; negative entries (padding) count as token 0."""
    rows = draft.clamp_min(0).tolist()
    return torch.stack([torch.stack([log(toy.pi[tuple(row[:i])]) for i in range(len(row))]) for row in rows])


def drafted(q: Tensor | TokenLaw, source: Source, window: Tensor | None = None) -> Draft:
    """A draft from `q: [R, V, A]` as a factorised proposal makes it, by default of all V places."""
    law = as_law(q)
    width = torch.full((law.rows,), law.shape[-2], device=law.device) if window is None else window
    return Draft(source.categorical(law), law, width)


def moved(kernel: Kernel, toy: Toy, source: EnumeratingSource, *, rows: int = 1) -> Move:
    """One move of the real kernel, draft (or tree) included."""
    q, horizon = log_q_of(toy, rows), horizon_of(toy, rows)
    if not isinstance(kernel, TreeWalk):
        draft = drafted(q, source, horizon.window)
        return kernel(draft, Dense(log_pi_along(toy, draft.tokens)), source=source, horizon=horizon)
    tree = kernel.tree(Dense(q[:1]), horizon=horizon_of(toy))
    prefixes: list[Block] = [()]
    for parent, token, real in zip(
        tree.parents[0].tolist(), tree.tokens[0].tolist(), tree.real[0].tolist(), strict=True
    ):
        prefixes.append((*prefixes[parent], token) if real else ())
    node_law = torch.stack([log(toy.pi[prefix]) for prefix in prefixes])
    move, _ = kernel.walk(
        tree, Dense(node_law[None]), walks=rows, source=source, window=toy.q.shape[0], horizon=horizon_of(toy)
    )
    return move


def committed_block(move: Move, row: int = 0) -> tuple[Block, int]:
    """Block and accepted count of a row, after checking that the move keeps its own rules."""
    length, accepted, tokens = int(move.length[row]), int(move.accepted[row]), move.block[row].tolist()
    assert 1 <= length <= len(tokens), f"length {length} of a block of {len(tokens)}"
    assert length - accepted in (0, 1), f"accepted {accepted} of length {length}"
    assert all(t >= 0 for t in tokens[:length]), f"padding {tokens} inside length {length}"
    assert all(t == -1 for t in tokens[length:]), f"tokens {tokens} past length {length}"
    return tuple(tokens[:length]), accepted


def enumerated_law(kernel: Kernel, toy: Toy) -> Law:
    """The exact law of (block, accepted) of the kernel's code."""
    law: Law = defaultdict(float)
    for probability, move in outcomes(lambda source: moved(kernel, toy, source)):
        law[committed_block(move)] += probability
    total = math.fsum(law.values())
    assert abs(total - 1.0) < 1e-12, f"probabilities of all outcomes sum to {total}"
    return dict(law)

"""A `Source` that enumerates: the code under test is run once for every outcome of its randomness, depth first.

Every discrete draw is a branch. A run follows a path of branches; the next run replays the path up to its last branch
that has another outcome. The probabilities of the paths sum to one, and the weighted outcomes are the exact law.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from smc_bridge.kernels.protocol import DraftKernel, Horizon, Move
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.randomness import Stream
from tests.oracle.laws import Block, Law, Toy

T = TypeVar("T")


class EnumeratingSource:
    """Implements `smc_bridge.randomness.Source` for discrete draws, whatever the number of rows."""

    def __init__(self, path: list[int]) -> None:
        self.path = path
        self.options: list[int] = []
        self.probability = 1.0

    def choose(self, probabilities: list[float]) -> int:
        """One draw: the branch of this run, or the first one that is possible."""
        possible = [i for i, p in enumerate(probabilities) if p > 0.0]
        depth = len(self.options)
        if depth == len(self.path):
            self.path.append(0)
        self.options.append(len(possible))
        outcome = possible[self.path[depth]]
        self.probability *= probabilities[outcome]
        return outcome

    def next_path(self) -> list[int] | None:
        """The path of the next run, None after the last one."""
        path = list(self.path)
        while path and path[-1] == self.options[len(path) - 1] - 1:
            path.pop()
        return [*path[:-1], path[-1] + 1] if path else None

    def bernoulli(self, probability: Tensor) -> Tensor:
        drawn = [self.choose([1.0 - p, p]) for p in probability.double().flatten().tolist()]
        return torch.tensor(drawn, dtype=torch.bool).reshape(probability.shape)

    def categorical(self, log_probs: Tensor) -> Tensor:
        laws = log_probs.double().exp().reshape(-1, log_probs.shape[-1])
        drawn = [self.choose((law / law.sum()).tolist()) for law in laws]
        return torch.tensor(drawn, dtype=torch.long).reshape(log_probs.shape[:-1])

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        return self.bernoulli

    def categorical_stream(self, steps: int) -> Stream:
        left = iter(range(steps))

        def draw(log_probs: Tensor, rows: Tensor | None = None) -> Tensor:
            next(left)
            return self.categorical(log_probs)

        return draw

    def select(self, rows: Tensor) -> EnumeratingSource:
        return self

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        raise AssertionError(f"a uniform of size {size} cannot be enumerated: draw through bernoulli or categorical")

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        raise AssertionError(f"an exponential of size {size} cannot be enumerated")


def outcomes(run: Callable[[EnumeratingSource], T]) -> Iterator[tuple[float, T]]:
    """Every outcome of `run` with its probability; an outcome may come several times."""
    path: list[int] | None = []
    while path is not None:
        source = EnumeratingSource(path)
        outcome = run(source)
        yield source.probability, outcome
        path = source.next_path()


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


def moved(kernel: DraftKernel | TreeWalk, toy: Toy, source: EnumeratingSource, *, rows: int = 1) -> Move:
    """One move of the real kernel, draft (or tree) included."""
    q, horizon = log_q_of(toy, rows), horizon_of(toy, rows)
    if not isinstance(kernel, TreeWalk):
        draft = kernel.draft(q, generator=source)
        return kernel(q, log_pi_along(toy, draft), draft, generator=source, horizon=horizon)
    tree = kernel.tree(q[:1], horizon=horizon_of(toy))
    prefixes: list[Block] = [()]
    for parent, token, real in zip(
        tree.parents[0].tolist(), tree.tokens[0].tolist(), tree.real[0].tolist(), strict=True
    ):
        prefixes.append((*prefixes[parent], token) if real else ())
    node_law = torch.stack([log(toy.pi[prefix]) for prefix in prefixes])
    move, _ = kernel.walk(
        tree, node_law[None], walks=rows, generator=source, window=toy.q.shape[0], horizon=horizon_of(toy)
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


def enumerated_law(kernel: DraftKernel | TreeWalk, toy: Toy) -> Law:
    """The exact law of (block, accepted) of the kernel's code."""
    law: Law = defaultdict(float)
    for probability, move in outcomes(lambda source: moved(kernel, toy, source)):
        law[committed_block(move)] += probability
    total = math.fsum(law.values())
    assert abs(total - 1.0) < 1e-12, f"probabilities of all outcomes sum to {total}"
    return dict(law)

"""A `Source` that enumerates: the code under test is run once for every outcome of its randomness, depth first.

Every discrete draw is a branch. A run follows a path of branches; the next run replays the path up to its last branch
that has another outcome. The probabilities of the paths sum to one, and the weighted outcomes are the exact law:

    >>> import torch
    >>> for probability, coins in outcomes(lambda source: source.bernoulli(torch.tensor([0.25, 0.5]))):
    ...     print(coins.tolist(), probability)
    [False, False] 0.375
    [False, True] 0.375
    [True, False] 0.125
    [True, True] 0.125
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from smc_bridge.randomness import Stream
from smc_bridge.sampling import Drawable, dense

T = TypeVar("T")


class NotEnumerableError(Exception):
    """The code draws a continuous variable, whose outcomes cannot be listed."""


class EnumeratingSource:
    """Implements `smc_bridge.randomness.Source` for discrete draws, whatever the number of rows.

    Args:
        path: which possible outcome each draw takes; draws past its end take the first, and are appended.
    Raises:
        NotEnumerableError: `uniform` or `exponential` is called.
    """

    def __init__(self, path: list[int]) -> None:
        self.path = path
        self.options: list[int] = []
        self.probability = 1.0

    def choose(self, probabilities: list[float]) -> int:
        """The outcome of one draw: the one that the path of this run prescribes, or the first that is possible."""
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
        """Trials on the path, one after the other, BoolTensor `[R, ...]` (`Source.bernoulli`)."""
        drawn = [self.choose([1.0 - p, p]) for p in probability.double().flatten().tolist()]
        return torch.tensor(drawn, dtype=torch.bool).reshape(probability.shape)

    def categorical(self, log_probs: Tensor | Drawable) -> Tensor:
        """Tokens on the path, one after the other, `[R, ...]` (`Source.categorical`)."""
        laws = dense(log_probs).double().exp().reshape(-1, log_probs.shape[-1])
        drawn = [self.choose((law / law.sum()).tolist()) for law in laws]
        return torch.tensor(drawn, dtype=torch.long).reshape(log_probs.shape[:-1])

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """Successive trials on the path, `[R, ...]` each (`Source.bernoulli_stream`)."""
        return self.bernoulli

    def categorical_stream(self, steps: int) -> Stream:
        """Successive draws on the path (`Source.categorical_stream`)."""
        left = iter(range(steps))

        def draw(log_probs: Tensor | Drawable, rows: Tensor | None = None) -> Tensor:
            next(left)
            return self.categorical(log_probs)

        return draw

    def select(self, rows: Tensor) -> EnumeratingSource:
        """See `Source.select`: nothing is drawn for other rows."""
        return self

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """Refused: a continuous variable has no list of outcomes.

        Raises:
            NotEnumerableError: always.
        """
        raise NotEnumerableError(f"a uniform of size {size}: draw through bernoulli or categorical")

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        """Refused: a continuous variable has no list of outcomes.

        Raises:
            NotEnumerableError: always.
        """
        raise NotEnumerableError(f"an exponential of size {size} has no outcomes to list")


def outcomes(run: Callable[[EnumeratingSource], T]) -> Iterator[tuple[float, T]]:
    """Every outcome of `run` with its probability; an outcome may come several times."""
    path: list[int] | None = []
    while path is not None:
        source = EnumeratingSource(path)
        outcome = run(source)
        yield source.probability, outcome
        path = source.next_path()

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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from smc_bridge.randomness import Stream
from smc_bridge.sampling import Drawable, dense

T = TypeVar("T")


class NotEnumerableError(Exception):
    """The code draws a continuous variable, whose outcomes cannot be listed."""


class ListingSource(ABC):
    """A `smc_bridge.randomness.Source` of discrete draws, each of which is one of a list of outcomes."""

    @abstractmethod
    def drawn(self, laws: Tensor) -> Tensor:
        """An outcome of each of the laws `[R, ..., A]`, float64, which need not be normalised: `[R, ...]`."""

    def bernoulli(self, probability: Tensor) -> Tensor:
        """Trials, BoolTensor `[R, ...]` (`Source.bernoulli`)."""
        p = probability.double().clamp(0.0, 1.0)
        return self.drawn(torch.stack([1.0 - p, p], -1)).bool()

    def categorical(self, log_probs: Tensor | Drawable) -> Tensor:
        """Tokens, `[R, ...]` (`Source.categorical`)."""
        return self.drawn(dense(log_probs).double().exp())

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """Successive trials, `[R, ...]` each (`Source.bernoulli_stream`)."""
        return self.bernoulli

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


class EnumeratingSource(ListingSource):
    """All draws, of whatever row, are successive branches of one path.

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

    def drawn(self, laws: Tensor) -> Tensor:
        """Outcomes on the path, one law after the other (`ListingSource.drawn`)."""
        flat = laws.reshape(-1, laws.shape[-1])
        found = [self.choose(law) for law in (flat / flat.sum(-1, keepdim=True)).tolist()]
        return torch.tensor(found, dtype=torch.long).reshape(laws.shape[:-1])

    def categorical_stream(self, steps: int) -> Stream:
        """Successive draws on the path (`Source.categorical_stream`)."""
        left = iter(range(steps))

        def draw(
            log_probs: Tensor | Drawable, rows: Tensor | None = None, places: Tensor | None = None
        ) -> Tensor:
            if places is None:
                next(left)
            return self.categorical(log_probs)

        return draw

    def select(self, rows: Tensor) -> EnumeratingSource:
        """See `Source.select`: nothing is drawn for other rows."""
        return self


def outcomes(run: Callable[[EnumeratingSource], T]) -> Iterator[tuple[float, T]]:
    """Every outcome of `run` with its probability; an outcome may come several times."""
    path: list[int] | None = []
    while path is not None:
        source = EnumeratingSource(path)
        outcome = run(source)
        yield source.probability, outcome
        path = source.next_path()

"""Laws that exist as a tensor of log-probabilities: `Dense`, and `Table`, a small law that was computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law, drawn_from
from smc_bridge.models.host import places


class Dense(Law):
    """The law that a tensor of log-probabilities `[..., V, A]` holds."""

    def __init__(self, tensor: Tensor, chunks: Chunks | None = None) -> None:
        super().__init__(tensor.shape, tensor, chunks)
        self.tensor = tensor
        self.flat = tensor.reshape(-1, *tensor.shape[-2:])
        self._probs: Tensor | None = None

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Entries of the tensor: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        return self.flat[rows, positions] if tokens is None else self.flat[rows, positions, tokens][:, None]

    @property
    def held(self) -> bool:
        """True: it is a tensor (`Law.held`)."""
        return True

    def entries(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Entries of the tensor (`Law.entries`)."""
        return self.flat[rows, positions, tokens]

    def dense(self) -> Tensor:
        """The tensor itself, `[..., V, A]`: nothing is computed."""
        return self.tensor

    def draw(self, owner: Tensor | None, uniform: Tensor) -> Tensor:
        """Tokens by inverse cdf, `[Q, V]` (`Law.draw`), from the probabilities of all cells, which are kept."""
        places_of, width = self.flat.shape[1], uniform.shape[1]
        if self._probs is None:
            self._probs = self.flat.exp().view(-1, self.shape[-1])
        cell = None
        if owner is not None or width < places_of:
            rows = places(self.rows, self.device) if owner is None else owner
            cell = (rows[:, None] * places_of + places(width, self.device)).flatten()
        return drawn_from(
            self._probs, cell, uniform,
            row=lambda draw: draw // width if owner is None else int(owner[draw // width]),
        )


class Table(Dense):
    """A small law that was computed at once; of its V positions perhaps only the first W, which blocks can reach.

    Args:
        law: where it comes from, which is asked for what is no log-probability.
        tensor: its log-probabilities, `[..., W, A]`.
        probs: its probabilities, if they are at hand, `[..., W, A]`.
        width: V; the last of the W positions stands for those after it.
    """

    def __init__(self, law: Law, tensor: Tensor, probs: Tensor | None = None, *, width: int | None = None) -> None:
        super().__init__(tensor, law.chunks)
        self.law, self.columns = law, tensor.shape[-2]
        self._probs = None if probs is None else probs.view(-1, self.shape[-1])
        self._least: Tensor | None = None
        if width is not None:
            self.shape = torch.Size((*tensor.shape[:-2], width, tensor.shape[-1]))

    @property
    def ranking(self) -> Law:
        """The table itself, or what the law that it comes from ranks by (`Law.ranking`)."""
        ranking = self.law.ranking
        return self if ranking is self.law else ranking

    def _column(self, positions: Tensor) -> Tensor:
        """Which of the W positions stand for these."""
        return positions if self.columns == self.shape[-2] else positions.clamp_max(self.columns - 1)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Entries of the tensor: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        return super().log_probs(rows, self._column(positions), tokens)

    def entries(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Entries of the tensor (`Law.entries`)."""
        return super().entries(rows, self._column(positions), tokens)

    def dense(self) -> Tensor:
        """The tensor, for all V positions, `[..., V, A]` (`Law.dense`)."""
        if self.columns == self.shape[-2]:
            return self.tensor
        return self.tensor.index_select(-2, self._column(places(self.shape[-2], self.device)))

    def reached(self) -> Tensor:
        """The tensor as it is, `[R, W, A]` (`Law.reached`)."""
        return self.flat

    def draw(self, owner: Tensor | None, uniform: Tensor) -> Tensor:
        """Tokens by inverse cdf, `[Q, V]` (`Law.draw`); 0 at positions that are not there."""
        drawn = super().draw(owner, uniform[:, : self.columns])
        missing = uniform.shape[1] - drawn.shape[1]
        return torch.nn.functional.pad(drawn, (0, missing)) if missing else drawn

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Least log-probability of cells, as the law it comes from counts it (`Law.lower_bound`, `Law.least`)."""
        if self._least is None:
            self._least = self.law.least(self.flat)
        return self._least[rows, self._column(positions)]

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Logits at one token of each of n cells, of the law it comes from, `[n]` (`Law.raw_at`)."""
        return self.law.raw_at(rows, self._column(positions), tokens)


def is_small(shape: Sequence[int], itemsize: int, chunks: Chunks) -> bool:
    """Whether a law of that shape is computed at once."""
    return math.prod(shape) * itemsize <= chunks.whole and not chunks.compile


def settled(law: Law, *, width: int | None = None) -> Law:
    """The law itself or, if it is small, a `Table` of it, of `width` positions."""
    if law.held or not is_small(law.shape, law.dtype.itemsize, law.chunks):
        return law
    return Table(law, *law.whole(), width=law.shape[-2] if width is None else width)


def as_law(law: Tensor | Law) -> Law:
    """The law itself, or the one that a tensor `[..., V, A]` of log-probabilities holds."""
    return Dense(law) if isinstance(law, Tensor) else law

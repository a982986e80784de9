"""Laws that are other laws in other places: `Placed`, such as the nodes of a tree along its walks; `Patched`, `Instead`
and `Exchanged`, of which some rows, some cells or one place in a row are those of another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.sampling import Scores


class Placed(Law):
    """The law whose cell (r, t) is the cell (`row[r, t]`, `position[r, t]`) of another.

    Args:
        base: `[..., V, A]`, R rows.
        row, position: LongTensors `[R', T]`.
    """

    def __init__(self, base: Law, row: Tensor, position: Tensor) -> None:
        super().__init__((*position.shape, base.shape[-1]), base, base.chunks)
        self.base, self.row_of, self.position_of = base, row, position

    @property
    def held(self) -> bool:
        """Whether the base is (`Law.held`)."""
        return self.base.held

    def entries(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Entries of the base (`Law.entries`)."""
        return self.base.entries(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def dense(self) -> Tensor:
        """The cells of the base's tensor, `[..., V, A]` (`Law.dense`)."""
        if not self.held:
            return super().dense()
        return self.base.log_probs(self.row_of.flatten(), self.position_of.flatten()).view(self.shape)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells, read in the base: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        return self.base.log_probs(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """Scores of n cells, read in the base, `[n, A]` or `[n, 1]` (`Law.scores`)."""
        return self.base.scores(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Probabilities of n cells up to a factor, read in the base, `[n, A]` (`Law.probs`)."""
        return self.base.probs(self.row_of[rows, positions], self.position_of[rows, positions])

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Lower bounds of n cells, read in the base, `[n]`, nats (`Law.lower_bound`)."""
        return self.base.lower_bound(self.row_of[rows, positions], self.position_of[rows, positions])

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Logits at one token of each of n cells, read in the base, `[n]` (`Law.raw_at`)."""
        return self.base.raw_at(self.row_of[rows, positions], self.position_of[rows, positions], tokens)


class Patched(Law):
    """A law of which some rows are those of another.

    Args:
        base: `[R, V, A]`.
        rows: which rows, `[Q]`.
        other: what stands there, `[Q, V, A]`.
    """

    def __init__(self, base: Law, rows: Tensor, other: Law) -> None:
        super().__init__(base.shape, base, base.chunks)
        self.base, self.other = base, other
        self.place = torch.full((base.rows,), -1, dtype=torch.long, device=base.device)
        self.place[rows] = torch.arange(rows.numel(), device=base.device)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells of the base or the other law: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        found, place = self.base.log_probs(rows, positions, tokens), self.place[rows]
        own = place >= 0
        if bool(own.any()):
            asked = None if tokens is None else tokens[own]
            found[own] = self.other.log_probs(place[own], positions[own], asked).to(found.dtype)
        return found


class Instead(Law):
    """A law of which some cells are those of another of the same shape.

    Args:
        base, other: `[R, V, A]`.
        where: cells that are the other's, bool `[R, V]`.
    """

    def __init__(self, base: Law, where: Tensor, other: Law) -> None:
        super().__init__(base.shape, base, base.chunks)
        self.base, self.where, self.other = base, where, other

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells of the base or the other law: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        found, there = self.base.log_probs(rows, positions, tokens), self.where[rows, positions]
        if bool(there.any()):
            asked = None if tokens is None else tokens[there]
            found[there] = self.other.log_probs(rows[there], positions[there], asked).to(found.dtype)
        return found

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Lower bounds of n cells of the base or the other law, `[n]`, nats (`Law.lower_bound`)."""
        own, other = (law.lower_bound(rows, positions) for law in (self.base, self.other))
        return torch.where(self.where[rows, positions], other, own)


class Exchanged(Law):
    """A law of which one place in each row is that of another law, or has no mass.

    Args:
        base: `[R, W, A]`; its last place stands for those after it.
        other: `[R, V, A]`; None for no mass at all.
        place: which place of each row, `[R]`, -1 for none.
        width: V.
    """

    def __init__(self, base: Law, other: Law | None, place: Tensor, width: int) -> None:
        super().__init__((base.rows, width, base.shape[-1]), base, base.chunks)
        self.base, self.other, self.place = base, other, place

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells of the base or the other law: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        found = self.base.log_probs(rows, positions.clamp_max(self.base.shape[-2] - 1), tokens)
        own = positions == self.place[rows]
        if not bool(own.any()):
            return found
        asked = None if tokens is None else tokens[own]
        found[own] = -math.inf if self.other is None else (
            self.other.log_probs(rows[own], positions[own], asked).to(found.dtype)
        )
        return found

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """That of the base; 0 at the place that is exchanged, where nothing is left out (`Law.lower_bound`)."""
        below = self.base.lower_bound(rows, positions.clamp_max(self.base.shape[-2] - 1))
        return torch.where(positions == self.place[rows], 0.0, below)

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """The base's logits at one token of each of n cells, `[n]` (`Law.raw_at`)."""
        return self.base.raw_at(rows, positions.clamp_max(self.base.shape[-2] - 1), tokens)

"""`Placed`: cells of another law in other places, such as the nodes of a tree along the blocks of its walks."""

from __future__ import annotations

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

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `Law.log_probs`."""
        return self.base.log_probs(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """See `Law.scores`."""
        return self.base.scores(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """See `Law.probs`."""
        return self.base.probs(self.row_of[rows, positions], self.position_of[rows, positions])

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """See `Law.lower_bound`."""
        return self.base.lower_bound(self.row_of[rows, positions], self.position_of[rows, positions])

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """See `Law.raw_at`."""
        return self.base.raw_at(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

"""`Placed`: cells of another law in other places, such as the nodes of a tree along the blocks of its walks."""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.distributions.lazy import LazyLaw
from smc_bridge.sampling import Scores


class Placed(LazyLaw):
    """The law whose cell (r, t) is the cell (`row[r, t]`, `position[r, t]`) of another.

    Args:
        base: `[..., V, A]`, R rows.
        row, position: LongTensors `[R', T]`.
    """

    def __init__(self, base: LazyLaw, row: Tensor, position: Tensor) -> None:
        self.base, self.row_of, self.position_of, self.chunks = base, row, position, base.chunks

    @staticmethod
    def describe(
        base: LazyLaw, row: Tensor, position: Tensor
    ) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
        """See `LazyLaw.describe`."""
        return (*position.shape, base.shape[-1]), base.dtype, base.device

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `LazyLaw.log_probs`."""
        return self.base.log_probs(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """See `LazyLaw.scores`."""
        return self.base.scores(self.row_of[rows, positions], self.position_of[rows, positions], tokens)

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """See `LazyLaw.probs`."""
        return self.base.probs(self.row_of[rows, positions], self.position_of[rows, positions])

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """See `LazyLaw.lower_bound`."""
        return self.base.lower_bound(self.row_of[rows, positions], self.position_of[rows, positions])

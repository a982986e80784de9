"""Lanes that must follow given tokens: the retained sequence of conditional SMC, or a sequence to be scored.

Given the tokens, only *where the lane stops* is random, and its law is the kernel's own `kappa`: after token i it goes
on with probability `c_i` (`StoppingKernel.log_continue`; docs/theory, section 8).

Shapes: Q pinned lanes among R rows, V window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.blocks import Move, truncate


class Pinned(NamedTuple):
    """Lanes that must follow given tokens in this step.

    Attributes:
        lane: which of the R rows, `[Q]`.
        block: their next V tokens, `[Q, V]`; arbitrary past the end of the sequence.
        uniform: decides where they stop, `[Q, V]`.
    """

    lane: Tensor
    block: Tensor
    uniform: Tensor

    def impose(self, tokens: Tensor) -> Tensor:
        """Replace the pinned lanes' drafts, `[R, V]`, so that the target is scored along their tokens."""
        return tokens.index_copy(0, self.lane, self.block)

    def forced(self, rows: int, window: int) -> Tensor:
        """Tokens that every row must take, `[R, V]`, -1 where it is free."""
        free = torch.full((rows, window), -1, dtype=torch.long, device=self.block.device)
        return free.index_copy(0, self.lane, self.block)

    def part(self, first: int, last: int) -> Pinned:
        """Those among rows `first` .. `last - 1`, counted from `first`."""
        own = (self.lane >= first) & (self.lane < last)
        return Pinned(self.lane[own] - first, self.block[own], self.uniform[own])

    def stopped(self, move: Move, log_continue: Tensor, end: Tensor) -> Move:
        """Replace the pinned lanes' moves: their own tokens, stopped by `kappa`.

        Args:
            move: of all R rows.
            log_continue: `log c_i` of the pinned lanes along their blocks, `[Q, V]`.
            end: where their blocks must end, `[Q]`.
        """
        going = (self.uniform < log_continue.exp()).long().cumprod(-1).sum(-1)
        length, accepted = torch.minimum(going + 1, end), torch.minimum(going, end)
        return Move(
            move.block.index_copy(0, self.lane, truncate(self.block, length)),
            move.length.index_copy(0, self.lane, length),
            move.accepted.index_copy(0, self.lane, accepted),
        )

"""Blocks: what a kernel commits in one step, where a block must end, and sums along it.

Shapes: R rows (a row is one lane), V window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.ends import Ends, is_end
from smc_bridge.models.host import places
from smc_bridge.prefix import PAD


class Move(NamedTuple):
    """What a kernel commits.

    Attributes:
        block: LongTensor `[R, V]`, `PAD` past the length.
        length: LongTensor `[R]`, committed tokens, at least 1.
        accepted: LongTensor `[R]`, how many of them are the draft's own (`length - accepted` is 0 or 1).
    """

    block: Tensor
    length: Tensor
    accepted: Tensor


class Horizon(NamedTuple):
    """Where a block must end whatever the draws.

    Attributes:
        window: LongTensor `[R]`, greatest length of each row's block, between 1 and V.
        ends: tokens after which nothing follows (`smc_bridge.models.ends`).
    """

    window: Tensor
    ends: Ends

    def end(self, block: Tensor) -> Tensor:
        """Length at which each row of `block: [R, V]` must end at the latest: window, or the first end of sequence."""
        if not self.ends:
            return self.window
        width = block.shape[-1]
        first = torch.where(is_end(block, self.ends), places(width + 1, block.device)[1:], width)
        return torch.minimum(self.window, first.amin(-1))

    def of_lanes(self, lanes: int) -> Horizon:
        """The horizon of the R * K lanes of R particles: each particle's window, K times in a row."""
        return Horizon(self.window.repeat_interleave(lanes, output_size=lanes * self.window.numel()), self.ends)

    def of_rows(self, rows: Tensor) -> Horizon:
        """The horizon of the rows that an index `[R']` or a mask `[R]` picks."""
        return Horizon(self.window[rows], self.ends)


def full_horizon(rows: int, window: int, *, device: torch.device | str = "cpu") -> Horizon:
    """The horizon without an end of sequence where every row may commit V tokens."""
    return Horizon(torch.full((rows,), window, device=device), ())


def prefix_sum(log_terms: Tensor, length: Tensor) -> Tensor:
    """Sum of the first `length` terms, `[..., V]`, `[...]` -> `[...]` in float64; terms past the length are ignored."""
    inside = places(log_terms.shape[-1], log_terms.device) < length[..., None]
    return torch.where(inside, log_terms.double(), 0.0).sum(-1)


def truncate(block: Tensor, length: Tensor) -> Tensor:
    """Set entries of `block: [R, V]` past `length` to `PAD`."""
    return block.masked_fill(places(block.shape[1], block.device) >= length[:, None], PAD)


def log1mexp(log_prob: Tensor) -> Tensor:
    """`log(1 - exp(x))` of each entry of `log_prob: [...]`, `[...]`, accurate at both ends; x > 0 by round-off counts
    as 0."""
    x = log_prob.clamp_max(0.0)
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))

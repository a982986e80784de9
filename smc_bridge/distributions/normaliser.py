"""`Normaliser`: the two numbers of a cell that make log-probabilities of its scores, kept as far as they are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law


class Normaliser:
    """Peak and log-total of cells, `log_prob = factor * (score - peak) - log_total`, as far as they are known.

    Both stand in one tensor, a NaN peak where nothing is known yet: one read answers all.

    Args:
        rows, width: R and V.
        like: gives dtype and device.
    """

    def __init__(self, rows: int, width: int, like: Law) -> None:
        self.values = torch.full((rows, width, 2), math.nan, dtype=like.dtype, device=like.device)

    @property
    def known(self) -> Tensor:
        """Which cells are known, `[R, V]`."""
        return ~self.values[..., 0].isnan()

    def read(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Peak and log-total of cells `[n]`, `[n, 2]`, and which of them are not known, `[n]` or None for none."""
        values = self.values[rows, positions]
        missing = values[:, 0].isnan()
        return values, missing if bool(missing.any()) else None

    def write(self, rows: Tensor, positions: Tensor, peak: Tensor, log_total: Tensor) -> None:
        """Keep `peak`, never NaN, and `log_total` of cells, `[n, 1]` each."""
        self.values[rows, positions] = torch.cat([peak, log_total], dim=1)

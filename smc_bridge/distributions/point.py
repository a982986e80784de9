"""Point masses: `PointLaw` at given tokens, and `GreedyLaw` at the likeliest tokens of another law, which is what a
model gives at temperature 0.

    pi(a) = 1 if a = argmax_b score_b, else 0;   of equal scores the smallest id wins

Shapes: R rows, V places, A alphabet, n cells of one call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law


class PointLaw(Law):
    """A point mass at each place, `[R, V, A]`; no mass at all where there is no token.

    Args:
        tokens: `[R, V]`, negative for none.
        size: A.
        like: gives dtype and device.
    """

    def __init__(self, tokens: Tensor, size: int, like: Law, chunks: Chunks | None = None) -> None:
        super().__init__((*tokens.shape, size), like, chunks)
        self.tokens = tokens

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """0 at the place's token and -inf elsewhere: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        asked = torch.arange(self.shape[-1], device=self.device) if tokens is None else tokens[:, None]
        hit = asked == self.chosen(rows, positions)[:, None]
        return torch.where(hit, 0.0, -math.inf).to(self.dtype)

    def chosen(self, rows: Tensor, positions: Tensor) -> Tensor:
        """The tokens of n cells, `[n]`."""
        return self.tokens[rows, positions]


class GreedyLaw(PointLaw):
    """The point mass at the token of greatest score of each cell; scores are read where the law is.

    Args:
        base: the law before, `[..., V, A]`, of R rows: of a model that at temperature 1, without truncation.
    """

    def __init__(self, base: Law) -> None:
        unknown = torch.full((base.rows, base.shape[-2]), -1, device=base.device)
        super().__init__(unknown, base.shape[-1], base, base.chunks)
        self.shape = base.shape
        self.base = base

    @property
    def ranking(self) -> Law:
        """The law before: a point mass ranks nothing (`Law.ranking`)."""
        return self.base

    def chosen(self, rows: Tensor, positions: Tensor) -> Tensor:
        """The first token of greatest score of n cells, `[n]`, which is kept."""
        found = self.tokens[rows, positions]
        missing = found < 0
        if not bool(missing.any()):
            return found
        width = self.shape[-2]
        cell = torch.unique((rows * width + positions)[missing])
        for span in self.spans(cell.numel()):
            r, i = cell[span] // width, cell[span] % width
            self.tokens[r, i] = self.base.scores(r, i).values.argmax(-1)
        return self.tokens[rows, positions]

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """The model's logits at one token of each of n cells, `[n]`, as if all had mass (`Law.raw_at`)."""
        return self.base.raw_at(rows, positions, tokens)

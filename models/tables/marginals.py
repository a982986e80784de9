"""Numbers of a column as normal scores: by their ranks, ties in the middle of theirs.

A value x with `F(x-)` of the column below it and `F(x)` up to it has the score `Phi^-1((F(x-) + F(x)) / 2)`, shifted
and scaled to mean 0 and variance 1 over the column. Back, a score falls into the range of ranks of one value: a value
that many rows share takes all scores between its neighbours', so that small errors of a model do not move it. A column
of more than `MOST_VALUES` values is held by that many quantiles and read between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

#: Values that a column is held by.
MOST_VALUES = 512


@dataclass(frozen=True)
class Marginal:
    """Law of a column of numbers, as learnt from its rows.

    Attributes:
        values: in increasing order: all that occur, or quantiles.
        shares: of the rows, up to each value and it included.
        between: whether `values` are quantiles, read between each other.
        mean, scale: of the scores before they are shifted and scaled.
        whole: whether numbers are whole.
    """

    values: tuple[float, ...]
    shares: tuple[float, ...]
    between: bool
    mean: float
    scale: float
    whole: bool

    @classmethod
    def of(cls, numbers: Tensor, *, whole: bool) -> Marginal:
        """The law of a column, `[n]`.

        Raises:
            ValueError: there is no number.
        """
        if not numbers.numel():
            raise ValueError("numbers are none: give a column of at least one row")
        held = np.sort(numbers.cpu().numpy())
        values, counts = np.unique(held, return_counts=True)
        between = len(values) > MOST_VALUES
        if between:
            shares = np.linspace(0, 1, MOST_VALUES)
            values = np.quantile(held, shares)
        else:
            shares = np.cumsum(counts) / len(held)
        held_by = tuple(map(float, values)), tuple(float(f"{x:.7g}") for x in shares)
        scores = cls(*held_by, between, 0.0, 1.0, whole).scores(numbers)
        return cls(*held_by, between, float(scores.mean()), max(float(scores.std()), 1e-6), whole)

    def scores(self, numbers: Tensor) -> Tensor:
        """Normal scores of numbers, of the same shape; of a number that did not occur, those of the nearest below."""
        values, shares, x = np.array(self.values), np.array(self.shares), numbers.detach().cpu().numpy()
        if self.between:
            first = np.interp(x, values, shares)
            last = 1 - np.interp(-x, -values[::-1], 1 - shares[::-1])
            middle = (first + last) / 2
        else:
            at = np.clip(np.searchsorted(values, x, side="right") - 1, 0, len(values) - 1)
            middle = (np.concatenate([[0.0], shares])[at] + shares[at]) / 2
        edge = 0.25 / MOST_VALUES / len(values)
        found = (ndtri(np.clip(middle, edge, 1 - edge)) - self.mean) / self.scale
        return torch.as_tensor(found).to(numbers.device)

    def numbers(self, scores: Tensor) -> Tensor:
        """Numbers of normal scores, float64, of the same shape."""
        values, shares = np.array(self.values), np.array(self.shares)
        ranks = ndtr(scores.detach().double().cpu().numpy() * self.scale + self.mean)
        if self.between:
            found = np.interp(ranks, shares, values)
        else:
            found = values[np.minimum(np.searchsorted(shares, ranks, side="left"), len(values) - 1)]
        return torch.as_tensor(found.round() if self.whole else found).to(scores.device)


def stacked(columns: Sequence[Tensor], like: Tensor) -> Tensor:
    """Columns `[n]` side by side, `[n, C]`, of the type and device of `like`."""
    return torch.stack(list(columns), 1).to(like) if columns else like.new_zeros(len(like), 0)

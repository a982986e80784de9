"""How far two tables are apart as tokens: total variation of each column, and of each pair of columns.

    d_j = 1/2 sum_a |r_j(a) - s_j(a)|,      d_jk = 1/2 sum_ab |r_jk(a, b) - s_jk(a, b)|

on the frequencies of the rows. The first says whether columns have the right shapes, the second also whether they hang
together. Tables of few rows are apart by chance alone: `floor` is what rows of one law are.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.arguments import whole_number


class Apart(NamedTuple):
    """Distances of two tables, means over columns and over pairs of them.

    Attributes:
        shapes: of single columns.
        trends: of pairs of columns.
    """

    shapes: float
    trends: float


def apart(some: Tensor, others: Tensor) -> Apart:
    """Mean total variation of columns, and of pairs of columns.

    Args:
        some, others: tokens of rows, `[n, C]` and `[m, C]`.
    Raises:
        ValueError: tables without rows, or of other columns.
    Example:
        >>> same = torch.tensor([[0, 0], [1, 1]])
        >>> apart(same, torch.tensor([[0, 1], [1, 0]]))
        Apart(shapes=0.0, trends=1.0)
    """
    if some.ndim != 2 or others.ndim != 2 or some.shape[1] != others.shape[1] or not len(some) or not len(others):
        raise ValueError(f"tables of shape {list(some.shape)} and {list(others.shape)}: give rows of equal columns")
    size = int(max(some.max(), others.max())) + 1
    columns = range(some.shape[1])
    single = [_distance(some[:, j], others[:, j], size) for j in columns]
    both = [
        _distance(some[:, j] * size + some[:, k], others[:, j] * size + others[:, k], size**2)
        for j, k in combinations(columns, 2)
    ]
    return Apart(sum(single) / len(single), sum(both) / len(both) if both else 0.0)


def floor(rows: Tensor, count: int, *, seed: int = 0) -> Apart:
    """Distances of `count` of the rows from the others: what chance alone gives.

    Args:
        rows: tokens of draws of one law, `[n, C]`, more than `count`.
        count: rows of the smaller part.
        seed: of the parts.
    """
    count = whole_number("count", count, most=len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return apart(rows[order[:count]], rows[order[count:]])


def _distance(some: Tensor, others: Tensor, size: int) -> float:
    first, second = (codes.bincount(minlength=size) / len(codes) for codes in (some, others))
    return float((first - second).abs().sum() / 2)

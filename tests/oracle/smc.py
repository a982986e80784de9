"""What a properly weighted sampler must return, and how the resampling schemes cut the cube of their uniforms.

Plain numpy, no code of the library. The schemes are written from their definitions (Douc, Cappé & Moulines 2005;
Gerber, Chopin & Whiteley 2019) as *cells*: boxes of uniforms on which the ancestors do not change.

Shapes: R weight vectors, M candidates, C cells, D uniforms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Sequence = tuple[int, ...]
Law = dict[Sequence, float]


def sequence_law(
    tables: list[np.ndarray], limit: int, eos: int | Sequence | None, *, temperature: float = 1.0
) -> Law:
    """Probability of every complete sequence, cut at `limit` tokens or at an EOS; `tables[d]: [A**d, A]`."""
    size = tables[0].shape[1]
    law: Law = {}
    last = eos if isinstance(eos, tuple) else (eos,)

    def grow(prefix: Sequence, row: int, mass: float) -> None:
        if len(prefix) == limit or (prefix and prefix[-1] in last):
            law[prefix] = mass
            return
        conditional = tables[len(prefix)][row]
        # At temperature 0 the first of the likeliest tokens.
        power = conditional ** (1.0 / temperature) if temperature else np.eye(size)[conditional.argmax()]
        conditional = power / power.sum()
        for token in range(size):
            grow((*prefix, token), row * size + token, mass * conditional[token])

    grow((), 0, 1.0)
    return law


def kl(left: Law, right: Law) -> float:
    """`KL(left || right)`, nats."""
    return float(sum(p * (np.log(p) - np.log(right[s])) for s, p in left.items() if p > 0.0))


def total_variation(left: Law, right: Law) -> float:
    """Half the L1 distance."""
    return sum(abs(left.get(s, 0.0) - right.get(s, 0.0)) for s in {*left, *right}) / 2


class Cells(NamedTuple):
    """Boxes `[low, high)` of the uniforms, `[R, C, D]`; boxes of volume zero only fill the rectangle."""

    low: np.ndarray
    high: np.ndarray

    @property
    def volume(self) -> np.ndarray:
        """`[R, C]`, sums to one."""
        return np.prod(np.clip(self.high - self.low, 0.0, None), axis=-1)

    def at(self, fraction: float) -> np.ndarray:
        """The point of each box at this fraction of every side, `[R, C, D]`."""
        return self.low + fraction * (self.high - self.low)


def _product(edges: list[np.ndarray]) -> Cells:
    """Cells of independent uniforms from the sorted edges `[R, E_d]` of each of them."""
    choices = list(itertools.product(*(range(e.shape[1] - 1) for e in edges)))
    low = np.stack([np.stack([e[:, c] for e, c in zip(edges, cs, strict=True)], -1) for cs in choices], 1)
    high = np.stack([np.stack([e[:, c + 1] for e, c in zip(edges, cs, strict=True)], -1) for cs in choices], 1)
    return Cells(low, high)


def _edges(inner: np.ndarray) -> np.ndarray:
    """Sorted edges in [0, 1] with both ends, `[R, E] -> [R, E + 2]`."""
    ends = np.zeros((inner.shape[0], 1)), np.ones((inner.shape[0], 1))
    return np.sort(np.concatenate([ends[0], np.clip(inner, 0.0, 1.0), ends[1]], axis=1), axis=1)


def _inner_cdf(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights, axis=1)[:, :-1]


def multinomial(weights: np.ndarray, count: int) -> Cells:
    """Survivor j takes the candidate in whose share of the unit interval `u_j` falls."""
    return _product([_edges(_inner_cdf(weights))] * count)


def stratified(weights: np.ndarray, count: int) -> Cells:
    """Survivor j looks at `(j + u_j) / count`."""
    return _product([_edges(count * _inner_cdf(weights) - j) for j in range(count)])


def systematic(weights: np.ndarray, count: int) -> Cells:
    """Survivor j looks at `(j + u) / count`, one u for all."""
    return _product([_edges(np.concatenate([count * _inner_cdf(weights) - j for j in range(count)], axis=1))])


def _fractions(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sure copies and what is left of `count * weights` (an integer up to round-off is one)."""
    expected = count * weights
    whole = np.where(np.abs(expected - np.rint(expected)) < 1e-11, np.rint(expected), np.floor(expected))
    return whole, np.clip(expected - whole, 0.0, None)


def residual(weights: np.ndarray, count: int) -> Cells:
    """Sure copies first; survivor j, if there is room for it, looks at `u_j` in the shares of what is left."""
    _, rest = _fractions(weights, count)
    total = rest.sum(axis=1, keepdims=True)
    return multinomial(np.where(total > 0, rest / np.where(total > 0, total, 1.0), weights), count)


def ssp(weights: np.ndarray, count: int) -> Cells:
    """Fractions meet one after the other; each meeting has two outcomes, so there are at most `2**(M - 1)` cells.

    At a meeting of a and b with `a + b <= 1` the first takes all with probability `a / (a + b)`; otherwise the first
    becomes whole with probability `(1 - b) / (2 - a - b)`. The one that stays fractional goes on.
    """
    rows, candidates = weights.shape
    _, fraction = _fractions(weights, count)
    meetings = max(candidates - 1, 1)
    low, high = [], []
    for wins in itertools.product((True, False), repeat=candidates - 1):
        cell_low, cell_high = np.zeros((rows, meetings)), np.ones((rows, meetings))
        a = fraction[:, 0]
        for j, first_wins in enumerate(wins):
            b = fraction[:, j + 1]
            total = a + b
            top, bottom = np.where(total <= 1.0, a, 1.0 - b), np.where(total <= 1.0, total, 2.0 - total)
            share = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), 1.0)
            (cell_high if first_wins else cell_low)[:, j] = share
            a = np.where(total <= 1.0, total, total - 1.0)
        low.append(cell_low)
        high.append(cell_high)
    return Cells(np.stack(low, 1), np.stack(high, 1))


#: Cells of each scheme by its name.
SCHEMES: dict[str, Callable[[np.ndarray, int], Cells]] = {
    "Multinomial": multinomial, "Stratified": stratified, "Systematic": systematic, "Residual": residual, "SSP": ssp,
}

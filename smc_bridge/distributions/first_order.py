"""Laws that depend on the token before: `FirstOrder`, a chain's law along a draft that can be asked off it as well.

    q_i(. | y_<i) = q_i(. | y_{i-1}) ∝ exp((U_i + s_i(y_{i-1})) / tau)

`ShiftedLaw` is such a law of logits: to the logits of a place it adds a row that belongs to the token before, the same
at every place or one that the model's features of the place choose (`Gated`). A cell is
a pair (place, token before), one number; so a draft, a given block and the nodes of a tree are the same law in other
cells, and one arithmetic draws, accepts and scores.

Shapes: R rows, V positions, A alphabet, U forwards, M positions of each, n cells of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law, Selected
from smc_bridge.distributions.logits import LogitLaw
from smc_bridge.distributions.views import Placed
from smc_bridge.models.host import Index


class Shift(Protocol):
    """What the token before adds to logits."""

    def rows(self, before: Tensor, place: Tensor) -> Tensor:
        """What is added after tokens `[n]` to the logits of places `[n]`, `[n, A]`; a negative token is none."""
        ...

    def entries(self, before: Tensor, tokens: Tensor, place: Tensor) -> Tensor:
        """The same at one token each, `[n]`, `[n]` and `[n]` -> `[n]`."""
        ...


class Gated(Protocol):
    """What the token before adds, where the features of the place choose it."""

    def features(self, hidden: Tensor) -> Tensor:
        """What is kept of the model's features of places, `[U, M, D]` -> `[U, M, D']`."""
        ...

    def at(self, features: Tensor) -> Shift:
        """The shift of places of these features, `[U, M, D']`; a place is its number among the `U * M`."""
        ...


#: From rows `[R']`, positions `[R', T]` and the tokens before them `[R', T]` to their laws, `[R', T, A]`.
Given = Callable[[Tensor, Tensor, Tensor], Law]
#: From rows `[n]`, a position and the tokens before it `[n]` to scores `[n, A]` that rank as the law before any cut
#: does, in memory of their own, and the factor that makes logits of them, a number or `[n, 1]`.
Ranked = Callable[[Tensor, int, Tensor], tuple[Tensor, float | Tensor]]


def cells(place: Tensor | Index, before: Tensor | Index, size: int) -> Any:
    """The cells of places with the tokens before them (negative: none), of equal shape, over an alphabet of `size`."""
    return place * (size + 1) + before + 1


class ShiftedLaw(LogitLaw):
    """`log softmax((logits + shift) / temperature)`, the shift that of the token before each cell.

    Args:
        logits: `[U, M, A]`.
        source: which cell each position reads, `[R, V]` (`cells`).
        shift: what a token adds.
        options: as of `LogitLaw`.
    """

    def __init__(self, logits: Tensor, source: Tensor, *, shift: Shift, **options: Any) -> None:
        super().__init__(logits, source, **options)
        self.shift = shift

    def _split(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Place and token before of cells `[n]`."""
        each = self.shape[-1] + 1
        return cell // each, cell % each - 1

    def _rows_of(self, place: Tensor) -> Tensor:
        if self.flat is not None:
            return self.flat.index_select(0, place)
        width = self.model_logits.shape[1]
        return self.model_logits[place // width, place % width]

    def _gathered(self) -> Tensor:
        assert self.source is not None
        place, before = self._split(self.source.flatten())
        return self._rows_of(place).to(self.dtype) + self.shift.rows(before, place)

    def raw(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The shifted logits of cells, -inf where banned; `[n, A]` or `[n, 1]` (`LogitLaw.raw`)."""
        if tokens is not None:
            return super().raw(rows, positions, tokens)
        place, before = self._split(self._place(rows, positions))
        raw = self._rows_of(place).to(self.dtype) + self.shift.rows(before, place)
        return raw if self.ban is None else raw.index_fill_(-1, self.banned_ids, -torch.inf)

    def _single(self, place: Tensor, tokens: Tensor) -> Tensor:
        place, before = self._split(place)
        return super()._single(place, tokens).to(self.dtype) + self.shift.entries(before, tokens, place)[:, None]


class FirstOrder(Selected):
    """A law along drafts, `[R, V, A]`, that is known after any other token too.

    At a row's first position the token before is what the row holds already, whatever is given.

    Args:
        along: the law along the drafts.
        given: the law of any cells (`Given`).
        ranked: scores that a tree ranks by (`Ranked`), in fewer operations than the law.
    """

    def __init__(self, along: Law, given: Given, ranked: Ranked) -> None:
        super().__init__(along, None, tuple(along.shape[:-2]))
        self.given, self.ranked = given, ranked

    def of_rows(self, index: Tensor) -> Law:
        """See `Law.of_rows`; they are known after any token too."""
        return FirstOrder(
            super().of_rows(index), lambda rows, *cell: self.given(index[rows], *cell),
            lambda rows, *cell: self.ranked(index[rows], *cell),
        )


def after(law: Law, rows: Tensor, positions: Tensor, before: Tensor) -> Law:
    """The laws of cells after given tokens, `[R', T, A]`; the cells themselves of a law that factorises.

    Args:
        law: `[R, V, A]`.
        rows: `[R']`.
        positions, before: the token before each position (at a row's first one any), `[R', T]`.
    """
    if isinstance(law, FirstOrder):
        return law.given(rows, positions, before)
    return Placed(law, rows[:, None].expand_as(positions), positions)

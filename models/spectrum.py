"""Forecast features in the place of some forwards of a diffusion model (Spectrum, arXiv 2603.01623).

Of a row the forwards that it asks for are numbered. The first few are computed, then one of each *window* of forwards,
and windows grow; in the others the hidden state of every place is continued from those that were computed last
(`smc_bridge.models.forecast`), and the model's head makes logits of it:

    h_i(t) = sum_k a_k(t) h_i(t_k),     logits_i = head(h_i(t)),     tau = 2 t / M - 1

with t the number of the forward and M the places that the row had when it was first scored: a decoder that fills one
place per forward goes from tau = -1 to 1. A place is told by its position in the text, whatever has become part of the
prefix meanwhile. Where a place was in no computed forward of two that are kept, all is computed.

Filled tokens change the features of the masks beside them at once, and not smoothly as the noise of an image does: what
a forecast loses is measured by `smc_bridge.analysis.cache_error`. No weight is wrong for it, since the density of a
draft is that of the very logits it was drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.caches import Spectrum
from smc_bridge.models.forecast import weights
from smc_bridge.models.host import listed
from smc_bridge.models.protocols import ABSENT, Scored


class _Kept(NamedTuple):
    """What a forward computed of a row: features `[M, D]` of the places from a position on, and its number."""

    first: int
    features: Tensor
    time: int


class _Past(NamedTuple):
    """What is known of a row. Rows that are equal in tokens and have the same past share the object."""

    prompt: int
    """Tokens when it was first scored."""
    places: int
    """Masked places then."""
    time: int = 0
    """Forwards that it asked for."""
    waited: int = 0
    """Forecasts since the last one that was computed."""
    window: float = 0.0
    """Forwards of the present window, one of which is computed; rounded down."""
    kept: tuple[_Kept, ...] = ()
    """Those that were computed last, the oldest first."""


class SpectrumSession:
    """Session of a diffusion model some of whose forwards are forecast (implements `DiffusionSession`).

    Args:
        inner: session that computes; it gives hidden states.
        policy: which forwards are computed, and how the others are forecast.
        head: logits `[..., A]` of hidden states `[..., D]`.
    Attributes:
        computed: rows of the last `score` that were computed, bools `[B]` on the host; the others cost no forward.
    """

    has_history = True
    in_turn = True

    def __init__(self, inner: Any, policy: Spectrum, head: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.policy, self.head = inner, policy, head
        self.computed = np.zeros(0, dtype=bool)
        self._past: list[_Past | None] = [None] * len(inner.lengths)

    @property
    def texts(self) -> np.ndarray:
        """Tokens of each row, `[R, S]`."""
        found: np.ndarray = self.inner.texts
        return found

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        found: list[int] = self.inner.lengths
        return found

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[False] = False) -> Tensor: ...

    @overload
    def score(self, rows: Tensor, canvas: Tensor, *, hidden: Literal[True]) -> Scored: ...

    def score(self, rows: Tensor, canvas: Tensor, *, hidden: bool = False) -> Tensor | Scored:
        """Logits of the M positions after the prefixes, `[B, M, A]`, computed or forecast (`DiffusionSession.score`).

        A row that is given twice is scored as if by two calls.
        """
        index, shown = listed(rows, canvas)
        places = (np.array(shown).reshape(len(index), -1) != ABSENT).sum(1).tolist()
        found: list[tuple[Tensor, Tensor] | None] = [None] * len(index)
        computed = np.zeros(len(index), dtype=bool)
        left = list(range(len(index)))
        while left:
            turn = list({index[b]: b for b in reversed(left)}.values())[::-1]
            left = [b for b in left if b not in set(turn)]
            due = [b for b in turn if not self._forecasts(index[b], places[b])]
            computed[due] = True
            if due:
                own = self.inner.score(rows[due], canvas[due], hidden=True)
                for b, logits, features in zip(due, *own, strict=True):
                    found[b] = logits, features
            for b in turn:
                if (scored := found[b]) is None:
                    found[b] = self._forecast(index[b], canvas.shape[1], places[b])
                    self._note(index[b], places[b], None)
                else:
                    self._note(index[b], places[b], scored[1][: places[b]])
        self.computed = computed
        if not index:
            empty: Scored = self.inner.score(rows, canvas, hidden=True)
            return empty if hidden else empty.logits
        logits, features = (torch.stack(part) for part in zip(*(each for each in found if each), strict=True))
        return Scored(logits, features) if hidden else logits

    def _usable(self, row: int, places: int) -> list[_Kept]:
        """Computed forwards that have every place of the row's canvas."""
        past, first = self._past[row], self.lengths[row]
        kept = () if past is None else past.kept
        return [k for k in kept if k.first <= first and first + places <= k.first + len(k.features)]

    def _forecasts(self, row: int, places: int) -> bool:
        """Whether the next forward of a row is forecast."""
        past = self._past[row]
        if past is None or past.time < self.policy.warmup or past.waited + 1 >= int(past.window):
            return False
        return len(self._usable(row, places)) > 1

    def _forecast(self, row: int, width: int, places: int) -> tuple[Tensor, Tensor]:
        """Logits `[M, A]` and features `[M, D]` of a canvas of M places, of which the row has the first."""
        past, kept, first = self._past[row], self._usable(row, places), self.lengths[row]
        assert past is not None
        tau = 2.0 * torch.tensor([*(k.time for k in kept), past.time], dtype=torch.float64) / past.places - 1.0
        own = weights(tau[:-1], tau[-1], degree=self.policy.degree, ridge=self.policy.ridge)
        stacked = torch.stack([k.features[first - k.first :][:places] for k in kept])
        wide = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        features = torch.tensordot(own.to(wide), wide, dims=1).to(stacked.dtype)
        features = torch.nn.functional.pad(features, (0, 0, 0, width - places))
        return self.head(features[None])[0], features

    def _note(self, row: int, places: int, features: Tensor | None) -> None:
        """Number a forward of a row, and keep what was computed; rows that are equal to it follow."""
        before, length = self._past[row], self.lengths[row]
        past = _Past(length, max(1, places), window=float(self.policy.window)) if before is None else before
        after = past._replace(time=past.time + 1, waited=past.waited + 1)
        if features is not None:
            kept = (*past.kept, _Kept(length, features, past.time))[-self.policy.keep :]
            grown = past.window + self.policy.growth * (past.time >= self.policy.warmup)
            after = after._replace(waited=0, kept=kept, window=grown)
        text = self.texts[row, :length]
        for other, (own, n) in enumerate(zip(self._past, self.lengths, strict=True)):
            if own is before and n == length and (self.texts[other, :n] == text).all():
                self._past[other] = after

    def commit(self, block: Tensor, length: Tensor) -> None:
        """As the inner session's; what is known of masked places stays known."""
        self.inner.commit(block, length)

    def gather(self, ancestors: Tensor) -> None:
        """As the inner session's; a row takes its ancestor's past."""
        [source] = listed(ancestors)
        self._past = [self._past[r] for r in source]
        self.inner.gather(ancestors)

    def crop(self, length: Tensor) -> None:
        """See `Session`; of a row that loses part of its prompt nothing is known any more."""
        [lengths] = listed(length)
        self._past = [
            None if past is not None and n < past.prompt else past
            for past, n in zip(self._past, lengths, strict=True)
        ]
        self.inner.crop(length)


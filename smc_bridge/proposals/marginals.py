"""Marginals that outlive a block: logits of a diffusion model's forward that particles still draw from.

A forward gives marginals of M positions, a block uses up some of them, and where all of its window was accepted the
rest is still good (elastic window). Where a token was refused the rest is *stale*: it was computed for another token
there, and may be drawn from all the same (`DLMProposal`, reuse). Particles of one prefix share them. Who reads which is
the host's business: only the logits live on the device.

Shapes: R particles, U forwards' rows that are kept, M positions, A alphabet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.models.host import Index, sent

#: Whether the next marginals of particles `[n]` are sure enough to be drawn from, though they are stale: bool `[n]`.
Confident = Callable[[Index], npt.NDArray[np.bool_]]
#: Refusals that the marginals of one forward outlive at most.
PER_FORWARD = 1


@dataclass
class Marginals:
    """DLM logits that particles still draw from; particles of one prefix share a slot.

    Slots that no particle points to are free: their logits are left as they are until another forward needs the place.

    Attributes:
        logits: `[U, M, A]`.
        width: positions that count in each slot, `[U]`.
        slot: slot of each particle, `[R]`, -1 for none.
        offset: positions that a particle has used, `[R]`.
        refusals: tokens that were refused since each particle's forward, `[R]`.
        own: whether `logits` was made here. A model's output may be its own buffer: it is never written to.
        features: what else is kept of each place, `[U, M, D]`; None for nothing.
    """

    logits: Tensor
    width: Index
    slot: Index
    offset: Index
    refusals: Index
    own: bool = False
    features: Tensor | None = None

    @classmethod
    def empty(cls, particles: int, size: int, *, device: torch.device) -> Marginals:
        """No slots yet for R particles over an alphabet of `size` tokens."""
        none = np.zeros(particles, dtype=np.int64)
        return cls(torch.empty(0, 0, size, device=device), none[:0], none - 1, none.copy(), none.copy())

    def remaining(self) -> Index:
        """Positions left for each particle, `[R]`."""
        if not self.width.size:
            return np.zeros_like(self.slot)
        return np.where(self.slot >= 0, self.width[self.slot] - self.offset, 0)

    def add(
        self, rows: Index, group: Index, logits: Tensor, width: Index, features: Tensor | None = None
    ) -> None:
        """Give slot `group[b]` of the new `logits: [U', M, A]` (`width: [U']`) to particle `rows[b]`; `features` of
        the same places, `[U', M, D]`, in each call or in none."""
        self.slot[rows] = -1
        used = self._used()
        if used.size == 0:
            self.logits, self.features, self.width, self.own = logits, features, width, False
            place = np.arange(width.size)
        else:
            place = self._room(used, logits)
            at = sent(place, logits.device)
            self.logits[at, : logits.shape[1]] = logits
            if features is not None and self.features is not None:
                self.features[at, : logits.shape[1]] = features
            self.width[place] = width
        self.slot[rows] = place[group]
        self.offset[rows] = self.refusals[rows] = 0

    def follow(
        self, ancestors: Index | None, length: Index, whole: npt.NDArray[np.bool_], confident: Confident | None = None
    ) -> None:
        """Let particles be those they come from, `length: [R]` positions further.

        After a draft that was committed as a `whole` (bool `[R]`) the rest of the marginals is still good. After
        another it is drawn from only where it is `confident` (None: nowhere), at most `PER_FORWARD` times.
        """
        if ancestors is not None:
            self.slot, self.offset, self.refusals = (x[ancestors] for x in (self.slot, self.offset, self.refusals))
        self.offset, good = self.offset + length, whole
        left = self.remaining() > 0
        if confident is not None:
            stale = (left & ~whole & (length > 0) & (self.refusals < PER_FORWARD)).nonzero()[0]
            self.refusals = self.refusals + (~whole & (length > 0))
            good = whole.copy()
            good[stale] = confident(stale)
        self.slot[~(good & left)] = -1

    def _used(self) -> Index:
        """Slots that particles point to, in increasing order."""
        used: Index = np.unique(self.slot[self.slot >= 0])
        return used

    def _room(self, used: Index, fresh: Tensor) -> Index:
        """Free slots for the new logits `fresh`; the table grows where there are too few, and drops the free ones."""
        free = np.ones(self.width.size, dtype=bool)
        free[used] = False
        place: Index = free.nonzero()[0][: fresh.shape[0]]
        if self.own and place.size == fresh.shape[0] and fresh.shape[1] <= self.logits.shape[1]:
            return place
        self._keep(used, spare=fresh.shape[0], columns=max(fresh.shape[1], int(self.width[used].max())))
        return np.arange(used.size, self.width.size)

    def _keep(self, used: Index, *, spare: int, columns: int) -> None:
        """Copy the slots `used` to a table with `spare` more of them and `columns` positions."""
        count, kept = used.size, min(columns, self.logits.shape[1])

        def copied(held: Tensor) -> Tensor:
            found = held.new_empty(count + spare, columns, held.shape[2])
            if count:
                found[:count, :kept] = held[sent(used, held.device), :kept]
            return found

        index = np.full(self.width.size + 1, -1)
        index[used] = np.arange(count)
        self.slot = index[self.slot]  # slot -1 reads the last entry, which is -1
        self.width = np.pad(self.width[used], (0, spare))
        self.logits, self.own = copied(self.logits), True
        self.features = None if self.features is None else copied(self.features)

    def forget(self, rows: Index) -> None:
        """Particles `rows: [B]` draw no more; the memory is given back if most slots are free then."""
        self.slot[rows] = -1
        used = self._used()
        if 2 * used.size <= self.width.size:
            self._keep(used, spare=0, columns=int(self.width[used].max()) if used.size else 0)

"""Marginals that outlive a block: logits of a diffusion model's forward that particles still draw from.

A forward gives marginals of M positions, a block uses up some of them, and where all of its window was accepted the
rest is still good (elastic window). Particles of one prefix share them.

Shapes: R particles, U forwards' rows that are kept, M positions, A alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Marginals:
    """DLM logits that particles still draw from; particles of one prefix share a slot.

    Slots that no particle points to are free: their logits are left as they are until another forward needs the place.

    Attributes:
        logits: `[U, M, A]`.
        width: positions that count in each slot, `[U]`.
        slot: slot of each particle, `[R]`, -1 for none.
        offset: positions that a particle has used, `[R]`.
        own: whether `logits` was made here. A model's output may be its own buffer: it is never written to.
    """

    logits: Tensor
    width: Tensor
    slot: Tensor
    offset: Tensor
    own: bool = False

    @classmethod
    def empty(cls, zeros: Tensor, size: int) -> Marginals:
        """No slots yet for the particles of `zeros: [R]` over an alphabet of `size` tokens."""
        return cls(torch.empty(0, 0, size, device=zeros.device), zeros[:0], zeros - 1, zeros.clone())

    def remaining(self) -> Tensor:
        """Positions left for each particle, `[R]`."""
        if self.logits.shape[0] == 0:
            return torch.zeros_like(self.slot)
        left = self.width[self.slot.clamp_min(0)] - self.offset
        return torch.where(self.slot >= 0, left, 0)

    def add(self, rows: Tensor, group: Tensor, logits: Tensor, width: Tensor) -> None:
        """Give slot `group[b]` of the new `logits: [U', M, A]` (`width: [U']`) to particle `rows[b]`."""
        self.slot[rows] = -1
        used = self._used()
        if used.numel() == 0:
            self.logits, self.width, self.own = logits, width, False
            place = torch.arange(width.numel(), device=width.device)
        else:
            place = self._room(used, logits)
            self.logits[place, : logits.shape[1]] = logits
            self.width[place] = width
        self.slot[rows] = place[group]
        self.offset[rows] = 0

    def _used(self) -> Tensor:
        """Slots that particles point to, in increasing order."""
        used: Tensor = torch.unique(self.slot[self.slot >= 0])
        return used

    def _room(self, used: Tensor, fresh: Tensor) -> Tensor:
        """Free slots for the new logits `fresh`; the table grows where there are too few, and drops the free ones."""
        free = torch.ones(self.logits.shape[0], dtype=torch.bool, device=used.device)
        free[used] = False
        place = free.nonzero().flatten()[: fresh.shape[0]]
        if self.own and place.numel() == fresh.shape[0] and fresh.shape[1] <= self.logits.shape[1]:
            return place
        self._keep(used, spare=fresh.shape[0], columns=max(fresh.shape[1], int(self.width[used].max())))
        return torch.arange(used.numel(), self.logits.shape[0], device=used.device)

    def _keep(self, used: Tensor, *, spare: int, columns: int) -> None:
        """Copy the slots `used` to a table with `spare` more of them and `columns` positions."""
        count, kept = used.numel(), min(columns, self.logits.shape[1])
        logits = self.logits.new_empty(count + spare, columns, self.logits.shape[2])
        logits[:count, :kept] = self.logits[used, :kept]
        index = torch.full((self.logits.shape[0] + 1,), -1, dtype=torch.long, device=used.device)
        index[used] = torch.arange(count, device=used.device)
        self.slot = index[self.slot]  # slot -1 reads the last entry, which is -1
        self.width = torch.nn.functional.pad(self.width[used], (0, spare))
        self.logits, self.own = logits, True

    def forget(self, rows: Tensor) -> None:
        """Particles `rows: [B]` draw no more; the memory is given back if most slots are free then."""
        self.slot[rows] = -1
        used = self._used()
        if 2 * used.numel() <= self.logits.shape[0]:
            self._keep(used, spare=0, columns=int(self.width[used].max()) if used.numel() else 0)

"""The state of the program: particles, their weights, sessions with the models, and the marginals still to be used.

The engine is the only owner. Everything a step computes on the way is a value (see `smc_bridge.engine.steps`).
Rows: R = P * N particles, prompt-major. A prompt's rows are its seat (`smc_bridge.decode`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from smc_bridge.decode import reseat_sessions
from smc_bridge.models.protocols import CausalSession, DiffusionSession
from smc_bridge.prefix import Prefix
from smc_bridge.requests import Request, prompts_of

if TYPE_CHECKING:
    from smc_bridge.engine.record import StepTensors


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

    def window(self, rows: Tensor, window: int) -> Tensor:
        """Logits of the next `window` positions of particles `rows: [B]`, `[B, V, A]`; past the end, repeated."""
        place = self.offset[rows, None] + torch.arange(window, device=rows.device)
        place = torch.minimum(place, self.width[self.slot[rows], None] - 1)
        return self.logits[self.slot[rows, None], place]


class Retained(NamedTuple):
    """Continuations that particle 0 of each prompt must follow (conditional SMC): `[P, T]` padded, `[P]`."""

    tokens: Tensor
    length: Tensor

    @classmethod
    def of(cls, prefix: Prefix) -> Retained:
        """From one row for each prompt."""
        return cls(prefix.tokens.clamp_min(0), prefix.length)


def growing(prefix: Prefix, log_weights: Tensor) -> Tensor:
    """Particles that are neither done nor of weight zero, `[P, N]`."""
    return ~prefix.done.reshape(log_weights.shape) & (log_weights > -torch.inf)


@dataclass
class SMCState:
    """All that is carried from step to step. P seats, each of one prompt.

    A step works on a `copy`: what results are made of stays in the old state as it was. Sessions, generators and
    marginals go on with the newest state, so an old one can be read, and not stepped again.

    Attributes:
        prefix: R particles.
        log_weights: `[P, N]` float64, unnormalised and carried: `log Z = log mean`.
        log_potential: `log phi` of each particle so far, `[R]` float64.
        prompt_length: `[P]`.
        limit: greatest length of each particle, `[R]`.
        generators: one per seat.
        requests: who sits in each seat, None for nobody.
        records: what every step did, by seat.
        entered: when each prompt was seated, seconds of `time.perf_counter`.
        uncovered: seats where the intermediate was seen to leave out a token of the target, and the first place of
            the continuation where it did.
        told: whether the user knows of one.
    """

    prefix: Prefix
    log_weights: Tensor
    log_potential: Tensor
    prompt_length: Tensor
    limit: Tensor
    generators: list[torch.Generator]
    dlm: DiffusionSession
    ar: CausalSession
    marginals: Marginals
    retained: Retained | None = None
    requests: list[Request | None] = field(default_factory=list)
    records: list[tuple[StepTensors, ...]] = field(default_factory=list)
    entered: list[float] = field(default_factory=list)
    uncovered: dict[int, int] = field(default_factory=dict)
    told: bool = False

    @property
    def particles(self) -> int:
        """N, particles of a prompt."""
        return self.log_weights.shape[1]

    def active(self) -> Tensor:
        """Seats with a particle that is neither done nor of weight zero, `[P']` indices."""
        return growing(self.prefix, self.log_weights).any(1).nonzero().flatten()

    def finished(self) -> list[int]:
        """Seats whose prompt grows no more."""
        still = set(self.active().tolist())
        return [seat for seat, request in enumerate(self.requests) if request is not None and seat not in still]

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of a continuation."""
        return int(self.limit[0] - self.prompt_length[0])

    @property
    def keep_drafts(self) -> bool:
        """Whether somebody wants drafts and blocks in the trace."""
        return any(request is not None and request.keep_drafts for request in self.requests)

    def seated(self, seat: int) -> Request:
        """Who sits there."""
        request = self.requests[seat]
        assert request is not None, f"nobody sits in seat {seat}"
        return request

    def copy(self) -> SMCState:
        """A state whose results can change while this one's stay."""
        return replace(
            self, log_weights=self.log_weights.clone(), log_potential=self.log_potential.clone(),
            generators=list(self.generators), requests=list(self.requests), records=list(self.records),
            entered=list(self.entered), uncovered=dict(self.uncovered),
        )

    def reseat(self, seats: Sequence[int], requests: Sequence[Request | None]) -> SMCState:
        """The state where the next prompts have taken some seats; a seat that nobody takes gives its memory back.

        Args:
            seats: which of the P.
            requests: one for each of them, None for nobody.
        """
        device, n = self.prefix.length.device, self.particles
        seat = torch.tensor(seats, device=device)
        rows = (seat[:, None] * n + torch.arange(n, device=device)).flatten()
        single = prompts_of(requests, device=device)
        fresh = single.select(torch.arange(len(seats), device=device).repeat_interleave(n))
        reseat_sessions((self.dlm, self.ar), self.prefix.length, rows, fresh)
        self.marginals.forget(rows)
        new = self.copy()
        new.prefix = self.prefix.put(rows, fresh)
        new.prompt_length = new.prompt_length.index_copy(0, seat, single.length)
        new.limit = new.limit.index_copy(0, rows, fresh.length + self.max_new_tokens)
        new.log_weights[seat], new.log_potential[rows] = 0.0, 0.0
        if new.retained is not None:
            whole = Prefix.of([[] if r is None else r.retained or [] for r in requests], device=device)
            old = Prefix(new.retained.tokens, new.retained.length, new.retained.length < 0)
            new.retained = Retained.of(old.put(seat, whole))
        now = time.perf_counter()
        for place, request in zip(seats, requests, strict=True):
            new.requests[place], new.records[place], new.entered[place] = request, (), now
            new.uncovered.pop(place, None)
            if request is not None:
                new.generators[place] = request.generator()
        return new

"""The state of the program: particles, their weights, sessions with the models, and the marginals still to be used.

The engine is the only owner. Everything a step computes on the way is a value (see `smc_bridge.engine.steps`).
Rows: R = P * N particles, prompt-major. A prompt's rows are its seat (`smc_bridge.engine.queue`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from smc_bridge.engine.queue import Request, prompts_of, reseat_sessions
from smc_bridge.models.protocols import CausalSession, DiffusionSession
from smc_bridge.prefix import Prefix

if TYPE_CHECKING:
    from smc_bridge.engine.record import StepTensors


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


class View(NamedTuple):
    """What results are made of, as it was between two steps: later steps leave it as it is.

    Attributes:
        prefix: R particles.  log_weights: `[P, N]`.
        requests: who sits in each seat, or None.
        records: the trace of each seat, of which the first `steps` count.
        entered: when each prompt was seated.
        uncovered: see `SMCState`.
    """

    prefix: Prefix
    log_weights: Tensor
    requests: list[Request | None]
    records: list[list[StepTensors]]
    steps: list[int]
    entered: list[float]
    uncovered: dict[int, int]

    def seated(self, seat: int) -> Request:
        """Who sits there."""
        request = self.requests[seat]
        assert request is not None, f"nobody sits in seat {seat}"
        return request


@dataclass
class SMCState:
    """All that is carried from step to step. P seats, each of one prompt.

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
    records: list[list[StepTensors]] = field(default_factory=list)
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

    def finished(self, active: Tensor) -> list[int]:
        """Seats whose prompt grows no more."""
        still = set(active.tolist())
        return [seat for seat, request in enumerate(self.requests) if request is not None and seat not in still]

    def view(self) -> View:
        """The results so far, safe from what comes."""
        return View(
            self.prefix, self.log_weights.clone(), list(self.requests), list(self.records),
            list(map(len, self.records)), list(self.entered), dict(self.uncovered),
        )

    def reseat(self, seats: Sequence[int], requests: Sequence[Request | None], *, max_new_tokens: int) -> None:
        """Let the next prompts take the seats of finished ones; a seat that nobody takes gives its memory back.

        Args:
            seats: which of the P.
            requests: one for each of them, None for nobody.
            max_new_tokens: as for `Sampler.run`.
        """
        device, n = self.prefix.length.device, self.particles
        seat = torch.tensor(seats, device=device)
        rows = (seat[:, None] * n + torch.arange(n, device=device)).flatten()
        single = prompts_of(requests, device=device)
        fresh = single.select(torch.arange(len(seats), device=device).repeat_interleave(n))
        reseat_sessions((self.dlm, self.ar), self.prefix.length, rows, fresh)
        self.marginals.forget(rows)
        self.prefix = self.prefix.put(rows, fresh)
        self.prompt_length = self.prompt_length.index_copy(0, seat, single.length)
        self.limit = self.limit.index_copy(0, rows, fresh.length + max_new_tokens)
        self.log_weights[seat], self.log_potential[rows] = 0.0, 0.0
        if self.retained is not None:
            whole = Prefix.of([[] if r is None else r.retained or [] for r in requests], device=device)
            old = Prefix(self.retained.tokens, self.retained.length, self.retained.length < 0)
            self.retained = Retained.of(old.put(seat, whole))
        now = time.perf_counter()
        for place, request in zip(seats, requests, strict=True):
            self.requests[place], self.records[place], self.entered[place] = request, [], now
            self.uncovered.pop(place, None)
            if request is not None:
                self.generators[place] = request.generator()

"""The state of the program: particles, their weights, the proposal's own state, and the sessions with the target and
further experts.

The engine is the only owner. Everything a step computes on the way is a value (see `smc_bridge.engine.steps`).
Rows: R = P * N particles, prompt-major. A prompt's rows are its seat (`smc_bridge.decode`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.models.host import Index, known, sent
from smc_bridge.models.protocols import CausalSession
from smc_bridge.models.rows import reseat
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.protocol import Proposal
from smc_bridge.randomness import Reserve
from smc_bridge.requests import Request, prompts_of
from smc_bridge.result import Forwards
from smc_bridge.trace import StepRecord


class StepLog(Protocol):
    """What one step did to the prompts that took part, by seat."""

    @property
    def seats(self) -> list[int]:
        """Seats that took part, in increasing order."""
        ...

    @property
    def forwards(self) -> dict[int, Forwards]:
        """Forwards, rows and tokens of either model, by seat."""
        ...

    @property
    def records(self) -> dict[int, StepRecord]:
        """The `StepRecord` of the step for the trace of each seat."""
        ...


class Retained(NamedTuple):
    """Continuations that particle 0 of each prompt must follow (conditional SMC).

    Attributes:
        tokens: token ids, padded, `[P, T]`.
        length: tokens of each, `[P]`.
    """

    tokens: Tensor
    length: Tensor

    @classmethod
    def of(cls, prefix: Prefix) -> Retained:
        """From a `Prefix` with one row for each prompt."""
        return cls(prefix.tokens.clamp_min(0), prefix.length)


def growing(prefix: Prefix, log_weights: Tensor) -> npt.NDArray[np.bool_]:
    """Particles that are neither done nor of weight zero, bool `[P, N]` on the host."""
    weights = known(log_weights)
    found: npt.NDArray[np.bool_] = ~known(prefix.done).reshape(weights.shape) & (weights > -np.inf)
    return found


@dataclass
class SMCState:
    """All that is carried from step to step. P seats, each of one prompt.

    A step works on a `copy`: what results are made of stays in the old state as it was. Sessions, draws and the
    proposal's state go on with the newest state, so an old one can be read, and not stepped again.

    Attributes:
        prefix: R particles.
        log_weights: `[P, N]` float64, unnormalised and carried: `log Z = log mean`.
        log_potential: `log phi` of each particle so far, `[R]` float64.
        prompt_length: tokens of each prompt, `[P]`.
        limit: greatest length of each particle, `[R]`.
        reserve: draws, each seat's from a generator of its own.
        drafts: the proposal's state.
        ar: the target's session.
        experts: a session with each further expert.
        retained: continuations that particle 0 of each prompt follows (conditional SMC), or None.
        requests: the request in each seat, None for nobody.
        records: what every step did, by seat.
        entered: when each prompt was seated, seconds of `time.perf_counter`.
        uncovered: seats where the intermediate was seen to leave out a token of the target, and the first place of
            the continuation where it did.
        told: whether the user was warned of such a token.
        watched: whether the intermediate may leave out a token (`smc_bridge.engine.watch`).
        walks: how many consecutive lanes have one proposal and one intermediate.
        chunks: how much of a law is computed at a time.
        parts: of the program when `watched`, `walks`, `chunks` and `program` were found.
        program: the sampler as the run has it, with what its pace has found out; None for the one that steps.
        shown: the program's parts, and what results say of it: its settings, and why its weights are not proper.
        seen: how often each place of a draft was reached and accepted in each seat, `[P, 2, V]`
            (`smc_bridge.engine.pace`); counted only if the program has a pace.
    """

    prefix: Prefix
    log_weights: Tensor
    log_potential: Tensor
    prompt_length: Tensor
    limit: Tensor
    reserve: Reserve
    drafts: Any
    ar: CausalSession
    experts: tuple[CausalSession, ...] = ()
    retained: Retained | None = None
    requests: list[Request | None] = field(default_factory=list)
    records: list[tuple[StepLog, ...]] = field(default_factory=list)
    entered: list[float] = field(default_factory=list)
    uncovered: dict[int, int] = field(default_factory=dict)
    told: bool = False
    watched: bool = False
    walks: int = 1
    chunks: Chunks = field(default_factory=Chunks)
    parts: tuple[Any, ...] = ()
    program: Any = None
    shown: tuple[tuple[Any, ...], dict[str, Any], list[str]] | None = None
    seen: Index = field(default_factory=lambda: np.zeros((0, 2, 0), dtype=np.int64))

    @property
    def particles(self) -> int:
        """N, the number of particles of each prompt."""
        return self.log_weights.shape[1]

    @property
    def causal(self) -> tuple[CausalSession, ...]:
        """The sessions that are asked along drafts and at nodes: the target's, and those of further experts."""
        return self.ar, *self.experts

    def active(self) -> Tensor:
        """Seats with a particle that is neither done nor of weight zero, `[P']` indices."""
        seats = np.flatnonzero(growing(self.prefix, self.log_weights).any(1))
        return sent(seats, self.prefix.length.device)

    def finished(self) -> list[int]:
        """Seats (indices) whose prompt grows no more: every particle is done or of weight zero."""
        still = set(known(self.active()).tolist())
        return [seat for seat, request in enumerate(self.requests) if request is not None and seat not in still]

    @property
    def max_new_tokens(self) -> int:
        """Length limit of a continuation, tokens."""
        return int(known(self.limit)[0] - known(self.prompt_length)[0])

    @property
    def keep_drafts(self) -> bool:
        """Whether a seated request wants drafts and blocks in its trace."""
        return any(request is not None and request.keep_drafts for request in self.requests)

    def seated(self, seat: int) -> Request:
        """The request in a seat; a seat that is asked for here is never empty."""
        request = self.requests[seat]
        assert request is not None, f"nobody sits in seat {seat}"
        return request

    def copy(self) -> SMCState:
        """A state whose results can change while this one's stay."""
        return replace(
            self, log_potential=self.log_potential.clone(), requests=list(self.requests), records=list(self.records),
            entered=list(self.entered), uncovered=dict(self.uncovered), seen=self.seen.copy(),
            shown=None,
        )

    def note(self, step: StepLog) -> None:
        """Add a step to the records of the seats that took part."""
        for seat in step.seats:
            self.records[seat] += (step,)

    def reseat(
        self, seats: Sequence[int], requests: Sequence[Request | None], proposal: Proposal
    ) -> SMCState:
        """The state where the next prompts have taken some seats; a seat that nobody takes gives its memory back.

        Args:
            seats: which of the P.
            requests: one for each of them, None for nobody.
            proposal: whose state is carried along.
        """
        device, n = self.prefix.length.device, self.particles
        seat = np.array(seats)
        each = (seat[:, None] * n + np.arange(n)).ravel()
        rows, single = sent(each, device), prompts_of(requests, device=device)
        fresh = single.select(sent(np.arange(len(seats)).repeat(n), device))
        proposal.reseat(self.drafts, self.prefix.length, rows, fresh)
        for session in self.causal:
            reseat(session, self.prefix.length, rows, fresh.tokens, fresh.length)
        new = self.copy()
        new.prefix = self.prefix.put(rows, fresh)
        length, limit, weights = (known(x).copy() for x in (self.prompt_length, self.limit, self.log_weights))
        length[seat], limit[each] = known(single.length), known(fresh.length) + self.max_new_tokens
        weights[seat] = 0.0
        new.prompt_length, new.limit, new.log_weights = (sent(x, device) for x in (length, limit, weights))
        new.log_potential[rows] = 0.0
        new.seen[seat] = 0
        if new.retained is not None:
            whole = Prefix.of([[] if r is None else r.retained or [] for r in requests], device=device)
            old = Prefix(new.retained.tokens, new.retained.length, new.retained.length < 0)
            new.retained = Retained.of(old.put(sent(seat, device), whole))
        now = time.perf_counter()
        for place, request in zip(seats, requests, strict=True):
            new.requests[place], new.records[place], new.entered[place] = request, (), now
            new.uncovered.pop(place, None)
            if request is not None:
                new.reserve.renew(place, request.generator())
        return new

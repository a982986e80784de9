"""The state of the program: particles, their weights, sessions with the models, and the marginals still to be used.

The engine is the only owner. Everything a step computes on the way is a value (see `smc_bridge.smc.steps`).
Rows: R = P * N particles, prompt-major.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from models.protocols import CausalSession, DiffusionSession
from smc_bridge.prefix import Prefix
from smc_bridge.trace import StepRecord


@dataclass
class Marginals:
    """DLM logits that particles still draw from; particles of one prefix share a slot.

    Attributes:
        logits: `[U, M, A]`.
        width: positions that count in each slot, `[U]`.
        slot: slot of each particle, `[R]`, -1 for none.
        offset: positions that a particle has used, `[R]`.
    """

    logits: Tensor
    width: Tensor
    slot: Tensor
    offset: Tensor

    def remaining(self) -> Tensor:
        """Positions left for each particle, `[R]`."""
        if self.logits.shape[0] == 0:
            return torch.zeros_like(self.slot)
        left = self.width[self.slot.clamp_min(0)] - self.offset
        return torch.where(self.slot >= 0, left, 0)

    def drop_unused(self) -> None:
        """Forget slots that no particle points to."""
        used = torch.unique(self.slot[self.slot >= 0])
        index = torch.full((self.logits.shape[0] + 1,), -1, dtype=torch.long, device=self.slot.device)
        index[used] = torch.arange(used.numel(), device=used.device)
        self.slot = index[self.slot]  # slot -1 reads the last entry, which is -1
        self.logits, self.width = self.logits[used], self.width[used]

    def add(self, rows: Tensor, group: Tensor, logits: Tensor, width: Tensor) -> None:
        """Give slot `group[b]` of the new `logits: [U', M, A]` (`width: [U']`) to particle `rows[b]`."""
        self.drop_unused()
        first = self.logits.shape[0]
        if first:
            missing = logits.shape[1] - self.logits.shape[1]
            old = torch.nn.functional.pad(self.logits, (0, 0, 0, max(0, missing)))
            new = torch.nn.functional.pad(logits, (0, 0, 0, max(0, -missing)))
            self.logits, self.width = torch.cat([old, new]), torch.cat([self.width, width])
        else:
            self.logits, self.width = logits, width
        self.slot[rows] = first + group
        self.offset[rows] = 0

    def window(self, rows: Tensor, window: int) -> Tensor:
        """Logits of the next `window` positions of particles `rows: [B]`, `[B, V, A]`; past the end, repeated."""
        place = self.offset[rows, None] + torch.arange(window, device=rows.device)
        place = place.clamp_max(self.logits.shape[1] - 1)
        return self.logits[self.slot[rows, None], place]


class Counters(NamedTuple):
    """How often each model ran for each prompt, `[P]` each.

    Attributes:
        dlm_forwards, ar_forwards: forward calls that served the prompt.
        dlm_rows, ar_rows: rows of the prompt in those calls.
        ar_tokens: drafted tokens or tree nodes of the prompt that were scored.
    """

    dlm_forwards: Tensor
    dlm_rows: Tensor
    ar_forwards: Tensor
    ar_rows: Tensor
    ar_tokens: Tensor

    @classmethod
    def zeros(cls, prompts: int) -> Counters:
        """No forwards yet."""
        return cls(*(torch.zeros(prompts, dtype=torch.long) for _ in range(5)))


class Retained(NamedTuple):
    """Continuations that particle 0 of each prompt must follow (conditional SMC): `[P, T]` padded, `[P]`."""

    tokens: Tensor
    length: Tensor


@dataclass
class SMCState:
    """All that is carried from step to step.

    Attributes:
        prefix: R particles.
        log_weights: `[P, N]` float64, unnormalised and carried: `log Z = log mean`.
        log_potential: `log phi` of each particle so far, `[R]` float64.
        prompt_length: `[P]`.
        limit: greatest length of each particle, `[R]`.
        generators: one per prompt.
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
    counters: Counters
    retained: Retained | None = None
    records: list[list[StepRecord]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def particles(self) -> int:
        """N."""
        return self.log_weights.shape[1]

    def active(self) -> Tensor:
        """Prompts with a particle that is neither done nor of weight zero, `[P']` indices."""
        growing = ~self.prefix.done.reshape(self.log_weights.shape) & (self.log_weights > -torch.inf)
        return growing.any(1).nonzero().flatten()

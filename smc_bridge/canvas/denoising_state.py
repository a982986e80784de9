"""What denoising steps carry and see: `DenoisingState`, the weights of its canvases (`Tilt`), and `Masked`.

Shapes: P seats, N canvases of each, R = P * N rows (seat-major), T_max places of a canvas (the length limit), W places
that the model is shown, A alphabet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.decode import Seat
from smc_bridge.models.protocols import CausalSession, DiffusionSession
from smc_bridge.randomness import Source, UniformSource
from smc_bridge.result import Forwards


class Tilt(NamedTuple):
    """What particles weigh, `[P, N]` float64 on the host each; who does not weigh them leaves all as it begins.

    Attributes:
        log_weights: unnormalised, nats.
        spent: log of the potentials that went into the weight so far, nats.
        running: what a potential remembers of rewards before.
        reward: of a canvas that is complete, NaN of others.
    """

    log_weights: Tensor
    spent: Tensor
    running: Tensor
    reward: Tensor

    @classmethod
    def start(cls, seats: int, particles: int) -> Tilt:
        """Weight one, before the first potential."""
        zero = torch.zeros(seats, particles, dtype=torch.float64)
        return cls(zero, zero, torch.full_like(zero, torch.nan), torch.full_like(zero, torch.nan))

    def put(self, seats: Sequence[int], other: Tilt) -> Tilt:
        """With the rows of `other: [len(seats), N]` in some seats."""
        index = torch.tensor(seats, dtype=torch.long)
        return Tilt(*(own.index_copy(0, index, new) for own, new in zip(self, other, strict=True)))

    def of(self, seats: Sequence[int]) -> Tilt:
        """That of some seats."""
        return Tilt(*(own[torch.tensor(seats, dtype=torch.long)] for own in self))


class DenoisingState(NamedTuple):
    """P seats of N canvases each.

    Attributes:
        seats: who sits there, None for nobody.
        generators: of each seat's draws, None for nobody.
        dlm, ar: sessions that hold the prompts, P rows; no AR session where nobody asks.
        canvas: `[R, T_max]`, `MASKED` where nothing is filled.
        reach: end of the places that are denoised together, `[R]`.
        clock: steps of each seat so far.
        costs: forwards of each seat so far.
        tilt: what its canvases weigh.
    """

    seats: tuple[Seat | None, ...]
    generators: tuple[torch.Generator | None, ...]
    dlm: DiffusionSession
    ar: CausalSession | None
    canvas: Tensor
    reach: Tensor
    clock: tuple[int, ...]
    costs: tuple[Forwards, ...]
    tilt: Tilt

    def charged(self, costs: Iterable[tuple[int, Forwards]]) -> DenoisingState:
        """The state after forwards that cost these seats so much."""
        after = list(self.costs)
        for seat, cost in costs:
            after[seat] = Forwards.total([after[seat], cost])
        return self._replace(costs=tuple(after))


@dataclass(frozen=True)
class Masked:
    """What a step sees of the B rows that a forward was run for, in the W places that the model was shown.

    Attributes:
        rows: of the state, `[B]`.
        log_q: the law that tokens are drawn from, `[B, W, A]`.
        untempered: computes `log_q_plain` when it is first asked for.
        shown: what stood in each place, `[B, W]`: a token, `MASKED`, or `ABSENT`.
        open: places that are denoised now, BoolTensor `[B, W]`.
        fill: those of them that this step fills, BoolTensor `[B, W]`.
        t: of each row, `[B]`: 1 before the first step.
    """

    rows: Tensor
    log_q: Tensor
    untempered: Callable[[], Tensor]
    shown: Tensor
    open: Tensor
    fill: Tensor
    t: Tensor

    @cached_property
    def log_q_plain(self) -> Tensor:
        """The model's own law, at temperature 1 and without truncation, `[B, W, A]`."""
        return self.untempered()

    @property
    def known(self) -> Tensor:
        """Places from the first on that hold tokens once all open ones are filled, `[B]`."""
        return ((self.shown >= 0) | self.open).long().cumprod(1).sum(1)

    def of(self, index: Tensor) -> Masked:
        """Some of the rows, by an index."""
        parts = {name: getattr(self, name)[index] for name in ("rows", "log_q", "shown", "open", "fill", "t")}
        return replace(self, **parts, untempered=lambda: self.log_q_plain[index])

    def drawn(self, source: Source, where: Tensor) -> Tensor:
        """Tokens of places `where: [B, W]`, independent draws; elsewhere what stands there, `[B, W]`."""
        idle = torch.full_like(self.log_q[0, 0], -torch.inf)
        idle[0] = 0.0  # one draw a place, whatever is asked
        return torch.where(where, source.categorical(torch.where(where[..., None], self.log_q, idle)), self.shown)


class Wide(UniformSource):
    """Another source whose draws for W places are those of the first W of `columns`: they do not depend on W.

    Args:
        base: gives the uniforms.
        columns: at least W.
    """

    def __init__(self, base: Source, columns: int) -> None:
        self.base, self.columns = base, columns

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """The first of `columns` uniforms along the last axis, `[R, *size]` float64 (`Source.uniform`).

        Raises:
            ValueError: more of them are asked for.
        """
        if size and size[-1] > self.columns:
            raise ValueError(f"size = {size}: ask for at most {self.columns} uniforms a row, one for each place")
        return self.base.uniform((*size[:-1], self.columns))[..., : size[-1]] if size else self.base.uniform(size)

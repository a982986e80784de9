"""Particles in parts, so that the AR model's logits `[N * K, V, A]` are never whole when they would exceed a cap.

Each part of the particles is drafted, verified, moved and weighed before the next one; then its logits are let go. The
draws are those of the whole: they are made once for all rows, in the order of the first part's calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smc_bridge.engine.conditional import Pinned
from smc_bridge.engine.steps import Branch
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Horizon, Move
from smc_bridge.randomness import Source, UniformSource

#: Moves the particles of one part: their places `[B']`, branch, draws and pinned lanes -> lanes, drafts, work.
MovePart = Callable[[Tensor, Branch, Source, Pinned | None], tuple[Lanes, Tensor | None, Tensor]]


class DrawnOnce:
    """Uniforms of a source, kept, so that several parts of its rows can read them."""

    def __init__(self, base: Source) -> None:
        self.base = base
        self.drawn: list[Tensor] = []

    def part(self, rows: Tensor) -> PartSource:
        """The source of rows `rows: [R']`."""
        return PartSource(self, rows)


class PartSource(UniformSource):
    """Some rows of a source that was drawn for all: the n-th call reads the n-th draw."""

    def __init__(self, whole: DrawnOnce, rows: Tensor) -> None:
        self.whole, self.rows, self.calls = whole, rows, 0

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`.

        Raises:
            ValueError: an earlier part drew something else in this place.
        """
        if self.calls == len(self.whole.drawn):
            self.whole.drawn.append(self.whole.base.uniform(size))
        drawn = self.whole.drawn[self.calls]
        if tuple(drawn.shape[1:]) != size:
            raise ValueError(
                f"the kernel drew {tuple(drawn.shape[1:])} numbers per row for one part of the particles, {size} for "
                "another: set max_logit_bytes to None, or let its calls not depend on the data"
            )
        self.calls += 1
        return drawn[self.rows]


def particles_per_part(at: Branch, max_logit_bytes: int | None, scores: int) -> int:
    """How many particles the AR model scores in one call, at most `scores` positions each; at least one particle."""
    count = at.place.shape[0]
    each = scores * at.logits.shape[-1] * at.law.dtype.itemsize
    return max(1, count if max_logit_bytes is None else min(count, max_logit_bytes // each))


def in_parts(
    rows: Tensor, at: Branch, move: MovePart, weigh: Callable[[Tensor, Lanes], Tensor], *, source: Source,
    pinned: Pinned | None, max_logit_bytes: int | None, scores: int,
) -> tuple[Lanes, Tensor, Tensor | None, Tensor]:
    """Move and weigh all particles.

    Args:
        rows: the B particles.
        weigh: log-weight increments of the lanes of some of them, `[B', K]`, while their laws are at hand.
        max_logit_bytes: cap of the AR model's logits of one call.
        scores: positions that it scores for a particle at most: lanes times window, or nodes of its trees.
    Returns:
        the lanes, their laws left out (no rows); increments `[B, K]`; drafts `[B, K, V]`, if there are any; work `[B]`.
    """
    step, total = particles_per_part(at, max_logit_bytes, scores), rows.numel()
    if step >= total:
        lanes, drafts, work = move(rows, at, source, pinned)
        return _without_laws([lanes]), weigh(rows, lanes), drafts, work
    whole, k = DrawnOnce(source), at.lanes
    moved, increments, drafted, works = [], [], [], []
    for first in range(0, total, step):
        last = min(first + step, total)
        own = whole.part(torch.arange(first * k, last * k, device=rows.device))
        part = None if pinned is None else pinned.part(first * k, last * k)
        lanes, drafts, spent = move(rows[first:last], at.part(first, last), own, part)
        increments.append(weigh(rows[first:last], lanes))
        moved.append(_without_laws([lanes]))
        drafted.append(drafts)
        works.append(spent)
    known = [d for d in drafted if d is not None]
    return _without_laws(moved), torch.cat(increments), torch.cat(known) if known else None, torch.cat(works)


def _without_laws(parts: list[Lanes]) -> Lanes:
    """Lanes one after the other; what the laws were computed from can be forgotten."""
    law = torch.empty(0, *parts[0].log_p.shape[1:], dtype=parts[0].log_p.dtype, device=parts[0].log_p.device)
    move = Move(*(torch.cat(x) for x in zip(*(part.move for part in parts), strict=True)))
    horizon = Horizon(torch.cat([part.horizon.window for part in parts]), parts[0].horizon.eos_id)
    raw_q, raw_p = torch.cat([part.raw_q for part in parts]), torch.cat([part.raw_p for part in parts])
    return Lanes(law, law, law, move, raw_q, raw_p, horizon)

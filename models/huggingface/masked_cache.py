"""Keys and values of committed tokens, kept for a diffusion model, so that its forwards are short.

A forward is over what is not taken from the cache: committed tokens, and the canvas. Which tokens those are, and how
much of a row is kept then, is the policy's (`smc_bridge.models.caches`). What is approximate may serve a proposal: its
draws and its density come from the same logits.

What a row's scores are depends on its own commits and scores alone, and not on which of several equal rows the caller
had scored: rows that are equal in tokens and in what is kept (*twins*) stay so when one of them is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from smc_bridge.models.caches import CachePolicy
from smc_bridge.models.host import sent
from smc_bridge.models.huggingface.behind import Behind
from smc_bridge.models.huggingface.cache import KeyValues, Span, as_span
from smc_bridge.models.huggingface.canvas import Fresh
from smc_bridge.models.protocols import ABSENT, MASKED

#: Of a row: which forward computed the tokens up to where, `((end, forward), ...)`.
Parts = tuple[tuple[int, int], ...]


class Plan(NamedTuple):
    """What a forward reads of B distinct rows, and leaves of them."""

    start: list[int]
    """Tokens of each that are taken from the cache."""
    kept: list[int]
    """Tokens of each that are kept afterwards; none that the forward computes where this is `start`."""
    prompt: list[int]
    """Tokens of each when it was first scored."""
    block: list[tuple[int, int] | None]
    """Block that the first masked place is in where that is another than before, so that all is computed anew."""

    def of(self, part: slice) -> Plan:
        """That of some of the rows."""
        return Plan(self.start[part], self.kept[part], self.prompt[part], self.block[part])


class PrefixCache:
    """What is kept for R ragged rows.

    Attributes:
        policy: how much that is.
        keys_values: the buffers, one row for each of R; a token's column is its position.
        behind: of a policy that keeps masks behind the block, which, and their scores.
    """

    def __init__(self, rows: int, policy: CachePolicy) -> None:
        self.policy = policy
        self.keys_values = KeyValues(rows)
        self.behind = Behind(rows) if policy.suffix else None
        self._parts: list[Parts] = [()] * rows
        self._prompt: list[int | None] = [None] * rows
        # Of each row: where the block began for which all was last computed anew, and by which forward.
        self._block: list[tuple[int, int] | None] = [None] * rows
        self._forwards = 0

    @property
    def known(self) -> list[int]:
        """Tokens of each row that are kept."""
        return [parts[-1][0] if parts else 0 for parts in self._parts]

    def plan(self, rows: Sequence[int], canvas: np.ndarray, lengths: Sequence[int], *, shift: bool) -> Plan:
        """What a forward over these distinct rows and their `canvas: [B, M]` reads and leaves.

        Args:
            lengths: tokens of each of `rows`.
            shift: whether the last token of a row is read again, since its output is about the first place after it.
        """
        known, masked = self.known, canvas == MASKED
        filled = np.where(masked.any(1), masked.argmax(1), (canvas != ABSENT).sum(1)).tolist()
        plan = Plan([], [], [], [])
        for r, n, gap in zip(rows, lengths, filled, strict=True):
            own, last = self._prompt[r], self._block[r]
            prompt = n if own is None else own
            block = self.policy.block_of(n + gap, prompt)
            anew = block is not None and (last is None or last[0] != block[0])
            start = 0 if anew else min(self.policy.read(known[r], n), n - int(shift))
            plan.start.append(start)
            # Within a block that all is kept for, a forward leaves nothing but the last token, if it is read again.
            within = block is not None and not anew
            plan.kept.append(max(start, known[r]) if within else self.policy.kept(n, n + gap, prompt))
            plan.prompt.append(prompt)
            plan.block.append(block if anew else None)
        return plan

    def open(self, rows: Sequence[int], fresh: Fresh, base: int, device: torch.device) -> KeyValues:
        """The cache for a forward over `fresh`, which is written from column `base` on, of these distinct rows."""
        self.keys_values.reserve(base + fresh.ids.shape[1])
        self.keys_values.span = Span(as_span(list(rows), device), base, 0, 1)
        return self.keys_values

    def keep(
        self, rows: Sequence[int], fresh: Fresh, plan: Plan, *, lengths: Sequence[int], shift: bool,
        device: torch.device,
    ) -> None:
        """After the forward: put the keys and values of committed tokens that are kept into their own columns.

        Args:
            rows, fresh: as in `open`.
            plan: of these rows; the forward's base is the greatest start.
            lengths: tokens of each row; the last of them stands before the canvas if `shift`.
        """
        if fresh.seen is None:
            self.keys_values.settle()
            return
        width = fresh.head + int(shift)
        count = np.array(lengths) - np.array(plan.start) - int(shift)
        column, own = np.arange(width), fresh.position[:, :width]
        real = (column < count[:, None]) | (column >= fresh.head)
        self.put(rows, own, real & (own < np.array(plan.kept)[:, None]), base=max(plan.start), device=device)

    def put(
        self, rows: Sequence[int], own: np.ndarray, stored: np.ndarray, *, base: int, device: torch.device
    ) -> None:
        """Move fresh keys and values to their own columns.

        Args:
            rows: B rows of the forward.
            own, stored: column that each of the fresh ones belongs to, and whether it is kept, `[B, F]`.
            base: column from which on they were written.
        """
        self.keys_values.settle()
        entry, place = (stored & (own != base + np.arange(own.shape[1]))).nonzero()
        if len(entry):
            own = np.broadcast_to(own, stored.shape)
            moved = np.stack([np.array(rows)[entry], own[entry, place], base + place])
            row, to, origin = sent(moved, device).unbind()
            self.keys_values.write(row, to, self.keys_values.read(row, origin))

    def mark(
        self, rows: Sequence[int], plan: Plan, texts: np.ndarray, lengths: Sequence[int], device: torch.device
    ) -> None:
        """Note what is kept of these distinct rows after a forward, and give their twins the same.

        Args:
            texts: tokens of all R rows, `[R, S]`.
            lengths: of all R rows.
        """
        scored = set(rows)
        keys = {(lengths[r], self._told(r)) for r in rows}
        others = [r for r in range(len(lengths)) if r not in scored and (lengths[r], self._told(r)) in keys]
        source: dict[int, int] = {}  # index into `rows` of what each twin equals
        if others:
            told = {r: (self._told(r), texts[r, : lengths[r]].tobytes()) for r in (*rows, *others)}
            source = _nearest(rows, others, told)
        if source:
            twins, like = list(source), [rows[b] for b in source.values()]
            at, of = sent([twins, like], device)
            ends = [max(plan.kept[b], self._columns(rows[b])) for b in source.values()]
            self.keys_values.move(at, of, min(plan.start[b] for b in source.values()), max(ends))
        for r, start, kept, prompt, block in zip(rows, *plan, strict=True):
            self._forwards += 1
            self._prompt[r] = prompt
            if block is not None:
                self._parts[r], self._block[r] = (), (block[0], self._forwards)
            if kept > start:
                self._parts[r] = (*_first(self._parts[r], start), (kept, self._forwards))
        for r, b in source.items():
            like_it = rows[b]
            self._parts[r], self._prompt[r] = self._parts[like_it], self._prompt[like_it]
            self._block[r] = self._block[like_it]
            if self.behind is not None:
                self.behind.slot[r] = self.behind.slot[like_it]

    def _told(self, r: int) -> tuple[object, ...]:
        """What is kept of a row, besides its tokens."""
        return self._parts[r], self._block[r], self._prompt[r]

    def _columns(self, r: int) -> int:
        """Columns of a row behind which nothing of it is kept."""
        known = self._parts[r][-1][0] if self._parts[r] else 0
        return known if self.behind is None else max(known, self.behind.end(r))

    def gather(self, source: Sequence[int], device: torch.device) -> None:
        """Let row r become a copy of the former row `source[r]`; the rows live on `device`."""
        changed = [r for r, a in enumerate(source) if r != a]
        if len(source) != len(self._parts):
            self.keys_values.resize(sent(source, device))
        elif changed:
            rows, origin = sent([changed, [source[r] for r in changed]], device)
            self.keys_values.move(rows, origin, 0, max(self._columns(source[r]) for r in changed))
        self._parts = [self._parts[a] for a in source]
        self._prompt = [self._prompt[a] for a in source]
        self._block = [self._block[a] for a in source]
        if self.behind is not None:
            self.behind.slot = [self.behind.slot[a] for a in source]

    def begin_anew(self) -> None:
        """Let the next forward over each row compute all of its block anew, whatever of it is kept."""
        for r, block in enumerate(self._block):
            if block is not None:
                self._block[r], self._parts[r] = None, ()
        if self.behind is not None:
            self.behind = Behind(len(self._parts))

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget everything past the first `lengths[r]` tokens of row r: a block that is unfinished then, and all that
        was kept for a later one."""
        for r, n in enumerate(lengths):
            prompt, block = self._prompt[r], self._block[r]
            if prompt is not None and n < prompt:
                self._prompt[r] = prompt = None
            if block is not None and n < block[0]:
                self._block[r], self._parts[r] = None, ()
                if self.behind is not None:
                    self.behind.slot[r] = -1
            self._parts[r] = _first(self._parts[r], self.policy.kept(n, n, n if prompt is None else prompt))


def _nearest(rows: Sequence[int], others: Sequence[int], key: Mapping[int, object]) -> dict[int, int]:
    """Place in `rows` of what each of `others` is equal to in `key`: the nearest before it, else the first of all.

    Several rows may be equal and be scored one by one, as those of a prompt that occurs twice in a batch; the particles
    of a prompt stand together behind the one that is scored for all, and stay its twins alone.
    """
    place = {r: b for b, r in enumerate(rows)}
    latest: dict[object, int] = {}
    found: dict[int, int] = {}
    for r in sorted((*rows, *others)):
        if r in place:
            latest[key[r]] = place[r]
        elif key[r] in latest:
            found[r] = latest[key[r]]
    first = {key[r]: place[r] for r in sorted(rows, reverse=True)}
    return found | {r: first[key[r]] for r in others if r not in found and key[r] in first}


def _first(parts: Parts, length: int) -> Parts:
    """Those of `parts` that lie within the first `length` tokens, the last of them cut there."""
    kept = []
    for begin, (end, forward) in zip((0, *(end for end, _ in parts)), parts, strict=False):
        if begin < length:
            kept.append((min(end, length), forward))
    return tuple(kept)

"""Keys and values of committed tokens, kept for a diffusion model, so that its forwards are short.

A forward is over committed tokens that are not kept yet, and the canvas; how much of a row is kept then is the policy's
(`CachePolicy`).

- *Every token sees all others.* All of a row is kept, as the forward that first saw a token *committed* computed it
  (after Fast-dLLM's prefix cache, Wu et al. 2025, arXiv 2505.22618, which refreshes it at every block). That is
  approximate, because a bidirectional model would compute others once later tokens are known. A proposal may be: its
  draws and its density come from the same logits.
- *A block-causal model.* Blocks whose tokens are all committed are kept: nothing that comes later changes them, so that
  this is exact (BD3LM, Arriola et al. 2025, arXiv 2503.09573). A token of an unfinished block is computed anew in every
  forward, since its keys and values depend on the masks beside it.

What a row's scores are depends on its own commits and scores alone, and not on which of several equal rows the caller
had scored: rows that are equal in tokens and in what is kept (*twins*) stay so when one of them is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from smc_bridge.models.host import sent
from smc_bridge.models.huggingface.cache import KeyValues, Span, as_span
from smc_bridge.models.huggingface.canvas import Fresh


@dataclass(frozen=True)
class CachePolicy:
    """How much of a row is kept (module docstring).

    Attributes:
        block_size: tokens of a block of a block-causal model, None where all tokens see each other.
    """

    block_size: int | None = None

    @property
    def exact(self) -> bool:
        """Whether scores are those of recomputation: a function of a row's tokens, and not of earlier forwards."""
        return self.block_size is not None

    def kept(self, length: int) -> int:
        """How many tokens of a row of `length` tokens are kept once it was scored."""
        return length if self.block_size is None else length - length % self.block_size


class PrefixCache:
    """What is kept for R ragged rows.

    Attributes:
        policy: how much that is.
        keys_values: the buffers, one row for each of R; a token's column is its position.
    """

    def __init__(self, rows: int, policy: CachePolicy) -> None:
        self.policy = policy
        self.keys_values = KeyValues(rows)
        # Of each row: which forward computed the tokens up to where, `((end, forward), ...)`.
        self._parts: list[tuple[tuple[int, int], ...]] = [()] * rows
        self._forwards = 0

    @property
    def known(self) -> list[int]:
        """Tokens of each row that are kept."""
        return [parts[-1][0] if parts else 0 for parts in self._parts]

    def open(self, rows: Sequence[int], fresh: Fresh, base: int, device: torch.device) -> KeyValues:
        """The cache for a forward over `fresh`, which is written from column `base` on, of these distinct rows."""
        self.keys_values.reserve(base + fresh.ids.shape[1])
        self.keys_values.span = Span(as_span(list(rows), device), base, 0, 1)
        return self.keys_values

    def keep(
        self, rows: Sequence[int], fresh: Fresh, *, start: Sequence[int], lengths: Sequence[int], shift: bool,
        device: torch.device,
    ) -> None:
        """After the forward: put the keys and values of committed tokens that are kept into their own columns.

        Args:
            rows, fresh: as in `open`.
            start: tokens of each row that were read from the cache; the forward's base is the greatest.
            lengths: tokens of each row; the last of them stands before the canvas if `shift`.
        """
        self.keys_values.settle()
        if fresh.seen is None:
            return
        base, width = max(start), fresh.head + int(shift)
        count = np.array(lengths) - np.array(start) - int(shift)
        column, own = np.arange(width), fresh.position[:, :width]
        kept = own < np.array([[self.policy.kept(n)] for n in lengths])
        real = (column < count[:, None]) | (column >= fresh.head)
        entry, place = (real & kept & (own != base + column)).nonzero()
        if len(entry):
            moved = np.stack([np.array(rows)[entry], own[entry, place], base + place])
            row, to, origin = sent(moved, device).unbind()
            self.keys_values.write(row, to, self.keys_values.read(row, origin))

    def mark(
        self, rows: Sequence[int], start: Sequence[int], texts: np.ndarray, lengths: Sequence[int], device: torch.device
    ) -> None:
        """Note what is kept of these distinct rows after a forward, and give their twins the same.

        Args:
            start: tokens of each of `rows` that were read from the cache.
            texts: tokens of all R rows, `[R, S]`.
            lengths: of all R rows.
        """
        scored = set(rows)
        keys = {(lengths[r], self._parts[r]) for r in rows}
        others = [r for r in range(len(lengths)) if r not in scored and (lengths[r], self._parts[r]) in keys]
        source: dict[int, int] = {}  # index into `rows` of what each twin equals
        if others:
            told = {r: (self._parts[r], texts[r, : lengths[r]].tobytes()) for r in (*rows, *others)}
            source = _nearest(rows, others, told)
        if source:
            twins, like = list(source), [rows[b] for b in source.values()]
            at, of = sent([twins, like], device)
            end = max(self.policy.kept(lengths[r]) for r in twins)
            self.keys_values.move(at, of, min(start[b] for b in source.values()), end)
        for r, n in zip(rows, start, strict=True):
            self._forwards += 1
            if (end := self.policy.kept(lengths[r])) > n:
                self._parts[r] = (*_first(self._parts[r], n), (end, self._forwards))
        for r, b in source.items():
            self._parts[r] = self._parts[rows[b]]

    def gather(self, source: Sequence[int], device: torch.device) -> None:
        """Let row r become a copy of the former row `source[r]`; the rows live on `device`."""
        changed = [r for r, a in enumerate(source) if r != a]
        if len(source) != len(self._parts):
            self.keys_values.resize(sent(source, device))
        elif changed:
            known = self.known
            rows, origin = sent([changed, [source[r] for r in changed]], device)
            self.keys_values.move(rows, origin, 0, max(known[source[r]] for r in changed))
        self._parts = [self._parts[a] for a in source]

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget everything past the first `lengths[r]` tokens of row r, and a block that is unfinished then."""
        self._parts = [_first(parts, self.policy.kept(n)) for parts, n in zip(self._parts, lengths, strict=True)]


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


def _first(parts: tuple[tuple[int, int], ...], length: int) -> tuple[tuple[int, int], ...]:
    """Those of `parts` that lie within the first `length` tokens, the last of them cut there."""
    kept = []
    for begin, (end, forward) in zip((0, *(end for end, _ in parts)), parts, strict=False):
        if begin < length:
            kept.append((min(end, length), forward))
    return tuple(kept)

"""Ragged rows of tokens that grow, are gathered and are cropped: the state that every session shares.

A session that recomputes needs nothing else: its `score` reads `tokens` and `length` and runs the model on them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.host import counting, given, listed, sent, told
from smc_bridge.models.protocols import Session


def append_ragged(
    tokens: Tensor, length: Tensor, block: Tensor, count: Tensor, *, fill: int, counts: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Append the first `count[r]` tokens of `block[r]` to row r.

    Args:
        tokens: `[R, S]`; entries past `length` are `fill`.
        length: `[R]`.
        block: `[R, L]`.
        count: `[R]`, between 0 and L.
        fill: value of the entries past the new lengths.
        counts: what `count` holds, if that is known.
    Returns:
        tokens `[R, S']` with `S' = max(length + count)`, and the new lengths `[R]`.
    Raises:
        ValueError: a count outside 0 .. L.
    """
    room = block.shape[1]
    before, counts = listed(length, count) if counts is None else (*listed(length), counts)
    if not counts:
        return tokens[:, :0], length
    if min(counts) < 0 or max(counts) > room:
        raise ValueError(f"length {counts} of a block of {room} tokens: give 0 to {room}")
    after = [n + more for n, more in zip(before, counts, strict=True)]
    width, step = max(after), np.arange(room)
    # What does not count is put into a column of its own, which is then left out.
    place = np.where(step < np.array(counts)[:, None], np.array(before)[:, None] + step, width)
    out = torch.nn.functional.pad(tokens, (0, width + 1 - tokens.shape[1]), value=fill)
    return out.scatter_(1, sent(place, tokens.device), block)[:, :width], told(length + count, after)


class Rows:
    """R committed prefixes; the part of a session that does not depend on the model."""

    has_history = False

    def __init__(self, tokens: Tensor, length: Tensor) -> None:
        """Start from `tokens: [R, S]` (LongTensor), of which the first `length: [R]` of each row count."""
        if tokens.dim() != 2 or length.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and length {tuple(length.shape)}: give tokens [R, S] and length [R]"
            )
        self.tokens = _filled(tokens, length)
        self.length = length.clone()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return listed(self.length)[0]

    def commit(self, block: Tensor, length: Tensor) -> None:
        """Append the first `length[r]` tokens of `block[r]` to row r."""
        self._append(block, length)

    def _append(self, block: Tensor, length: Tensor, counts: list[int] | None = None) -> None:
        """See `commit`; `counts` is what `length` holds, if that is known."""
        self.tokens, self.length = append_ragged(self.tokens, self.length, block, length, fill=0, counts=counts)

    def gather(self, ancestors: Tensor) -> None:
        """Let row r become a copy of the former row `ancestors[r]`."""
        lengths, source = listed(self.length, ancestors)
        if source != list(range(len(lengths))):
            self._follow(source)
            self.tokens = self.tokens[ancestors]
            self.length = told(self.length[ancestors], [lengths[r] for r in source])

    def _follow(self, source: list[int]) -> None:
        """Let what a session keeps beside the tokens follow: row r becomes a copy of the former row `source[r]`."""

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        lengths, held = listed(length, self.length)
        if any(not 0 <= n <= most for n, most in zip(lengths, held, strict=True)):
            raise ValueError(f"crop length {lengths} for rows of {held} tokens: give no more")
        self.length = told(length.clone(), lengths)
        self.tokens = _filled(self.tokens[:, : max(lengths, default=0)], length)


def _filled(tokens: Tensor, length: Tensor) -> Tensor:
    """A copy of `tokens: [R, S]` with 0 past the first `length: [R]` of each row."""
    return tokens.masked_fill(counting(tokens.shape[1], tokens.device) >= length[:, None], 0)


def reseat(session: Session, held: Tensor, rows: Tensor, tokens: Tensor, length: Tensor) -> None:
    """Let some rows of a session hold other prefixes.

    Args:
        session: of R rows.
        held: tokens of every row now, `[R]`.
        rows: which rows, `[B]`.
        tokens, length: what they hold afterwards, `[B, S]` and `[B]`.
    """
    before, index, after = listed(held, rows, length)
    kept, counts = before.copy(), [0] * len(before)
    for row, count in zip(index, after, strict=True):
        kept[row], counts[row] = 0, count
    session.crop(given(kept, held.device))
    if any(counts):
        blocks = tokens.new_zeros(held.numel(), tokens.shape[1])
        session.commit(blocks.index_copy(0, rows, tokens.clamp_min(0)), given(counts, held.device))

"""Ragged rows of tokens that grow, are gathered and are cropped: the state that every session shares.

A session that recomputes needs nothing else: its `score` reads `tokens` and `length` and runs the model on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.host import arrays, listed, remember, sent
from smc_bridge.models.protocols import Session


def append_ragged(tokens: Tensor, length: Tensor, block: Tensor, count: Tensor, *, fill: int) -> tuple[Tensor, Tensor]:
    """Append the first `count[r]` tokens of `block[r]` to row r.

    Args:
        tokens: `[R, S]`; entries past `length` are `fill`.
        length: `[R]`.
        block: `[R, L]`.
        count: `[R]`, between 0 and L.
        fill: value of the entries past the new lengths.
    Returns:
        tokens `[R, S']` with `S' = max(length + count)`, and the new lengths `[R]`.
    Raises:
        ValueError: a count outside 0 .. L.
    """
    room = block.shape[1]
    before, counts = arrays(length, count)
    if not counts.size:
        return tokens[:, :0], length
    if counts.min() < 0 or counts.max() > room:
        raise ValueError(f"length {counts.tolist()} of a block of {room} tokens: give 0 to {room}")
    after = before + counts
    width, step = int(after.max()), np.arange(room)
    # What does not count is put into a column of its own, which is then left out.
    place = np.where(step < counts[:, None], before[:, None] + step, width)
    out = torch.nn.functional.pad(tokens, (0, width + 1 - tokens.shape[1]), value=fill)
    return out.scatter_(1, sent(place, tokens.device), block)[:, :width], remember(length + count, after)


class Rows:
    """R committed prefixes; the part of a session that does not depend on the model.

    They are kept on the host, where what a forward reads is laid out.

    Attributes:
        texts: `[R, S]`, tokens of each row, 0 past its end.
        lengths: tokens of each row.
        device: where `tokens` and `length` are.
    """

    has_history = False

    def __init__(self, tokens: Tensor, length: Tensor) -> None:
        """Start from `tokens: [R, S]` (LongTensor), of which the first `length: [R]` of each row count."""
        if tokens.dim() != 2 or length.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and length {tuple(length.shape)}: give tokens [R, S] and length [R]"
            )
        texts, lengths = arrays(tokens, length)
        self.device = tokens.device
        self._keep(texts, lengths.tolist())

    def _keep(self, texts: np.ndarray, lengths: list[int]) -> None:
        """Hold the first of the tokens `[R, S]` of each row."""
        texts = texts[:, : max(lengths, default=0)]
        self.texts = np.where(np.arange(texts.shape[1]) < np.array(lengths, dtype=np.int64)[:, None], texts, 0)
        self.lengths = lengths

    @property
    def tokens(self) -> Tensor:
        """Tokens of each row, `[R, S]`, 0 past its end."""
        return sent(self.texts, self.device)

    @property
    def length(self) -> Tensor:
        """Tokens of each row, `[R]`."""
        return sent(np.array(self.lengths, dtype=np.int64), self.device)

    def commit(self, block: Tensor, length: Tensor) -> None:
        """Append the first `length[r]` tokens of `block[r]` to row r."""
        blocks, counts = arrays(block, length)
        self._append(blocks, counts.tolist())

    def _append(self, block: np.ndarray, counts: list[int]) -> None:
        """See `commit`."""
        room = block.shape[1]
        if counts and (min(counts) < 0 or max(counts) > room):
            raise ValueError(f"length {counts} of a block of {room} tokens: give 0 to {room}")
        rows, held = self.texts.shape
        whole = np.zeros((rows, held + room), dtype=np.int64)
        whole[:, :held] = self.texts
        place = np.array(self.lengths, dtype=np.int64)[:, None] + np.arange(room)
        np.put_along_axis(whole, place, block, axis=1)
        self._keep(whole, [n + count for n, count in zip(self.lengths, counts, strict=True)])

    def gather(self, ancestors: Tensor) -> None:
        """Let row r become a copy of the former row `ancestors[r]`."""
        [source] = listed(ancestors)
        if source != list(range(len(self.lengths))):
            self._follow(source)
            self._keep(self.texts[source], [self.lengths[r] for r in source])

    def _follow(self, source: list[int]) -> None:
        """Let what a session keeps beside the tokens follow: row r becomes a copy of the former row `source[r]`."""

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        [lengths] = listed(length)
        if any(not 0 <= n <= held for n, held in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"crop length {lengths} for rows of {self.lengths} tokens: give no more")
        self._keep(self.texts, lengths)


def reseat(session: Session, held: Tensor, rows: Tensor, tokens: Tensor, length: Tensor) -> None:
    """Let some rows of a session hold other prefixes.

    Args:
        session: of R rows.
        held: tokens of every row now, `[R]`.
        rows: which rows, `[B]`.
        tokens, length: what they hold afterwards, `[B, S]` and `[B]`.
    """
    before, index, texts, after = arrays(held, rows, tokens, length)
    kept, counts = before.copy(), np.zeros_like(before)
    blocks = np.zeros((before.size, tokens.shape[1]), dtype=np.int64)
    kept[index], counts[index], blocks[index] = 0, after, texts.clip(min=0)
    session.crop(sent(kept, held.device))
    if counts.any():
        session.commit(sent(blocks, held.device), sent(counts, held.device))


def turns(session: Any, rows: Tensor) -> Tensor:
    """In which of its forwards a session computes each row of a call, from 0 on, `[B]` like `rows`.

    One whose cache keeps what a forward has computed takes a row that is given again after the first (`in_turn`).
    """
    if not getattr(session, "in_turn", False):
        return torch.zeros_like(rows)
    order = torch.argsort(rows, stable=True)
    _, count = torch.unique_consecutive(rows[order], return_counts=True)
    first = (count.cumsum(0) - count).repeat_interleave(count)
    return torch.empty_like(rows).index_copy(0, order, torch.arange(rows.numel(), device=rows.device) - first)


def computed(session: Any, rows: int) -> np.ndarray:
    """Which of the `rows` of a session's last `score` a forward was run for, bools: all, unless it forecasts some
    (`computed` of the session)."""
    own = getattr(session, "computed", None)
    return np.ones(rows, dtype=bool) if own is None else own

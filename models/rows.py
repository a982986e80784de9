"""Ragged rows of tokens that grow, are gathered and are cropped: the state that every session shares.

A session that recomputes needs nothing else: its `score` reads `tokens` and `length` and runs the model on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.models.protocols import Session


def append_ragged(tokens: Tensor, length: Tensor, block: Tensor, count: Tensor, *, fill: int) -> tuple[Tensor, Tensor]:
    """Append the first `count[r]` tokens of `block[r]` to row r.

    Args:
        tokens: `[R, S]`; entries past `length` are ignored.
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
    if count.numel() == 0:
        return tokens[:, :0], length
    low, high = (int(x) for x in count.aminmax())
    if low < 0 or high > room:
        raise ValueError(f"length {count.tolist()} of a block of {room} tokens: give 0 to {room}")
    new_length = length + count
    width = int(new_length.max())
    # Whole blocks are put behind the rows, then what is too much is masked.
    out = torch.nn.functional.pad(tokens, (0, max(0, width + room - tokens.shape[1])), value=fill)
    out = out.scatter_(1, length[:, None] + torch.arange(room, device=tokens.device), block)[:, :width]
    return out.masked_fill_(torch.arange(width, device=tokens.device) >= new_length[:, None], fill), new_length


class Rows:
    """R committed prefixes; the part of a session that does not depend on the model."""

    has_history = False

    def __init__(self, tokens: Tensor, length: Tensor) -> None:
        """Start from `tokens: [R, S]` (LongTensor), of which the first `length: [R]` of each row count."""
        if tokens.dim() != 2 or length.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens {tuple(tokens.shape)} and length {tuple(length.shape)}: give tokens [R, S] and length [R]"
            )
        self.tokens = tokens.clone()
        self.length = length.clone()

    def commit(self, block: Tensor, length: Tensor) -> None:
        """Append the first `length[r]` tokens of `block[r]` to row r."""
        self.tokens, self.length = append_ragged(self.tokens, self.length, block, length, fill=0)

    def gather(self, ancestors: Tensor) -> None:
        """Let row r become a copy of the former row `ancestors[r]`."""
        self.tokens, self.length = self.tokens[ancestors], self.length[ancestors]

    def crop(self, length: Tensor) -> None:
        """Keep the first `length[r]` tokens of row r."""
        if bool(((length < 0) | (length > self.length)).any()):
            raise ValueError(f"crop length {length.tolist()} for rows of {self.length.tolist()} tokens: give no more")
        self.length = length
        self.tokens = self.tokens[:, : int(length.max()) if length.numel() else 0]


def reseat(session: Session, held: Tensor, rows: Tensor, tokens: Tensor, length: Tensor) -> None:
    """Let some rows of a session hold other prefixes.

    Args:
        session: of R rows.
        held: tokens of every row now, `[R]`.
        rows: which rows, `[B]`.
        tokens, length: what they hold afterwards, `[B, S]` and `[B]`.
    """
    session.crop(held.index_fill(0, rows, 0))
    counts = torch.zeros_like(held).index_copy(0, rows, length)
    if bool(counts.any()):
        blocks = tokens.new_zeros(held.numel(), tokens.shape[1])
        session.commit(blocks.index_copy(0, rows, tokens.clamp_min(0)), counts)

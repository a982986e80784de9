"""`Prefix`: a ragged batch of token sequences, and the only owner of padding and end-of-sequence logic.

Everything past `length` is `PAD`; a row is `done` once its last token ends the sequence or its length limit is
reached. A done row is *absorbing*: it stays in the pool and never grows (condition C5 of the design).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.rows import append_ragged

#: Fill value of entries past a row's length; never a token id.
PAD = -1


class Prefix(NamedTuple):
    """R token sequences of their own lengths.

    Attributes:
        tokens: LongTensor `[R, S]`, `PAD` past the length.
        length: LongTensor `[R]`, tokens per row.
        done: BoolTensor `[R]`, rows that never grow again.
    """

    tokens: Tensor
    length: Tensor
    done: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> Prefix:
        """Build from lists of token ids; no row is done."""
        if not sequences:
            raise ValueError("sequences is empty: give at least one token sequence")
        length = torch.tensor([len(s) for s in sequences], device=device)
        tokens = torch.full((len(sequences), int(length.max())), PAD, dtype=torch.long, device=device)
        for r, sequence in enumerate(sequences):
            tokens[r, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
        return cls(tokens, length, torch.zeros(len(sequences), dtype=torch.bool, device=device))

    def select(self, rows: Tensor) -> Prefix:
        """Rows `rows` (`[R']` indices or a mask `[R]`), in that order."""
        return Prefix(self.tokens[rows], self.length[rows], self.done[rows])

    def extend(self, block: Tensor, count: Tensor, *, eos_id: int | None, limit: Tensor) -> Prefix:
        """Append the first `count[r]` tokens of `block[r]`, and mark rows that ended.

        Args:
            block: `[R, L]`.
            count: `[R]`, 0 for rows that are done.
            eos_id: token that ends a sequence, or None.
            limit: `[R]`, greatest length of each row.
        Raises:
            ValueError: a done row would grow, or a row would pass its limit.
        """
        if bool((count * self.done).any()):
            raise ValueError("count > 0 for a row that is done: finished rows are absorbing")
        tokens, length = append_ragged(self.tokens, self.length, block, count, fill=PAD)
        if bool((length > limit).any()):
            raise ValueError(f"lengths {length.tolist()} pass the limit {limit.tolist()}: shorten the block")
        done = self.done | (length >= limit)
        if eos_id is not None:
            last = (length - 1).clamp_min(0)
            ended = (tokens.gather(1, last[:, None])[:, 0] == eos_id) if tokens.shape[1] else torch.zeros_like(done)
            done = done | (ended & (count > 0))
        return Prefix(tokens, length, done)

    def unique(self, rows: Tensor, *, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Group equal sequences among `rows: [B]`.

        Args:
            rows: indices into the batch.
            apart: `[R]`; rows of different values are never grouped. By default the tokens alone decide.
        Returns:
            representatives `[U]` (indices into the batch, the first row of each group) and the group of each of
            `rows`, `[B]`.
        """
        if rows.numel() == 0:
            return rows, rows
        key = torch.cat([self.length[rows, None], self.tokens[rows]], dim=1)
        if apart is not None:
            key = torch.cat([apart[rows, None], key], dim=1)
        values, group = torch.unique(key, dim=0, return_inverse=True)
        order = torch.arange(rows.numel() - 1, -1, -1, device=rows.device)
        first = torch.zeros(values.shape[0], dtype=torch.long, device=rows.device)
        first = first.scatter_reduce(0, group.flip(0), order, reduce="amin", include_self=False)
        return rows[first], group

    def lists(self) -> list[list[int]]:
        """The sequences as lists of ints."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.length.tolist(), strict=True)]

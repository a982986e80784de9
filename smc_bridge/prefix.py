"""`Prefix`: a ragged batch of token sequences, and the only owner of padding and end-of-sequence logic.

Everything past `length` is `PAD`; a row is `done` once its last token ends the sequence or its length limit is
reached. A done row is *absorbing*: it stays in the pool and never grows (condition C5 of docs/theory, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.models.ends import Ends, is_end
from smc_bridge.models.host import Index, known, remembered, sent
from smc_bridge.models.rows import append_ragged

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
        length = np.array([len(s) for s in sequences])
        tokens = np.full((len(sequences), length.max()), PAD)
        for r, sequence in enumerate(sequences):
            tokens[r, : len(sequence)] = sequence
        return cls.sent(tokens, length, np.zeros(len(sequences), dtype=bool), device=torch.device(device))

    @classmethod
    def sent(cls, tokens: Index, length: Index, done: npt.NDArray[np.bool_], *, device: torch.device) -> Prefix:
        """Of arrays on the host, `[R, S]`, `[R]` and `[R]`, which are not written to afterwards."""
        return cls(sent(tokens, device), sent(length, device), sent(done, device))

    def select(self, rows: Tensor) -> Prefix:
        """Rows `rows` (`[R']` indices or a mask `[R]`), in that order."""
        index = remembered(rows)
        if index is None or any(remembered(part) is None for part in self):
            return Prefix(self.tokens[rows], self.length[rows], self.done[rows])
        return Prefix.sent(*(known(part)[index] for part in self), device=rows.device)

    def grown(self, block: Index, count: Index, ended: npt.NDArray[np.bool_]) -> Prefix:
        """With the first `count[r]` tokens of `block[r]` behind each row, on the host; `extend` without its checks.

        Args:
            block: `[R, L]`.
            count: `[R]`.
            ended: rows that end with it, `[R]`.
        """
        old, length = known(self.tokens), known(self.length)
        longer = length + count
        tokens = np.full((longer.size, longer.max(initial=0)), PAD)
        width = min(old.shape[1], tokens.shape[1])
        tokens[:, :width] = old[:, :width]
        row, place = (np.arange(block.shape[1]) < count[:, None]).nonzero()
        tokens[row, length[row] + place] = block[row, place]
        return Prefix.sent(tokens, longer, known(self.done) | ended, device=self.length.device)

    def extend(self, block: Tensor, count: Tensor, *, ends: Ends, limit: Tensor) -> Prefix:
        """Append the first `count[r]` tokens of `block[r]`, and mark rows that ended.

        Args:
            block: `[R, L]`.
            count: `[R]`, 0 for rows that are done.
            ends: tokens that end a sequence.
            limit: `[R]`, greatest length of each row.
        Raises:
            ValueError: a done row would grow, or a row would pass its limit.
        """
        if bool((count * self.done).any()):
            raise ValueError("count > 0 for a row that is done: finished rows are absorbing")
        tokens, length = append_ragged(self.tokens, self.length, block, count, fill=PAD)
        if bool((length > limit).any()):
            raise ValueError(f"lengths {length.tolist()} pass the limit {limit.tolist()}: shorten the block")
        return Prefix(tokens, length, self.done | has_ended(self.length, block, count, ends=ends, limit=limit))

    def put(self, rows: Tensor, other: Prefix) -> Prefix:
        """The same batch with other sequences in `rows: [B]`, those of the B rows of `other`."""
        at, device = known(rows), self.length.device
        length, done, fresh = known(self.length).copy(), known(self.done).copy(), known(other.tokens)
        length[at], done[at] = known(other.length), known(other.done)
        tokens = np.full((length.size, max(int(length.max()), fresh.shape[1])), PAD)
        width = min(self.tokens.shape[1], tokens.shape[1])
        tokens[:, :width] = known(self.tokens)[:, :width]
        tokens[at, : fresh.shape[1]], tokens[at, fresh.shape[1] :] = fresh, PAD
        return Prefix.sent(tokens, length, done, device=device)

    def unique(self, rows: Index, *, apart: Index | None = None) -> tuple[Index, Index]:
        """Group equal sequences among `rows: [B]`.

        Args:
            rows: indices into the batch.
            apart: `[R]`; rows of different values are never grouped. By default the tokens alone decide.
        Returns:
            representatives `[U]` (indices into the batch, the first row of each group) and the group of each of
            `rows`, `[B]`.
        """
        if rows.size <= 1:
            return rows, np.zeros_like(rows)
        parts = [known(self.length)[rows, None], known(self.tokens)[rows]]
        key = np.concatenate(parts if apart is None else [apart[rows, None], *parts], axis=1)
        # Rows as bytes in a dictionary: exact, and much faster than sorting them column by column.
        table = np.ascontiguousarray(key)
        first: dict[bytes, int] = {}
        own = [first.setdefault(row, i) for i, row in enumerate(table.view(f"V{table[0].nbytes}").ravel().tolist())]
        kept = np.array(list(first.values()))  # ascending, as a dictionary keeps its order
        return rows[kept], np.searchsorted(kept, own)

    def lists(self) -> list[list[int]]:
        """The sequences as lists of ints."""
        return [row[:n] for row, n in zip(known(self.tokens).tolist(), known(self.length).tolist(), strict=True)]


def has_ended(length: Tensor, block: Tensor, count: Tensor, *, ends: Ends, limit: Tensor) -> Tensor:
    """Whether rows of `length: [...]` tokens end with the first `count: [...]` tokens of `block: [..., L]`.

    Args:
        ends: tokens that end a sequence.
        limit: greatest length of each row, `[...]`.
    """
    over = length + count >= limit
    if not ends or block.shape[-1] == 0:
        return over
    last = block.gather(-1, (count - 1).clamp_min(0)[..., None])[..., 0]
    return over | (is_end(last, ends) & (count > 0))

"""`Prefix`: a ragged batch of token sequences, and the only owner of padding and end-of-sequence logic.

Everything past `length` is `PAD`; a row is `done` once its last token ends the sequence or its length limit is
reached. A done row is *absorbing*: it stays in the pool and never grows (condition C5 of docs/theory, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
        return Prefix(tokens, length, self.done | ends(self.length, block, count, eos_id=eos_id, limit=limit))

    def put(self, rows: Tensor, other: Prefix) -> Prefix:
        """The same batch with other sequences in `rows: [B]`, those of the B rows of `other`."""
        length = self.length.index_copy(0, rows, other.length)
        width = max(int(length.max()), other.tokens.shape[1])
        tokens = torch.nn.functional.pad(self.tokens[:, :width], (0, max(0, width - self.tokens.shape[1])), value=PAD)
        fresh = torch.nn.functional.pad(other.tokens, (0, width - other.tokens.shape[1]), value=PAD)
        return Prefix(tokens.index_copy(0, rows, fresh), length, self.done.index_copy(0, rows, other.done))

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
        if rows.numel() == 1:
            return rows, torch.zeros_like(rows)
        parts = [self.length[rows, None], self.tokens[rows]]
        key = torch.cat(parts if apart is None else [apart[rows, None], *parts], dim=1)
        # Rows as bytes in a dictionary: exact, and much faster than sorting them column by column.
        table = np.ascontiguousarray(key.cpu().numpy())
        known: dict[bytes, int] = {}
        own = [known.setdefault(row, i) for i, row in enumerate(table.view(f"V{table[0].nbytes}").ravel().tolist())]
        first = list(known.values())  # ascending, as a dictionary keeps its order
        group = torch.from_numpy(np.searchsorted(first, own)).to(rows.device)
        return rows[torch.tensor(first, device=rows.device)], group

    def lists(self) -> list[list[int]]:
        """The sequences as lists of ints."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.length.tolist(), strict=True)]


def ends(length: Tensor, block: Tensor, count: Tensor, *, eos_id: int | None, limit: Tensor) -> Tensor:
    """Whether rows of `length: [...]` tokens end with the first `count: [...]` tokens of `block: [..., L]`.

    Args:
        eos_id: token that ends a sequence, or None.
        limit: greatest length of each row, `[...]`.
    """
    over = length + count >= limit
    if eos_id is None or block.shape[-1] == 0:
        return over
    last = block.gather(-1, (count - 1).clamp_min(0)[..., None])[..., 0]
    return over | ((last == eos_id) & (count > 0))

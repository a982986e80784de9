"""What a dual cache keeps behind the block that is being filled: masks, their keys and values, and their scores.

Fast-dLLM's dual cache (Wu et al. 2025, arXiv 2505.22618) computes all places when a block begins, and then the block
alone; of the places behind it keys and values stay as they were. Scores of these are wanted all the same here, by a
proposal that drafts past the block: they stay, too. A place behind the block is taken as it stood when the block began
if it was there and holds what it held; any other is computed anew.

The output of a column is about its own place, or, of a shifted model, about the next: a column counts as kept if its
keys and values and its output are.

Shapes: R rows, U slots that rows share, B rows of a forward, M places of a canvas, H kept columns, A numbers of a
score, features among them if scores are wide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.host import sent
from smc_bridge.models.protocols import ABSENT


class Behind:
    """Columns behind the block of R rows.

    Attributes:
        slot: of each row, -1 for none.
    """

    def __init__(self, rows: int) -> None:
        self.slot = [-1] * rows
        self._first: list[int] = []  # of each slot: the first column, and what stands there and behind it
        self._ids: list[np.ndarray] = []
        self._scores: Tensor | None = None  # [U, H, A]

    def end(self, r: int) -> int:
        """Column behind the last one of row r, 0 if it has none."""
        slot = self.slot[r]
        return 0 if slot < 0 else self._first[slot] + len(self._ids[slot])

    def same(
        self, rows: Sequence[int], canvas: np.ndarray, lengths: Sequence[int], anew: Sequence[bool]
    ) -> np.ndarray:
        """Which places of `canvas: [B, M]`, after so many tokens, need not be computed, bool `[B, M]`.

        Args:
            anew: rows of which nothing counts any more.
        """
        found = np.zeros(canvas.shape, dtype=bool)
        for b, (r, n) in enumerate(zip(rows, lengths, strict=True)):
            if (slot := self.slot[r]) >= 0 and not anew[b]:
                first = self._first[slot] - n
                held = self._ids[slot][: max(0, canvas.shape[1] - first)]
                found[b, first : first + len(held)] = canvas[b, first : first + len(held)] == held
        return found

    def scores(self, rows: Sequence[int], position: np.ndarray) -> Tensor:
        """Outputs of columns `position: [n]` of `rows: [n]`, which are kept, `[n, A]`."""
        assert self._scores is not None
        slot = np.array([self.slot[r] for r in rows])
        at = position - np.array([self._first[s] for s in slot])
        row, column = sent(np.stack([slot, at]), self._scores.device).unbind()
        return self._scores[row, column]

    def put(
        self, rows: Sequence[int], canvas: np.ndarray, lengths: Sequence[int], first: Sequence[int], scores: Tensor,
        *, shift: bool,
    ) -> None:
        """Keep the columns from `first[b]` on of B rows, all of whose places were computed.

        Args:
            canvas, lengths: `[B, M]` and tokens before each.
            scores: about every place, `[B, M, A]`.
            shift: whether the output of a column is about the next place.
        """
        held = sorted({slot for r, slot in enumerate(self.slot) if slot >= 0 and r not in set(rows)})
        again = {slot: i for i, slot in enumerate(held)}
        ids, origin = [self._ids[slot] for slot in held], []
        for b, (n, begin) in enumerate(zip(lengths, first, strict=True)):
            present = int((canvas[b] != ABSENT).sum()) - int(shift)  # nothing is known of the last column's output
            ids.append(canvas[b, begin - n : max(present, begin - n)].copy())
            origin.append(begin - n + int(shift))
        width = max((len(row) for row in ids), default=0)
        place = (np.array(origin)[:, None] + np.arange(width)).clip(max=canvas.shape[1] - 1)
        own = scores.take_along_dim(sent(place, scores.device)[..., None], 1)  # a copy: the caller may write to scores
        parts = [own]
        if held:
            assert self._scores is not None
            old = self._scores[sent(np.array(held), own.device), :width]
            parts = [torch.nn.functional.pad(old, (0, 0, 0, width - old.shape[1])), own]
        self._scores = torch.cat(parts)
        self._first = [*(self._first[slot] for slot in held), *first]
        self._ids = ids
        fresh = {r: len(held) + b for b, r in enumerate(rows)}
        self.slot = [fresh.get(r, again.get(slot, -1)) for r, slot in enumerate(self.slot)]

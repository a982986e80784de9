"""What a forward over packed rows has left in the buffer behind their prefixes, and what of it a commit keeps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smc_bridge.models.huggingface.packing import Forest
from smc_bridge.models.huggingface.trees import longest_chain, longest_match


@dataclass(frozen=True)
class Scored:
    """Keys and values of `[pending | forest]` in the columns of the buffer from `base` on.

    Attributes:
        rows: of the buffer, distinct.
        base: first fresh column.
        widest: columns of pending tokens, which stand in the last of them.
        forest: the nodes after them.
    """

    rows: list[int]
    base: int
    widest: int
    forest: Forest

    def kept(
        self, origin: Sequence[int], held: Sequence[int], before: Sequence[int], after: Sequence[int],
        block: np.ndarray | None,
    ) -> list[Sequence[int]]:
        """Where in the buffer the keys and values are that rows keep: those of their pending tokens, and of the longest
        path of the forest that their block begins with.

        Args:
            origin: row of the buffer that each of R rows has been gathered from.
            held: columns that each row has without this.
            before: where its pending tokens end.
            after: its length with the block, of which the last token is to stay pending.
            block: the tokens that followed, `[R, L]`, or None.
        Returns:
            the columns of the buffer of each row's tokens from `held` on; none for rows that were not scored.
        """
        slot, first = {row: at for at, row in enumerate(self.rows)}, self.base + self.widest
        paths = [[]] * len(origin) if block is None else self._paths([slot.get(row, 0) for row in origin], block)
        kept: list[Sequence[int]] = []
        for r, row in enumerate(origin):
            pending = range(first - (before[r] - held[r]), first)
            path = [first + node for node in itertools.takewhile(lambda node: node >= 0, paths[r])]
            kept.append([*pending, *path][: after[r] - 1 - held[r]] if row in slot else ())
        return kept

    def _paths(self, slot: list[int], block: np.ndarray) -> list[list[int]]:
        """The nodes that each of the blocks `[R, L]` begins with, -1 past their end, of the packed rows `slot`."""
        forest = self.forest
        if forest.chains:
            return list(longest_chain(forest.tokens[slot], forest.chains, block).tolist())
        depth, lineage = (x if len(x) == 1 else x[slot] for x in (forest.depth, forest.lineage))
        return list(longest_match(forest.tokens[slot], depth, lineage, block).tolist())

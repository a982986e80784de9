"""What a forward over packed rows has left in the buffer behind their prefixes, and what of it a commit keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from smc_bridge.models.host import sent
from smc_bridge.models.huggingface.packing import Forest
from smc_bridge.models.huggingface.trees import longest_match, longest_run


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

    def match(self, origin: Sequence[int], block: Tensor) -> Tensor | None:
        """Which nodes the blocks `[R, L]` of rows gathered from `origin` begin with, for `kept`; None for none."""
        forest = self.forest
        if not block.shape[1] or not forest.tokens.shape[1]:
            return None
        slot = None
        if list(origin) != self.rows:
            place = {row: at for at, row in enumerate(self.rows)}
            slot = sent([place.get(row, 0) for row in origin], block.device)

        def own(shown: Tensor) -> Tensor:
            """What the forest shows for each of the R rows, or for all of them."""
            return shown if slot is None or shown.shape[0] == 1 else shown[slot]

        tokens = forest.tokens if slot is None else forest.tokens[slot]
        if forest.chains:
            return longest_run(tokens, forest.chains, block)
        return longest_match(tokens, own(forest.depth), own(forest.lineage), block)

    def kept(
        self, origin: Sequence[int], held: Sequence[int], before: Sequence[int], after: Sequence[int],
        found: list[list[int]] | None,
    ) -> list[Sequence[int]]:
        """Where in the buffer the keys and values are that rows keep: those of their pending tokens, and of the longest
        path of the forest that their block begins with.

        Args:
            origin: row of the buffer that each of R rows has been gathered from.
            held: columns that each row has without this.
            before: where its pending tokens end.
            after: its length with the block, of which the last token is to stay pending.
            found: what `match` says of each row, or None.
        Returns:
            the columns of the buffer of each row's tokens from `held` on; none for rows that were not scored.
        """
        scored, first = set(self.rows), self.base + self.widest
        kept: list[Sequence[int]] = []
        for r, row in enumerate(origin):
            if row not in scored:
                kept.append(())
                continue
            nodes = self._nodes(found[r]) if found else ()
            pending = range(first - (before[r] - held[r]), first)
            kept.append([*pending, *(first + node for node in nodes)][: after[r] - 1 - held[r]])
        return kept

    def _nodes(self, found: list[int]) -> Sequence[int]:
        """The nodes of the longest path, from what `match` says of a row."""
        if self.forest.chains:
            steps, longest = self.forest.tokens.shape[1] // self.forest.chains, max(found)
            start = steps * found.index(longest)
            return range(start, start + longest)
        return found[: found.index(-1)] if -1 in found else found

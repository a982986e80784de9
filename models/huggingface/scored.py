"""What a forward over packed rows has left in the buffer behind their prefixes, and what of it a commit keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc_bridge.models.huggingface.packing import Forest
from smc_bridge.models.huggingface.trees import longest_match


@dataclass(frozen=True)
class Scored:
    """Keys and values of `[pending | forest]` in the columns of the buffer from `base` on.

    Attributes:
        rows: of the buffer, distinct.
        slot: packed row of each row of the buffer, -1 if it is not among `rows`, `[R]`.
        base: first fresh column.
        widest: columns of pending tokens, which stand in the last of them.
        forest: the nodes after them.
    """

    rows: list[int]
    slot: Tensor
    base: int
    widest: int
    forest: Forest

    def kept(
        self, origin: Tensor, held: Tensor, before: Tensor, after: Tensor, block: Tensor | None, count: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What rows keep: their pending tokens, and the longest path of the forest that their block begins with.

        Args:
            origin: row of the buffer that each row has been gathered from, `[R]`.
            held: columns that each row has without this, `[R]`.
            before: where its pending tokens end, `[R]`.
            after: its length with the block, of which the last token is to stay pending, `[R]`.
            block, count: tokens that followed, `[R, L]`, and how many of them count, `[R]`; None for none.
        Returns:
            how many columns each row then holds, `[R]`, 0 for rows that were not scored; and where in the buffer the
            keys and values of those after the `held` first are, `[R, n]`.
        """
        slot = self.slot[origin]
        real, slot = slot >= 0, slot.clamp_min(0)
        matched, path = torch.zeros_like(before), before[:, None][:, :0]
        if block is not None and count is not None and block.shape[1] and self.forest.tokens.shape[1]:
            depth, lineage = (x if x.shape[0] == 1 else x[slot] for x in (self.forest.depth, self.forest.lineage))
            matched, path = longest_match(self.forest.tokens[slot], depth, lineage, block, count)
        kept = torch.where(real, torch.minimum(before + matched, after - 1), 0)
        fresh = max(int((kept - held).max()), 0) if kept.numel() else 0
        index = torch.arange(fresh, device=held.device) - (before - held)[:, None]  # negative for pending tokens
        if path.shape[1]:
            index = torch.where(index < 0, index, path.gather(1, index.clamp(0, path.shape[1] - 1)))
        return kept, self.base + self.widest + index

"""Prefixes and their canvases laid out for one bidirectional forward: `[tokens to run | last token | canvas]`.

A bidirectional model with explicit positions does not care in which column a token stands, so every row's canvas is put
into the *last* columns, and what is missing in shorter rows lies before it. Then the outputs that are wanted are the
last columns of all rows, and the model's head is spared the others. With shifted outputs the last token of the prefix
stands right before the canvas, since its output is about the first place of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.protocols import ABSENT, MASKED


class Fresh(NamedTuple):
    """Tokens of one forward over B rows, F columns each, behind K - F columns of a cache."""

    ids: Tensor
    """`[B, F]`."""
    position: Tensor
    """`[B, F]`, or `[1, F]` where all rows have the same."""
    seen: Tensor | None
    """Columns that hold a token of the row, `[B, K]`, those of the cache first; None if all do."""
    head: int
    """Columns before those that all rows fill."""


def lay_out(
    tokens: Tensor, lengths: Sequence[int], canvas: Tensor, *, mask_id: int, shift: bool,
    cached: Sequence[int] | None = None, window: int | None = None, sinks: int = 0,
) -> Fresh:
    """Lay out prefixes `tokens: [B, S]` of these `lengths` (at least 1 if `shift`), and `canvas: [B, M]` after them.

    Args:
        mask_id: id that the model reads for `MASKED`.
        shift: whether the last token of a prefix stands before the canvas.
        cached: tokens of each prefix whose keys and values a cache holds, in its first columns (that one excluded).
        window: tokens at the end of a prefix that are shown, besides its first `sinks`; None for all. Without `cached`.
    """
    batch, lookahead = canvas.shape
    device, last = canvas.device, int(shift)
    start = [0] * batch if cached is None else list(cached)
    count = [n - last - k for n, k in zip(lengths, start, strict=True)]
    if window is not None:
        count = [min(c, sinks + max(window - last, 0)) for c in count]
    head = max(count)
    shown = canvas.masked_fill(canvas == MASKED, mask_id)
    step = torch.arange(head, device=device)
    if int(canvas.min()) >= MASKED and len(set(zip(lengths, start, strict=True))) == 1:
        n = lengths[0]
        before = step + start[0] if window is None else torch.where(step < sinks, step, step + n - last - head)
        position = torch.cat([before, torch.arange(n - last, n + lookahead, device=device)])
        ids = torch.cat([tokens.index_select(1, position[: head + last]), shown], dim=1)
        return Fresh(ids, position[None], None, head)

    length, first, many = (torch.tensor(x, device=device)[:, None] for x in (lengths, start, count))
    before = step + first
    if window is not None:
        before = torch.where(step < sinks, before, step + length - last - many)
    present = canvas != ABSENT
    end = length + present.sum(1, keepdim=True)  # a place that a row does not have gets its last position
    after = length - last + torch.arange(last + lookahead, device=device)
    position = torch.cat([before, after], dim=1).clamp_max((end - 1).clamp_min(0))
    prefix = tokens.gather(1, position[:, : head + last].clamp_max(max(tokens.shape[1] - 1, 0)))
    base = torch.arange(max(start), device=device)
    real = torch.cat([step < many, present.new_ones(batch, last), present], dim=1)
    ids = torch.cat([prefix, shown], dim=1).masked_fill(~real, 0)
    return Fresh(ids, position, torch.cat([base < first, real], dim=1), head)

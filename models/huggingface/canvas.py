"""Prefixes and their canvases laid out for one bidirectional forward: `[tokens to run | last token | canvas]`.

A bidirectional model with explicit positions does not care in which column a token stands, so every row's canvas is put
into the *last* columns, and what is missing in shorter rows lies before it. Then the outputs that are wanted are the
last columns of all rows, and the model's head is spared the others. With shifted outputs the last token of the prefix
stands right before the canvas, since its output is about the first place of it.

A block-causal model (BD3LM, Arriola et al. 2025, arXiv 2503.09573) sees what stands in the same block and before it:
place i sees place j iff `j // block_size <= i // block_size`, and that too is a matter of positions, not of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from smc_bridge.models.protocols import ABSENT, MASKED


class Fresh(NamedTuple):
    """Tokens of one forward over B rows, F columns each, behind K - F columns of a cache."""

    ids: np.ndarray
    """`[B, F]`."""
    position: np.ndarray
    """`[B, F]`, or `[1, F]` where all rows have the same."""
    seen: np.ndarray | None
    """Columns that hold a token of the row, `[B, K]`, those of the cache first; None if all do."""
    head: int
    """Columns before those that all rows fill."""


def lay_out(
    texts: np.ndarray, rows: Sequence[int], lengths: Sequence[int], canvas: np.ndarray, *, mask_id: int, shift: bool,
    cached: Sequence[int] | None = None,
) -> Fresh:
    """Lay out the prefixes `rows` of `texts: [R, S]`, B of them, and `canvas: [B, M]` after them.

    Args:
        lengths: of the prefixes, B numbers, at least 1 if `shift`.
        mask_id: id that the model reads for `MASKED`.
        shift: whether the last token of a prefix stands before the canvas.
        cached: tokens of each prefix whose keys and values a cache holds, in its first columns (that one excluded).
    """
    batch, lookahead = canvas.shape
    last, present = int(shift), canvas != ABSENT
    length = np.array(lengths)[:, None]
    first = np.zeros_like(length) if cached is None else np.array(cached)[:, None]
    many = length - last - first
    head = int(many.max())
    step, base = np.arange(head), np.arange(first.max())
    before = step + first
    end = length + present.sum(1, keepdims=True)  # a place that a row does not have gets its last position
    after = length - last + np.arange(last + lookahead)
    position = np.concatenate([before, after], axis=1).clip(max=(end - 1).clip(0))
    seen = np.concatenate([base < first, step < many, np.ones((batch, last), dtype=bool), present], axis=1)
    everywhere = bool(seen.all())
    if everywhere and (position == position[0]).all():
        position = position[:1]
    shown = np.where(canvas == MASKED, mask_id, np.where(present, canvas, 0))
    place = position[:, : head + last].clip(max=max(texts.shape[1] - 1, 0))
    ids = np.concatenate([texts[np.array(rows)[:, None], place], shown], axis=1)
    return Fresh(ids, position, None if everywhere else seen, head)


def seen_by_block(fresh: Fresh, held: int, block_size: int) -> np.ndarray | None:
    """Which columns each token of `fresh` sees under a block-causal mask, `[B or 1, F, K]`; None if each sees all.

    Args:
        held: K - F, columns of the cache; a token's column there is its position.
        block_size: tokens of a block; blocks are counted from position 0.
    """
    query = fresh.position // block_size
    before = np.broadcast_to(np.arange(held) // block_size, (len(query), held))
    key = np.concatenate([before, query], axis=1)
    allowed = key[:, None, :] <= query[:, :, None]
    if fresh.seen is not None:
        allowed = allowed & fresh.seen[:, None]
    return None if allowed.all() else allowed

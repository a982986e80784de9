"""Prefixes and their canvases laid out for one bidirectional forward: `[tokens to run | last token | canvas]`.

A bidirectional model with explicit positions does not care in which column a token stands, so every row's canvas is put
into the *last* columns, and what is missing in shorter rows lies before it. Then the outputs that are wanted are the
last columns of all rows, and the model's head is spared the others. With shifted outputs the last token of the prefix
stands right before the canvas, since its output is about the first place of it.
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
    cached: Sequence[int] | None = None, window: int | None = None, sinks: int = 0,
) -> Fresh:
    """Lay out the prefixes `rows` of `texts: [R, S]`, B of them, and `canvas: [B, M]` after them.

    Args:
        lengths: of the prefixes, B numbers, at least 1 if `shift`.
        mask_id: id that the model reads for `MASKED`.
        shift: whether the last token of a prefix stands before the canvas.
        cached: tokens of each prefix whose keys and values a cache holds, in its first columns (that one excluded).
        window: tokens at the end of a prefix that are shown, besides its first `sinks`; None for all. Without `cached`.
    """
    batch, lookahead = canvas.shape
    last, present = int(shift), canvas != ABSENT
    length = np.array(lengths)[:, None]
    first = np.zeros_like(length) if cached is None else np.array(cached)[:, None]
    many = length - last - first
    if window is not None:
        many = many.clip(max=sinks + max(window - last, 0))
    head = int(many.max())
    step, base = np.arange(head), np.arange(first.max())
    before = step + first
    if window is not None:
        before = np.where(step < sinks, before, step + length - last - many)
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

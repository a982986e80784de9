"""The forwards of a dual cache (Fast-dLLM, Wu et al. 2025, arXiv 2505.22618): over the block that is being filled.

When a block begins all is computed, and kept (`smc_bridge.models.huggingface.behind`): what stands before the block and
what stands behind it. Until the next one begins a forward is over the block, committed tokens or masks, and over places
behind it that were not there or hold something else now; it leaves none of these in the cache.

Shapes: B rows of a forward, F columns of it, M places of a canvas, A numbers of a score: the alphabet, and D features
if a session's scores are wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.host import sent
from smc_bridge.models.huggingface.behind import Behind
from smc_bridge.models.huggingface.canvas import Fresh
from smc_bridge.models.huggingface.masked_cache import Plan, PrefixCache
from smc_bridge.models.protocols import ABSENT


class Short(NamedTuple):
    """A forward without the columns that are kept."""

    fresh: Fresh
    """What is run, with what is seen of the cache."""
    base: int
    """Column of the cache from which on it is written."""
    canvas: np.ndarray
    """Whether a column is one of the canvas, `[B, F]`."""
    outputs: int
    """Last columns whose outputs are wanted."""
    output: np.ndarray
    """Which of these is about each place of the canvas, `[B, M]`; -1 where that is kept."""


def score_block(
    cache: PrefixCache, behind: Behind, rows: Sequence[int], fresh: Fresh, canvas: np.ndarray, lengths: Sequence[int],
    plan: Plan, *, shift: bool, run: Callable[[Fresh, int, Any], Tensor], scores: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Scores `[B, M, A]` of all places of the canvases, those that are kept among them.

    Args:
        cache, behind: of all rows.
        rows, canvas, lengths: B distinct rows, their canvases `[B, M]` and the tokens before these.
        fresh: all that is not read of the prefixes, with the canvas.
        plan: of these rows.
        shift: whether the output of a column is about the next place.
        run: gives outputs of the last so many columns of a forward with a cache.
        scores: of outputs.
    """
    same = behind.same(rows, canvas, lengths, [block is not None for block in plan.block])
    end = max(behind.end(r) for r in rows)
    short = shortened(fresh, same, start=plan.start, lengths=lengths, end=end)
    out = run(short.fresh, short.outputs, cache.open(rows, short.fresh, short.base, device))
    out = scores(out[:, out.shape[1] - short.outputs :])
    place = sent(short.output.clip(min=0), out.device)
    found = out.take_along_dim(place[..., None], 1)
    row, column = ((short.output < 0) & (canvas != ABSENT)).nonzero()
    if len(row):
        length = np.array(lengths)[row]
        at, of = sent(np.stack([row, column]), out.device).unbind()
        found[at, of] = behind.scores(np.array(rows)[row].tolist(), length + column - int(shift)).to(found.dtype)
    own, base = short.fresh.position, short.base
    real = np.ones(own.shape, dtype=bool) if short.fresh.seen is None else short.fresh.seen[:, base:]
    first = np.array([own.max() + 1 if block is None else block[1] for block in plan.block])[:, None]
    kept = (own < np.array(plan.kept)[:, None]) | (short.canvas & (own >= first))
    cache.put(rows, own, real & kept, base=base, device=device)
    return found


def keep_behind(
    behind: Behind, rows: Sequence[int], canvas: np.ndarray, lengths: Sequence[int], plan: Plan, scores: Tensor,
    *, shift: bool,
) -> None:
    """Keep what stands behind the blocks that begin with this forward, with its scores, `[B, M, A]`."""
    anew = [(b, block[1]) for b, block in enumerate(plan.block) if block is not None]
    if not anew:
        return
    index = [b for b, _ in anew]
    behind.put(
        [rows[b] for b in index], canvas[index], [lengths[b] for b in index], [first for _, first in anew],
        scores[sent(np.array(index), scores.device)], shift=shift,
    )


def shortened(
    fresh: Fresh, same: np.ndarray, *, start: Sequence[int], lengths: Sequence[int], end: int
) -> Short:
    """Leave the places that are the `same: [B, M]` out of a forward.

    Args:
        fresh: all of it, laid out behind the longest of the prefixes that are read.
        start, lengths: tokens of each row that are read from the cache, and all of them.
        end: first column of the cache that nothing is kept in.
    """
    (batch, width), lookahead, before = fresh.ids.shape, same.shape[1], max(start)
    real = np.ones((batch, width), dtype=bool) if fresh.seen is None else fresh.seen[:, before:]
    run = real.copy()
    run[:, width - lookahead :] &= ~same
    after = run[:, ::-1].cumsum(1)[:, ::-1]  # columns that are run from here on
    order = np.argsort(run, axis=1, kind="stable")[:, width - int(after[:, 0].max()) :]
    base = max(before, end)
    cached = np.arange(base) < np.array(start)[:, None]
    row, place = same.nonzero()
    cached[row, np.array(lengths)[row] + place] = True
    position = np.take_along_axis(np.broadcast_to(fresh.position, run.shape), order, 1)
    seen = np.concatenate([cached, np.take_along_axis(run, order, 1)], axis=1)
    short = Fresh(np.take_along_axis(fresh.ids, order, 1), position, None if seen.all() else seen, 0)
    about = slice(fresh.head, fresh.head + lookahead)  # columns whose outputs are about the canvas
    outputs = int(after[:, fresh.head].max())
    output = np.where(run[:, about], outputs - after[:, about], -1)
    return Short(short, base, order >= width - lookahead, outputs, output)

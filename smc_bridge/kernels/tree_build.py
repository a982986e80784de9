"""The tree of the likeliest continuations under a product of marginals, found best first.

Let `S_d = sum_{i<=d} max_a log q_i(a)`. A continuation that takes token a at depth d is at most as likely as the
*greedy deviation* that takes the likeliest tokens before it, `S_{d-1} + log q_d(a)`. These deviations are continuations
themselves; so only the tokens of the `nodes` likeliest of them can stand in a tree of `nodes` nodes, over all depths
together. They are found by one pass over the alphabet that takes the maximum of every chunk of it; a chunk whose best
deviation is not among the `nodes` best ones holds none of them. On the few tokens that are left a heap pops one
continuation after the other, the likeliest first (as in A*), and pushes its first child and its next sibling.

The same tree as that of DDTree (arXiv 2604.12989); OPT-Tree (arXiv 2406.17276) and DySpec (arXiv 2410.11744) build
theirs best first as well. Different here: the chunks that bound the search over a large alphabet, the power of the
marginals, and the least probability of a node.

Ties go to the smaller depth, then to the smaller id: the tree is a function of the row alone, whatever the batch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.law import Law, Selected
from smc_bridge.models.ends import Ends, is_end
from smc_bridge.models.host import Index, known, places, sent
from smc_bridge.sampling import softmax

#: Tokens of a chunk, and depths that are looked at in one go (more where they are few numbers).
CHUNK, DEPTHS = 64, 8


#: Arrays on the CPU.
Floats = npt.NDArray[np.float64]


class Tree(NamedTuple):
    """T-node token trees of R rows; parents stand before their children.

    Attributes:
        tokens: LongTensor `[R, T]`.
        parents: LongTensor `[R, T]`: 0 is the root, j + 1 is node j.
        depth: LongTensor `[R, T]`, 1 for children of the root.
        real: BoolTensor `[R, T]`; the others only fill the rectangle and are never walked on.
    """

    tokens: Tensor
    parents: Tensor
    depth: Tensor
    real: Tensor


def best_first(
    law: Law, nodes: int, horizon: Horizon, *, min_probability: float = 0.0, exponent: float = 1.0,
    worth: float | None = None,
) -> Tree:
    """The `nodes` likeliest non-empty continuations under the product law of the normalised powers `q^exponent`.

    A continuation's probability never exceeds its parent's, so the likeliest ones form a tree. Continuations of an end
    of sequence, those as long as the window (nothing is drawn after them) and those of probability zero are left out.

    Args:
        law: the marginals q, `[R, V, A]`; where they are point masses at the likeliest tokens of others, the others
            are ranked (`Law.ranking`).
        nodes: B, budget per row.
        horizon: see `Horizon`.
        min_probability: continuations less likely than this are left out.
        exponent: 1 for the product law of q itself.
        worth: what a step costs besides its nodes, in nodes; a tree ends where another node would lower the expected
            tokens per cost, `(1 + sum of probabilities) / (worth + nodes)`, but for its first. None: never.
    Raises:
        ValueError: a marginal with NaN, or without a possible token.
    Returns:
        Trees of at most `nodes` real nodes; T is the number of nodes of the largest.
    """
    law = law.ranking
    if isinstance(law, Selected) and law.chosen is not None:  # rows that share a law and a window share a tree
        window = law.shape[-2]
        kinds, group = np.unique(known(law.chosen) * (window + 1) + known(horizon.window), return_inverse=True)
        if kinds.size < group.size:
            own, width = (sent(x, law.device) for x in np.divmod(kinds, window + 1))
            tree = best_first(
                law.base.of_rows(own), nodes, Horizon(width, horizon.ends), min_probability=min_probability,
                exponent=exponent, worth=worth,
            )
            return Tree(*(sent(known(x)[group], law.device) for x in tree))
    floor = math.log(min_probability) if min_probability > 0.0 else -math.inf
    row, place, token, log_prob = _candidates(law, nodes, horizon, floor=floor, exponent=exponent)
    order = np.lexsort((token, -log_prob, place, row))
    scores = log_prob[order].tolist()
    rows, stride = law.rows, law.shape[-2] + 1
    # Where the candidates of each depth of each row begin; there are none at the last depth.
    start = np.searchsorted((row * stride + place)[order], np.arange(rows * stride + 1)).tolist()
    grown = [_grow(start[r * stride : (r + 1) * stride + 1], scores, nodes, floor, worth) for r in range(rows)]
    count = np.array([len(parents) for parents, _, _ in grown], dtype=np.int64)
    real = np.arange(count.max(initial=0)) < count[:, None]
    tokens, parents, depth = (np.full(real.shape, fill) for fill in (0, 0, 1))
    parents[real], depth[real] = (np.array([i for g in grown for i in g[k]], dtype=np.int64) for k in (0, 1))
    tokens[real] = token[order][np.array([i for g in grown for i in g[2]], dtype=np.int64)]
    return Tree(*(sent(x, law.device) for x in (tokens, parents, depth, real)))


class Scale(NamedTuple):
    """What turns the scores of a cell into log-probabilities, `log_prob = factor * (score - peak) + top`.

    Attributes:
        factor: inverse temperature, times the power of the marginal, `[R, V]`.
        peak: greatest score, `[R, V]`.
        top: log-probability of the token with that score, `[R, V]` nats.
    """

    factor: Floats
    peak: Floats
    top: Floats

    def __call__(self, cell: Any, scores: Floats) -> Floats:
        """Of scores `[n, m]` at cells that `cell` picks, `[n]`."""
        factor, peak, top = (x[cell][:, None] for x in self)
        log_probs: Floats = factor * (scores - peak) + top
        return log_probs


def _candidates(
    law: Law, nodes: int, horizon: Horizon, *, floor: float, exponent: float
) -> tuple[Index, Index, Index, Floats]:
    """Tokens that can stand in the tree: row, place (depth - 1), token and log-probability of each, `[C]`.

    Depths are looked at from the first on, some at a time, until no deviation further down can be among the best.
    """
    rows, (window, size) = law.rows, law.shape[-2:]
    limit = known(horizon.window)[:, None]
    scale = Scale(*np.zeros((3, rows, window)))
    before = np.zeros((rows, 1))  # S of the depths so far and of the next one
    value = np.empty((rows, 0))
    bar = np.full((rows, 1), floor)
    chunks = -(-size // CHUNK)
    step = max(DEPTHS, law.chunks.cells(size, law.dtype.itemsize) // max(1, rows))
    for first in range(0, window, step):
        place = np.arange(first, min(first + step, window))
        row, column = ((place + 1 < limit) & (before[:, -1:] >= bar) & (before[:, -1:] > -math.inf)).nonzero()
        if not row.size:
            break
        best = np.full((rows, place.size, chunks), -math.inf)
        for span in law.spans(row.size):
            r, i = row[span], column[span]
            best[r, i] = _chunk_maxima(law, r, i + first, scale, exponent=exponent, ends=horizon.ends)
        deepest = np.concatenate([before[:, -1:], best.max(-1)], axis=1).cumsum(1)
        value = np.concatenate([value, (deepest[:, :-1, None] + best).reshape(rows, -1)], axis=1)
        before = np.concatenate([before, deepest[:, 1:]], axis=1)
        if value.shape[1] > nodes:
            bar = np.maximum(np.partition(value, -nodes, axis=1)[:, [-nodes]], floor)
    kept = (value >= bar) & (value > -math.inf)
    if (kept.sum(1) > nodes).any():  # chunks tie for the last places
        above = kept & (value > bar)
        tied = kept & ~above
        kept = above | (tied & (tied.cumsum(1) <= nodes - above.sum(1, keepdims=True)))
    row, flat = kept.nonzero()
    place = flat // chunks
    token = (flat % chunks)[:, None] * CHUNK + np.arange(CHUNK)  # [C', 64]
    each = (np.repeat(row, CHUNK), np.repeat(place, CHUNK), np.minimum(token, size - 1).ravel())
    scores = law.scores(*(sent(x, law.device) for x in each)).values
    log_prob = scale((row, place), known(scores.reshape(token.shape).double()))
    deviation = before[row, place][:, None] + log_prob
    possible = (deviation >= bar[row]) & (deviation > -math.inf) & (token < size)
    if horizon.ends:
        possible &= ~is_end(token, horizon.ends)
    owner, column = possible.nonzero()
    return row[owner], place[owner], token[owner, column], log_prob[owner, column]


def _chunk_maxima(
    law: Law, row: Index, place: Index, scale: Scale, *, exponent: float, ends: Ends
) -> Floats:
    """Greatest log-probability of each chunk of n cells, ends of sequence left out, `[n, chunks]`; fills `scale`."""
    rows, at = sent(row, law.device), sent(place, law.device)
    scores, factor, _, _ = law.scores(rows, at)
    count, size = scores.shape
    whole = size // CHUNK * CHUNK
    parts = [scores[:, :whole].view(count, -1, CHUNK).amax(-1)] if whole else []
    parts += [scores[:, whole:].amax(-1, keepdim=True)] if whole < size else []
    best = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    if exponent == 1.0:
        peak, chunk = best.max(-1, keepdim=True)
        column = torch.add(places(min(CHUNK, size), law.device), chunk, alpha=CHUNK).clamp_max(size - 1)
        token = column.gather(1, scores.gather(1, column).argmax(-1, keepdim=True))[:, 0]
        top = law.log_probs(rows, at, token)
    else:
        _, peak, log_total = softmax(scores, exponent * factor)
        top = -log_total
    for part, own in itertools.groupby(ends, lambda end: end // CHUNK):
        others = scores[:, part * CHUNK : (part + 1) * CHUNK].clone()
        for end in own:
            others[:, end % CHUNK] = -math.inf
        best[:, part] = others.amax(-1)
    power = exponent * factor
    found = [best, peak, top, *([power] if isinstance(power, Tensor) else [])]
    read = known(torch.cat(found, dim=1).double())  # at once: to read is to wait
    peaks, tops = read[:, best.shape[1]], read[:, best.shape[1] + 1]
    if not np.isfinite(tops).all():
        bad = np.isfinite(tops).argmin()
        raise ValueError(
            f"log_probs has NaN at (row, position) [{row[bad]}, {place[bad]}]: check the model's logits there"
        )
    scale.factor[row, place] = read[:, -1] if isinstance(power, Tensor) else power
    scale.peak[row, place], scale.top[row, place] = peaks, tops
    return scale((row, place), read[:, : best.shape[1]])


def _grow(
    start: list[int], log_prob: list[float], nodes: int, floor: float, worth: float | None = None
) -> tuple[list[int], list[int], list[int]]:
    """One row's tree: parent, depth and candidate of every node, in order of falling probability.

    Args:
        start: candidates of depth d + 1 are those from `start[d]` to `start[d + 1]`, likeliest first.
        log_prob: of the candidates.
        nodes, floor, worth: where to stop.
    """
    parents: list[int] = []
    depths: list[int] = []
    index: list[int] = []
    # Entries: minus the score, a counter that settles ties, parent, depth - 1, candidate, the parent's score.
    heap = [(-log_prob[start[0]], 0, 0, 0, start[0], 0.0)] if start[0] < start[1] else []
    counter, tokens = 0, 1.0  # expected tokens of a walk on the tree so far
    while heap and len(parents) < nodes:
        minus_score, _, parent, d, i, base = heap[0]
        if -minus_score < floor:
            break
        if worth is not None:
            probability = math.exp(-minus_score)
            # Probabilities fall from node to node: where one does not pay, none does that comes after it.
            if parents and probability * (worth + len(parents)) < tokens:
                break
            tokens += probability
        parents.append(parent)
        depths.append(d + 1)
        index.append(i)
        counter += 2
        if i + 1 < start[d + 1]:
            heapq.heapreplace(heap, (-(base + log_prob[i + 1]), counter, parent, d, i + 1, base))
        else:
            heapq.heappop(heap)
        first = start[d + 1]
        if first < start[d + 2]:
            score = -minus_score
            heapq.heappush(heap, (-(score + log_prob[first]), counter + 1, len(parents), d + 1, first, score))
    return parents, depths, index

"""The tree of the likeliest continuations under a product of marginals, found best first.

Let `S_d = sum_{i<=d} max_a log q_i(a)`. A continuation that takes token a at depth d is at most as likely as the
*greedy deviation* that takes the likeliest tokens before it, `S_{d-1} + log q_d(a)`. These deviations are continuations
themselves; so only the tokens of the `nodes` likeliest of them can stand in a tree of `nodes` nodes, over all depths
together. They are found by one pass over the alphabet that takes the maximum of every chunk of it; a chunk whose best
deviation is not among the `nodes` best ones holds none of them. On the few tokens that are left a heap pops one
continuation after the other, the likeliest first (as in A*), and pushes its first child and its next sibling.

Ties go to the smaller depth, then to the smaller id: the tree is a function of the row alone, whatever the batch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smc_bridge.kernels.protocol import Horizon

#: Tokens of a chunk.
CHUNK = 64


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
    q: Tensor, nodes: int, horizon: Horizon, *, min_probability: float = 0.0, exponent: float = 1.0
) -> Tree:
    """The `nodes` likeliest non-empty continuations under the product law of the normalised powers `q^exponent`.

    A continuation's probability never exceeds its parent's, so the likeliest ones form a tree. Continuations of the end
    of sequence, those as long as the window (nothing is drawn after them) and those of probability zero are left out.

    Args:
        q: log-marginals `[R, V, A]`.
        nodes: B, budget per row.
        horizon: see `Horizon`.
        min_probability: continuations less likely than this are left out.
        exponent: 1 for the product law of q itself.
    Returns:
        Trees of at most `nodes` real nodes; T is the number of nodes of the largest.
    """
    q = q if exponent == 1.0 else torch.log_softmax(exponent * q, -1)
    floor = math.log(min_probability) if min_probability > 0.0 else -math.inf
    row, place, token, log_prob = (x.cpu().numpy() for x in _candidates(q, nodes, horizon, floor))
    order = np.lexsort((token, -log_prob, place, row))
    row, place, token, log_prob = row[order], place[order], token[order], log_prob[order]
    rows, window = q.shape[:2]
    bounds = np.searchsorted(row, np.arange(rows + 1)).tolist()
    # Rows with the same candidates, such as particles that share a prefix, have the same tree: it is grown once.
    entries = np.stack([place, token, log_prob.view(np.int64)], axis=1)
    known: dict[bytes, int] = {}
    group = [known.setdefault(entries[a:b].tobytes(), len(known)) for a, b in itertools.pairwise(bounds)]
    grown: list[tuple[list[int], list[int], list[int]]] = []
    kinds: list[np.ndarray] = []
    for r, kind in enumerate(group):
        if kind == len(grown):
            own = slice(bounds[r], bounds[r + 1])
            start = np.searchsorted(place[own], np.arange(window + 2)).tolist()
            grown.append(_grow(start, log_prob[own].tolist(), nodes, floor))
            kinds.append(token[own][grown[-1][2]])
    count = np.array([len(parents) for parents, _, _ in grown], dtype=np.int64)
    real = np.arange(count.max(initial=0)) < count[:, None]
    tokens, parents, depth = (np.full(real.shape, fill) for fill in (0, 0, 1))
    if kinds:
        tokens[real] = np.concatenate(kinds)
    parents[real] = [i for parents, _, _ in grown for i in parents]
    depth[real] = [i for _, depths, _ in grown for i in depths]
    return Tree(*(torch.from_numpy(x[group]).to(q.device) for x in (tokens, parents, depth, real)))


def _candidates(q: Tensor, nodes: int, horizon: Horizon, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens that can stand in the tree: row, place (depth - 1), token and log-probability of each, `[C]`."""
    rows, window, size = q.shape
    whole = size // CHUNK * CHUNK
    best = q[..., :whole].view(rows, window, -1, CHUNK).amax(-1) if whole else q[..., :0]
    if whole < size:
        best = torch.cat([best, q[..., whole:].amax(-1, keepdim=True)], dim=-1)  # [R, V, G]
    if horizon.eos_id is not None:
        first = horizon.eos_id // CHUNK * CHUNK
        chunk = q[..., first : first + CHUNK].clone()
        chunk[..., horizon.eos_id - first] = -math.inf
        best[..., horizon.eos_id // CHUNK] = chunk.amax(-1)
    best = best.double()
    position = torch.arange(1, window + 1, device=q.device)
    best.masked_fill_((position >= horizon.window[:, None])[..., None], -math.inf)
    before = torch.nn.functional.pad(best.amax(-1)[:, :-1].cumsum(-1), (1, 0))  # S_{d-1}: [R, V]
    value = (before[..., None] + best).reshape(rows, -1)
    bar = torch.full_like(value[:, :1], floor)
    if value.shape[1] > nodes:
        bar = bar.clamp_min(value.topk(nodes, dim=-1).values[:, -1:])
    kept = (value >= bar) & (value > -math.inf)
    if bool((kept.sum(-1) > nodes).any()):  # chunks tie for the last places
        above = kept & (value > bar)
        tied = kept & ~above
        kept = above | (tied & (tied.cumsum(-1) <= nodes - above.sum(-1, keepdim=True)))
    row, flat = kept.nonzero(as_tuple=True)
    place, chunk_id = flat // best.shape[-1], flat % best.shape[-1]
    token = chunk_id[:, None] * CHUNK + torch.arange(CHUNK, device=q.device)  # [C', 64]
    log_prob = q[row[:, None], place[:, None], token.clamp_max(size - 1)].double()
    deviation = before[row, place][:, None] + log_prob
    possible = (deviation >= bar[row]) & (deviation > -math.inf) & (token < size)
    if horizon.eos_id is not None:
        possible &= token != horizon.eos_id
    owner, column = possible.nonzero(as_tuple=True)
    return row[owner], place[owner], token[owner, column], log_prob[owner, column]


def _grow(
    start: list[int], log_prob: list[float], nodes: int, floor: float
) -> tuple[list[int], list[int], list[int]]:
    """One row's tree: parent, depth and candidate of every node, in order of falling probability.

    Args:
        start: candidates of depth d + 1 are those from `start[d]` to `start[d + 1]`, likeliest first.
        log_prob: of the candidates.
        nodes, floor: where to stop.
    """
    parents: list[int] = []
    depths: list[int] = []
    index: list[int] = []
    # Entries: minus the score, a counter that settles ties, parent, depth - 1, candidate, the parent's score.
    heap = [(-log_prob[start[0]], 0, 0, 0, start[0], 0.0)] if start[0] < start[1] else []
    counter = 0
    while heap and len(parents) < nodes:
        minus_score, _, parent, d, i, base = heap[0]
        if -minus_score < floor:
            break
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

"""The tree of the likeliest continuations under a chain whose law depends on the token before, found depth by depth.

Where marginals rank a child by what stands at its depth whatever its parent, a chain ranks it *given its parent*
(`smc_bridge.distributions.first_order`): under a sibling of the likeliest token it is the sibling's own continuation
that stands in the tree. A continuation is never likelier than its parent. So of each depth only the `nodes` likeliest
continuations can have children in the tree, and of these only those that are among the `nodes` likeliest found so far:
the law after all of them is asked for at once, a round for each depth. The tree is the best-first one, of the exact
conditional probabilities (EAGLE-2, arXiv 2406.16858, keeps a fixed number at each depth, and ranks again at the end).

Ties go to the smaller depth, then to the smaller id.

Shapes: R rows, n continuations of one depth, C continuations found, A alphabet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from smc_bridge.blocks import Horizon
from smc_bridge.distributions.first_order import FirstOrder
from smc_bridge.kernels.tree_build import Floats, Tree
from smc_bridge.models.host import Index, known, sent


class Found(NamedTuple):
    """Continuations, those of one depth after those of the one before.

    Attributes:
        row, parent, depth, token: of each, `[C]`; the parent is its place among them, -1 for the root.
        log_prob: of all its tokens, `[C]` nats.
    """

    row: Index
    parent: Index
    depth: Index
    token: Index
    log_prob: Floats


def best_first_chain(
    law: FirstOrder, nodes: int, horizon: Horizon, *, min_probability: float = 0.0, exponent: float = 1.0,
    worth: float | None = None,
) -> Tree:
    """The `nodes` likeliest non-empty continuations under the chain of the normalised powers of its conditionals.

    Args:
        law: `[R, V, A]`, which is asked after the tokens of the tree alone.
        nodes, horizon, min_probability, exponent, worth: as of `smc_bridge.kernels.tree_build.best_first`.
    Raises:
        ValueError: a conditional with NaN, or without a possible token.
    """
    limit, rows = known(horizon.window), law.rows
    floor = math.log(min_probability) if min_probability > 0.0 else -math.inf
    most = nodes if min_probability == 0.0 else min(nodes, math.floor(1.0 / min_probability))  # children that pass it
    row, node, before, reached = np.arange(rows), np.full(rows, -1), np.zeros(rows, dtype=np.int64), np.zeros(rows)
    parts, count = list[Found](), 0
    for depth in range(law.shape[-2] - 1):
        if not (grows := limit[row] > depth + 1).all():
            row, node, before, reached = row[grows], node[grows], before[grows], reached[grows]
        if not row.size:
            break
        token, log_prob = _children(law, row, depth, before, most, exponent, horizon)
        log_prob = np.minimum(log_prob, 0.0) + reached[:, None]  # above 0 by round-off at most
        parent, place = ((log_prob >= floor) & (log_prob > -math.inf)).nonzero()
        row, node, before, reached = row[parent], node[parent], token[parent, place], log_prob[parent, place]
        parts.append(Found(row, node, np.full(row.size, depth + 1), before, reached))
        node, count = np.arange(count, count + row.size), count + row.size
        if count > nodes:
            kept = (_rank(_together(parts)) < nodes)[count - row.size :]
            row, node, before, reached = row[kept], node[kept], before[kept], reached[kept]
    return _tree(_together(parts), rows, nodes, worth, law.device)


def _children(
    law: FirstOrder, row: Index, depth: int, before: Index, most: int, exponent: float, horizon: Horizon
) -> tuple[Index, Floats]:
    """The likeliest next tokens of n continuations and their log-probabilities, `[n, k]` each."""
    device, parts = law.device, []
    for span in law.spans(row.size):
        rows, tokens = sent(row[span], device), sent(before[span], device)
        scores, factor = law.ranked(rows, depth, tokens)
        log_probs = torch.log_softmax(scores.mul_(exponent * factor), -1)
        for end in horizon.ends:
            log_probs[:, end] = -math.inf
        parts.append(log_probs.topk(min(most, log_probs.shape[-1]), dim=-1))
    values, tokens = parts[0] if len(parts) == 1 else (torch.cat([part[k] for part in parts]) for k in (0, 1))
    found = known(values).astype(np.float64)
    if np.isnan(found).any():
        raise ValueError(f"log_probs has NaN {depth} places ahead: check the model's logits there")
    return known(tokens), found


def _together(parts: list[Found]) -> Found:
    """What was found at all depths."""
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Found(none, none, none, none, np.zeros(0))
    return parts[0] if len(parts) == 1 else Found(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _order(found: Found) -> Index:
    """Continuations row by row, the likeliest first, and parents before their children."""
    return np.lexsort((found.token, found.depth, -found.log_prob, found.row))


def _rank(found: Found) -> Index:
    """Place of each continuation among those of its row, `[C]`."""
    order = _order(found)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size) - np.searchsorted(found.row[order], found.row[order])
    return rank


def _tree(found: Found, rows: int, nodes: int, worth: float | None, device: torch.device) -> Tree:
    """The trees of the likeliest continuations of every row."""
    order = _order(found)
    row = found.row[order]
    rank = np.arange(order.size) - np.searchsorted(row, row)
    kept = rank < nodes
    if worth is not None:
        # Probabilities fall from node to node: where one does not pay, none does that comes after it.
        probability = np.exp(found.log_prob[order])
        before = np.concatenate([[0.0], probability.cumsum()])[:-1]
        tokens = 1.0 + before - before[np.searchsorted(row, row)]
        pays = (rank == 0) | (probability * (worth + rank) >= tokens)
        first = np.full(rows, nodes)
        np.minimum.at(first, row[~pays], rank[~pays])
        kept &= rank < first[row]
    order, row, rank = order[kept], row[kept], rank[kept]
    count = np.bincount(row, minlength=rows)
    number = np.full(found.row.size + 1, -1)  # the parent -1 of a first token reads the last entry
    number[order] = rank
    real = np.arange(count.max(initial=0)) < count[:, None]
    tokens_of, parents, depths = (np.full(real.shape, fill) for fill in (0, 0, 1))
    tokens_of[real], depths[real] = found.token[order], found.depth[order]
    parents[real] = number[found.parent[order]] + 1
    return Tree(*(sent(x, device) for x in (tokens_of, parents, depths, real)))

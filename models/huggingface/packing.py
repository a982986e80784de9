"""Lanes and trees of one prefix packed into one row: a forest of tokens, and the attention mask that keeps them apart.

A packed row is `[pending | nodes]` over a cached prefix: tokens that are committed but not cached yet, then the nodes
of a forest. A node sees the cached prefix, the pending tokens, its ancestors and itself, and stands at the position
`prefix length + depth - 1`, which is where it would stand in its own path (Miao et al. 2024, SpecInfer, arXiv
2305.09781). K linear drafts are K chains; where drafts begin alike, their common beginning is one chain (a trie).

Shapes: G packed rows, K lanes of each, T nodes, F = pending + T fresh tokens, C scores wanted of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from smc_bridge.models.huggingface.trees import rooted

#: Lanes are merged into a trie if that leaves at most this share of the nodes: less is not worth the ragged outputs.
WORTH_MERGING = 0.85


class LaneGroups(NamedTuple):
    """Which entries of a call share a session row, and so a packed row."""

    rows: list[int]
    """The G distinct session rows, in the order of their first entries."""
    width: int
    """K, of the row that has most."""
    entry: list[list[int]] | None
    """Entry of the call that each lane `[G, K]` shows (rows with fewer lanes repeat one), or None if in order."""


def group_lanes(rows: list[int]) -> LaneGroups:
    """Group the entries of a call, row `rows[b]` each, by their row."""
    count = next((i for i, row in enumerate(rows) if row != rows[0]), len(rows))
    distinct = rows[::count]
    if len(set(distinct)) * count == len(rows) and rows == [row for row in distinct for _ in range(count)]:
        return LaneGroups(distinct, count, None)
    members: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row, []).append(index)
    count = max(len(entries) for entries in members.values())
    return LaneGroups(list(members), count, [m + m[:1] * (count - len(m)) for m in members.values()])


class Forest(NamedTuple):
    """Nodes of G packed rows; a leading 1 stands for the same in all rows."""

    tokens: np.ndarray
    """`[G, T]`."""
    depth: np.ndarray
    """`[G or 1, T]`, at least 1."""
    seen: np.ndarray
    """`[G or 1, T + 1, T + 1]`, True at (j, i) if place j sees place i: place 0 is the last token of the prefix, which
    all see, and node j is place j + 1."""
    wanted: np.ndarray | None
    """`[G or 1, C]`: the scores to return, 0 after the prefix alone, j + 1 after node j; None for all T + 1."""
    chains: int = 0
    """K, if the nodes are K chains of one length, one after the other; 0 if they are not."""

    @property
    def lineage(self) -> np.ndarray:
        """`[G or 1, T, T]`, True at (j, i) if node j sees node i."""
        return self.seen[:, 1:, 1:]


@lru_cache(maxsize=64)
def _chains(lanes: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Depth, what is seen, and wanted scores of `lanes` chains of `steps` nodes, leading dimension 1."""
    step = np.arange(steps)
    lineage = np.kron(np.eye(lanes, dtype=bool), np.tri(steps, dtype=bool))[None]
    return np.tile(step + 1, lanes)[None], _below_root(lineage), _wanted(lanes, steps)


def _wanted(lanes: int, nodes: int) -> np.ndarray | None:
    """The scores `[1, C]` after the prefix and after each of the `nodes` nodes of each lane; None for one lane."""
    if lanes == 1:
        return None
    after = nodes * np.arange(lanes)[:, None] + np.arange(nodes) + 1
    return np.pad(after, ((0, 0), (1, 0))).reshape(1, -1)


def _below_root(lineage: np.ndarray) -> np.ndarray:
    """What places see of each other, `[.., T + 1, T + 1]`, from what nodes do, `[.., T, T]`."""
    seen = np.pad(lineage, ((0, 0), (1, 0), (1, 0)))
    seen[..., 0] = True
    return seen


def chain_forest(drafts: np.ndarray, *, merge: bool = True) -> Forest:
    """The forest of K drafts of each row; the last token of a draft is not in it, since nothing is wanted after it.

    Args:
        drafts: `[G, K, V]`, V at least 1.
        merge: whether drafts that begin alike share nodes.
    """
    lanes, steps = drafts.shape[1], drafts.shape[2] - 1
    tokens = drafts[:, :, :steps]
    if merge and lanes > 1 and steps > 0:
        same = np.logical_and.accumulate(tokens[:, :, None] == tokens[:, None], axis=-1)  # [G, K, K, V - 1]
        owner = same.argmax(2)  # the first lane with the same beginning
        fresh = (owner == np.arange(lanes)[:, None]).reshape(len(drafts), -1)  # [G, K * (V - 1)]
        nodes = int(fresh.sum(1).max())
        if nodes <= WORTH_MERGING * lanes * steps:
            return _trie(tokens, owner, fresh, nodes)
    return Forest(tokens.reshape(len(drafts), -1), *_chains(lanes, steps), lanes)


def _trie(tokens: np.ndarray, owner: np.ndarray, fresh: np.ndarray, nodes: int) -> Forest:
    """Keep of the drafts `tokens: [G, K, D]` the nodes that are `fresh: [G, K * D]`, at most `nodes` in a row.

    Node (k, i) of a draft is node (owner[k, i], i) of the trie. Rows with fewer nodes than `nodes` are padded with
    copies of their first node, which no other node sees.
    """
    batch, lanes, steps = tokens.shape
    rank = fresh.cumsum(1) - 1
    node_of = np.take_along_axis(rank.reshape(batch, lanes, steps), owner, axis=1)  # [G, K, D]: place in the trie
    origin = np.zeros((batch, nodes), dtype=np.int64)  # [G, T]
    row, flat = np.nonzero(fresh)
    origin[row, rank[row, flat]] = flat
    lane, step = origin // steps, origin % steps
    at = np.arange(batch)[:, None, None]
    sees = owner[at, lane[:, :, None], step[:, None, :]] == lane[:, None, :]
    real = np.arange(nodes) < fresh.sum(1)[:, None]
    lineage = sees & (step[:, None, :] <= step[:, :, None]) & real[:, None, :]
    wanted = np.pad(node_of + 1, ((0, 0), (0, 0), (1, 0))).reshape(batch, -1)
    shown = np.take_along_axis(tokens.reshape(batch, -1), origin, axis=1)
    return Forest(shown, step + 1, _below_root(lineage), wanted)


def tree_forest(tokens: np.ndarray, parents: np.ndarray) -> Forest:
    """The forest of K trees of each row.

    Args:
        tokens, parents: `[G, K, T']`, T' at least 1.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    batch, lanes, nodes = tokens.shape
    seen = rooted(parents.reshape(-1, nodes))
    depth = (seen.sum(-1)[:, 1:] - 1).reshape(batch, -1)
    if lanes > 1:
        apart = np.zeros((batch, lanes, nodes, lanes, nodes), dtype=bool)
        every = np.arange(lanes)
        apart[:, every, :, every] = seen[:, 1:, 1:].reshape(batch, lanes, nodes, nodes).swapaxes(0, 1)
        seen = _below_root(apart.reshape(batch, lanes * nodes, lanes * nodes))
    return Forest(tokens.reshape(batch, -1), depth, seen, _wanted(lanes, nodes))


def no_forest(rows: int) -> Forest:
    """A forest without nodes, for a forward over pending tokens alone."""
    none = np.zeros((rows, 0), dtype=np.int64)
    return Forest(none, none[:1], np.ones((1, 1, 1), dtype=bool), None)


def fresh_mask(seen: np.ndarray, pending: Sequence[int], widest: int) -> np.ndarray:
    """What the fresh tokens of a packed row see of each other, `[G or 1, F, F]`, F = `widest` + T.

    Args:
        seen: of the forest, `[G or 1, T + 1, T + 1]`.
        pending: pending tokens of each row, at least 1, which stand in the last of the first `widest` columns.
    """
    if widest == 1:
        return seen
    column, many = np.arange(widest), seen.shape[-1] - 1 + widest
    real = column >= widest - np.array(pending)[:, None]  # [G, widest]
    out = np.zeros((len(pending), many, many), dtype=bool)
    out[:, widest:, widest:] = seen[:, 1:, 1:]
    out[:, widest:, :widest] = real[:, None]
    out[:, :widest, :widest] = (real[:, None] & (column <= column[:, None])) | (column == column[:, None])
    return out

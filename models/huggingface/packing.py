"""Lanes and trees of one prefix packed into one row: a forest of tokens, and the attention mask that keeps them apart.

A packed row is `[pending | nodes]` over a cached prefix: tokens that are committed but not cached yet, then the nodes
of a forest. A node sees the cached prefix, the pending tokens, its ancestors and itself, and stands at the position
`prefix length + depth - 1`, which is where it would stand in its own path (Miao et al. 2024, SpecInfer, arXiv
2305.09781). K linear drafts are K chains; where drafts begin alike, their common beginning is one chain (a trie).

Shapes: G packed rows, K lanes of each, T nodes, F = pending + T fresh tokens, C scores wanted of a row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.models.huggingface.trees import tree_structure

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

    tokens: Tensor
    """`[G, T]`."""
    depth: Tensor
    """`[G or 1, T]`, at least 1."""
    lineage: Tensor
    """`[G or 1, T, T]`, True at (j, i) if node j sees node i."""
    wanted: Tensor | None
    """`[G or 1, C]`: the scores to return, 0 after the prefix alone, j + 1 after node j; None for all T + 1."""

    def rows(self, part: slice) -> Forest:
        """The packed rows of `part` alone."""
        tokens, depth, lineage = (x if x.shape[0] == 1 else x[part] for x in self[:3])
        wanted = self.wanted if self.wanted is None or self.wanted.shape[0] == 1 else self.wanted[part]
        return Forest(tokens, depth, lineage, wanted)


@lru_cache(maxsize=64)
def _chains(lanes: int, steps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Depth, lineage and wanted scores of `lanes` chains of `steps` nodes, leading dimension 1."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        step = torch.arange(steps, device=device)
        start = steps * torch.arange(lanes, device=device)[:, None]
        depth = (step + 1).repeat(lanes)[None]
        chain = torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
        lineage = torch.kron(torch.eye(lanes, dtype=torch.bool, device=device), chain)[None]
        wanted = torch.nn.functional.pad(start + step + 1, (1, 0)).reshape(1, -1)
        return depth, lineage, None if lanes == 1 else wanted


def chain_forest(drafts: Tensor, *, merge: bool = True) -> Forest:
    """The forest of K drafts of each row; the last token of a draft is not in it, since nothing is wanted after it.

    Args:
        drafts: `[G, K, V]`, V at least 1.
        merge: whether drafts that begin alike share nodes.
    """
    lanes, steps = drafts.shape[1], drafts.shape[2] - 1
    tokens = drafts[:, :, :steps]
    if merge and lanes > 1 and steps > 0:
        same = (tokens[:, :, None] == tokens[:, None]).cumprod(-1)  # [G, K, K, V - 1]
        owner = same.argmax(2)  # the first lane with the same beginning
        fresh = (owner == torch.arange(lanes, device=drafts.device)[:, None]).flatten(1)  # [G, K * (V - 1)]
        count = fresh.sum(1)
        nodes = int(count.max())
        if nodes <= WORTH_MERGING * lanes * steps:
            return _trie(tokens, owner, fresh, count, nodes)
    depth, lineage, wanted = _chains(lanes, steps, drafts.device)
    return Forest(tokens.flatten(1), depth, lineage, wanted)


def _trie(tokens: Tensor, owner: Tensor, fresh: Tensor, count: Tensor, nodes: int) -> Forest:
    """Keep of the drafts `tokens: [G, K, D]` the nodes that are `fresh: [G, K * D]`, `count: [G]` of them.

    Node (k, i) of a draft is node (owner[k, i], i) of the trie. Rows with fewer nodes than `nodes` are padded with
    copies of their first node, which no other node sees.
    """
    batch, lanes, steps = tokens.shape
    device = tokens.device
    rank = fresh.cumsum(1) - 1
    node_of = rank.view(batch, lanes, steps).gather(1, owner)  # [G, K, D]: place in the trie
    flat = torch.arange(lanes * steps, device=device).expand(batch, -1)
    origin = torch.zeros(batch, nodes + 1, dtype=torch.long, device=device)
    origin = origin.scatter(1, torch.where(fresh, rank, nodes), flat)[:, :nodes]  # [G, T]
    lane, step = origin // steps, origin % steps
    row = torch.arange(batch, device=device)[:, None, None]
    sees = owner[row, lane[:, :, None], step[:, None, :]] == lane[:, None, :]
    real = torch.arange(nodes, device=device) < count[:, None]
    lineage = sees & (step[:, None, :] <= step[:, :, None]) & real[:, None, :]
    wanted = torch.nn.functional.pad(node_of + 1, (1, 0)).flatten(1)
    return Forest(tokens.flatten(1).gather(1, origin), step + 1, lineage, wanted)


def tree_forest(tokens: Tensor, parents: Tensor) -> Forest:
    """The forest of K trees of each row.

    Args:
        tokens, parents: `[G, K, T']`, T' at least 1.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    batch, lanes, nodes = tokens.shape
    lineage, depth = tree_structure(parents.flatten(0, 1))
    if lanes == 1:
        return Forest(tokens[:, 0], depth, lineage, None)
    start = nodes * torch.arange(lanes, device=tokens.device)[:, None]
    own = torch.eye(lanes, dtype=torch.bool, device=tokens.device)[:, None, :, None]
    apart = own & lineage.view(batch, lanes, nodes, 1, nodes)
    wanted = torch.nn.functional.pad(start + torch.arange(nodes, device=tokens.device) + 1, (1, 0)).reshape(1, -1)
    return Forest(
        tokens.flatten(1), depth.view(batch, -1), apart.reshape(batch, lanes * nodes, lanes * nodes), wanted
    )


def no_forest(rows: int, device: torch.device) -> Forest:
    """A forest without nodes, for a forward over pending tokens alone."""
    none = torch.zeros(1, 0, dtype=torch.long, device=device)
    return Forest(none.expand(rows, 0), none, none.new_zeros(1, 0, 0, dtype=torch.bool), None)


def fresh_mask(lineage: Tensor, pending: Tensor, widest: int) -> Tensor:
    """What the fresh tokens of a packed row see of each other, `[G or 1, F, F]`, F = `widest` + T.

    Args:
        lineage: `[G or 1, T, T]`.
        pending: pending tokens of each row, `[G]`, which stand in the last of the first `widest` columns.
    """
    seen = torch.nn.functional.pad(lineage, (widest, 0, widest, 0))
    if widest == 1:
        seen[:, :, 0] = True
        return seen
    column = torch.arange(widest, device=lineage.device)
    real = column >= widest - pending[:, None]  # [G, widest]
    seen = seen.expand(real.shape[0], -1, -1).clone()
    seen[:, widest:, :widest] = real[:, None]
    seen[:, :widest, :widest] = (real[:, None] & (column <= column[:, None])) | (column == column[:, None])
    return seen

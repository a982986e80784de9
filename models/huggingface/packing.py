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

import torch
from torch import Tensor

from smc_bridge.models.host import counting, sent
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

    tokens: Tensor
    """`[G, T]`."""
    depth: Tensor
    """`[G or 1, T]`, at least 1."""
    seen: Tensor
    """`[G or 1, T + 1, T + 1]`, True at (j, i) if place j sees place i: place 0 is the last token of the prefix, which
    all see, and node j is place j + 1."""
    wanted: Tensor | None
    """`[G or 1, C]`: the scores to return, 0 after the prefix alone, j + 1 after node j; None for all T + 1."""
    chains: int = 0
    """K, if the nodes are K chains of one length, one after the other; 0 if they are not."""

    @property
    def lineage(self) -> Tensor:
        """`[G or 1, T, T]`, True at (j, i) if node j sees node i."""
        return self.seen[:, 1:, 1:]


@lru_cache(maxsize=64)
def _chains(lanes: int, steps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Depth, what is seen, and wanted scores of `lanes` chains of `steps` nodes, leading dimension 1."""
    with torch.inference_mode(False):  # they outlive the caller's mode
        step = torch.arange(steps, device=device)
        start = steps * torch.arange(lanes, device=device)[:, None]
        depth = (step + 1).repeat(lanes)[None]
        chain = torch.ones(steps, steps, dtype=torch.bool, device=device).tril()
        lineage = torch.kron(torch.eye(lanes, dtype=torch.bool, device=device), chain)[None]
        wanted = torch.nn.functional.pad(start + step + 1, (1, 0)).reshape(1, -1)
        return depth, _below_root(lineage), None if lanes == 1 else wanted


def _below_root(lineage: Tensor) -> Tensor:
    """What places see of each other, `[.., T + 1, T + 1]`, from what nodes do, `[.., T, T]`."""
    seen = torch.nn.functional.pad(lineage, (1, 0, 1, 0))
    seen[..., 0] = True
    return seen


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
        fresh = (owner == counting(lanes, drafts.device)[:, None]).flatten(1)  # [G, K * (V - 1)]
        count = fresh.sum(1)
        nodes = int(count.max())
        if nodes <= WORTH_MERGING * lanes * steps:
            return _trie(tokens, owner, fresh, count, nodes)
    return Forest(tokens.flatten(1), *_chains(lanes, steps, drafts.device), lanes)


def _trie(tokens: Tensor, owner: Tensor, fresh: Tensor, count: Tensor, nodes: int) -> Forest:
    """Keep of the drafts `tokens: [G, K, D]` the nodes that are `fresh: [G, K * D]`, `count: [G]` of them.

    Node (k, i) of a draft is node (owner[k, i], i) of the trie. Rows with fewer nodes than `nodes` are padded with
    copies of their first node, which no other node sees.
    """
    batch, lanes, steps = tokens.shape
    device = tokens.device
    rank = fresh.cumsum(1) - 1
    node_of = rank.view(batch, lanes, steps).gather(1, owner)  # [G, K, D]: place in the trie
    flat = counting(lanes * steps, device).expand(batch, -1)
    origin = torch.zeros(batch, nodes + 1, dtype=torch.long, device=device)
    origin = origin.scatter(1, torch.where(fresh, rank, nodes), flat)[:, :nodes]  # [G, T]
    lane, step = origin // steps, origin % steps
    row = counting(batch, device)[:, None, None]
    sees = owner[row, lane[:, :, None], step[:, None, :]] == lane[:, None, :]
    real = counting(nodes, device) < count[:, None]
    lineage = sees & (step[:, None, :] <= step[:, :, None]) & real[:, None, :]
    wanted = torch.nn.functional.pad(node_of + 1, (1, 0)).flatten(1)
    return Forest(tokens.flatten(1).gather(1, origin), step + 1, _below_root(lineage), wanted)


def tree_forest(tokens: Tensor, parents: Tensor) -> Forest:
    """The forest of K trees of each row.

    Args:
        tokens, parents: `[G, K, T']`, T' at least 1.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    batch, lanes, nodes = tokens.shape
    seen = rooted(parents.flatten(0, 1))
    depth = seen.sum(-1)[:, 1:] - 1
    if lanes == 1:
        return Forest(tokens[:, 0], depth, seen, None)
    start = nodes * counting(lanes, tokens.device)[:, None]
    own = torch.eye(lanes, dtype=torch.bool, device=tokens.device)[:, None, :, None]
    apart = own & seen[:, 1:, 1:].view(batch, lanes, nodes, 1, nodes)
    wanted = torch.nn.functional.pad(start + counting(nodes, tokens.device) + 1, (1, 0)).reshape(1, -1)
    apart = _below_root(apart.reshape(batch, lanes * nodes, lanes * nodes))
    return Forest(tokens.flatten(1), depth.view(batch, -1), apart, wanted)


def no_forest(rows: int, device: torch.device) -> Forest:
    """A forest without nodes, for a forward over pending tokens alone."""
    none = torch.zeros(rows, 0, dtype=torch.long, device=device)
    return Forest(none, none[:1], torch.ones(1, 1, 1, dtype=torch.bool, device=device), None)


def fresh_mask(seen: Tensor, pending: Sequence[int], widest: int) -> Tensor:
    """What the fresh tokens of a packed row see of each other, `[G or 1, F, F]`, F = `widest` + T.

    Args:
        seen: of the forest, `[G or 1, T + 1, T + 1]`.
        pending: pending tokens of each row, at least 1, which stand in the last of the first `widest` columns.
    """
    if widest == 1:
        return seen
    column = counting(widest, seen.device)
    real = column >= sent([[widest - count] for count in pending], seen.device)  # [G, widest]
    before = widest - 1
    seen = torch.nn.functional.pad(seen, (before, 0, before, 0)).expand(len(pending), -1, -1).clone()
    seen[:, widest:, :widest] = real[:, None]
    seen[:, :widest, :widest] = (real[:, None] & (column <= column[:, None])) | (column == column[:, None])
    return seen

"""Token trees as tensors: who is an ancestor of whom, how deep each node stands, and which path a block took.

Node j of a tree has the parent `parents[j]`: 0 is the root (the prefix), `i + 1` is node i, and a parent stands before
its children. Every way of scoring a tree rests on this: the packed forward for its attention mask and positions, the
expansion into paths for the tokens along the way to every leaf, the cache for what of a tree a commit has kept.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from smc_bridge.models.checks import refuse
from smc_bridge.models.host import counting


def rooted(parents: Tensor) -> Tensor:
    """Who is an ancestor of whom, the root included.

    With A the matrix that has a one where a node meets its parent, `I + A + A^2 + ...` has a one where it meets an
    ancestor or itself. That is the inverse of the triangular matrix `I - A`; numbers as small as these are exact.

    Args:
        parents: `[B, T]`; 0 is the root, j + 1 is node j.
    Returns:
        `[B, T + 1, T + 1]`, True at (j, i) if place i is place j or an ancestor of it; the root stands first.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    nodes = parents.shape[1]
    place = counting(nodes + 1, parents.device)
    wrong = (parents < 0) | (parents > place[:nodes])
    refuse(
        wrong,
        lambda at: f"parents[{at[0]}, {at[1]}] = {int(parents[at])}: a parent stands before its child; give a number "
        f"from 0 to {at[1]}",
    )
    above = torch.nn.functional.pad(parents[..., None] == place, (0, 0, 1, 0))
    one = _identity(nodes + 1, parents.device)
    reached: Tensor = torch.linalg.solve_triangular(torch.where(above, -1.0, one), one, upper=False)
    return reached > 0.5


@lru_cache(maxsize=64)
def _identity(size: int, device: torch.device) -> Tensor:
    """The identity matrix `[size, size]`, made once."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.eye(size, device=device)


def tree_structure(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Ancestors and depth of every node.

    Args:
        parents: `[B, T]`; 0 is the root, j + 1 is node j.
    Returns:
        `lineage: [B, T, T]`, True at (j, i) if node i is node j or an ancestor of it; `depth: [B, T]`, 1 for a child of
        the root.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    lineage = rooted(parents)[:, 1:, 1:]
    return lineage, lineage.sum(-1)


def depth_of(parents: Tensor, place: int) -> int:
    """Depth of a place of the tree `parents: [T]`, 0 for the root, which is place 0, where node j is place j + 1."""
    depth = 0
    while place:
        place, depth = int(parents[place - 1]), depth + 1
    return depth


def check_trees(tokens: Tensor, parents: Tensor) -> None:
    """Raise ValueError unless `tokens` and `parents` have one shape `[B, T]`."""
    if tokens.shape != parents.shape:
        raise ValueError(f"tokens {tuple(tokens.shape)} and parents {tuple(parents.shape)}: give both as [B, T]")


def leaf_paths(tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Expand every tree into the paths from its root to its leaves, one row each.

    Args:
        tokens: `[B, T]`, T at least 1.
        parents: `[B, T]`.
    Returns:
        `tree: [L]`, the tree of each path; `paths: [L, D]`, its tokens, 0 past its end, D the greatest depth;
        `path_of: [B, T]`, a path that holds each node; `depth: [B, T]`, so that node j ends the first `depth[j]` tokens
        of its path.
    """
    lineage, depth = tree_structure(parents)
    nodes = tokens.shape[1]
    has_child = torch.nn.functional.one_hot(parents, nodes + 1)[..., 1:].any(1)
    tree, leaf = (~has_child).nonzero(as_tuple=True)  # [L] each
    along = lineage[tree, leaf]  # [L, T]: the nodes on each path
    path, node = along.nonzero(as_tuple=True)
    at = tree[path], node
    paths = tokens.new_zeros(tree.shape[0], int(depth.max()))
    paths[path, depth[at] - 1] = tokens[at]
    path_of = torch.zeros_like(parents)
    path_of[at] = path  # a node on several paths keeps any one: their tokens agree up to it
    return tree, paths, path_of, depth


def longest_match(tokens: Tensor, depth: Tensor, lineage: Tensor, block: Tensor) -> Tensor:
    """The longest path from the root that spells a prefix of a block.

    Args:
        tokens: of R trees, `[R, T]`, T at least 1.
        depth: `[R or 1, T]`.
        lineage: `[R or 1, T, T]`, as of `tree_structure`.
        block: `[R, L]`.
    Returns:
        `[R, L]`, the node of each of the block's tokens, -1 from where the tree holds none. Of several nodes with equal
        paths the last is given.
    """
    rows, width = block.shape
    place = (depth - 1).clamp(0, width).expand(rows, -1)
    other = tokens != torch.nn.functional.pad(block, (0, 1), value=-1).gather(1, place)
    off = (lineage & other[:, None]).any(-1)  # a node matches if all of its path does
    path = torch.full((rows, width + 1), -1, dtype=torch.long, device=tokens.device)
    node = counting(tokens.shape[1], tokens.device).expand_as(tokens)
    return path.scatter_reduce_(1, torch.where(off, width, place), node, "amax")[:, :width]


def longest_run(tokens: Tensor, chains: int, block: Tensor) -> Tensor:
    """How many of a block's first tokens each of some chains begins with.

    Args:
        tokens: of K = `chains` chains, one after the other, `[R, K * T]`.
        block: `[R, L]`.
    Returns:
        `[R, K]`.
    """
    if chains > 1:
        tokens, block = tokens.view(tokens.shape[0], chains, -1), block[:, None]
    most = min(tokens.shape[-1], block.shape[-1])
    if most < tokens.shape[-1]:
        tokens = tokens[..., :most]
    return (tokens == block[..., :most]).cumprod(-1).sum(-1, keepdim=chains == 1)

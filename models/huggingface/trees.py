"""Token trees as tensors: who is an ancestor of whom, how deep each node stands, and which path a block took.

Node j of a tree has the parent `parents[j]`: 0 is the root (the prefix), `i + 1` is node i, and a parent stands before
its children. Every way of scoring a tree rests on this: the packed forward for its attention mask and positions, the
expansion into paths for the tokens along the way to every leaf, the cache for what of a tree a commit has kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tree_structure(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Ancestors and depth of every node, by doubling the reach of the parent relation.

    Args:
        parents: `[B, T]`; 0 is the root, j + 1 is node j.
    Returns:
        `lineage: [B, T, T]`, True at (j, i) if node i is node j or an ancestor of it; `depth: [B, T]`, 1 for a child of
        the root.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    batch, nodes = parents.shape
    index = torch.arange(nodes, device=parents.device)
    wrong = (parents < 0) | (parents > index)
    if bool(wrong.any()):
        b, j = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"parents[{b}, {j}] = {int(parents[b, j])}: a parent stands before its child; give a number from 0 to {j}"
        )
    tree = torch.arange(batch, device=parents.device)[:, None]
    lineage = torch.eye(nodes + 1, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)  # the root first
    above = torch.nn.functional.pad(parents, (1, 0))  # [B, T + 1]: the ancestor that `lineage` has not reached yet
    while bool(above.any()):
        lineage = lineage | lineage[tree, above]
        above = above.gather(1, above)
    lineage = lineage[:, 1:, 1:]
    return lineage, lineage.sum(-1)


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


def longest_match(
    tokens: Tensor, depth: Tensor, lineage: Tensor, block: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    """The longest path from the root that spells a prefix of a block.

    Args:
        tokens: of R trees, `[R, T]`, T at least 1.
        depth: `[R or 1, T]`.
        lineage: `[R or 1, T, T]`, as of `tree_structure`.
        block: `[R, L]`, L at least 1, of which the first `length: [R]` tokens count.
    Returns:
        `matched: [R]`, tokens of the block that the tree holds; `path: [R, L]`, the node of each of them, arbitrary
        past `matched`. Of several nodes with equal paths the last is given.
    """
    rows, width = block.shape
    depth = depth.expand(rows, -1)
    same = (tokens == block.gather(1, (depth - 1).clamp(max=width - 1))) & (depth <= length[:, None])
    same = ~(lineage & ~same[:, None]).any(-1)  # a node matches if all of its path does
    node = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    path = torch.zeros(rows, width + 1, dtype=torch.long, device=tokens.device)
    path = path.scatter_reduce(1, torch.where(same, depth - 1, width), node, "amax")
    return (depth * same).amax(1), path[:, :width]

"""Token trees as tensors: who is an ancestor of whom, and how deep each node stands.

Node j of a tree has the parent `parents[j]`: 0 is the root (the prefix), `i + 1` is node i, and a parent stands before
its children. Either way of scoring a tree rests on this: the packed forward for its attention mask and positions, the
expansion into paths for the tokens along the way to every leaf.
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
    own = torch.eye(nodes, device=parents.device).expand(batch, nodes, nodes)
    step = torch.nn.functional.one_hot(parents, nodes + 1)[..., 1:].to(own.dtype)  # a child of the root has no row
    reach, length = own + step, 1  # all ancestors up to `length` generations back
    while length < nodes:
        reach = (reach @ reach).clamp_max(1.0)
        length *= 2
    lineage = reach > 0
    return lineage, lineage.sum(-1)


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

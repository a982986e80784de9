"""Token trees as tensors: who is an ancestor of whom, how deep each node stands, and which path a block took.

Node j of a tree has the parent `parents[j]`: 0 is the root (the prefix), `i + 1` is node i, and a parent stands before
its children. Every way of scoring a tree rests on this: the packed forward for its attention mask and positions, the
expansion into paths for the tokens along the way to every leaf, the cache for what of a tree a commit has kept.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def rooted(parents: np.ndarray) -> np.ndarray:
    """Who is an ancestor of whom, the root included, by doubling the reach of the parent relation.

    Args:
        parents: `[B, T]`; 0 is the root, j + 1 is node j.
    Returns:
        `[B, T + 1, T + 1]`, True at (j, i) if place i is place j or an ancestor of it; the root stands first.
    Raises:
        ValueError: if a parent does not stand before its child.
    """
    batch, nodes = parents.shape
    wrong = np.argwhere((parents < 0) | (parents > np.arange(nodes)))
    if len(wrong):
        b, j = wrong[0]
        raise ValueError(
            f"parents[{b}, {j}] = {parents[b, j]}: a parent stands before its child; give a number from 0 to {j}"
        )
    tree = np.arange(batch)[:, None]
    seen = np.broadcast_to(np.eye(nodes + 1, dtype=bool), (batch, nodes + 1, nodes + 1))
    above = np.zeros((batch, nodes + 1), dtype=np.int64)  # the ancestor that `seen` has not reached yet
    above[:, 1:] = parents
    while above.any():
        seen, above = seen | seen[tree, above], above[tree, above]
    seen = seen.copy()
    seen[..., 0] = True
    return seen


def tree_structure(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def check_trees(tokens: Tensor, parents: Tensor) -> None:
    """Raise ValueError unless `tokens` and `parents` have one shape `[B, T]`."""
    if tokens.shape != parents.shape:
        raise ValueError(f"tokens {tuple(tokens.shape)} and parents {tuple(parents.shape)}: give both as [B, T]")


def leaf_paths(tokens: np.ndarray, parents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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
    has_child = (parents[..., None] == np.arange(1, parents.shape[1] + 1)).any(1)
    tree, leaf = np.nonzero(~has_child)  # [L] each
    path, node = np.nonzero(lineage[tree, leaf])  # the nodes on each path
    at = tree[path], node
    paths = np.zeros((len(tree), depth.max()), dtype=tokens.dtype)
    paths[path, depth[at] - 1] = tokens[at]
    path_of = np.zeros_like(parents)
    path_of[at] = path  # a node on several paths keeps any one: their tokens agree up to it
    return tree, paths, path_of, depth


def longest_match(tokens: np.ndarray, depth: np.ndarray, lineage: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The longest path from the root that spells a prefix of a block.

    Args:
        tokens: of R trees, `[R, T]`.
        depth: `[R or 1, T]`.
        lineage: `[R or 1, T, T]`, as of `tree_structure`.
        block: `[R, L]`.
    Returns:
        `[R, L]`, the node of each of the block's tokens, -1 from where the tree holds none. Of several nodes with equal
        paths the last is given.
    """
    rows, width = block.shape
    place = np.broadcast_to((depth - 1).clip(max=width), tokens.shape)
    ended = np.concatenate([block, np.full((rows, 1), -1)], axis=1)
    other = tokens != np.take_along_axis(ended, place, axis=1)
    row, node = np.nonzero(~(lineage & other[:, None]).any(-1))  # a node matches if all of its path does
    path = np.full((rows, width + 1), -1)
    path[row, place[row, node]] = node
    return path[:, :width]


def longest_chain(tokens: np.ndarray, chains: int, block: np.ndarray) -> np.ndarray:
    """As `longest_match`, of K = `chains` chains of one length, one after the other.

    Args:
        tokens: `[R, K * T]`.
        block: `[R, L]`.
    Returns:
        `[R, L]`.
    """
    rows, steps = tokens.shape[0], tokens.shape[1] // chains
    most = min(steps, block.shape[1])
    same = tokens.reshape(rows, chains, steps)[..., :most] == block[:, None, :most]
    run = np.logical_and.accumulate(same, axis=-1).sum(-1)  # [R, K]
    step = np.arange(block.shape[1])
    return np.where(step < run.max(1)[:, None], steps * run.argmax(1)[:, None] + step, -1)

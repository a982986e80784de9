"""Tree walk: the AR model is run once over a tree of likely continuations, then the intermediate is drawn on it.

From the proposal's marginals build the tree of the B likeliest continuations (best first by products of `q`); one
forward of the AR model under a tree mask gives `p` after every node; then draw `x_i ~ pi_i` exactly, node by node, and
stop after the first token that is not in the tree (design 2.2). Nothing is rejected, any number of lanes walk on the
same forward, and the B nodes are spent where q puts its mass. The tree is a deterministic function of q, so stopping
depends on the past only:

    c_i = 1 if x_{1:i} is in the tree, else 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.kernels.protocol import Horizon, Move, StoppingKernel, full_horizon, truncate
from smc_bridge.randomness import Randomness, as_source


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


def best_first(q: Tensor, nodes: int, horizon: Horizon) -> Tree:
    """The `nodes` likeliest non-empty continuations under the product law q.

    A continuation's probability never exceeds its parent's, so the likeliest ones form a tree. Continuations of the end
    of sequence, those as long as the window (nothing is drawn after them) and those of probability zero are left out.

    Args:
        q: log-marginals `[R, V, A]`.
        nodes: B, budget per row.
        horizon: see `Horizon`.
    Returns:
        Trees of at most `nodes` real nodes.
    """
    rows, window, size = q.shape
    width = min(nodes, size)
    log_prob = torch.zeros(rows, 1, dtype=q.dtype, device=q.device)
    levels: list[tuple[Tensor, Tensor, Tensor]] = []  # score, token, index of the parent within the level before
    for d in range(window - 1):
        law = q[:, d]
        if horizon.eos_id is not None:  # masked before the choice, so that it takes no place in it
            law = law.index_fill(-1, torch.tensor(horizon.eos_id, device=q.device), -math.inf)
        best = law.topk(width, dim=-1)
        score = log_prob[:, :, None] + best.values[:, None, :]
        token = best.indices[:, None, :].expand_as(score)
        score = score.masked_fill((d + 1 >= horizon.window)[:, None, None], -math.inf)
        flat = score.reshape(rows, -1)
        kept = flat.topk(min(nodes, flat.shape[1]), dim=-1)
        levels.append((kept.values, token.reshape(rows, -1).gather(1, kept.indices), kept.indices // width))
        log_prob = kept.values
        if bool((log_prob == -math.inf).all()):
            break
    if not levels:
        empty = torch.zeros(rows, 0, dtype=torch.long, device=q.device)
        return Tree(empty, empty, empty, empty.bool())
    start = torch.tensor([0, *[level[0].shape[1] for level in levels]], device=q.device).cumsum(0)
    score = torch.cat([level[0] for level in levels], dim=1)
    token = torch.cat([level[1] for level in levels], dim=1)
    # Index of the parent among all candidates, -1 for the root.
    parent = torch.cat([levels[0][2] * 0 - 1, *[level[2] + start[d] for d, level in enumerate(levels[1:])]], dim=1)
    depth = torch.cat([torch.full_like(level[1], d + 1) for d, level in enumerate(levels)], dim=1)
    # A stable sort keeps parents before children of equal score: candidates are listed level by level.
    order = score.sort(dim=-1, descending=True, stable=True).indices[:, :nodes]
    # Position of each candidate among the kept ones, plus one; 0 is the root.
    rank = torch.zeros_like(parent).scatter(
        1, order, torch.arange(1, order.shape[1] + 1, device=q.device).expand_as(order)
    )
    kept_parent = parent.gather(1, order)
    mapped = torch.where(kept_parent < 0, 0, rank.gather(1, kept_parent.clamp_min(0)))
    real = score.gather(1, order) > -math.inf
    return Tree(
        token.gather(1, order), torch.where(real, mapped, 0), torch.where(real, depth.gather(1, order), 1), real
    )


def child(tree: Tree, node: Tensor, token: Tensor) -> Tensor:
    """Node reached from `node: [R, W]` by `token: [R, W]` (0 is the root, j + 1 node j), -1 if not in the tree."""
    if tree.tokens.shape[1] == 0:
        return torch.full_like(node, -1)
    match = (tree.parents[:, None] == node[..., None]) & (tree.tokens[:, None] == token[..., None]) & tree.real[:, None]
    return torch.where(match.any(-1), match.to(torch.uint8).argmax(-1) + 1, -1)


class TreeWalk(StoppingKernel):
    """Tree walk (module docstring).

    Args:
        nodes: B, nodes verified by one AR forward.
    """

    def __init__(self, nodes: int = 64) -> None:
        if nodes < 1:
            raise ValueError(f"nodes = {nodes}: give a budget of at least 1 node")
        self.nodes = nodes

    def tree(self, q: Tensor, *, horizon: Horizon | None = None) -> Tree:
        """The tree that is walked on, a deterministic function of `q: [R, V, A]`."""
        return best_first(q, self.nodes, full_horizon(q) if horizon is None else horizon)

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        """See `StoppingKernel.log_continue`: 0 while the block stays in the tree, -inf after it."""
        tree = self.tree(q, horizon=horizon)
        node = torch.zeros(block.shape[0], 1, dtype=torch.long, device=block.device)
        inside = []
        for i in range(block.shape[1]):
            node = torch.where(node < 0, -1, child(tree, node, block[:, i : i + 1]))
            inside.append(node >= 0)
        return torch.where(torch.cat(inside, dim=1), 0.0, -math.inf).to(pi.dtype)

    def walk(
        self, tree: Tree, node_log_pi: Tensor, *, generator: Randomness, window: int, horizon: Horizon,
        forced: Tensor | None = None,
    ) -> tuple[Move, Tensor]:
        """Draw W walks per tree.

        Args:
            tree: of R rows.
            node_log_pi: `log pi` after every node, `[R, W, T + 1, A]` (entry 0 after the root).
            generator: draws for R * W rows.
            window: V.
            horizon: of the R trees.
            forced: tokens that a walk must take, `[R * W, V]`, -1 where it is free (conditional SMC).
        Returns:
            the moves, `[R * W, ...]`, and the node before each position, `[R * W, V]` (0 past the end).
        """
        rows, walks, _, size = node_log_pi.shape
        source = as_source(generator, rows * walks, device=node_log_pi.device)
        draw = source.categorical_stream(window)
        node = torch.zeros(rows, walks, dtype=torch.long, device=node_log_pi.device)
        visited, tokens, going = [], [], torch.ones(rows, walks, dtype=torch.bool, device=node.device)
        length = torch.zeros_like(node)
        inside = torch.zeros_like(node)
        for i in range(window):
            visited.append(node)
            index = node[..., None, None].expand(rows, walks, 1, size)
            law = node_log_pi.gather(2, index)[:, :, 0]
            token = draw(law.reshape(rows * walks, size)).reshape(rows, walks)
            if forced is not None:
                given = forced[:, i].reshape(rows, walks)
                token = torch.where(given >= 0, given, token)
            tokens.append(token)
            length = length + going
            after = child(tree, node, token)
            inside = inside + (going & (after >= 0))
            ends = i + 1 >= horizon.window[:, None]
            if horizon.eos_id is not None:
                ends = ends | (token == horizon.eos_id)
            going = going & (after >= 0) & ~ends
            if not bool(going.any()):
                break
            node = torch.where(going, after, 0)
        missing = window - len(tokens)
        block = torch.nn.functional.pad(torch.stack(tokens, -1), (0, missing)).reshape(rows * walks, window)
        before = torch.nn.functional.pad(torch.stack(visited, -1), (0, missing)).reshape(rows * walks, window)
        flat = length.reshape(-1)
        accepted = torch.where(
            flat == horizon.window.repeat_interleave(walks), flat, inside.reshape(-1)
        )
        return Move(truncate(block, flat), flat, accepted), before

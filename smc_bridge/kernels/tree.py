"""Tree walk: the AR model is run once over a tree of likely continuations, then the intermediate is drawn on it.

From the proposal's marginals build a tree of likely continuations (`smc_bridge.kernels.tree_build`), or from a chain's
conditionals where they are known after any token (`smc_bridge.kernels.tree_chain`); one forward of the AR model under a
tree mask gives `p` after every node; then draw `x_i ~ pi_i` exactly, node by node, and stop after the first token that
is not in the tree (docs/theory, Proposition 5). Nothing is rejected, any number of lanes walk on the same forward, and
the nodes are spent where q puts its mass. The tree is a deterministic function of q, so stopping depends on the past
only:

    c_i = 1 if x_{1:i} is in the tree, else 0.

Prior art at w = 0, where the tokens are drawn from the target itself: DDTree (arXiv 2604.12989, of the same tree),
OPT-Tree (arXiv 2406.17276), DySpec (arXiv 2410.11744), Sequoia (arXiv 2402.12374) and SpecInfer (arXiv 2305.09781).
What is added here: the walk on any intermediate `pi`, its weights, and all lanes of N particles on one forward.

A walk commits one token more than it meets nodes, `E[L] = 1 + sum over nodes of P(the walk gets there)`. So the best
tree of a given size holds the continuations that a walk most likely takes. Which these are is judged by the marginals
raised to a power and normalised again, `q_i^a / sum q_i^a`: a product of marginals that were made for drawing is not
the best judge, too flat at a high temperature and too sharp at a low one, where an early token that is not the first
choice moves all that follow. And a node is worth its forward only if it is likely enough to be met: the tree ends where
that probability falls below `min_probability`, so that confident marginals give a deep and narrow tree and others a
small one. All of this is a function of q alone, and any such tree is proper.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, full_horizon
from smc_bridge.distributions.first_order import FirstOrder
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.views import Placed
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.protocol import StoppingKernel, Verified, Verifier, check_move
from smc_bridge.kernels.tree_build import Tree, best_first
from smc_bridge.kernels.tree_chain import best_first_chain
from smc_bridge.models.arguments import real_between, whole_number
from smc_bridge.models.ends import is_end
from smc_bridge.models.host import Index, known, places, sent
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, UniformStream, as_source

__all__ = ["Edges", "Tree", "TreeWalk", "best_first"]


class Edges:
    """The edges of R trees, as a sorted list of (row, node, token).

    Args:
        tree: see `Tree`.
        size: alphabet size A.
    """

    def __init__(self, tree: Tree, size: int) -> None:
        tokens, parents, real = known(tree.tokens), known(tree.parents), known(tree.real)
        self.size, self.places = size, tokens.shape[1] + 1
        row, child = real.nonzero()
        key = (row * self.places + parents[row, child]) * size + tokens[row, child]
        order = key.argsort()
        self.key, self.child = np.append(key[order], np.iinfo(np.int64).max), np.append(child[order] + 1, -1)

    def follow(self, row: Index, node: Index, token: Index) -> Index:
        """Node that each token leads to (0 is the root, j + 1 node j), -1 off the tree or for a negative token."""
        key = (row * self.places + node) * self.size + token
        place = np.searchsorted(self.key, key)
        found: Index = np.where((self.key[place] == key) & (token >= 0), self.child[place], -1)
        return found


class TreeWalk(StoppingKernel):
    """Tree walk: draws from the intermediate on a tree of likely continuations until they leave it (module docstring).

    Args:
        nodes: B, greatest number of nodes verified by one AR forward.
        min_probability: continuations that are taken less likely than this, by the powers of the marginals, are left
            out; 0 fills the budget.
        exponent: a, power of the marginals by which continuations are ranked.
        worth: what a step costs besides its nodes, in nodes: each tree ends where another node does not pay, by the
            probabilities of its own (`best_first`); None for no such end.
    Raises:
        ValueError: an argument out of range.
    Example:
        >>> from smc_bridge import smc
        >>> from smc_bridge.testing import check, tabular_pair
        >>> check(smc(tabular_pair(), particles=2, w=0.5, kernel=TreeWalk(nodes=6))).proper
        True
    """

    reads_marginals = True

    def __init__(
        self, nodes: int = 64, *, min_probability: float = 0.0, exponent: float = 1.0, worth: float | None = None
    ) -> None:
        least, power = "give a probability in [0, 1)", "give a positive number; 1 ranks by the marginals themselves"
        below_one = math.nextafter(1.0, 0.0)
        self.nodes = whole_number("nodes", nodes, remedy="give a budget of at least 1 node")
        self.min_probability = float(real_between("min_probability", min_probability, 0.0, below_one, remedy=least))
        self.exponent = float(real_between("exponent", exponent, 0.0, math.inf, remedy=power, strictly=True))
        cost = "give a positive number of nodes, or None"
        self.worth = None if worth is None else float(
            real_between("worth", worth, 0.0, math.inf, remedy=cost, strictly=True)
        )

    def __repr__(self) -> str:
        worth = "" if self.worth is None else f", worth={self.worth!r}"
        return f"TreeWalk({self.nodes}, min_probability={self.min_probability:g}, exponent={self.exponent:g}{worth})"

    def tree(self, q: Law, *, horizon: Horizon | None = None) -> Tree:
        """The tree that is walked on, R trees of at most B nodes: a deterministic function of `q: [R, V, A]`."""
        horizon = full_horizon(q.rows, q.shape[-2], device=q.device) if horizon is None else horizon
        how: Any = {"min_probability": self.min_probability, "exponent": self.exponent, "worth": self.worth}
        if isinstance(q, FirstOrder):
            return best_first_chain(q, self.nodes, horizon, **how)
        return best_first(q, self.nodes, horizon, **how)

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """0 while the block stays in the tree, -inf after it, `[R, V]`; see `StoppingKernel.log_continue`."""
        edges = Edges(self.tree(q, horizon=horizon), q.shape[-1])
        tokens = known(block)
        row, node = np.arange(tokens.shape[0]), np.zeros(tokens.shape[0], dtype=np.int64)
        inside = np.zeros(tokens.shape, dtype=bool)
        for i in range(tokens.shape[1]):
            node = np.where(node < 0, -1, edges.follow(row, node, tokens[:, i]))
            inside[:, i] = node >= 0
        return torch.where(torch.from_numpy(inside).to(pi.device), 0.0, -math.inf).to(pi.dtype)

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`; `pi` is given at the nodes of `tree(draft.q)`, `[R, T + 1, A]`."""
        tree = self.tree(draft.q, horizon=horizon)
        return self.walk(tree, pi, walks=1, source=source, window=draft.q.shape[-2], horizon=horizon)[0]

    def move(
        self, draft: Draft, verifier: Verifier, *, source: Randomness, horizon: Horizon, pinned: Pinned | None = None
    ) -> Verified:
        """See `Kernel.move`: one tree for each group of rows that have one law."""
        walks, (total, window, _) = verifier.walks, draft.q.shape
        device = draft.q.device
        q, each, own = draft.q, horizon, sent(np.arange(0, total, walks), device)
        if walks > 1:
            width = sent(known(horizon.window)[::walks], device)
            q, each = q.of_rows(own), Horizon(width, horizon.ends)
        tree = self.tree(q, horizon=each)
        p, pi = verifier.at_nodes(tree, q)
        forced = None if pinned is None else pinned.forced(total, window)
        move, node = self.walk(tree, pi, walks=walks, source=source, window=window, horizon=each, forced=forced)
        move = check_move(self, move, horizon, draft.q.shape)
        owner = sent(np.arange(total)[:, None] // walks, device).expand_as(node)
        scored = np.zeros(total, dtype=np.int64)  # the first walk of a tree is charged with it
        scored[::walks] = known(tree.real).sum(1)
        return Verified(move, Placed(p, owner, node), Placed(pi, owner, node), sent(scored, device))

    def positions(self, lanes: int, window: int, *, walks: int) -> int:
        """See `Kernel.positions`: nodes and root of each tree."""
        return (self.nodes + 1) * (lanes // walks)

    def walk(
        self, tree: Tree, pi: Law, *, walks: int, source: Randomness, window: int, horizon: Horizon,
        forced: Tensor | None = None,
    ) -> tuple[Move, Tensor]:
        """Draw W walks per tree. The law at a node is read when a walk stands on it, and at no other node.

        Args:
            tree: of R rows.
            pi: the intermediate after every node, `[R, T + 1, A]` (entry 0 after the root).
            walks: W.
            source: draws for R * W rows.
            window: V.
            horizon: of the R trees.
            forced: tokens that a walk must take, `[R * W, V]`, -1 where it is free (conditional SMC).
        Returns:
            the moves, `[R * W, ...]`, and the node before each position, `[R * W, V]` (0 past the end).
        """
        device = pi.device
        total = tree.tokens.shape[0] * walks
        draw = as_source(source, total, device=device).categorical_stream(window)
        table = _tokens(tree, pi, draw, walks) if isinstance(draw, UniformStream) and pi.held else None
        edges, limit = Edges(tree, pi.shape[-1]), known(horizon.window)
        given = None if forced is None else known(forced)
        block, before = np.full((total, window), PAD), np.zeros((total, window), dtype=np.int64)
        length, accepted = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
        going = np.arange(total)
        row, node = going // walks, np.zeros(total, dtype=np.int64)
        for i in range(window):
            if table is None:
                lanes = None if going.size == total else torch.from_numpy(going).to(device)
                token = draw(_laws(pi, row, node), lanes).flatten().cpu().numpy()
            else:
                token = table[going, node]
            if given is not None:
                token = np.where(given[going, i] >= 0, given[going, i], token)
            after = edges.follow(row, node, token)
            filled = limit[row] == i + 1
            block[going, i], before[going, i], length[going] = token, node, i + 1
            # A token that fills the window is the draft's own wherever it leads: nothing would be drawn after it.
            accepted[going] = i + ((after >= 0) | filled)
            stays = (after >= 0) & ~filled
            if horizon.ends:
                stays &= ~is_end(token, horizon.ends)
            going, row, node = going[stays], row[stays], after[stays]
            if not going.size:
                break
        return Move(*(sent(x, device) for x in (block, length, accepted))), sent(before, device)


def _tokens(tree: Tree, pi: Law, stream: UniformStream, walks: int) -> Index:
    """What each walk draws at each node if it gets there, `[R * W, T + 1]`.

    A walk meets at most one node of a depth, where it reads the uniform of that depth. To invert at all nodes at once
    is one round of arithmetic in place of one per position.
    """
    rows = pi.rows
    depth = torch.nn.functional.pad(tree.depth, (1, 0))
    owner = None
    if walks > 1:
        owner = places(rows, pi.device).repeat_interleave(walks, output_size=rows * walks)
        depth = depth[owner]
    tokens: Index = pi.draw(owner, stream.uniform.gather(1, depth)).cpu().numpy()
    return tokens


def _laws(pi: Law, row: Index, node: Index) -> Law:
    """The laws where walks stand, `[n, 1, A]`: computed once for walks that stand on one node."""
    places = pi.shape[-2]
    distinct, which = np.unique(row * places + node, return_inverse=True)
    at = torch.from_numpy(distinct).to(pi.device)[:, None]
    return Placed(pi, at // places, at % places).of_rows(torch.from_numpy(which).to(pi.device))

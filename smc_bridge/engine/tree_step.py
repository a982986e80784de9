"""The move of the tree walk: one tree per particle or per lane, scored by one AR forward, then walked on.

A law is needed at the nodes that a walk stands on. With a large alphabet it is computed there and nowhere else; where
all nodes' laws together are few numbers they are computed at once, which is one round of arithmetic in place of one per
position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.placed import Placed
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.conditional import Pinned
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.steps import Branch, lane_horizon
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Move, check_move
from smc_bridge.kernels.tree import AT_ONCE, TreeWalk
from smc_bridge.randomness import Source


def move_tree(
    state: SMCState, rows: Tensor, at: Branch, *, kernel: TreeWalk, target: ARTarget, intermediate: Intermediate,
    source: Source, pinned: Pinned | None, shared: bool,
) -> tuple[Lanes, Tensor]:
    """Verify one tree per particle (`shared`) or per lane, and walk.

    Returns:
        the lanes, and how many tree nodes were scored for each particle, `[B]`.
    """
    count, window = at.place.shape
    lanes, trees = at.lanes, 1 if shared else at.lanes
    walks = lanes // trees
    particle = torch.arange(count, device=rows.device)
    log_q = at.law.of_rows(particle * lanes) if shared else at.law
    horizon = lane_horizon(at.horizon, trees)
    tree = kernel.tree(log_q, horizon=horizon)
    raw = state.ar.score_tree(rows.repeat_interleave(trees), tree.tokens, tree.parents)  # [B * K', T + 1, A]
    log_p = target.lazy(raw, chunks=at.chunks)
    place = torch.nn.functional.pad(tree.depth, (1, 0)).clamp_max(window - 1)  # what follows depth d is at place d
    own = torch.arange(count * trees, device=rows.device)[:, None]
    log_pi = bridge_law(intermediate, Placed(log_q, own.expand_as(place), place), log_p, lanes=trees)
    forced = None if pinned is None else pinned.forced(count * lanes, window)
    at_nodes = log_pi.dense() if log_pi.numel() * walks <= AT_ONCE else log_pi
    move, node = kernel.walk(
        tree, at_nodes, walks=walks, generator=source, window=window, horizon=horizon, forced=forced
    )
    move = check_move(kernel, move, lane_horizon(horizon, walks), window=window, vocab_size=at.law.shape[-1])
    owner = own.repeat_interleave(walks, 0).expand_as(node)  # [B * K, V]
    log_p_along, log_pi_along = (Placed(law, owner, node).shaped(count, lanes) for law in (log_p, log_pi))
    block = move.block.reshape(count, lanes, window)
    shaped = Move(block, move.length.reshape(count, lanes), move.accepted.reshape(count, lanes))
    raw_p = raw[owner, node, move.block.clamp_min(0)].to(log_p.dtype).reshape(block.shape)
    log_q_along = at.law.shaped(count, lanes)
    moved = Lanes(log_q_along, log_p_along, log_pi_along, shaped, at.raw_at(block), raw_p, at.horizon)
    return moved, tree.real.reshape(count, -1).sum(1)

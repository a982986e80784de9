"""The move of the tree walk: one tree per particle or per lane, scored by one AR forward, then walked on."""

from __future__ import annotations

import torch
from torch import Tensor

from smc_bridge.distributions.intermediate import Intermediate, checked_log_prob
from smc_bridge.distributions.target import ARTarget
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import Move, at_tokens
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.randomness import Source
from smc_bridge.smc.conditional import Pinned
from smc_bridge.smc.state import SMCState
from smc_bridge.smc.steps import Branch, lane_horizon


def move_tree(
    state: SMCState, rows: Tensor, at: Branch, *, kernel: TreeWalk, target: ARTarget, intermediate: Intermediate,
    source: Source, pinned: Pinned | None, shared: bool,
) -> tuple[Lanes, int]:
    """Verify one tree per particle (`shared`) or per lane, and walk.

    Returns:
        the lanes, and how many tree nodes were scored per particle.
    """
    count, lanes, window, size = at.log_q.shape
    trees = 1 if shared else lanes
    log_q = at.log_q[:, :trees].reshape(-1, window, size)
    horizon = lane_horizon(at.horizon, trees)
    tree = kernel.tree(log_q, horizon=horizon)
    raw_node = state.ar.score_tree(rows.repeat_interleave(trees), tree.tokens, tree.parents)  # [B * K', T + 1, A]
    log_p_node = target.log_probs(raw_node)
    depth = torch.nn.functional.pad(tree.depth, (1, 0)).clamp_max(window - 1)  # [B * K', T + 1]
    log_q_node = log_q.gather(1, depth[..., None].expand(-1, -1, size))
    nodes = depth.shape[1]
    shape = (count, trees, nodes, size)
    log_pi_node = checked_log_prob(
        intermediate, log_q_node.reshape(shape), log_p_node.to(log_q.dtype).reshape(shape)
    )
    walks = lanes if shared else 1
    law = log_pi_node.reshape(-1, nodes, size)
    forced = None if pinned is None else pinned.forced(count * lanes, window)
    move, before = kernel.walk(
        tree, law, walks=walks, generator=source, window=window, horizon=horizon, forced=forced
    )
    owner = torch.arange(count * trees, device=rows.device).repeat_interleave(walks)[:, None]
    log_p = log_p_node[owner, before].reshape(at.log_q.shape)
    log_pi = law[owner, before].reshape(at.log_q.shape)
    raw = at_tokens(raw_node[owner, before], move.block).reshape(count, lanes, window)
    block = move.block.reshape(count, lanes, window)
    shaped = Move(block, move.length.reshape(count, lanes), move.accepted.reshape(count, lanes))
    raw_q = at_tokens(at.raw_q[:, None].expand(-1, lanes, -1, -1), block)
    return Lanes(at.log_q, log_p, log_pi, shaped, raw_q, raw, at.horizon), trees * (nodes - 1)

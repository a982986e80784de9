"""The second half of a step: what the host reads of the lanes, N survivors out of N * K of them, and their commit.

A step reads the device once, when its lanes have moved and are weighed: tokens, lengths, weights, and the answers to
all questions that were asked on the way (`smc_bridge.models.checks`). What follows are few numbers, and stays on the
host; indices and blocks go back to the device with what the host knows of them (`smc_bridge.models.host`).

Shapes: P prompts, N particles of each, B particles that still grow, K lanes, V window, R rows of all prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.engine.program import Program
from smc_bridge.engine.resampling import Resampler, check_ancestors
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.steps import Moved
from smc_bridge.engine.weights import EssBelow, Trigger, check_trigger, log_mean
from smc_bridge.models.checks import Checks
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.host import Index, known, local, sent
from smc_bridge.prefix import PAD
from smc_bridge.randomness import Source

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Seen(NamedTuple):
    """What the host has read of the lanes of B particles, arrays `[B, K]`.

    Attributes:
        block: tokens, `[B, K, V]`, `PAD` past the length.
        length, accepted, increments: see `Move` and `Moved`.
        scored: drafted tokens or tree nodes that the target was asked about for each lane.
        width: greatest length of each lane's block.
        ended: whether the sequence ends with the block.
    """

    block: Index
    length: Index
    accepted: Index
    scored: Index
    increments: Floats
    width: Index
    ended: Bools


def look(program: Program, state: SMCState, rows: Tensor, moved: Moved, checks: Checks) -> Seen:
    """Read what became of the lanes of particles `rows: [B]`, and settle the checks of the step.

    Raises:
        ValueError: a check fails.
    """
    move, shape = moved.move, tuple(moved.move.length.shape)
    size, device = math.prod(shape), rows.device
    parts = [moved.increments, move.length, move.accepted, moved.scored, move.block, checks.flag(device)]
    # One number of 64 bits each, so that one transfer takes them all: a float64 holds every token id.
    packed: Floats = torch.cat([part.reshape(-1) for part in parts]).double().cpu().numpy()
    checks.settle(bool(packed[-1]))
    increments = packed[:size].reshape(shape)
    length, accepted, scored = packed[size : 4 * size].astype(np.int64).reshape(3, *shape)
    if moved.asked is not None:
        scored = np.minimum(scored, moved.asked[:, None])
    block = packed[4 * size : -1].astype(np.int64).reshape(*shape, -1)
    at = known(rows)
    before, limit = known(state.prefix.length)[at, None], known(state.limit)[at, None]
    ended = before + length >= limit
    if ends := ends_of(program.target.model.eos_id):
        last = np.take_along_axis(block, (length - 1).clip(min=0)[..., None], -1)[..., 0]
        ended |= is_end(last, ends) & (length > 0)
    return Seen(block, length, accepted, scored, increments, moved.width, ended)


#: Draws for some prompts (`[P']` indices), the given number of rows each.
SourceOf = Callable[[Tensor, int], Source]


class Reduced(NamedTuple):
    """The survivors of a step, N out of the N * K lanes of each of P prompts; tensors on the host.

    Attributes:
        survivors: lane index `n * K + k` of each, `[P, N]`.
        log_weights: of the survivors, `[P, N]` nats.
        before: of the particles before the selection, the sums of their lanes, `[P, N]` nats.
        resampled: which prompts' particles interacted, BoolTensor `[P]`.
    """

    survivors: Tensor
    log_weights: Tensor
    before: Tensor
    resampled: Tensor


def reduce_lanes(
    log_weights: Tensor, *, trigger: Trigger, resampler: Resampler, source_of: SourceOf, allowed: Tensor,
    pick: Tensor, pinned_lane: Tensor | None = None,
) -> Reduced:
    """N survivors out of N * K lanes.

    Where the trigger fires, survivors are resampled from all lanes and weights are reset to their mean; elsewhere each
    particle keeps one of its own K lanes, drawn by weight, and weighs by their sum (K = 1: nothing happens).

    Args:
        log_weights: of the lanes, `[P, N, K]` float64, already with `- log K`, on the host as all that follows.
        source_of: gives the draws of some of the P prompts, so many rows each.
        allowed: prompts where resampling is of use, `[P]` (not where every particle is done).
        pick: particles that have lanes to choose from, `[P, N]`; the others keep lane 0.
        pinned_lane: conditional SMC: lane of particle 0 that survives in place 0, `[P]`.
    """
    prompts, particles, lanes = log_weights.shape
    each, device = local(log_weights), log_weights.device
    own = local(log_weights.logsumexp(-1)) if lanes > 1 else each[..., 0].copy()  # [P, N]; of equal lanes exact
    before = torch.from_numpy(own)
    if particles == 1 and type(trigger) is EssBelow:  # the ESS of one particle is 1
        mixed = np.zeros(prompts, dtype=bool)
    else:
        mixed = known(check_trigger(trigger, before) & allowed) & (own > -np.inf).any(-1)
    stay, mix = np.flatnonzero(~mixed), np.flatnonzero(mixed)
    base = np.arange(particles) * lanes
    survivors, kept = np.tile(base, (prompts, 1)), own.copy()
    if lanes > 1 and stay.size:
        alive = own[stay, :, None] > -np.inf
        within = np.where(alive, each[stay], -math.log(lanes)) - np.where(alive, own[stay, :, None], 0.0)
        at = sent(stay, device)
        drawn = source_of(at, particles).categorical(torch.from_numpy(within.reshape(-1, lanes)))
        survivors[stay] = base + np.where(known(pick)[stay], local(drawn).reshape(-1, particles), 0)
    if mix.size:
        at = sent(mix, device)
        flat = torch.from_numpy(each[mix].reshape(mix.size, -1))
        survivors[mix] = local(check_ancestors(resampler, flat, particles, source=source_of(at, 1)).contiguous())
        kept[mix] = local(log_mean(before[at]))[:, None]
    if pinned_lane is not None:
        survivors[:, 0] = known(pinned_lane)
    return Reduced(torch.from_numpy(survivors), torch.from_numpy(kept), before, sent(mixed, device))


def commit(
    program: Program, state: SMCState, active: Tensor, growing: Index, seen: Seen, reduced: Reduced,
    log_potential: Tensor | None,
) -> None:
    """Append the survivors' blocks, and gather everything by ancestor.

    Args:
        active: prompts of this step, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`.
        log_potential: of every lane's extended prefix, `[B, K]`, or None.
    """
    n, k, device = program.particles, program.lanes, active.device
    everyone = (known(active)[:, None] * n + np.arange(n)).ravel()
    total = state.prefix.length.numel()
    first = np.arange(everyone.size // n)[:, None] * (n * k)
    parent, lane = np.divmod((first + local(reduced.survivors)).ravel(), k)  # of the active prompts
    place = np.full(everyone.size, -1)
    place[growing] = np.arange(growing.size)
    took = place[parent], lane  # which of the lanes; the first of them is -1 for a particle that did not grow
    grew = took[0] >= 0
    length = np.where(grew, seen.length[took], 0)
    whole = grew & (seen.accepted[took] == length) & (length == seen.width[took]) & ~seen.ended[took]
    block = np.where(grew[:, None], seen.block[took][:, : max(1, length.max(initial=0))], PAD)
    lengths, ancestors = np.zeros(total, dtype=np.int64), np.arange(total)
    lengths[everyone], ancestors[everyone] = length, everyone[parent]
    blocks = np.zeros((total, block.shape[1]), dtype=np.int64)
    blocks[everyone] = block.clip(min=0)
    ended, wholly = np.zeros((2, total), dtype=bool)
    ended[everyone], wholly[everyone] = grew & seen.ended[took], whole
    stays = bool((ancestors == np.arange(total)).all())
    origin, count, tokens = (sent(x, device) for x in (ancestors, lengths, blocks))
    if not stays:
        for session in state.causal:
            session.gather(origin)
        state.prefix = state.prefix.select(origin)
    for session in state.causal:
        session.commit(tokens, count)
    state.prefix = state.prefix.grown(blocks, lengths, ended)
    # A score that is not a weight is not carried.
    weights = known(state.log_weights).copy()
    weights[known(active)] = local(reduced.log_weights) if program.weight.proper else 0.0
    state.log_weights = sent(weights, device)
    if log_potential is not None:
        mine, at = sent(everyone, device), (sent(parent, device), sent(lane, device))
        each = state.log_potential[mine][:, None].repeat(1, k)
        each[sent(growing, device)] = log_potential
        state.log_potential[mine] = each[at]
    program.proposal.commit(state.drafts, None if stays else origin, tokens, count, sent(wholly, device))

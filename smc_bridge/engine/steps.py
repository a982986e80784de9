"""The parts of a step as functions of their inputs: draft, verify, move, reweight, reduce, commit.

The engine strings them together (`smc_bridge.engine.sampler`). Shapes: P prompts, N particles of each, B particles that
still grow, K lanes, V window, A alphabet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.views import Patched, Placed
from smc_bridge.engine.parts import DrawnOnce
from smc_bridge.engine.program import Program
from smc_bridge.engine.reach import score_in_reach
from smc_bridge.engine.resampling import Resampler, check_ancestors
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.watch import watch
from smc_bridge.engine.weights import Trigger, check_trigger, ess, log_mean
from smc_bridge.kernels.importance import Lanes, checked_increments
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.tree_build import Tree
from smc_bridge.models.arguments import called
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Asked, Draft, check_draft, check_law
from smc_bridge.randomness import Source


def draft_lanes(
    program: Program, state: SMCState, asked: Asked, *, source: Source, pinned: Pinned | None = None
) -> Draft:
    """K drafts for each of the B particles; pinned lanes have their own tokens, and q along them."""
    proposal, marginals = program.proposal, program.kernel.reads_marginals
    draft = check_draft(proposal, proposal.draft(state.drafts, asked, source=None if marginals else source), asked)
    if pinned is None or marginals:
        return draft
    q = draft.q
    if not proposal.factorised and pinned.lane.numel():  # retained sequences that are finished have no lane
        along = proposal.along(state.drafts, asked, pinned.lane, pinned.block)
        along = check_law(along, f"{called(proposal)}.along", (pinned.lane.numel(), *q.shape[1:]))
        q = Patched(q, pinned.lane, along)
    return draft._replace(tokens=pinned.impose(draft.tokens), q=q)


@dataclass(frozen=True)
class Scorer:
    """The target model's answers for B particles with K lanes each (implements `Verifier`).

    Attributes:
        program: gives target and intermediate.
        state: holds the target's session.
        rows: the particles, `[B]`.
        q: proposals of their lanes, `[B * K, V, A]`.
        window: greatest length of each particle's block, `[B]`.
    """

    program: Program
    state: SMCState
    rows: Tensor
    q: Law
    window: Tensor

    @property
    def walks(self) -> int:
        """How many consecutive lanes have one proposal and one intermediate (`Verifier.walks`)."""
        return self.state.walks

    def along(self, tokens: Tensor) -> tuple[Law, Law]:
        """Target and intermediate along the lanes' drafts, `[B * K, V, A]` each, by one forward (`Verifier.along`)."""
        program, lanes, width = self.program, self.program.lanes, tokens.shape[1]
        # Nothing is committed past the longest horizon, and the AR model may have no position there: it is not asked.
        asked, limit = int(self.window.max()), program.target.model.max_length
        given = tokens[:, :asked].clamp_min(0)
        if limit is None:
            raw = self.state.ar.score(self.rows.repeat_interleave(lanes), given)
        else:
            room = limit - self.state.prefix.length[self.rows]
            raw = score_in_reach(self.state.ar, self.rows, given, window=self.window, room=room, lanes=lanes)
        if asked < width:  # kernels see laws of V positions; the last one stands for those that no block reaches
            raw = raw[:, torch.arange(width, device=raw.device).clamp_max(asked - 1)]
        p = program.target.law(raw, chunks=self.state.chunks)
        return p, bridge_law(program.intermediate, self.q, p, lanes=lanes)

    def at_nodes(self, tree: Tree, q: Law) -> tuple[Law, Law]:
        """Target and intermediate after every node of trees, `[R', T + 1, A]` each, by one forward
        (`Verifier.at_nodes`)."""
        program, count = self.program, q.rows
        trees = count // self.rows.numel()
        raw = self.state.ar.score_tree(self.rows.repeat_interleave(trees), tree.tokens, tree.parents)
        p = program.target.law(raw, chunks=self.state.chunks)
        # What follows depth d is at place d.
        place = torch.nn.functional.pad(tree.depth, (1, 0)).clamp_max(q.shape[-2] - 1)
        own = torch.arange(count, device=place.device)[:, None].expand_as(place)
        return p, bridge_law(program.intermediate, Placed(q, own, place), p, lanes=trees)


class Moved(NamedTuple):
    """The lanes of B particles after the move.

    Attributes:
        move: leading dimensions `[B, K]`.
        increments: of their log weights, `[B, K]`.
        scored: drafted tokens or tree nodes that the target scored for each particle, `[B]`.
        width: greatest length of each lane's block, `[B, K]`.
    """

    move: Move
    increments: Tensor
    scored: Tensor
    width: Tensor


def move_lanes(
    program: Program, state: SMCState, rows: Tensor, draft: Draft, *, source: Source, pinned: Pinned | None = None
) -> Moved:
    """Verify, move and weigh the lanes of particles `rows: [B]`.

    In parts where the target's logits would pass their cap. The draws of all parts are those of the whole: they are
    made once, in the order of the first part's calls.
    """
    lanes, total = program.lanes, rows.numel()
    step = _particles_at_once(program, state, draft.q)
    if step >= total:
        return _move_part(program, state, rows, draft, source, pinned)
    whole, parts = DrawnOnce(source), []
    for first in range(0, total, step):
        last = min(first + step, total)
        own = torch.arange(first * lanes, last * lanes, device=rows.device)
        part = Draft(draft.tokens[own], draft.q.of_rows(own), draft.width[own])
        fixed = None if pinned is None else pinned.part(first * lanes, last * lanes)
        parts.append(_move_part(program, state, rows[first:last], part, whole.part(own), fixed))
    move = Move(*(torch.cat(x) for x in zip(*(part.move for part in parts), strict=True)))
    increments, scored, width = (torch.cat(x) for x in zip(*(part[1:] for part in parts), strict=True))
    return Moved(move, increments, scored, width)


def _particles_at_once(program: Program, state: SMCState, q: Law) -> int:
    """How many particles the target scores in one call; at least one."""
    if program.max_logit_bytes is None:
        return q.rows
    positions = program.kernel.positions(program.lanes, program.window, walks=state.walks)
    return max(1, program.max_logit_bytes // (positions * q.shape[-1] * q.dtype.itemsize))


def _move_part(
    program: Program, state: SMCState, rows: Tensor, draft: Draft, source: Source, pinned: Pinned | None
) -> Moved:
    """Of some particles; what their laws were computed from can be forgotten afterwards."""
    count, lanes = rows.numel(), program.lanes
    horizon = Horizon(draft.width, program.target.model.eos_id)
    window = draft.width.reshape(count, lanes).amax(1)
    verifier = Scorer(program, state, rows, draft.q, window)
    move, p, pi, scored = program.kernel.move(draft, verifier, source=source, horizon=horizon, pinned=pinned)
    shaped = Move(
        move.block.reshape(count, lanes, -1), move.length.reshape(count, lanes), move.accepted.reshape(count, lanes)
    )
    q, p, pi = (law.shaped(count, lanes) for law in (draft.q, p, pi))
    moved = Lanes(q, p, pi, shaped, Horizon(window, horizon.eos_id))
    watch(program, state, rows, moved)
    increments = checked_increments(
        program.weight, moved, kernel=program.kernel, intermediate=program.intermediate
    )
    return Moved(shaped, increments, scored.reshape(count, lanes).sum(1), draft.width.reshape(count, lanes))


#: Draws for some prompts (`[P']` indices), the given number of rows each.
SourceOf = Callable[[Tensor, int], Source]


class Reduced(NamedTuple):
    """The survivors of a step, N out of the N * K lanes of each of P prompts.

    Attributes:
        survivors: lane index `n * K + k` of each, `[P, N]`.
        log_weights: of the survivors, `[P, N]` nats.
        ess: effective sample size before the selection, `[P]` particles.
        resampled: which prompts' particles interacted, BoolTensor `[P]`.
    """

    survivors: Tensor
    log_weights: Tensor
    ess: Tensor
    resampled: Tensor


def reduce_lanes(
    log_weights: Tensor, *, trigger: Trigger, resampler: Resampler, source_of: SourceOf, allowed: Tensor,
    pick: Tensor, pinned_lane: Tensor | None = None,
) -> Reduced:
    """N survivors out of N * K lanes.

    Where the trigger fires, survivors are resampled from all lanes and weights are reset to their mean; elsewhere each
    particle keeps one of its own K lanes, drawn by weight, and weighs by their sum (K = 1: nothing happens).

    Args:
        log_weights: of the lanes, `[P, N, K]` float64, already with `- log K`.
        source_of: gives the draws of some of the P prompts, so many rows each.
        allowed: prompts where resampling is of use, `[P]` (not where every particle is done).
        pick: particles that have lanes to choose from, `[P, N]`; the others keep lane 0.
        pinned_lane: conditional SMC: lane of particle 0 that survives in place 0, `[P]`.
    """
    prompts, particles, lanes = log_weights.shape
    own = log_weights.logsumexp(-1)  # [P, N]
    resample = check_trigger(trigger, own) & allowed & (own > -math.inf).any(-1)
    base = torch.arange(particles, device=own.device) * lanes
    survivors = base.expand(prompts, particles).clone()
    kept = own.clone()
    everyone = torch.arange(prompts, device=own.device)
    stay, mix = everyone[~resample], everyone[resample]
    if lanes > 1 and stay.numel():
        within = torch.log_softmax(torch.where((own == -math.inf)[..., None], 0.0, log_weights)[stay], -1)
        drawn = source_of(stay, particles).categorical(within.reshape(-1, lanes)).reshape(-1, particles)
        survivors[stay] = base + torch.where(pick[stay], drawn, 0)
    if mix.numel():
        flat = log_weights[mix].reshape(mix.numel(), -1)
        survivors[mix] = check_ancestors(resampler, flat, particles, source=source_of(mix, 1))
        kept[mix] = log_mean(own[mix])[:, None].expand(-1, particles)
    if pinned_lane is not None:
        survivors[:, 0] = pinned_lane
    return Reduced(survivors, kept, ess(own), resample)


def committed(lanes: Move, rows: Tensor, survivors: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Block, length and accepted count of every survivor.

    Args:
        lanes: moves of the B growing particles, leading dimensions `[B, K]`.
        rows: which of the `total` rows they are, `[B]`.
        survivors: global lane index `row * K + k` of each survivor, `[R]`.
        total: R.
    Returns:
        `[R, V]`, `[R]`, `[R]`; length 0 where the ancestor did not grow.
    """
    count = lanes.block.shape[1]
    window = lanes.block.shape[2]
    block = torch.full((total, count, window), PAD, dtype=torch.long, device=survivors.device)
    length = torch.zeros(total, count, dtype=torch.long, device=survivors.device)
    accepted = torch.zeros_like(length)
    block[rows], length[rows], accepted[rows] = lanes.block, lanes.length, lanes.accepted
    return (
        block.reshape(-1, window)[survivors], length.reshape(-1)[survivors], accepted.reshape(-1)[survivors],
    )


def commit(
    program: Program, state: SMCState, active: Tensor, growing: Tensor, moved: Moved, reduced: Reduced,
    log_potential: Tensor | None,
) -> None:
    """Append the survivors' blocks, and gather everything by ancestor.

    Args:
        active: prompts of this step, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`.
        log_potential: of every lane's extended prefix, `[B, K]`, or None.
    """
    n, k, device = program.particles, program.lanes, active.device
    everyone = (active[:, None] * n + torch.arange(n, device=device)).flatten()
    total = state.prefix.length.numel()
    first = torch.arange(active.numel(), device=device)[:, None] * (n * k)
    survivors = (first + reduced.survivors).flatten()  # lanes of the active prompts
    block, length, accepted = committed(moved.move, growing, survivors, everyone.numel())
    ancestors = torch.arange(total, device=device)
    ancestors[everyone] = everyone[survivors // k]
    blocks = block.new_zeros(total, block.shape[1])
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    blocks[everyone], lengths[everyone] = block.clamp_min(0), length
    stays = torch.equal(ancestors, torch.arange(total, device=device))
    if not stays:
        state.ar.gather(ancestors)
        state.prefix = state.prefix.select(ancestors)
    state.ar.commit(blocks, lengths)
    state.prefix = state.prefix.extend(blocks, lengths, eos_id=program.target.model.eos_id, limit=state.limit)
    # A score that is not a weight is not carried.
    state.log_weights[active] = reduced.log_weights if program.weight.proper else 0.0
    if log_potential is not None:
        each = state.log_potential[everyone][:, None].repeat(1, k)
        each[growing] = log_potential
        state.log_potential[everyone] = each.reshape(-1)[survivors]
    offered = torch.zeros(everyone.numel(), k, dtype=torch.long, device=device)
    offered[growing] = moved.width
    whole = torch.zeros(total, dtype=torch.bool, device=device)
    whole[everyone] = (length > 0) & (accepted == length) & (length == offered.reshape(-1)[survivors])
    whole &= ~state.prefix.done
    program.proposal.commit(state.drafts, None if stays else ancestors, blocks, lengths, whole)


def lane_rows(particles: Tensor, lanes: int) -> Tensor:
    """Row numbers of the K lanes of each particle, `[B]` -> `[B * K]`."""
    return (particles[:, None] * lanes + torch.arange(lanes, device=particles.device)).flatten()

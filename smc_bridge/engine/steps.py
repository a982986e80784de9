"""The seven parts of a step as functions of their inputs: propose, branch, verify, move, reweight, reduce, commit.

The engine strings them together (`smc_bridge.engine.sampler`). Shapes: B particles that still grow, K lanes, V window,
A alphabet, P prompts, N particles per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.intermediate import Intermediate
from smc_bridge.distributions.lazy import Chunks, LazyLaw
from smc_bridge.distributions.target import ARTarget
from smc_bridge.engine.conditional import Pinned
from smc_bridge.engine.reach import score_in_reach
from smc_bridge.engine.resampling import Resampler, check_ancestors
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.weights import Trigger, check_trigger, ess, log_mean
from smc_bridge.kernels.importance import Lanes
from smc_bridge.kernels.protocol import DraftKernel, Horizon, Move, at_tokens, check_draft, check_move
from smc_bridge.models.protocols import ABSENT, MASKED
from smc_bridge.prefix import PAD
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.randomness import Source


def propose(state: SMCState, rows: Tensor, proposal: DLMProposal) -> Tensor:
    """Give marginals to the particles `rows: [B]` that have none left: one forward on their unique prefixes.

    Returns:
        the prompt of every row that was scored, `[U]` (empty if every particle had marginals left). A row that serves
        several prompts counts for each, so that a prompt's count does not depend on the batch.
    """
    needy = rows[state.marginals.remaining()[rows] == 0]
    if needy.numel() == 0:
        return needy
    # A prefix with another length limit is drafted to another length: it needs a forward of its own. So does one of
    # another prompt if scores depend on which forwards came before, or the draws would depend on the batch.
    apart = state.limit
    if getattr(state.dlm, "has_history", False):
        seat = torch.arange(apart.numel(), device=apart.device) // state.particles
        apart = apart * (int(seat[-1]) + 1) + seat
    scored, group = state.prefix.unique(needy, apart=apart)
    width = (state.limit[scored] - state.prefix.length[scored]).clamp_max(proposal.lookahead)
    column = torch.arange(int(width.max()), device=rows.device)
    canvas = torch.where(column < width[:, None], MASKED, ABSENT)
    state.marginals.add(needy, group, state.dlm.score(scored, canvas), width)
    # Pairs (prompt, group) as single numbers, which are sorted much faster.
    served: Tensor = torch.unique(needy // state.particles * scored.numel() + group)
    return served // scored.numel()


@dataclass(frozen=True)
class Branch:
    """The lanes of B particles before the move.

    Attributes:
        law: proposal of every lane, `[B * K, V, A]`, lazy.
        logits, place: the marginals `[U, M, A]`, and which of their `U * M` places each position reads, `[B, V]`.
        horizon: of the B particles.
        proposal: the law's origin.
        lanes: K.
        chunks: how much of a law is computed at a time.
    """

    law: LazyLaw
    logits: Tensor
    place: Tensor
    horizon: Horizon
    proposal: DLMProposal
    lanes: int
    chunks: Chunks

    @cached_property
    def raw_q(self) -> Tensor:
        """The marginals' logits, `[B, V, A]`."""
        slot, column = self.place // self.logits.shape[1], self.place % self.logits.shape[1]
        return self.logits[slot, column]

    @cached_property
    def log_q(self) -> Tensor:
        """`law` as a dense tensor, `[B, K, V, A]`; lanes with one law share its memory."""
        return self.proposal.log_probs(self.raw_q, self.lanes)

    def part(self, first: int, last: int) -> Branch:
        """Of particles `first` .. `last - 1`."""
        lane = torch.arange(first * self.lanes, last * self.lanes, device=self.place.device)
        horizon = Horizon(self.horizon.window[first:last], self.horizon.eos_id)
        return replace(self, law=self.law.of_rows(lane), place=self.place[first:last], horizon=horizon)

    def raw_at(self, block: Tensor) -> Tensor:
        """The marginals' logits at tokens `[B, K, V]`, float32 or better; entries at `PAD` are arbitrary."""
        place = self.place[:, None].expand(block.shape)
        slot, column = place // self.logits.shape[1], place % self.logits.shape[1]
        return self.logits[slot, column, block.clamp_min(0)].to(self.law.dtype)


def branch(
    state: SMCState, rows: Tensor, proposal: DLMProposal, *, lanes: int, window: int, chunks: Chunks | None = None
) -> Branch:
    """Every particle's next window of marginals under every lane's temperature; equal windows are one law."""
    marginals = state.marginals
    left = marginals.remaining()[rows]
    room = torch.minimum(left, state.limit[rows] - state.prefix.length[rows])
    horizon = Horizon(room.clamp_max(window), proposal.model.eos_id)
    width = marginals.logits.shape[1]
    start, owner = torch.unique(marginals.slot[rows] * width + marginals.offset[rows], return_inverse=True)
    column = start[:, None] % width + torch.arange(window, device=rows.device)
    slot = start[:, None] // width
    # Past the end of a slot its last position is repeated; nothing is committed there.
    place = slot * width + torch.minimum(column, marginals.width[slot] - 1)
    chunks = Chunks() if chunks is None else chunks
    law = proposal.lazy(marginals.logits, place, owner, lanes, chunks=chunks)
    return Branch(law, marginals.logits, place[owner], horizon, proposal, lanes, chunks)


def lane_horizon(horizon: Horizon, lanes: int) -> Horizon:
    """The horizon of the B * K lanes of B particles."""
    return Horizon(horizon.window.repeat_interleave(lanes), horizon.eos_id)


def move_drafts(
    state: SMCState, rows: Tensor, at: Branch, *, kernel: DraftKernel, target: ARTarget, intermediate: Intermediate,
    source: Source, pinned: Pinned | None,
) -> tuple[Lanes, Tensor]:
    """Draft, verify and move with a kernel of linear drafts.

    Returns:
        the lanes, and the drafts `[B, K, V]`.
    """
    limit = getattr(target.model, "max_length", None)

    def score(drafts: Tensor) -> Tensor:
        if limit is None:
            return state.ar.score(rows.repeat_interleave(at.lanes), drafts)
        room = limit - state.prefix.length[rows]
        return score_in_reach(state.ar, rows, drafts, window=at.horizon.window, room=room, lanes=at.lanes)

    return bridge(
        at, score, kernel=kernel, target=target, intermediate=intermediate, source=source, pinned=pinned
    )


def bridge(
    at: Branch, score: Callable[[Tensor], Tensor], *, kernel: DraftKernel, target: ARTarget, intermediate: Intermediate,
    source: Source, pinned: Pinned | None = None,
) -> tuple[Lanes, Tensor]:
    """The step's own arithmetic on linear drafts: from the marginals' logits to committed blocks and their laws.

    Args:
        score: AR logits along drafts cut to the longest horizon W of the particles, `[B * K, W]` -> `[B * K, W, A]`.
    Returns:
        the lanes, and the drafts `[B, K, V]`.
    """
    count, lanes, window = at.place.shape[0], at.lanes, at.place.shape[1]
    draft = check_draft(kernel, kernel.draft(at.law, generator=source), at.law)
    if pinned is not None:
        draft = pinned.impose(draft)
    # Nothing is committed past the longest horizon, and the AR model may have no position there: it is not asked.
    asked = int(at.horizon.window.max())
    raw_p = score(draft[:, :asked])
    if asked < window:  # kernels see laws of V positions; the last one stands for those that no block reaches
        raw_p = raw_p[:, torch.arange(window, device=raw_p.device).clamp_max(asked - 1)]
    log_p = target.lazy(raw_p, chunks=at.chunks)
    log_pi = bridge_law(intermediate, at.law, log_p, lanes=lanes)
    horizon = lane_horizon(at.horizon, lanes)
    move = kernel(at.law, log_pi, draft, generator=source, horizon=horizon)
    move = check_move(kernel, move, horizon, window=window, vocab_size=at.law.shape[-1])
    if pinned is not None:
        move = pinned.stop(move, kernel, at.law, log_pi, horizon=horizon)
    raw = at_tokens(raw_p, move.block).to(log_p.dtype).reshape(count, lanes, window)
    block = move.block.reshape(count, lanes, window)
    shaped = Move(block, move.length.reshape(count, lanes), move.accepted.reshape(count, lanes))
    log_q, log_p, log_pi = (law.shaped(count, lanes) for law in (at.law, log_p, log_pi))
    moved = Lanes(log_q, log_p, log_pi, shaped, at.raw_at(block), raw, at.horizon)
    return moved, draft.reshape(count, lanes, window)


#: Draws for some prompts (`[P']` indices), the given number of rows each.
SourceOf = Callable[[Tensor, int], Source]


class Reduced(NamedTuple):
    """Survivors: lane index `n * K + k` of each, `[P, N]`; their log weights `[P, N]`; ESS before `[P]`; which prompts'
    particles interacted, `[P]`."""

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
        survivors[mix] = check_ancestors(resampler, flat, particles, generator=source_of(mix, 1))
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
    state: SMCState, active: Tensor, growing: Tensor, lanes: Lanes, reduced: Reduced, log_potential: Tensor | None, *,
    eos_id: int | None,
) -> None:
    """Append the survivors' blocks, gather everything by ancestor, and keep marginals that are still good.

    A survivor that was accepted to the end of its window keeps what is left of its marginals (elastic window).

    Args:
        active: prompts of this step, `[P']`.
        growing: which of their `P' * N` particles took part, `[B]`.
        log_potential: of every lane's extended prefix, `[B, K]`, or None.
    """
    n, k, device = state.particles, lanes.move.length.shape[1], active.device
    everyone = (active[:, None] * n + torch.arange(n, device=device)).flatten()
    total = state.prefix.length.numel()
    first = torch.arange(active.numel(), device=device)[:, None] * (n * k)
    survivors = (first + reduced.survivors).flatten()  # lanes of the active prompts
    block, length, accepted = committed(lanes.move, growing, survivors, everyone.numel())
    ancestors = torch.arange(total, device=device)
    ancestors[everyone] = everyone[survivors // k]
    blocks = block.new_zeros(total, block.shape[1])
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    blocks[everyone], lengths[everyone] = block.clamp_min(0), length
    if not torch.equal(ancestors, torch.arange(total, device=device)):
        state.dlm.gather(ancestors)
        state.ar.gather(ancestors)
        state.prefix = state.prefix.select(ancestors)
        state.marginals.slot = state.marginals.slot[ancestors]
        state.marginals.offset = state.marginals.offset[ancestors]
    state.dlm.commit(blocks, lengths)
    state.ar.commit(blocks, lengths)
    state.prefix = state.prefix.extend(blocks, lengths, eos_id=eos_id, limit=state.limit)
    state.log_weights[active] = reduced.log_weights
    if log_potential is not None:
        each = state.log_potential[everyone][:, None].repeat(1, k)
        each[growing] = log_potential
        state.log_potential[everyone] = each.reshape(-1)[survivors]
    offered = torch.zeros(everyone.numel(), dtype=torch.long, device=device)
    offered[growing] = lanes.horizon.window
    whole = (length > 0) & (accepted == length) & (length == offered[survivors // k])
    state.marginals.offset = state.marginals.offset + lengths
    spent = torch.ones(total, dtype=torch.bool, device=device)
    spent[everyone] = ~whole
    state.marginals.slot[spent | (state.marginals.remaining() <= 0) | state.prefix.done] = -1


def lane_rows(particles: Tensor, lanes: int) -> Tensor:
    """Lane indices of particles: `[B]` -> `[B * K]`."""
    return (particles[:, None] * lanes + torch.arange(lanes, device=particles.device)).flatten()

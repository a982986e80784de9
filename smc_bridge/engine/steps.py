"""The first half of a step as functions of their inputs: draft, verify, move, reweight; on the device.

The engine strings them together (`smc_bridge.engine.sampler`); what follows is in `smc_bridge.engine.survivors`.
Shapes: P prompts, N particles of each, B particles that still grow, K lanes, V window, A alphabet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.bridge import bridge_law
from smc_bridge.distributions.first_order import after
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.table import settled
from smc_bridge.distributions.target import TokenPotential
from smc_bridge.distributions.views import Exchanged, Patched
from smc_bridge.engine.parts import DrawnOnce
from smc_bridge.engine.program import Program
from smc_bridge.engine.reach import calls_of, score_in_reach, widest
from smc_bridge.engine.state import SMCState
from smc_bridge.engine.watch import watch
from smc_bridge.kernels.importance import Lanes, checked_increments
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.kernels.tree_build import Tree
from smc_bridge.models.arguments import called
from smc_bridge.models.checks import gathered
from smc_bridge.models.ends import ends_of
from smc_bridge.models.host import Index, known, places, sent
from smc_bridge.models.protocols import CausalLM, CausalSession
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Asked, Draft, check_draft, check_law
from smc_bridge.randomness import Source


def draft_lanes(
    program: Program, state: SMCState, asked: Asked, *, source: Source, pinned: Pinned | None = None
) -> Draft:
    """K drafts for each of the B particles; pinned lanes have their own tokens, and q along them."""
    proposal, marginals = program.proposal, program.kernel.reads_marginals
    draft = check_draft(proposal, proposal.draft(state.drafts, asked, source=None if marginals else source), asked)
    if pinned is not None and not marginals and not proposal.factorised and pinned.lane.numel():
        # Retained sequences that are finished have no lane.
        own, width = pinned.block[:, : asked.window], draft.width
        if follow := getattr(proposal, "follow", None):
            along, ended = follow(state.drafts, asked, pinned.lane, own)
            width = width.index_copy(0, pinned.lane, ended)
        else:
            along = proposal.along(state.drafts, asked, pinned.lane, own)
        along = check_law(along, f"{called(proposal)}.along", (pinned.lane.numel(), *draft.q.shape[1:]))
        draft = draft._replace(q=Patched(draft.q, pinned.lane, along), width=width)
    if program.bonus:
        draft = with_bonus(draft, state, asked)
    return draft if pinned is None or marginals else draft._replace(tokens=pinned.impose(draft.tokens))


def with_bonus(draft: Draft, state: SMCState, asked: Asked) -> Draft:
    """The draft with one more place, `[B * K, V + 1]`, for a token of the target after a draft that was accepted whole.

    At the place after a row's draft q has no mass and pi is p: every kernel that gets there commits a draw of p and
    stops. Where later marginals are known, or there is no room, a row has no such place.
    """
    rows, lanes = known(asked.rows), asked.lanes
    room = (known(state.limit) - known(state.prefix.length))[rows].repeat(lanes)
    width = known(draft.width)
    more = width < room
    if draft.lasting is not None:
        more &= ~draft.lasting
    device, columns = draft.tokens.device, asked.window + 1
    bonus = sent(np.where(more, width, -1), device)
    tokens = torch.where(
        places(columns, device) == bonus[:, None], PAD, torch.nn.functional.pad(draft.tokens, (0, 1), value=PAD)
    )
    q = settled(Exchanged(draft.q, None, bonus, columns))
    return draft._replace(tokens=tokens, q=q, width=sent(width + more, device), bonus=bonus)


@dataclass(frozen=True)
class Scorer:
    """The answers of the target, and of further experts, for B particles with K lanes each (implements `Verifier`).

    Attributes:
        program: gives target, further experts and intermediate.
        state: holds their sessions.
        rows: the particles, `[B]`.
        q: proposals of their lanes, `[B * K, V, A]`.
        window: greatest length of each particle's block, `[B]`, on the host.
        bonus: place of each lane's bonus token, `[B * K]` (`Draft`), or None.
    """

    program: Program
    state: SMCState
    rows: Tensor
    q: Law
    window: Index
    bonus: Tensor | None = None

    @property
    def walks(self) -> int:
        """How many consecutive lanes have one proposal and one intermediate (`Verifier.walks`)."""
        return self.state.walks

    def room(self, model: CausalLM) -> Index | None:
        """Positions that a model has left for each particle, `[B]` on the host; None if it has no last one."""
        limit = model.max_length
        return None if limit is None else limit - known(self.state.prefix.length)[known(self.rows)]

    def along(self, tokens: Tensor) -> tuple[Law, Law]:
        """Target and intermediate along the lanes' drafts, `[B * K, V, A]` each, by one forward of each causal model
        (`Verifier.along`)."""
        program, lanes, width = self.program, self.program.lanes, tokens.shape[1]
        # Nothing is committed past the longest horizon, and a model may have no position there: it is not asked.
        given = tokens[:, : int(self.window.max())].clamp_min(0)
        p, *experts = self._laws(lambda session, model: self._scored(session, model, given), width)
        return p, bridge_law(program.intermediate, self.q, p, lanes=lanes, experts=experts, bonus=self.bonus)

    def _laws(self, score: Callable[[CausalSession, CausalLM], Tensor], width: int | None = None) -> list[Law]:
        """The laws of target and further experts, from what `score` says of each one's session and model."""
        program, chunks = self.program, self.state.chunks
        p = program.target.law(score(self.state.ar, program.target.model), chunks=chunks, width=width)
        return [p, *(
            model_law(score(session, expert.model), None, expert.shaping, chunks=chunks, width=width, lowest=True)
            for session, expert in zip(self.state.experts, program.experts, strict=True)
        )]

    def _scored(self, session: CausalSession, model: CausalLM, given: Tensor) -> Tensor:
        """Logits of one model along the lanes' drafts, `[B * K, W, A]`."""
        lanes, room = self.program.lanes, self.room(model)
        if room is None:
            return session.score(sent(known(self.rows).repeat(lanes), given.device), given)
        return score_in_reach(session, self.rows, given, window=self.window, room=room, lanes=lanes)

    def at_nodes(self, tree: Tree, q: Law) -> tuple[Law, Law]:
        """Target and intermediate after every node of trees, `[R', T + 1, A]` each, by one forward of each causal model
        (`Verifier.at_nodes`)."""
        program, count = self.program, q.rows
        trees = count // self.rows.numel()
        owner = sent(known(self.rows).repeat(trees), self.rows.device)
        p, *experts = self._laws(lambda session, _: session.score_tree(owner, tree.tokens, tree.parents))
        # What follows depth d is at place d.
        place = torch.nn.functional.pad(tree.depth, (1, 0)).clamp_max(q.shape[-2] - 1)
        before = torch.nn.functional.pad(tree.tokens, (1, 0))
        at_nodes = after(q, places(count, place.device), place, before)
        return p, bridge_law(program.intermediate, at_nodes, p, lanes=trees, experts=experts)


class Moved(NamedTuple):
    """The lanes of B particles after the move.

    Attributes:
        move: leading dimensions `[B, K]`.
        increments: of their log weights, `[B, K]`.
        scored: drafted tokens or tree nodes that the target scored for each lane, `[B, K]`.
        asked: most of them that a particle is charged with in each lane, `[B]`, on the host; None if all.
        width: greatest length of each lane's block, `[B, K]`, on the host.
        call: in which call of the target each particle was scored, `[B]`, on the host.
        log_phi: what the blocks add to the target's log potential, `[B, K]` nats, if it is a `TokenPotential`.
    """

    move: Move
    increments: Tensor
    scored: Tensor
    asked: Index | None
    width: Index
    call: Index
    log_phi: Tensor | None = None


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
        lane, device = np.arange(first * lanes, last * lanes), rows.device
        own = sent(lane, device)
        part = draft.of_rows(own)._replace(width=sent(known(draft.width)[lane], device))
        fixed = None if pinned is None else pinned.part(first * lanes, last * lanes)
        some = sent(known(rows)[first:last], device)
        with gathered():  # what a part's questions hold can be forgotten before the next part
            parts.append(_move_part(program, state, some, part, whole.part(own), fixed))
    move = Move(*(torch.cat(x) for x in zip(*(part.move for part in parts), strict=True)))
    increments, scored = (torch.cat(x) for x in zip(*((part.increments, part.scored) for part in parts), strict=True))
    phi = [part.log_phi for part in parts if part.log_phi is not None]
    asked = [part.asked for part in parts if part.asked is not None]
    width = np.concatenate([part.width for part in parts])
    before = np.cumsum([0, *(int(part.call.max()) + 1 for part in parts)])
    call = np.concatenate([part.call + first for part, first in zip(parts, before, strict=False)])
    return Moved(
        move, increments, scored, np.concatenate(asked) if asked else None, width, call, torch.cat(phi) if phi else None
    )


def _particles_at_once(program: Program, state: SMCState, q: Law) -> int:
    """How many particles the target scores in one call; at least one."""
    if program.max_logit_bytes is None:
        return q.rows
    positions = program.kernel.positions(program.lanes, program.places, walks=state.walks)
    return max(1, program.max_logit_bytes // (positions * q.shape[-1] * q.dtype.itemsize))


def _move_part(
    program: Program, state: SMCState, rows: Tensor, draft: Draft, source: Source, pinned: Pinned | None
) -> Moved:
    """Of some particles; what their laws were computed from can be forgotten afterwards."""
    count, lanes = rows.numel(), program.lanes
    horizon = Horizon(draft.width, ends_of(program.target.model.eos_id))
    width = known(draft.width).reshape(count, lanes)
    window = width.max(1)
    verifier = Scorer(program, state, rows, draft.q, window, draft.bonus)
    move, p, pi, scored = program.kernel.move(draft, verifier, source=source, horizon=horizon, pinned=pinned)
    bonus = None if draft.bonus is None else draft.bonus.reshape(count, lanes)
    shaped = Move(
        move.block.reshape(count, lanes, -1), move.length.reshape(count, lanes), move.accepted.reshape(count, lanes)
    )
    q, p, pi = (law.shaped(count, lanes) for law in (draft.q, p, pi))
    each = draft.width if lanes == 1 else sent(window, rows.device)
    moved = Lanes(q, p, pi, shaped, Horizon(each, horizon.ends), bonus)
    watch(program, state, rows, moved)
    increments = checked_increments(
        program.weight, moved, kernel=program.kernel, intermediate=program.intermediate
    )
    target, log_phi = program.target, None
    if isinstance(target.potential, TokenPotential):
        log_phi = target.log_potential_along(p, shaped.block, shaped.length)
    call, asked = np.zeros(count, dtype=np.int64), None
    if not program.kernel.reads_marginals:
        call = calls_of(window, verifier.room(program.target.model))
        asked = widest(window, call, known(rows) // state.particles)
    return Moved(shaped, increments, scored.reshape(count, lanes), asked, width, call, log_phi)


def lane_rows(particles: Index, lanes: int) -> Index:
    """Row numbers of the K lanes of each particle, `[B]` -> `[B * K]`."""
    return (particles[:, None] * lanes + np.arange(lanes)).ravel()

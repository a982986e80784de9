"""`DLMProposal`: independent marginals of the next M positions from one forward of a masked diffusion model.

`q(x_{1:M} | c) = prod_i q_i(x_i | c)`. Lane k may have its own temperature; then it has its own `q^(k)`. The marginals
do not depend on what is drafted: they outlive a block that was accepted whole (`smc_bridge.proposals.marginals`), and
equal prefixes share one row of a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Chunks, Law
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping, as_ids, check_model, check_temperature, check_top_p
from smc_bridge.models.arguments import is_list, whole_number
from smc_bridge.models.protocols import ABSENT, MASKED, DiffusionSession, MaskedDiffusionLM
from smc_bridge.models.rows import reseat
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.marginals import Marginals
from smc_bridge.proposals.protocol import Asked, Cost, Draft
from smc_bridge.randomness import Source


def _several(temperature: Any) -> list[Any] | None:
    """The entries of a list of temperatures, None for a single one of whatever kind."""
    return list(temperature) if is_list(temperature) else None


def as_it_is(base: DLMProposal) -> DLMProposal:
    """The marginals themselves as the proposal."""
    return base


@dataclass
class MeanFieldState:
    """State of the proposal: the diffusion model's session, and the marginals that particles still draw from.

    Attributes:
        session: of R particles.
        marginals: logits that outlive a block, with the place of each particle in them.
        particles: N, consecutive rows of each prompt.
    """

    session: DiffusionSession
    marginals: Marginals
    particles: int


class DLMProposal:
    """Mean-field proposal of a masked diffusion model.

    Args:
        model: gives the logits (`MaskedDiffusionLM`).
        temperature: one for all lanes, or one per lane.
        top_p: truncation of the proposal. It breaks domination (condition C3) unless the intermediate puts mass
            wherever the target does: combine with `Defensive`.
        banned_ids: tokens of probability zero besides those that the model itself bans.
        lookahead: M, masked positions per forward (fewer where the length limit is nearer).
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: MaskedDiffusionLM, *, temperature: float | Sequence[float] = 1.0, top_p: float = 1.0,
        banned_ids: Sequence[int] = (), lookahead: int = 256,
    ) -> None:
        check_model(model, "diffusion")
        self.model = model
        several = _several(temperature)
        temperatures = [
            check_temperature(x, name="temperature of the proposal")
            for x in ([temperature] if several is None else several)
        ]
        if not temperatures:
            raise ValueError("temperature of the proposal is an empty list: give one number, or one per lane")
        self.lane_temperatures = None if several is None else tuple(map(float, temperatures))
        top_p = check_top_p(top_p, name="top_p of the proposal")
        banned = as_ids(banned_ids, model.vocab_size, also=model.banned_ids)
        self.shaping = Shaping(temperatures[0], top_p, None, banned)
        self.lookahead = whole_number("lookahead", lookahead, remedy="draft at least 1 position, a whole number")

    @property
    def lanes(self) -> int:
        """How many lanes have a temperature of their own; 1 if one temperature serves all."""
        return 1 if self.lane_temperatures is None else len(self.lane_temperatures)

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane draws from the same law."""
        return self.lane_temperatures is None or len(set(self.lane_temperatures)) == 1

    factorised = True

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens of probability zero: the user's and the model's own."""
        return self.shaping.banned_ids

    @property
    def covers(self) -> bool:
        """Whether nothing is cut off by top-p."""
        return not self.shaping.truncates

    def settings(self) -> dict[str, Any]:
        """What shapes its draws, as plain data for saved results."""
        lanes = {} if self.lane_temperatures is None else {"temperature": list(self.lane_temperatures)}
        return {**self.shaping.settings(), **lanes}

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """The state of R = P * N particles, without marginals yet (`Proposal.open`)."""
        session = self.model.session(prefix.tokens.clamp_min(0), prefix.length)
        nothing = Marginals.empty(torch.zeros_like(prefix.length), self.model.vocab_size)
        return MeanFieldState(session, nothing, particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]` (`Proposal.draft`).

        Particles without marginals get them by one forward on their unique prefixes; the others draw from what they
        have.
        """
        cost = self._propose(state, asked)
        q, width = self._window(state.marginals, asked)
        shape = q.shape[:2]
        tokens = torch.full(shape, PAD, device=q.device) if source is None else self.drawn(q, source)
        return Draft(tokens, q, width.repeat_interleave(asked.lanes), cost)

    def drawn(self, q: Law, source: Source) -> Tensor:
        """Tokens of the draft from `q: [R, V, A]`, `[R, V]`."""
        return source.categorical(q)

    def along(self, state: MeanFieldState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """The marginals of lanes `[Q]`, `[Q, V, A]`, whatever the block (`Proposal.along`)."""
        return self._window(state.marginals, asked)[0].of_rows(lane)

    def commit(
        self, state: MeanFieldState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let session and marginals follow the survivors (`Proposal.commit`); after a whole draft the marginals that
        are left stay."""
        marginals = state.marginals
        if ancestors is not None:
            state.session.gather(ancestors)
            marginals.slot, marginals.offset = marginals.slot[ancestors], marginals.offset[ancestors]
        state.session.commit(block, length)
        marginals.offset = marginals.offset + length
        marginals.slot[~whole | (marginals.remaining() <= 0)] = -1

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes, without marginals (`Proposal.reseat`)."""
        reseat(state.session, length, rows, fresh.tokens, fresh.length)
        state.marginals.forget(rows)

    def _propose(self, state: MeanFieldState, asked: Asked) -> Cost:
        """Give marginals to the particles that have none left."""
        rows, prefix, marginals = asked.rows, asked.prefix, state.marginals
        needy = rows[marginals.remaining()[rows] == 0]
        if needy.numel() == 0:
            return Cost(needy, needy)
        # A prefix with another length limit is drafted to another length: it needs a forward of its own. So does one of
        # another prompt if scores depend on which forwards came before, or the draws would depend on the batch.
        apart = asked.reach + prefix.length
        if state.session.has_history:
            seat = torch.arange(apart.numel(), device=apart.device) // state.particles
            apart = apart * (int(seat[-1]) + 1) + seat
        scored, group = prefix.unique(needy, apart=apart)
        width = asked.reach[scored].clamp_max(self.lookahead)
        column = torch.arange(int(width.max()), device=rows.device)
        canvas = torch.where(column < width[:, None], MASKED, ABSENT)
        marginals.add(needy, group, state.session.score(scored, canvas), width)
        # Pairs (prompt, group) as single numbers, which are sorted much faster.
        served = torch.unique(needy // state.particles * scored.numel() + group)
        return Cost(served // scored.numel(), torch.zeros_like(served))

    def _window(self, marginals: Marginals, asked: Asked) -> tuple[Law, Tensor]:
        """The next V marginals of every particle under every lane's temperature, `[B * K, V, A]`, and how many of them
        are left, `[B]`; equal windows are one law."""
        rows = asked.rows
        room = torch.minimum(marginals.remaining()[rows], asked.room[rows])
        width = marginals.logits.shape[1]
        start, owner = torch.unique(marginals.slot[rows] * width + marginals.offset[rows], return_inverse=True)
        column = start[:, None] % width + torch.arange(asked.window, device=rows.device)
        slot = start[:, None] // width
        # Past the end of a slot its last position is repeated; nothing is committed there.
        place = slot * width + torch.minimum(column, marginals.width[slot] - 1)
        return self.law(marginals.logits, place, owner, asked.lanes, chunks=asked.chunks), room.clamp_max(asked.window)

    def law(self, logits: Tensor, source: Tensor, owner: Tensor, lanes: int, *, chunks: Chunks | None = None) -> Law:
        """`log q^(k)` of B particles' lanes, computed where it is read; particles and lanes share what they can.

        Args:
            logits: `[U, M, A]`.
            source: which of the `U * M` places each position reads, `[G, V]`.
            owner: which of the G windows each particle has, `[B]`.
            lanes: K.
        Returns:
            `[B * K, V, A]`.
        Raises:
            ValueError: there is one temperature per lane and their number is not `lanes`.
        """
        if self.identical_lanes:
            base = model_law(logits, source, self.shaping, chunks=chunks, lowest=True)
            return base.of_rows(owner.repeat_interleave(lanes))
        assert self.lane_temperatures is not None
        self.check(lanes)
        distinct = sorted(set(self.lane_temperatures))
        temperature = torch.tensor(distinct, dtype=torch.float64, device=logits.device)
        base = model_law(
            logits, source.repeat_interleave(len(distinct), 0), self.shaping,
            temperature=temperature.repeat(source.shape[0]), chunks=chunks, lowest=True,
        )
        of_lane = torch.tensor([distinct.index(t) for t in self.lane_temperatures], device=logits.device)
        return base.of_rows((owner[:, None] * len(distinct) + of_lane).flatten())

    def check(self, lanes: int) -> None:
        """Raise ValueError unless there is one temperature for all lanes, or one for each of that many."""
        if self.lane_temperatures is not None and len(self.lane_temperatures) != lanes:
            raise ValueError(
                f"temperature has {len(self.lane_temperatures)} entries for {lanes} lanes: give one per lane"
            )

    def log_probs(self, logits: Tensor, lanes: int) -> Tensor:
        """`log q^(k)` of every lane, `[R, V, A]` -> `[R, K, V, A]`.

        Raises:
            ValueError: there is one temperature per lane and their number is not `lanes`.
        """
        if self.lane_temperatures is None:
            log_q = self.shaping.log_probs(logits)[:, None]
            return log_q.expand(-1, lanes, -1, -1)
        self.check(lanes)
        temperature = torch.tensor(self.lane_temperatures, dtype=torch.float64, device=logits.device)[:, None, None]
        return self.shaping.log_probs(logits[:, None].expand(-1, lanes, -1, -1), temperature)

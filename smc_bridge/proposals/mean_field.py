"""`DLMProposal`: independent marginals of the next M positions from one forward of a masked diffusion model.

`q(x_{1:M} | c) = prod_i q_i(x_i | c)`. Lane k may have its own temperature; then it has its own `q^(k)`. The marginals
do not depend on what is drafted: they outlive a block that was accepted whole (`smc_bridge.proposals.marginals`), and
equal prefixes share one row of a forward.

*Reuse.* A refusal makes the rest of a forward stale: it was computed before the token that was committed in place of
the refused one. It still is a law given the past, and where that token is but another wording it is still a good one.
With `reuse` set, a particle goes on with its stale marginals, once before its next forward, if the likeliest tokens of
the next few of them have a product of probabilities above `reuse`. That is decided by the logits of the forward, by how
many of its places are used up and by whether a token was refused before: by the past, never by what is drafted next
(condition C1; docs/theory, section 3). So the draft is drawn from, accepted by and scored under one law, stale or not.
Sizes that are chosen in each step (`smc_bridge.engine.pace`) do not reckon with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.distributions.law import Law
from smc_bridge.distributions.logits import model_law
from smc_bridge.distributions.shaping import Shaping, as_ids, check_model, check_temperature, check_top_p
from smc_bridge.models.arguments import is_list, real_between, said, whole_number
from smc_bridge.models.host import Index, known, sent
from smc_bridge.models.protocols import ABSENT, MASKED, DiffusionSession, MaskedDiffusionLM, within_block
from smc_bridge.models.rows import computed, reseat
from smc_bridge.prefix import PAD, Prefix
from smc_bridge.proposals.marginals import Marginals
from smc_bridge.proposals.protocol import Asked, Cost, Draft
from smc_bridge.randomness import Source

#: Next marginals whose likeliest tokens say whether they may be reused.
AHEAD = 4


def _several(temperature: Any) -> list[Any] | None:
    """The entries of a list of temperatures, None for a single one of whatever kind."""
    return list(temperature) if is_list(temperature) else None


def _masked(width: Index) -> Index:
    """Canvases with so many masked places, `[U]` -> `[U, M]` with M the most of them."""
    return np.where(np.arange(width.max()) < width[:, None], MASKED, ABSENT)


def check_reuse(reuse: Any) -> float:
    """The threshold as a number; ValueError unless it is 0, for never, or a probability below 1."""
    remedy = "give a probability below 1, or 0 to draw from no stale marginals"
    found = float(real_between("reuse", reuse, 0.0, 1.0, remedy=remedy))
    if found == 1.0:
        raise ValueError(f"reuse = {said(reuse)}: {remedy}")
    return found


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
        temperature: one for all lanes, or one per lane; 0 drafts the likeliest tokens.
        top_p: truncation of the proposal. It breaks domination (condition C3), as a temperature of 0 does, unless the
            intermediate puts mass wherever the target does: combine with `Defensive`.
        banned_ids: tokens of probability zero besides those that the model itself bans.
        lookahead: M, masked positions per forward (fewer where the length limit is nearer, or the end of the block of a
            block-causal model).
        reuse: a probability below 1: marginals are used after a refusal, once before the next forward, if that of their
            likeliest continuation is greater, 4 tokens of it or as many as are left; 0 for never. It is the mean over
            lanes at their temperatures (at 0 that at temperature 1), without truncation: one decision for a particle.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, model: MaskedDiffusionLM, *, temperature: float | Sequence[float] = 1.0, top_p: float = 1.0,
        banned_ids: Sequence[int] = (), lookahead: int = 256, reuse: float = 0.0,
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
        self.reuse = check_reuse(reuse)

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
        """Whether nothing is cut off, by top-p or by a temperature of 0."""
        return not (self.shaping.truncates or 0.0 in (self.lane_temperatures or (self.shaping.temperature,)))

    def settings(self) -> dict[str, Any]:
        """What shapes its draws, as plain data for saved results."""
        lanes = {} if self.lane_temperatures is None else {"temperature": list(self.lane_temperatures)}
        return {**self.shaping.settings(), **lanes, **({"reuse": self.reuse} if self.reuse else {})}

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """The state of R = P * N particles, without marginals yet (`Proposal.open`)."""
        session = self.model.session(prefix.tokens.clamp_min(0), prefix.length)
        nothing = Marginals.empty(prefix.length.numel(), self.model.vocab_size, device=prefix.length.device)
        return MeanFieldState(session, nothing, particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]` (`Proposal.draft`).

        Particles without marginals get them by one forward on their unique prefixes; the others draw from what they
        have.
        """
        cost = self.propose(state, asked)
        q, width = self._window(state.marginals, asked)
        tokens = torch.full(q.shape[:2], PAD, device=q.device) if source is None else self.drawn(q, source)
        left = state.marginals.remaining()[known(asked.rows)] > width
        return Draft(tokens, q, sent(width.repeat(asked.lanes), q.device), cost, left.repeat(asked.lanes))

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
        are left stay, and after another if they may be reused."""
        if ancestors is not None:
            state.session.gather(ancestors)
        state.session.commit(block, length)
        kept = state.marginals

        def confident(rows: Index) -> npt.NDArray[np.bool_]:
            """Whether stale marginals of particles `rows` may be reused."""
            return self.confident(kept.logits, kept.slot[rows], kept.offset[rows], kept.width[kept.slot[rows]])

        kept.follow(
            None if ancestors is None else known(ancestors), known(length), known(whole),
            confident if self.reuse else None,
        )

    def confident(self, logits: Tensor, slot: Index, offset: Index, width: Index) -> npt.NDArray[np.bool_]:
        """Whether the likeliest continuation by the next marginals has a probability above `reuse`, bool `[n]`.

        Args:
            logits: of forwards, `[U, M, A]`.
            slot: which of the U, `[n]`.
            offset, width: positions of it that are used up, and that count, `[n]`.
        """
        columns = logits.shape[1]
        if not slot.size:
            return np.zeros(0, dtype=bool)
        _, one, owner = np.unique(slot * columns + offset, return_index=True, return_inverse=True)
        end = width[one, None]
        place = offset[one, None] + np.arange(AHEAD)
        row, column = sent(slot[one], logits.device), sent(place.clip(max=end - 1), logits.device)
        banned = torch.tensor(self.banned_ids, dtype=torch.long, device=logits.device)
        own = [t or 1.0 for t in self.lane_temperatures or (self.shaping.temperature,)]
        likeliest = []
        for i in range(AHEAD):  # one place at a time: A may be large
            scores = logits[row, column[:, i]].to(torch.promote_types(logits.dtype, torch.float32))
            scores = scores.index_fill(-1, banned, -math.inf)
            scores = scores - scores.amax(-1, keepdim=True)
            likeliest.append(torch.stack([-(scores / t).logsumexp(-1) for t in own]))
        log_top = np.where(place < end, known(torch.stack(likeliest, -1)), 0.0)  # [lanes, n, 4]
        sure: npt.NDArray[np.bool_] = np.exp(log_top.sum(-1)).mean(0) > self.reuse  # NaN is not
        return sure[owner]

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes, without marginals (`Proposal.reseat`)."""
        reseat(state.session, length, rows, fresh.tokens, fresh.length)
        state.marginals.forget(known(rows))

    def propose(
        self, state: MeanFieldState, asked: Asked, *, keep: Callable[[Tensor], Tensor] | None = None
    ) -> Cost:
        """Give marginals to the particles that have none left.

        Args:
            keep: what stands beside the logits of each place (`Marginals.features`), `[U, M, D']` of the model's
                features `[U, M, D]`; None for nothing.
        """
        rows, prefix, marginals, device = known(asked.rows), asked.prefix, state.marginals, asked.rows.device
        needy = rows[marginals.remaining()[rows] == 0]
        fresh = sent(needy, device)
        if not needy.size:
            return Cost(fresh, fresh, fresh)
        # A prefix with another length limit is drafted to another length: it needs a forward of its own. So does one of
        # another prompt if scores depend on which forwards came before, or the draws would depend on the batch.
        reach = known(asked.reach)
        apart = reach + known(prefix.length)
        if state.session.has_history:
            seat = np.arange(apart.size) // state.particles
            apart = apart * (seat[-1] + 1) + seat
        scored, group = prefix.unique(needy, apart=apart)
        width = within_block(self.model, known(prefix.length)[scored], reach[scored].clip(max=self.lookahead))
        canvas = sent(scored, device), sent(_masked(width), device)
        if keep is None:
            marginals.add(needy, group, state.session.score(*canvas), width)
        else:
            found = state.session.score(*canvas, hidden=True)
            marginals.add(needy, group, found.logits, width, keep(found.hidden))
        ran = computed(state.session, scored.size)[group]
        # Pairs (prompt, group) as single numbers, which are sorted much faster.
        served = np.unique((needy // state.particles * scored.size + group)[ran]) // scored.size
        return Cost(sent(served, device), sent(np.zeros_like(served), device), fresh)

    def _window(self, marginals: Marginals, asked: Asked) -> tuple[Law, Index]:
        """The next V marginals of every particle under every lane's temperature, `[B * K, V, A]`, and how many of them
        are left, `[B]`; equal windows are one law."""
        place, owner, room = self.windows(marginals, asked)
        law = self.law(marginals.logits, place, owner, asked.lanes, chunks=asked.chunks, width=asked.window)
        return law, room

    def windows(self, marginals: Marginals, asked: Asked) -> tuple[Index, Index, Index]:
        """Where the next marginals of every particle are.

        Returns:
            which of the `U * M` places of the logits each position of G windows reads, `[G, W]` with W at most V;
            which window each particle has, `[B]`; how many of its positions are left, `[B]`.
        """
        rows = known(asked.rows)
        room = np.minimum(marginals.remaining()[rows], known(asked.room)[rows])
        width = marginals.logits.shape[1]
        start, owner = np.unique(marginals.slot[rows] * width + marginals.offset[rows], return_inverse=True)
        room = room.clip(max=asked.window)
        slot, column = start[:, None] // width, start[:, None] % width + np.arange(max(1, room.max(initial=0)))
        # Past the end of a slot its last position is repeated; nothing is committed there.
        return slot * width + np.minimum(column, marginals.width[slot] - 1), owner, room

    def law(
        self, logits: Tensor, source: Index, owner: Index, lanes: int, *, chunks: Chunks | None = None,
        width: int | None = None,
    ) -> Law:
        """`log q^(k)` of B particles' lanes, computed where it is read; particles and lanes share what they can.

        Args:
            logits: `[U, M, A]`.
            source: which of the `U * M` places each position reads, `[G, V]`, or of the first W, `[G, W]`.
            owner: which of the G windows each particle has, `[B]`.
            lanes: K.
            width: V, if the source has but W positions.
        Returns:
            `[B * K, V, A]`.
        Raises:
            ValueError: there is one temperature per lane and their number is not `lanes`.
        """
        if self.identical_lanes:
            base = model_law(logits, sent(source, logits.device), self.shaping, chunks=chunks, lowest=True, width=width)
            each = owner.repeat(lanes)
        else:
            assert self.lane_temperatures is not None
            self.check(lanes)
            distinct = sorted(set(self.lane_temperatures))
            each_own = np.tile(np.array(distinct), len(source))
            temperature = sent(each_own, logits.device)
            greedy = sent((each_own == 0.0).nonzero()[0], logits.device) if distinct[0] == 0.0 else None
            base = model_law(
                logits, sent(source.repeat(len(distinct), 0), logits.device), self.shaping, temperature=temperature,
                greedy=greedy, chunks=chunks, lowest=True, width=width,
            )
            of_lane = np.array([distinct.index(t) for t in self.lane_temperatures])
            each = (owner[:, None] * len(distinct) + of_lane).ravel()
        alone = each.size == base.rows and bool((each == np.arange(each.size)).all())
        return base if alone else base.of_rows(sent(each, logits.device))

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
        temperature = sent(np.array(self.lane_temperatures)[:, None, None], logits.device)
        return self.shaping.log_probs(logits[:, None].expand(-1, lanes, -1, -1), temperature)

"""Chains of the diffusion model: drafted left to right, some places per forward, with the draft so far filled in.

    q_i(. | c, y_<i) = the model's marginal of place i, given c, y_<s in the places before s, and masks behind

where s <= i is the place at which the forward began that fills place i. The law that a token is drawn from *is* its
conditional given the draft before it, whatever s, as long as s depends on the past alone: so the draft keeps a
tractable density (SpecDiff, arXiv 2408.05636, with several denoising steps, in its exact form).

`PrefixFilled` fills a fixed number of places per forward. With one, it is the model's own chain rule, coherent where
independent marginals are not. To draw a chain takes a forward for each group of places; its laws *along a given block*
take one forward, of a row for each place where a group may begin (`rows_filled`).

Shapes: B rows, V places, M lookahead, S numbers of tokens shown, A alphabet, K lanes, Q lanes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import ABSENT, MASKED, DiffusionSession, within_block
from smc_bridge.models.rows import reseat, turns
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.form import Along
from smc_bridge.proposals.protocol import Asked, Cost, Draft
from smc_bridge.randomness import Source


def filled(block: Tensor, count: Tensor | int, width: Tensor, columns: int) -> Tensor:
    """Canvases whose first places are filled in.

    Args:
        block: `[B, V]`.
        count: how many of its tokens are shown, `[B]` or a number.
        width: places that each row has, `[B]`; the others are absent.
        columns: M, at least V.
    Returns:
        `[B, M]`.
    """
    place = torch.arange(columns, device=block.device)
    shown = torch.as_tensor(count, device=block.device).expand(block.shape[0])[:, None]
    tokens = torch.nn.functional.pad(block, (0, columns - block.shape[1]), value=MASKED)
    return torch.where(place >= width[:, None], ABSENT, torch.where(place < shown, tokens, MASKED))


def rows_filled(
    session: DiffusionSession, rows: Tensor, block: Tensor, shown: Tensor, width: Tensor, columns: int
) -> Tensor:
    """Logits of canvases that show the first tokens of a block, by one forward of B * S rows.

    Args:
        session: of the diffusion model.
        rows: which prefixes, `[B]`.
        block: `[B, V]`.
        shown: numbers of its tokens that are shown, `[S]`.
        width, columns: see `filled`.
    Returns:
        `[B, S, M, A]`; arbitrary at places that a row does not have.
    """
    count, several = block.shape[0], shown.numel()
    owner = torch.arange(count, device=block.device).repeat_interleave(several)
    scores = session.score(rows[owner], filled(block[owner], shown.repeat(count), width[owner], columns))
    return scores.reshape(count, several, columns, -1)


def prefix_filled(session: DiffusionSession, rows: Tensor, block: Tensor, width: Tensor, columns: int) -> Tensor:
    """Logits of every place i given the prefix and the first i tokens of the block, by one forward of B * V rows.

    Args:
        session: of the diffusion model.
        rows: which prefixes, `[B]`.
        block: `[B, V]`.
        width, columns: see `filled`.
    Returns:
        `[B, V, A]`; arbitrary at places that a row does not have.
    """
    place = torch.arange(block.shape[1], device=block.device)
    return rows_filled(session, rows, block, place, width, columns)[:, place, place]


@dataclass
class ChainState:
    """State of the proposal: the diffusion model's session on the particles' prefixes.

    Attributes:
        session: of R particles.
        particles: N, consecutive rows of each prompt.
    """

    session: DiffusionSession
    particles: int


@dataclass(frozen=True)
class Drafted(Along):
    """What chains share that ask the diffusion model itself: the session, and the places of their lanes.

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
    """

    def open(self, prefix: Prefix, *, particles: int) -> ChainState:
        """The state of R = P * N particles, N consecutive rows of each prompt (`Proposal.open`)."""
        return ChainState(self.model.session(prefix.tokens.clamp_min(0), prefix.length), particles)

    def commit(
        self, state: ChainState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the session follow the survivors and append their blocks (`Proposal.commit`)."""
        if ancestors is not None:
            state.session.gather(ancestors)
        state.session.commit(block, length)

    def reseat(self, state: ChainState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        reseat(state.session, length, rows, fresh.tokens, fresh.length)

    def widths(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """Of every lane: its particle, places of its canvas, and places of its draft, `[B * K]` each."""
        total = asked.rows.repeat_interleave(asked.lanes)
        canvas = asked.reach[total].clamp_max(self.lookahead)
        canvas = within_block(self.model, asked.prefix.length[total], canvas)
        return total, canvas, torch.minimum(canvas, asked.room[total]).clamp_max(asked.window)


@dataclass(frozen=True)
class Chain(Drafted):
    """Drafts left to right, groups of places by one forward each (module docstring; implements `Proposal`)."""

    @property
    @abstractmethod
    def step(self) -> int:
        """Places between those where a group may begin."""

    @abstractmethod
    def group(self, scores: Tensor) -> Tensor:
        """How many places a forward fills, `[n]`, at least 1: a function of its logits `[n, V, A]` from there on."""

    @abstractmethod
    def most(self, window: int) -> int:
        """Places of a group at most, of V."""

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by one forward per group (`Proposal.draft`).

        A forward is of the rows that go on; the first serves all lanes of a particle.

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        draw = with_source(source).categorical_stream(asked.window)
        k, device = asked.lanes, asked.rows.device
        total, canvas_width, width = self.widths(asked)
        tokens = torch.zeros(total.numel(), asked.window, dtype=torch.long, device=device)
        at, ends, scored = torch.zeros_like(width), ends_of(self.model.eos_id), list[Tensor]()
        going = torch.arange(total.numel(), device=device)
        scores = torch.empty(0, device=device)
        while going.numel():
            # Nothing is filled in at first: the lanes of a particle share a row.
            rows = going if scored else going[::k]
            columns = int(canvas_width[rows].max())
            canvas = filled(tokens[rows], at[rows], canvas_width[rows], columns)
            fresh = following(state.session.score(total[rows], canvas), at[rows], self.most(asked.window))
            fresh = fresh if scored else fresh.repeat_interleave(k, 0)
            if not scored:
                scores = fresh.new_zeros(total.numel(), asked.window, fresh.shape[-1])
            scored.append(total[rows])
            count = torch.minimum(self.group(fresh), (width - at)[going])
            ended = torch.zeros_like(count, dtype=torch.bool)
            for j in range(int(count.max())):
                own = ((j < count) & ~ended).nonzero().flatten()
                lane = going[own]
                place = at[lane] + j
                scores[lane, place] = fresh[own, j]
                drawn = draw(self.law(fresh[own, j : j + 1], asked, lane), lane, place[:, None]).flatten()
                tokens[lane, place] = drawn
                if ends:
                    ended[own] = is_end(drawn, ends)
            at[going] += count
            going = going[~ended & (at < width)[going]]
        everyone = torch.arange(total.numel(), device=device)
        return Draft(tokens, self.law(scores, asked, everyone), width, cost_of(state.session, scored, state.particles))

    def along(self, state: ChainState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by one forward of a row for each place where a group may begin
        (`Proposal.along`)."""
        total, canvas_width, width = self.widths(asked)
        columns, places = int(canvas_width[lane].max()), block.shape[1]
        held = min(columns, places)
        begins = torch.arange(0, held, self.step, device=block.device)
        every = rows_filled(state.session, total[lane], block[:, :held], begins, canvas_width[lane], columns)
        scores = every.new_zeros(lane.numel(), places, every.shape[-1])
        at, most = torch.zeros_like(lane), self.most(places)
        going = torch.arange(lane.numel(), device=block.device)
        while going.numel():
            fresh = following(every[going, at[going] // self.step], at[going], most)
            count = torch.minimum(self.group(fresh), width[lane[going]] - at[going])
            for j in range(int(count.max())):
                own = (j < count).nonzero().flatten()
                scores[going[own], at[going[own]] + j] = fresh[own, j]
            at[going] += count
            going = going[at[going] < width[lane[going]]]
        return self.law(scores, asked, lane)


@dataclass(frozen=True)
class PrefixFilled(Chain):
    """A chain that fills a fixed number of places per forward; one is the model's own chain rule.

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        places: that a forward fills.
    Raises:
        ValueError: the base reuses marginals, or places is no whole number of at least 1.
    Example:
        >>> from smc_bridge import ARTarget, DLMProposal, Sampler
        >>> from smc_bridge.testing import check, tabular_pair
        >>> pair = tabular_pair()
        >>> check(Sampler(PrefixFilled(DLMProposal(pair.dlm), places=2), ARTarget(pair.ar))).proper
        True
    """

    places: int = 1

    form = "prefix-filled chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "places", whole_number("places", self.places))  # the class is frozen

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), **({} if self.places == 1 else {"places": self.places})}

    @property
    def step(self) -> int:
        """See `Chain.step`: every group is whole, but for the last one."""
        return self.places

    def group(self, scores: Tensor) -> Tensor:
        """See `Chain.group`: always the same number."""
        return torch.full(scores.shape[:1], self.places, dtype=torch.long, device=scores.device)

    def most(self, window: int) -> int:
        """As many as there are, or V (`Chain.most`)."""
        return min(self.places, window)


def with_source(source: Source | None) -> Source:
    """The source of a draft; ValueError where there is none."""
    if source is None:
        raise ValueError("source = None: a chain has no law without a draft; give draws")
    return source


def following(scores: Tensor, at: Tensor, most: int) -> Tensor:
    """Logits of the next places of each row, from place `at: [n]` on, `[n, M, A]` -> `[n, most, A]`; past the canvas
    those of its last place."""
    place = (at[:, None] + torch.arange(most, device=at.device)).clamp_max(scores.shape[1] - 1)
    return scores[torch.arange(at.numel(), device=at.device)[:, None], place]


def cost_of(session: DiffusionSession, scored: list[Tensor], particles: int) -> Cost:
    """What calls cost of which the rows were these of the session, `[U]` each, of so many particles of each prompt."""
    forward, before = list[Tensor](), 0
    for rows in scored:
        forward.append(turns(session, rows) + before)
        before = int(forward[-1].max()) + 1
    return Cost(torch.cat(scored) // particles, torch.cat(forward))

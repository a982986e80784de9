"""`PrefixFilled`: the diffusion model's own chain rule, with the draft so far filled in.

    q_i(. | c, y_<i) = the model's marginal of place i, given c, y_<i in the places before it, and masks behind

Left to right, each token is drawn given those before it, so that the draft is coherent where independent marginals are
not. To draw it takes a forward per token; to know its conditionals *along a given block* takes one forward, of a row
for each number of tokens that are filled in (`prefix_filled`; self-speculation of diffusion models does the same).

Shapes: B rows, V places, M lookahead, A alphabet, K lanes, Q lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import said
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import ABSENT, MASKED, DiffusionSession, within_block
from smc_bridge.models.rows import reseat
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.form import Form
from smc_bridge.proposals.lanes import lane_law
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
    count, places = block.shape
    place = torch.arange(places, device=block.device).repeat(count)
    owner = torch.arange(count, device=block.device).repeat_interleave(places)
    scores = session.score(rows[owner], filled(block[owner], place, width[owner], columns))
    return scores[torch.arange(owner.numel(), device=block.device), place].reshape(count, places, -1)


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
class PrefixFilled(Form):
    """Drafts by the diffusion model's own chain rule (module docstring; implements `Proposal`).

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
    Raises:
        ValueError: the base reuses marginals.
    """

    form = "prefix-filled chain"
    factorised = False

    def __post_init__(self) -> None:
        if self.base.reuse:
            raise ValueError(
                f"reuse = {said(self.base.reuse)} of a chain's base: its laws do not outlive a draft; leave it out, or "
                "draft by the marginals"
            )

    @property
    def covers(self) -> bool:
        """Whether nothing is cut off, by top-p or by a temperature of 0 (`Proposal.covers`)."""
        return self.base.covers

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane of a particle draws from the same law."""
        return self.base.identical_lanes

    def open(self, prefix: Prefix, *, particles: int) -> ChainState:
        """The state of R = P * N particles, N consecutive rows of each prompt (`Proposal.open`)."""
        return ChainState(self.model.session(prefix.tokens.clamp_min(0), prefix.length), particles)

    def draft(self, state: ChainState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by one forward per token (`Proposal.draft`).

        A forward is of the rows that go on; the first serves all lanes of a particle.

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        if source is None:
            raise ValueError("source = None: a chain has no law without a draft; give draws")
        k, device = asked.lanes, asked.rows.device
        total, canvas_width, width = self._widths(asked)
        draw = source.categorical_stream(asked.window)
        tokens = torch.zeros(total.numel(), asked.window, dtype=torch.long, device=device)
        scores: Tensor | None = None
        going, scored = torch.arange(total.numel(), device=device), list[Tensor]()
        for i in range(asked.window):
            going = going[width[going] > i]
            if not going.numel():
                break
            # Nothing is filled in yet: the lanes of a particle share a row.
            first = going[going % k == 0] if i == 0 else going
            columns = int(canvas_width[first].max())
            fresh = state.session.score(total[first], filled(tokens[first], i, canvas_width[first], columns))[:, i]
            fresh = fresh.repeat_interleave(k, 0) if i == 0 else fresh
            if scores is None:
                scores = fresh.new_zeros(total.numel(), asked.window, fresh.shape[-1])
            scores[going, i] = fresh
            law = self._law(scores[going, i : i + 1], asked, going)
            tokens[going, i] = draw(law, going).flatten()
            scored.append(total[first] // state.particles)
            if ends := ends_of(self.model.eos_id):
                going = going[~is_end(tokens[going, i], ends)]
        assert scores is not None
        everyone = torch.arange(total.numel(), device=device)
        cost = Cost(torch.cat(scored), torch.cat([torch.full_like(p, i) for i, p in enumerate(scored)]))
        return Draft(tokens, self._law(scores, asked, everyone), width, cost)

    def along(self, state: ChainState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by one forward of Q * V rows (`Proposal.along`)."""
        total, canvas_width, width = self._widths(asked)
        columns = int(canvas_width[lane].max())
        known = torch.nn.functional.pad(block[:, :columns], (0, max(0, columns - block.shape[1])))
        scores = prefix_filled(state.session, total[lane], known[:, : block.shape[1]], canvas_width[lane], columns)
        scores = torch.nn.functional.pad(scores, (0, 0, 0, block.shape[1] - scores.shape[1]))
        present = torch.arange(block.shape[1], device=block.device) < width[lane, None]
        return self._law(torch.where(present[..., None], scores, 0.0), asked, lane)

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

    def _widths(self, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """Of every lane: its particle, places of its canvas, and places of its draft, `[B * K]` each."""
        total = asked.rows.repeat_interleave(asked.lanes)
        canvas = asked.reach[total].clamp_max(self.lookahead)
        canvas = within_block(self.model, asked.prefix.length[total], canvas)
        return total, canvas, torch.minimum(canvas, asked.room[total]).clamp_max(asked.window)

    def _law(self, scores: Tensor, asked: Asked, lane: Tensor) -> Law:
        """The law of logits `[n, V, A]` of lanes `[n]`."""
        base = self.base
        return lane_law(scores, lane, asked.lanes, base.shaping, base.lane_temperatures, asked.chunks)

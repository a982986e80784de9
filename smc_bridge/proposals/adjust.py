"""`Adjusted`: a chain by one forward, whose hidden states a single layer refreshes as tokens become known (ADJUST,
arXiv 2509.22738).

    h^(0), l^(0) = the model on the prefix and masks                     one forward
    y_i ~ softmax(l^(i)_i / tau),   i = 0, 1, ..                         from left to right
    h^(i+1) = layer(c, y_0 .. y_i, masks; h^(i)),   l^(i+1) = head(h^(i+1))      the model's own head

    log q(y) = sum_i log softmax(l^(i)_i / tau)[y_i]

What a token is drawn from is its conditional given the draft before it, so the density is tractable at the temperature
of every lane, and every kernel that verifies drafts takes it. The order of places is forced, and the layer sees the
first places of the draft alone (`smc_bridge.models.learned.adjust`): past those that it sees a draft goes on by the
marginals of the forward. Its passes are no forwards of the diffusion model.

Shapes: B particles, K lanes, R = B * K, V places of a window, W of them that are drafted, D hidden size, A alphabet,
Q lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import said
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.learned.adjust import Refiner, columns
from smc_bridge.models.protocols import MASKED, FeaturedLM, MaskedDiffusionLM, Scored
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import ChainState, Drafted, cost_of, filled, with_source
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source


@dataclass
class AdjustedState(ChainState):
    """State of the proposal.

    Attributes:
        rows: particles of the last forward, whose scores serve laws along other blocks too; None before one.
        scored: scores and features of it, one row for each of them.
    """

    rows: Tensor | None = None
    scored: Scored | None = None


@dataclass(frozen=True)
class Adjusted(Drafted):
    """A chain drafted by one layer over hidden states (module docstring; implements `Proposal`).

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        head: the layer.
    Raises:
        ValueError: the base reuses marginals, its model gives no features, or the layer is for other ones.
    """

    head: Refiner = field(kw_only=True)

    form = "adjusted states"

    def __post_init__(self) -> None:
        super().__post_init__()
        as_refiner(self.head, self.model)

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "head": dict(self.head.config)}

    def open(self, prefix: Prefix, *, particles: int) -> AdjustedState:
        """The state of R = P * N particles, N consecutive rows of each prompt (`Proposal.open`)."""
        return AdjustedState(self.model.session(prefix.tokens.clamp_min(0), prefix.length), particles)

    def draft(self, state: AdjustedState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, by one forward of the diffusion model (`Proposal.draft`).

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        draw = with_source(source).categorical_stream(asked.window)
        total, _, width = self.widths(asked)
        self._score(state, asked)
        everyone = torch.arange(total.numel(), device=total.device)

        def drawn(i: int, lane: Tensor, logits: Tensor) -> Tensor:
            """Tokens of place i of some lanes."""
            place = torch.full_like(lane, i)[:, None]
            return draw(self.law(logits[:, None], asked, lane), lane, place).flatten()

        tokens, scores = self._along(state, asked, everyone, drawn, ends=ends_of(self.model.eos_id))
        cost = cost_of(state.session, [asked.rows], state.particles)
        return Draft(tokens, self.law(scores, asked, everyone), width, cost)

    def along(self, state: AdjustedState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by the forward that the draft was made of (`Proposal.along`)."""
        if state.rows is None or not torch.equal(state.rows, asked.rows):
            self._score(state, asked)
        _, scores = self._along(state, asked, lane, lambda i, own, _: block[own, i].clamp_min(0), ends=())
        return self.law(scores, asked, lane)

    def commit(
        self, state: ChainState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the session follow the survivors and append their blocks (`Proposal.commit`)."""
        super().commit(state, ancestors, block, length, whole)
        _forget(state)

    def reseat(self, state: ChainState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        super().reseat(state, length, rows, fresh)
        _forget(state)

    def _score(self, state: AdjustedState, asked: Asked) -> None:
        """The forward that drafts of particles `asked.rows` are made of: one row for all lanes of each."""
        canvas_width = self.widths(asked)[1][:: asked.lanes]
        nothing = asked.rows.new_zeros(asked.rows.numel(), 0)
        canvas = filled(nothing, 0, canvas_width, int(canvas_width.max()))
        state.rows, state.scored = asked.rows, state.session.score(asked.rows, canvas, hidden=True)

    def _along(
        self, state: AdjustedState, asked: Asked, lane: Tensor, choose: Callable[[int, Tensor, Tensor], Tensor], *,
        ends: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """Tokens of lanes `[Q]` as they are chosen, `[Q, V]`, and the logits that they were chosen from, `[Q, V, A]`.

        Args:
            choose: from place, which of the lanes, `[n]`, and logits `[n, A]` to tokens, `[n]`.
            ends: behind which a lane ends.
        """
        assert state.scored is not None
        width, owner = self.widths(asked)[2][lane], lane // asked.lanes
        most, before = int(width.max()), last_of(asked.prefix)[asked.rows[owner]]
        logits = state.scored.logits[owner, 0]
        hidden = state.scored.hidden[owner, :most]
        there = torch.arange(most, device=lane.device) < width[:, None]
        tokens = torch.zeros(lane.numel(), asked.window, dtype=torch.long, device=lane.device)
        scores = logits.new_zeros(*tokens.shape, logits.shape[-1])
        going = torch.arange(lane.numel(), device=lane.device)
        for i in range(most):
            scores[going, i] = logits
            chosen = choose(i, going, logits)
            tokens[going, i] = chosen
            stays = width[going] > i + 1
            if ends:
                stays &= ~is_end(chosen, ends)
            going, hidden = going[stays], hidden[stays]
            if not going.numel():
                break
            known = torch.arange(most, device=lane.device) <= i
            canvas = torch.where(known, tokens[going, :most], MASKED)
            hidden, (logits,) = refreshed(
                self.head, self.model, canvas, hidden, there[going], before=before[going], places=[i + 1]
            )
        return tokens, scores


def _forget(state: ChainState) -> None:
    """Let the next laws be of another forward."""
    assert isinstance(state, AdjustedState)
    state.rows = state.scored = None


@torch.no_grad()
def refreshed(
    head: Refiner, model: Any, canvas: Tensor, hidden: Tensor, there: Tensor, *, before: Tensor,
    places: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of canvases with more tokens known, and their logits.

    Args:
        model: whose embedding and head they are (`FeaturedLM`).
        canvas: tokens, and `MASKED`, `[n, W]`.
        hidden: features before, `[n, W, D]`.
        there: places that each row has, `[n, W]`.
        before: token before each canvas, `[n]`; `MASKED` where there is none.
        places: whose logits are wanted; None for all.
    Returns:
        features `[n, W, D]`; logits `[n, W, A]`, or of P places `[P, n, A]`.
    """
    weight = head.join.weight
    shown = columns(torch.where(there, canvas, MASKED), before, shift=getattr(model, "shift", False))
    found = head(model.embed(shown).to(weight), hidden.to(weight), there).to(hidden)
    return found, model.head(found) if places is None else model.head(found[:, places].transpose(0, 1))


def last_of(prefix: Prefix) -> Tensor:
    """Last token of each prefix, `[R]`; `MASKED` of an empty one."""
    tokens = torch.nn.functional.pad(prefix.tokens, (1, 0), value=MASKED)
    return tokens.gather(1, prefix.length[:, None])[:, 0]


def as_refiner(head: Any, model: MaskedDiffusionLM) -> Refiner:
    """The layer, if it is one of the model's features; ValueError otherwise."""
    if not isinstance(head, Refiner):
        raise ValueError(f"head = {said(head)}: give a Refiner, as pair.part('adjust') does")
    if not isinstance(model, FeaturedLM):
        raise ValueError(
            f"dlm = {type(model).__name__} gives no features: give a diffusion model with hidden_size, embed and head"
        )
    size = model.embed(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]
    if (head.config["hidden"], head.config["embedding"]) != (model.hidden_size, size):
        raise ValueError(
            f"head reads {head.config['hidden']} features and {head.config['embedding']} numbers of an embedding, and "
            f"the diffusion model gives {model.hidden_size} and {size}: train one for it"
        )
    return head

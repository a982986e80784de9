"""`Slots`: a chain whose first token of each slot is the diffusion model's and whose others are the AR model's (the law
of ReFusion, arXiv 2512.13586, with slots drawn in order).

    q(y | c) = prod over slots, left to right, of   q_D(y_1 | c) prod_{j > 1} p_A(y_j | c, all y before it)

One forward of the diffusion model gives the marginals of all places, from which the slots' first tokens are drawn; the
k - 1 others of a slot take a forward of the AR model each, given everything before them. Every token is drawn from its
conditional given the draft before it, at the temperature of its lane: the density is tractable. What it costs is
counted: a window of V places takes about V (k - 1) / k forwards of the AR model before it is verified.

Shapes: B particles, K lanes, V places, A alphabet, Q lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import whole_number
from smc_bridge.models.ends import ends_of, is_end
from smc_bridge.models.protocols import CausalLM, CausalSession
from smc_bridge.models.rows import reseat
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import with_source
from smc_bridge.proposals.form import OverMarginals
from smc_bridge.proposals.mean_field import MeanFieldState
from smc_bridge.proposals.protocol import Asked, CausalCost, Draft
from smc_bridge.randomness import Source


@dataclass
class SlotState:
    """State of the proposal.

    Attributes:
        marginals: of the diffusion model, that particles still draw from.
        session: of the AR model, on the particles' prefixes.
        particles: N, consecutive rows of each prompt.
    """

    marginals: MeanFieldState
    session: CausalSession
    particles: int


@dataclass(frozen=True)
class Slots(OverMarginals):
    """Slots begun by the diffusion model and filled by the AR model (module docstring; implements `Proposal`).

    Attributes:
        base: gives the diffusion model, temperatures, truncation and lookahead; they hold for both models' laws.
        causal: the AR model.
        slot: k, tokens of a slot; with 1 they are the marginals.
    Raises:
        ValueError: the base reuses marginals, the models' alphabets differ, or k is no whole number of at least 1.
    """

    causal: CausalLM
    slot: int = 4

    form = "slots"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"the models' alphabets differ: {self.model.vocab_size} tokens and {self.causal.vocab_size}; use a "
                "pair that shares its tokenizer"
            )
        object.__setattr__(self, "slot", whole_number("slot", self.slot))  # the class is frozen

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "slot": self.slot}

    def open(self, prefix: Prefix, *, particles: int) -> SlotState:
        """The state of R = P * N particles, N consecutive rows of each prompt (`Proposal.open`)."""
        session = self.causal.session(prefix.tokens.clamp_min(0), prefix.length)
        return SlotState(self.plain.open(prefix, particles=particles), session, particles)

    def draft(self, state: SlotState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]` (`Proposal.draft`); an AR forward is of the lanes that go on.

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        draw = with_source(source).categorical_stream(asked.window)
        scores, marginals = self._begun(state, asked)
        total, width = asked.rows.repeat_interleave(asked.lanes), marginals.width.repeat_interleave(asked.lanes)
        tokens = torch.zeros(*scores.shape[:2], dtype=torch.long, device=scores.device)
        going, ends = torch.arange(total.numel(), device=scores.device), ends_of(self.model.eos_id)
        rows, forward = list[Tensor](), list[Tensor]()
        for i in range(int(width.max())):
            if i % self.slot:
                found = state.session.score(total[going], tokens[going, : i + 1])[:, i]
                scores[going, i] = found.to(scores.dtype)
                rows.append(total[going])
                forward.append(torch.full_like(going, i))
            law = self.law(scores[going, i : i + 1], asked, going)
            tokens[going, i] = draw(law, going, torch.full_like(going, i)[:, None]).flatten()
            stays = width[going] > i + 1
            if ends:
                stays &= ~is_end(tokens[going, i], ends)
            going = going[stays]
            if not going.numel():
                break
        cost, everyone = marginals.cost, torch.arange(total.numel(), device=scores.device)
        if rows and cost is not None:
            nth = torch.cat(forward)
            cost = cost._replace(causal=CausalCost(torch.cat(rows) // state.particles, nth, nth + 1))
        lasting = None if marginals.lasting is None else marginals.lasting.repeat(asked.lanes)
        return Draft(tokens, self.law(scores, asked, everyone), width, cost, lasting)

    def along(self, state: SlotState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by one forward of the AR model (`Proposal.along`)."""
        scores, _ = self._begun(state, asked)
        scores = scores[lane]
        if self.slot > 1 and block.shape[1] > 1:
            rows = asked.rows[lane // asked.lanes]
            found = state.session.score(rows, block.clamp_min(0)).to(scores.dtype)
            filled = torch.arange(block.shape[1], device=block.device) % self.slot > 0
            scores = torch.where(filled[:, None], found, scores)
        return self.law(scores, asked, lane)

    def commit(
        self, state: SlotState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let both sessions follow the survivors (`Proposal.commit`)."""
        self.plain.commit(state.marginals, ancestors, block, length, whole)
        if ancestors is not None:
            state.session.gather(ancestors)
        state.session.commit(block, length)

    def reseat(self, state: SlotState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        self.plain.reseat(state.marginals, length, rows, fresh)
        reseat(state.session, length, rows, fresh.tokens, fresh.length)

    def _begun(self, state: SlotState, asked: Asked) -> tuple[Tensor, Draft]:
        """Marginals of every place as logits, `[B * K, V, A]`, and the draft without tokens that they are of."""
        marginals = self.plain.draft(state.marginals, asked._replace(lanes=1), source=None)
        return marginals.q.dense().repeat_interleave(asked.lanes, 0), marginals

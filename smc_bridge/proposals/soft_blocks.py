"""`SoftBlocks`: a chain over the marginals of one forward, by a small AR network that reads them (CoDiLA, arXiv
2603.20216).

    q(y | c) = prod over blocks, left to right, of   prod_j p_phi(y_j | y_<j, pi),      pi the marginals of the block

One forward of the diffusion model gives the marginals of all places; a window is cut into blocks of B, and within each
the network decodes token by token, given the marginals of the whole block (`smc_bridge.models.learned.codila`). What a
token is drawn from is its conditional given the draft before it, at the temperature of its lane: a chain with a
tractable density, at no further forward of the diffusion model. The marginals that the network reads are the model's
own, at temperature 1, and outlive a draft that was accepted whole, as those of `DLMProposal` do: they are a function of
the past, and so are the blocks, which begin where the draft does.

Shapes: B particles, K lanes, V places, A alphabet, Q lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import said, whole_number
from smc_bridge.models.learned.codila import Memory, SoftAR
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.chain import with_source
from smc_bridge.proposals.form import OverMarginals
from smc_bridge.proposals.mean_field import MeanFieldState
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source


@dataclass(frozen=True)
class SoftBlocks(OverMarginals):
    """Blocks decoded by a small AR network over the marginals (module docstring; implements `Proposal`).

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        head: the network.
        block: B, places that the network decodes at a time; None for as many as it knows.
    Raises:
        ValueError: the base reuses marginals, the network is of another alphabet, or it knows fewer places.
    """

    head: SoftAR
    block: int | None = None

    form = "soft blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        as_head(self.head, self.model.vocab_size)
        object.__setattr__(self, "block", places_of(self.head, self.block))  # the class is frozen

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "block": self.block, "head": dict(self.head.config)}

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """The state of R = P * N particles, that of the marginals (`Proposal.open`)."""
        return self.plain.open(prefix, particles=particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """K drafts for each of B particles, `[B * K, V]`, of the marginals of one forward (`Proposal.draft`).

        Raises:
            ValueError: no source; the law is that of a draft.
        """
        draw = with_source(source).categorical_stream(asked.window)
        marginals = self.plain.draft(state, asked._replace(lanes=1), source=None)
        log_pi, k = marginals.q.dense(), asked.lanes
        owner = torch.arange(log_pi.shape[0], device=log_pi.device).repeat_interleave(k)
        everyone = torch.arange(owner.numel(), device=log_pi.device)
        tokens = torch.zeros(owner.numel(), asked.window, dtype=torch.long, device=log_pi.device)
        scores = self.head.kinds.weight.new_zeros(*tokens.shape, log_pi.shape[-1])
        memory: Memory | None = None
        for i in range(int(marginals.width.max())):
            if i % self.size == 0:
                first, memory = self.head.read(*self._cut(log_pi, marginals.width, i))
                scores[:, i], memory = first[owner], memory.of_rows(owner)
            else:
                assert memory is not None, "a block begins with its marginals"
                scores[:, i], memory = self.head.follow(memory, tokens[:, i - 1], i % self.size, log_pi[owner, i])
            law = self.law(scores[:, i : i + 1], asked, everyone)
            tokens[:, i] = draw(law, everyone, torch.full_like(everyone, i)[:, None]).flatten()
        lasting = None if marginals.lasting is None else marginals.lasting.repeat(k)
        width = marginals.width.repeat_interleave(k)
        return Draft(tokens, self.law(scores, asked, everyone), width, marginals.cost, lasting)

    def along(self, state: MeanFieldState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """q along given blocks, `[Q, V, A]`, by one pass of the network for each block of B (`Proposal.along`)."""
        marginals = self.plain.draft(state, asked._replace(lanes=1), source=None)
        own = lane // asked.lanes
        log_pi, width = marginals.q.dense()[own], marginals.width[own]
        parts = [
            self.head(*self._cut(log_pi, width, i), block[:, i : i + self.size].clamp_min(0))
            for i in range(0, block.shape[1], self.size)
        ]
        return self.law(torch.cat(parts, 1), asked, lane)

    def commit(
        self, state: MeanFieldState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the marginals' state follow the survivors (`Proposal.commit`)."""
        self.plain.commit(state, ancestors, block, length, whole)

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        self.plain.reseat(state, length, rows, fresh)

    @property
    def size(self) -> int:
        """B as a number."""
        assert self.block is not None, "it is set when the proposal is made"
        return self.block

    def _cut(self, log_pi: Tensor, width: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Marginals of the block that begins at place `start`, and which of its places there are, `[n, B]`."""
        block = log_pi[:, start : start + self.size]
        place = start + torch.arange(block.shape[1], device=block.device)
        return block, place < width[:, None]


def as_head(head: Any, size: int) -> SoftAR:
    """The network, if it is one of an alphabet of `size` tokens; ValueError otherwise."""
    if not isinstance(head, SoftAR):
        raise ValueError(f"head = {said(head)}: give a SoftAR, as pair.part('codila') does")
    if head.config["size"] != size:
        raise ValueError(
            f"head reads {head.config['size']} tokens and the model has {size}: train one of this alphabet"
        )
    return head


def places_of(head: SoftAR, block: int | None) -> int:
    """B, as many places as the network knows unless it is given; ValueError if it knows fewer."""
    if block is None:
        return head.block
    found = whole_number("block", block)
    if found > head.block:
        raise ValueError(f"block = {found} of a network that decodes at most {head.block} places: give fewer")
    return found

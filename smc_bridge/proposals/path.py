"""`MostLikelyPath`: a deterministic draft, as a law a point mass at each place.

The draft is the likeliest token of every marginal of the diffusion model. Nothing is drawn: `q_i = 1` at `y_i` and 0
elsewhere, so that a drafted token is accepted with probability `min(1, pi_i(y_i))`, and a refusal is corrected by a
draw from pi without it. (To accept it with probability `pi_i / q_i` of the marginal it came from would be wrong: it was
not drawn from that.) Any rule that finds one path has this law.

Shapes: R rows, V places, A alphabet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smc_bridge.distributions.law import Chunks, Law
from smc_bridge.models.protocols import MaskedDiffusionLM
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.mean_field import DLMProposal, MeanFieldState
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source


class PointLaw(Law):
    """A point mass at each place, `[R, V, A]`; no mass at all where there is no token.

    Args:
        tokens: `[R, V]`, `PAD` for none.
        size: A.
        like: gives dtype and device.
    """

    def __init__(self, tokens: Tensor, size: int, like: Law, chunks: Chunks | None = None) -> None:
        super().__init__((*tokens.shape, size), like, chunks)
        self.tokens = tokens

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `Law.log_probs`."""
        asked = torch.arange(self.shape[-1], device=self.device) if tokens is None else tokens[:, None]
        hit = asked == self.tokens[rows, positions][:, None]
        return torch.where(hit, 0.0, -math.inf).to(self.dtype)


@dataclass(frozen=True)
class MostLikelyPath:
    """The likeliest token of every marginal as a deterministic draft (module docstring; implements `Proposal`).

    It leaves out all other tokens: with an intermediate that does not dominate by itself the program is not proper.

    Attributes:
        base: gives the marginals.
    """

    base: DLMProposal

    factorised = True
    covers = False
    identical_lanes = True

    @property
    def model(self) -> MaskedDiffusionLM:
        """The diffusion model."""
        return self.base.model

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """See `Proposal.banned_ids`."""
        return self.base.banned_ids

    @property
    def lookahead(self) -> int:
        """See `Proposal.lookahead`."""
        return self.base.lookahead

    def settings(self) -> dict[str, Any]:
        """See `Proposal.settings`."""
        return {"form": "likeliest path", **self.base.settings()}

    def check(self, lanes: int) -> None:
        """See `Proposal.check`."""
        self.base.check(lanes)

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """See `Proposal.open`."""
        return self.base.open(prefix, particles=particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """See `Proposal.draft`; nothing is drawn."""
        draft = self.base.draft(state, asked, source=None)
        tokens = torch.stack([
            draft.q.row(torch.full_like(draft.width, i)).argmax(-1) for i in range(asked.window)
        ], dim=1)
        return draft._replace(tokens=tokens, q=PointLaw(tokens, draft.q.shape[-1], draft.q, asked.chunks))

    def along(self, state: MeanFieldState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """See `Proposal.along`: the path, whatever the block."""
        return self.draft(state, asked, source=None).q.of_rows(lane)

    def commit(
        self, state: MeanFieldState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """See `Proposal.commit`."""
        self.base.commit(state, ancestors, block, length, whole)

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """See `Proposal.reseat`."""
        self.base.reseat(state, length, rows, fresh)

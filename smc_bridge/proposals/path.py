"""`MostLikelyPath`: a deterministic draft, as a law a point mass at each place.

The draft is the likeliest token of every marginal of the diffusion model. Nothing is drawn: `q_i = 1` at `y_i` and 0
elsewhere, so that a drafted token is accepted with probability `min(1, pi_i(y_i))`, and a refusal is corrected by a
draw from pi without it. (To accept it with probability `pi_i / q_i` of the marginal it came from would be wrong: it was
not drawn from that.) Any rule that finds one path has this law (`smc_bridge.proposals.search`).

Shapes: R rows, V places, A alphabet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.distributions.point import PointLaw
from smc_bridge.prefix import Prefix
from smc_bridge.proposals.form import Form
from smc_bridge.proposals.mean_field import MeanFieldState
from smc_bridge.proposals.protocol import Asked, Draft
from smc_bridge.randomness import Source


@dataclass(frozen=True)
class MostLikelyPath(Form):
    """The likeliest token of every marginal as a deterministic draft (module docstring; implements `Proposal`).

    It leaves out all other tokens: with an intermediate that does not dominate by itself the program is not proper.

    Attributes:
        base: gives the marginals.
    """

    form = "likeliest path"
    factorised = True
    covers = False

    @property
    def identical_lanes(self) -> bool:
        """True: the path is one for all lanes of a particle."""
        return True

    def open(self, prefix: Prefix, *, particles: int) -> MeanFieldState:
        """The state of R = P * N particles, that of the base (`Proposal.open`)."""
        return self.base.open(prefix, particles=particles)

    def draft(self, state: MeanFieldState, asked: Asked, *, source: Source | None) -> Draft:
        """The likeliest token of every marginal, `[B * K, V]`, as a point mass (`Proposal.draft`); nothing is drawn."""
        draft = self.base.draft(state, asked, source=None)
        tokens = torch.stack([
            draft.q.row(torch.full_like(draft.width, i)).argmax(-1) for i in range(asked.window)
        ], dim=1)
        return draft._replace(tokens=tokens, q=PointLaw(tokens, draft.q.shape[-1], draft.q, asked.chunks))

    def along(self, state: MeanFieldState, asked: Asked, lane: Tensor, block: Tensor) -> Law:
        """The path of lanes `[Q]` as a point mass, `[Q, V, A]`, whatever the block (`Proposal.along`)."""
        return self.draft(state, asked, source=None).q.of_rows(lane)

    def commit(
        self, state: MeanFieldState, ancestors: Tensor | None, block: Tensor, length: Tensor, whole: Tensor
    ) -> None:
        """Let the base's state follow the survivors (`Proposal.commit`)."""
        self.base.commit(state, ancestors, block, length, whole)

    def reseat(self, state: MeanFieldState, length: Tensor, rows: Tensor, fresh: Prefix) -> None:
        """Let particles `rows: [B]` hold other prefixes (`Proposal.reseat`)."""
        self.base.reseat(state, length, rows, fresh)

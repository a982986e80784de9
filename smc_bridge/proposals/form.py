"""`Form`: a proposal that is made of another's marginals, and what it takes over from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from smc_bridge.distributions.law import Law
from smc_bridge.models.arguments import said
from smc_bridge.models.protocols import MaskedDiffusionLM
from smc_bridge.proposals.lanes import lane_law
from smc_bridge.proposals.mean_field import DLMProposal
from smc_bridge.proposals.protocol import Asked


@dataclass(frozen=True)
class Form:
    """Drafts by the model, the temperatures, the truncation and the lookahead of `base`.

    Attributes:
        base: gives the marginals.
        form: what is made of them, in a few words, for the settings; of the class.
    """

    base: DLMProposal

    form: ClassVar[str]

    @property
    def model(self) -> MaskedDiffusionLM:
        """The diffusion model, that of the base."""
        return self.base.model

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens of probability zero, those of the base."""
        return self.base.banned_ids

    @property
    def lookahead(self) -> int:
        """M, places that a forward of the base sees: no draft is longer."""
        return self.base.lookahead

    @property
    def covers(self) -> bool:
        """Whether nothing is cut off, by top-p or by a temperature of 0 (`Proposal.covers`)."""
        return self.base.covers

    @property
    def identical_lanes(self) -> bool:
        """Whether every lane of a particle draws from the same law."""
        return self.base.identical_lanes

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data: those of the base, and the form."""
        return {"form": self.form, **self.base.settings()}

    def check(self, lanes: int) -> None:
        """Raise ValueError unless there is one temperature for all lanes, or one for each of that many."""
        self.base.check(lanes)

    def law(self, scores: Tensor, asked: Asked, lane: Tensor) -> Law:
        """The law of logits `[n, V, A]` of lanes `[n]`."""
        base = self.base
        return lane_law(scores, lane, asked.lanes, base.shaping, base.lane_temperatures, asked.chunks)


@dataclass(frozen=True)
class Along(Form):
    """A form whose laws are those along a draft: where one is refused, what was said of later places is void.

    Raises:
        ValueError: the base reuses marginals.
    """

    factorised = False

    def __post_init__(self) -> None:
        if self.base.reuse:
            raise ValueError(
                f"reuse = {said(self.base.reuse)} of a chain's base: its laws do not outlive a refusal; leave it out, "
                "or draft by the marginals"
            )


@dataclass(frozen=True)
class OverMarginals(Along):
    """A chain that reads the diffusion model's own marginals of one forward, for all places that it sees."""

    @cached_property
    def plain(self) -> DLMProposal:
        """Those marginals: at temperature 1, without truncation."""
        return DLMProposal(self.model, banned_ids=self.banned_ids, lookahead=self.lookahead)

    @property
    def places(self) -> int:
        """Places that a forward of the diffusion model serves."""
        return self.lookahead

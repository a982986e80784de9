"""A learned filter of confidences decides which places are filled (Learn2PD, arXiv 2509.25188).

    c_i     = max_a q_i(a) of the 32 places of the present block, in the model's own law
    places  = open i with sigma(f(c)_i) > tau,  and the k places that the schedule fills anyway: those of greatest c_i

Of a filled place c_i is the top probability of its law *now*, with its token in view, and not 1; a place that the
canvas does not have counts as sure. All is known before tokens are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from smc_bridge.canvas.rules import SUREST_FIRST, Commit, CommitRule, Look, Ordered, check_rule
from smc_bridge.models.arguments import real_between, said
from smc_bridge.models.protocols import ABSENT


@dataclass(frozen=True)
class Filtered:
    """Fill the open places that a filter lets pass, and those of a schedule.

    Attributes:
        network: f, logits of a block's confidences, `[R, B] -> [R, B]`; B is its `places`.
        threshold: tau.
        schedule: fills some places anyway, at least one; the surest as published.
    Raises:
        ValueError: one of them is something else.
    """

    network: nn.Module
    threshold: float = 0.9
    schedule: CommitRule = field(default_factory=lambda: Ordered(SUREST_FIRST))
    before_sampling: ClassVar[bool] = True
    looks_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.network, "places", None), int):
            raise ValueError(f"network = {said(self.network)}: give a ConfidenceFilter")
        tau = real_between("threshold", self.threshold, 0.0, 1.0, remedy="give a probability in [0, 1]")
        object.__setattr__(self, "threshold", float(tau))  # the class is frozen
        check_rule("schedule", self.schedule)

    @property
    def block(self) -> int:
        """Places of a block."""
        places: int = self.network.places  # type: ignore[assignment]
        return places

    def settles(self, look: Look) -> Tensor:
        """Which open places of the present block the filter lets pass, BoolTensor `[R, T]`."""
        confidence = look.log_q_plain.amax(-1).exp().masked_fill(look.canvas == ABSENT, 1.0)
        width = confidence.shape[1]
        first = look.open.to(torch.uint8).argmax(1) // self.block * self.block
        own = first[:, None] + torch.arange(self.block, device=first.device)
        whole = torch.nn.functional.pad(confidence, (0, self.block), value=1.0)
        passed = self.network(whole.gather(1, own)).sigmoid() > self.threshold
        places = torch.zeros(len(first), width + self.block, dtype=torch.bool, device=first.device)
        return places.scatter(1, own, passed)[:, :width] & look.open

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        return Commit(self.settles(look) | self.schedule(look).places)

"""Entropy bound: as many places per forward as an entropy budget allows (EB-sampler, arXiv 2505.24857).

Places are sorted by the entropy of their law, least first, and committed while

    sum of the entropies so far - the own entropy <= gamma

which is an upper bound on the mutual information that drawing them independently loses. The places are chosen from the
laws alone, so that what is drawn at each keeps its marginal as its density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from smc_bridge.canvas.rules import Commit, Look, foremost
from smc_bridge.models.arguments import real_between
from smc_bridge.sampling import entropy


@dataclass(frozen=True)
class EntropyBound:
    """Fill the places of least entropy, as many as the budget allows, and at least one.

    Attributes:
        bound: gamma, nats; 0 fills one place, and others as far as they are certain.
    """

    bound: float = 0.1
    before_sampling: ClassVar[bool] = True
    looks_back: ClassVar[bool] = False

    def __post_init__(self) -> None:
        remedy = "give an entropy of at least 0, nats"
        value = float(real_between("bound", self.bound, 0.0, 1e6, remedy=remedy))
        object.__setattr__(self, "bound", value)  # the class is frozen

    def __call__(self, look: Look) -> Commit:
        """See `CommitRule`."""
        own = entropy(look.log_q_plain).double().clamp_min(0.0).masked_fill(~look.open, torch.inf)
        ordered = own.sort(1).values
        before = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))[:, :-1]
        many = ((before <= self.bound) & ordered.isfinite()).sum(1)
        return Commit(foremost(-own, look.open, many))

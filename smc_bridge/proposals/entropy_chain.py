"""`EntropyChain`: a chain of the diffusion model whose forwards fill as many places as an entropy budget allows.

A forward that begins at place s fills place i with those before it as long as

    H_s + ... + H_{i-1} <= gamma,      H_j the entropy of the marginal of place j in this forward

so that what place i may miss of its dependence on them, `I(x_i; x_s..x_{i-1})`, is at most gamma nats (EB sampler,
arXiv 2505.24857, there of places in order of entropy, here left to right). The budget is read from the laws before
anything is drawn: how many places are filled is a function of the past, and the draft keeps its density.

Shapes: V places, A alphabet, n rows of one call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from smc_bridge.distributions.shaping import Shaping
from smc_bridge.models.arguments import real_between
from smc_bridge.proposals.chain import Chain
from smc_bridge.sampling import entropy


@dataclass(frozen=True)
class EntropyChain(Chain):
    """A chain whose forwards fill as many places as an entropy budget allows (module docstring).

    Entropies are those of the model's own law, at temperature 1 and without truncation.

    Attributes:
        base: gives model, temperatures, truncation and lookahead.
        entropy: gamma, nats; 0 fills one place per forward, unless the model is certain.
    Raises:
        ValueError: the base reuses marginals, or entropy is negative.
    """

    entropy: float = 0.1

    form = "entropy-bounded chain"

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "give a budget of at least 0 nats"
        object.__setattr__(self, "entropy", float(real_between("entropy", self.entropy, 0.0, math.inf, remedy=remedy)))

    def settings(self) -> dict[str, Any]:
        """What shapes its drafts, as plain data."""
        return {**super().settings(), "entropy": self.entropy}

    @property
    def step(self) -> int:
        """See `Chain.step`: a group may begin anywhere."""
        return 1

    def group(self, scores: Tensor) -> Tensor:
        """See `Chain.group`: places whose predecessors in the group have together at most `entropy`."""
        own = entropy(Shaping(banned_ids=self.banned_ids).log_probs(scores).double())
        before = own.cumsum(-1) - own
        return (before <= self.entropy).long().cumprod(-1).sum(-1).clamp_min(1)

    def most(self, window: int) -> int:
        """V: the budget alone ends a group (`Chain.most`)."""
        return window

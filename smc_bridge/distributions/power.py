"""Powers of a target: whole sequences of law `p(x)^alpha / Z`, which no temperature of single tokens gives.

    p(x)^alpha = p(x) phi(x),   log phi(x) = (alpha - 1) sum_i log p(x_i | c, x_<i)

A temperature sharpens each conditional by itself, `prod_i p_i^alpha / Z_i(c, x_<i)`: it forgets that a prefix with many
likely continuations has a greater `Z_i`. The normalisers along a sequence, `prod_i Z_i(c, x_<i)`, are the weight of one
for the other (Power-SMC, arXiv 2602.10273).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smc_bridge.models.arguments import real_between

#: No power is as great: that of a temperature of a hundredth.
STEEPEST = 100.0


@dataclass(frozen=True)
class SequencePower:
    """`phi(x) = p(x)^(alpha - 1)`, so that the target is `p(x)^alpha / Z` (implements `TokenPotential`).

    Attributes:
        alpha: the power, positive; above 1 likely sequences are favoured.
    Raises:
        ValueError: alpha is out of range.
    """

    alpha: float

    def __post_init__(self) -> None:
        remedy = f"give a power above 0 and below {STEEPEST:g}; 1 is the target itself"
        found = real_between("alpha", self.alpha, 0.0, STEEPEST, remedy=remedy, strictly=True)
        object.__setattr__(self, "alpha", float(found))  # the class is frozen

    def of_tokens(self, log_p: Tensor) -> Tensor:
        """`(alpha - 1) log p` of each token, `[...]` -> `[...]`, nats (`TokenPotential.of_tokens`)."""
        return (self.alpha - 1.0) * log_p

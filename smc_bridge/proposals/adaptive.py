"""`AdaptiveLength`: how many places a draft has, from how far the drafts before it came (DiffuSpec, arXiv 2510.02358).

Of every draft count the tokens before its end of sequence, `G`, and those that were accepted, `B`. With moving averages
`g <- (1 - r) g + r G` and `b <- (1 - r) b + r B`, which start at their first values, the next draft has

    k = clip(floor(g) + step [b >= g], shortest, longest)

places, and the first one `shortest`. It is a function of the past of a particle alone, so that where its blocks end is
a stopping time and weights stay proper (condition C1; docs/theory, section 3).

Shapes: R particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from smc_bridge.models.arguments import real_between, said, whole_number
from smc_bridge.models.host import Index

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AdaptiveLength:
    """Sizes and rate of the rule (module docstring).

    Attributes:
        shortest, longest: fewest and most places of a draft; equal for a fixed length.
        step: places more where all of a draft is accepted on average.
        rate: r, share of the last draft in the averages.
    Raises:
        ValueError: an argument out of range.
    """

    shortest: int = 20
    longest: int = 30
    step: int = 10
    rate: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("shortest", 1), ("longest", 1), ("step", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least))
        if self.longest < self.shortest:
            raise ValueError(
                f"longest = {said(self.longest)} with shortest = {self.shortest}: give at least as many places"
            )
        object.__setattr__(self, "rate", float(
            real_between("rate", self.rate, 0.0, 1.0, remedy="give a share in [0, 1]")
        ))

    def places(self, averages: Floats) -> Index:
        """Places of the next draft, `[R]`, from the averages `g, b: [2, R]`; NaN before the first draft."""
        drafted, accepted = averages
        first = np.isnan(drafted)
        length = np.floor(np.where(first, 0.0, drafted)) + self.step * (accepted >= drafted)
        return np.where(first, self.shortest, length.clip(self.shortest, self.longest)).astype(np.int64)

    def after(self, averages: Floats, drafted: Index, accepted: Index) -> Floats:
        """The averages after one more draft of each of R particles, `[2, R]`."""
        fresh = np.stack([drafted, accepted]).astype(np.float64)
        found: Floats = np.where(np.isnan(averages), fresh, (1 - self.rate) * averages + self.rate * fresh)
        return found

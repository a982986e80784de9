"""Which steps of a diffusion call its network, and forecasts for the others (Spectrum, arXiv 2603.01623).

The first steps call it; then one step in a window does, and windows grow: N, N + a, N + 2 a, .. steps, rounded down.
Between them the features of the columns of numbers are continued by a ridge regression on Chebyshev polynomials
(`smc_bridge.models.forecast`), as published for the last features of image models. Masks are only lifted where the
network is called, and there for all the time since the last call.
"""

from __future__ import annotations

from dataclasses import dataclass

from smc_bridge.models.arguments import real_between, whole_number
from smc_bridge.models.forecast import Forecast

#: Greatest growth of windows, steps: the second one passes any diffusion.
MOST_GROWTH = 1e6


@dataclass(frozen=True)
class Skipping:
    """What is called and what is forecast; the defaults are published ones.

    Attributes:
        first: steps at the beginning that call the network.
        window: steps of the first window.
        growth: of each window, steps.
        degree, ridge, keep: of the forecast (`Forecast`).
    Raises:
        ValueError: a value out of range.
    """

    first: int = 5
    window: int = 2
    growth: float = 0.75
    degree: int = 4
    ridge: float = 0.1
    keep: int = 10

    def __post_init__(self) -> None:
        whole_number("first", self.first)
        whole_number("window", self.window)
        real_between("growth", self.growth, 0.0, MOST_GROWTH, remedy=f"give a number from 0 to {MOST_GROWTH:g}")
        self.forecast()

    def forecast(self) -> Forecast:
        """An empty forecast over times from 0, where rows are noise, to 1."""
        return Forecast(self.degree, self.ridge, self.keep, span=(0.0, 1.0))

    def calls(self, steps: int) -> list[bool]:
        """Whether each step calls the network; the last one does, for it lifts all masks.

        Example:
            >>> sum(Skipping().calls(50))
            15
        """
        called = [step < self.first for step in range(steps)]
        at, window = self.first - 1, float(self.window)
        while (at := at + int(window)) < steps:
            called[at] = True
            window += self.growth
        called[-1] = True
        return called

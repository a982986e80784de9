"""Prices of the two models' work, which costs are made of (`smc_bridge.analysis.budget`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from smc_bridge.models.arguments import said

#: What is counted: calls, or rows of calls.
Unit = Literal["forwards", "rows"]


@dataclass(frozen=True)
class Cost:
    """Price of a unit of work of each model.

    Attributes:
        dlm, ar: c_D and c_A, in any unit (seconds, if measured).
        unit: what is counted, "forwards" or "rows".
    """

    dlm: float = 1.0
    ar: float = 1.0
    unit: Unit = "forwards"

    def __post_init__(self) -> None:
        for name in ("dlm", "ar"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: give a finite cost of at least 0")
        if self.dlm == self.ar == 0:
            raise ValueError("dlm = 0 and ar = 0: give at least one model a cost")
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit = {said(self.unit)}: choose from {', '.join(get_args(Unit))}")

    @property
    def ratio(self) -> float:
        """`c_D / c_A`; inf where the AR model costs nothing."""
        return self.dlm / self.ar if self.ar else math.inf

    def relative(self) -> Cost:
        """The same prices with `c_A = 1`.

        Raises:
            ValueError: the AR model costs nothing.
        """
        if not self.ar:
            raise ValueError("ar = 0: costs cannot be given relative to it")
        return replace(self, dlm=self.ratio, ar=1.0)

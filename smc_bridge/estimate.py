"""A figure with its interval: the one type of everything that is estimated here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

#: Half a 95 % interval of a normal variable, in standard errors.
Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """An estimated figure and how far it can be trusted.

    Attributes:
        value: the estimate, in the units of the figure.
        low, high: confidence interval at `level`; infinite where the data give none.
        n: independent values behind it.
        how: what made the interval ("bootstrap-t", "Student", "Wilson", ..).
        error: standard error; NaN where there is none.
        level: confidence of the interval, in (0, 1).
    """

    value: float
    low: float
    high: float
    n: int
    how: str
    error: float = math.nan
    level: float = 0.95

    @classmethod
    def normal(cls, value: float, error: float, n: int = 0) -> Estimate:
        """An estimate whose error is normal: 1.96 standard errors to either side."""
        return cls(value, value - Z * error, value + Z * error, n, "normal", error)

    @property
    def has_interval(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def text(self, form: str = ".3g", *, without: str = "") -> str:
        """`value [low, high]`; of a single value, and where there is no interval, the value and what `without` says."""
        # Adding zero turns -0.0 into 0.0.
        value, low, high = (format(x + 0.0, form) for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if self.has_interval and self.n > 1 else value + without

    def times(self, factor: float) -> Estimate:
        """The same estimate in another unit: value, ends and error times `factor` > 0."""
        return replace(
            self, value=factor * self.value, low=factor * self.low, high=factor * self.high, error=factor * self.error
        )

    @property
    def bars(self) -> tuple[float, float]:
        """Lengths of an error bar below and above the value."""
        return self.value - self.low, self.high - self.value

    def plain(self) -> dict[str, float | None]:
        """Value, interval and n as plain data for JSON; what is not finite is None."""
        given = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return {name: x if math.isfinite(x) else None for name, x in given.items()}


def plain(value: Any) -> Any:
    """Plain data for JSON: of a record its fields, of an estimate value and interval; None for what is not finite."""
    if isinstance(value, Estimate):
        return value.plain()
    if is_dataclass(value):
        value = vars(value)
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def columns(name: str, found: Estimate | None) -> dict[str, float]:
    """An estimate as columns of a table, `NAME`, `NAME_low` and `NAME_high`; NaN throughout without one."""
    ends = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))

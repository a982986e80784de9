"""Lines with intervals, read from a data frame or from a mapping: what the plots of studies have in common.

A data frame has one row for each point, with columns of any of these names; for a quantity `y` the columns `y_low` and
`y_high` hold its interval. Rows that differ in `seed` only are repetitions: they are averaged, and the interval is
that of their mean (95 %, Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
#: Confidence of the interval over repetitions.
LEVEL = 0.95
#: What tells the rows of a repetition apart.
SEED = "seed"


class Frame(Protocol):
    """What is needed of a `pandas.DataFrame`."""

    @property
    def columns(self) -> Iterable[str]:
        """Names of the columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """A column."""
        ...


#: A frame, or name -> (x, y) or (x, y, low, high).
Data = Frame | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Curve:
    """Points of a line with their intervals; `low` and `high` are NaN where there is none.

    Attributes:
        x: in increasing order, or in the order of what else varies along the line.
        y, low, high: at each x.
        at: what varies along the line, such as w; the x themselves if nothing else does.
    """

    x: Array
    y: Array
    low: Array
    high: Array
    at: Array


def curves(data: Data, *, x: str, y: str, by: str = "method", along: str | None = None) -> dict[str, Curve]:
    """The lines of `data` by name, in the order in which names first occur.

    Args:
        data: a data frame, or a mapping name -> (x, y), (x, y, low, high) or, with `along`, (along, x, y, low, high)
            where the interval is that of x.
        x, y: columns.
        by: column that names the lines.
        along: column that orders the points of a line, such as w; then the interval is that of `x`.
    Raises:
        ValueError: no data, missing columns, sequences of different lengths, NaN in x, an interval upside down, or
            rows that differ in more than their seed at one point of a line.
    """
    found = _of_mapping(data, along) if isinstance(data, Mapping) else _of_frame(data, x, y, by, along)
    if not found:
        raise ValueError("data is empty: give at least one line")
    for name, curve in found.items():
        if not np.isfinite(curve.x).all() or not np.isfinite(curve.at).all():
            raise ValueError(f"data has a point of {name!r} whose {along or x} is not a number: leave such points out")
        if bool((curve.low > curve.high).any()):
            raise ValueError(f"data has an interval of {name!r} whose low is above its high: give low first, then high")
    return found


def as_frame(data: Any) -> Frame:
    """`data` itself, if it has columns.

    Raises:
        ValueError: it has none.
    """
    if not hasattr(data, "columns"):
        raise ValueError(f"data is a {type(data).__name__}: give a pandas.DataFrame, or a mapping from names to points")
    return data  # type: ignore[no-any-return]


def column(frame: Frame, name: str) -> npt.NDArray[Any]:
    """A column of a frame.

    Raises:
        ValueError: it has no such column.
    """
    known = [str(known) for known in frame.columns]
    if name not in known:
        raise ValueError(f"data has no column {name!r}: it has {', '.join(known) or 'none'}")
    return np.asarray(frame[name])


def _of_mapping(data: Mapping[str, Sequence[Any]], along: str | None) -> dict[str, Curve]:
    wanted = (2, 4) if along is None else (3, 5)
    names = "(x, y) or (x, y, low, high)" if along is None else f"({along}, x, y) or ({along}, x, y, low, high)"
    found = {}
    for name, given in data.items():
        parts = [np.asarray(part, dtype=np.float64) for part in given]
        if len(parts) not in wanted or any(part.shape != parts[0].shape or part.ndim != 1 for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts)
            raise ValueError(f"data[{name!r}] has parts of shapes {shapes}: give {names}, of one length each")
        if parts[0].size == 0:
            raise ValueError(f"data[{name!r}] has no points: give at least one, or leave the line out")
        at, rest = (parts[0], parts) if along is None else (parts[0], parts[1:])
        bare = np.full(at.shape, math.nan)
        low, high = (rest[2], rest[3]) if len(rest) == 4 else (bare, bare)
        order = np.argsort(at, kind="stable")
        found[name] = Curve(*(values[order] for values in (rest[0], rest[1], low, high, at)))
    return found


def _of_frame(data: Any, x: str, y: str, by: str, along: str | None) -> dict[str, Curve]:
    frame = as_frame(data)
    names = [str(name) for name in column(frame, by)]
    at = column(frame, along or x).astype(np.float64)
    bounded = y if along is None else x
    values = {name: column(frame, name).astype(np.float64) for name in (x, y)}
    known = set(map(str, frame.columns))
    given = {f"{bounded}_low", f"{bounded}_high"} <= known
    interval = [column(frame, f"{bounded}_{end}").astype(np.float64) for end in ("low", "high")] if given else []
    found = {}
    for name in dict.fromkeys(names):
        rows = np.array([own == name for own in names])
        points = [np.flatnonzero(rows & (at == place)) for place in np.unique(at[rows])]
        if rows.any() and not points:
            raise ValueError(f"data has a row of {name!r} whose {along or x} is not a number: leave such rows out")
        line = [_point(frame, group, values, interval, name, (x, y, bounded, along or x)) for group in points]
        columns = np.array(line)  # [points, 4]
        found[name] = Curve(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], np.unique(at[rows]))
    return found


def _point(
    frame: Frame, rows: npt.NDArray[np.int64], values: Mapping[str, Array], interval: Sequence[Array], name: str,
    columns: tuple[str, str, str, str],
) -> tuple[float, float, float, float]:
    """x, y, low, high of one point of a line, over the rows that belong to it."""
    x, y, bounded, place = columns
    if len(rows) == 1:
        low, high = (float(end[rows[0]]) for end in interval) if interval else (math.nan, math.nan)
        return float(values[x][rows[0]]), float(values[y][rows[0]]), low, high
    known = set(map(str, frame.columns))
    if SEED not in known or len(set(column(frame, SEED)[rows].tolist())) < len(rows):
        raise ValueError(
            f"data has {len(rows)} rows of {name!r} at one {place}: choose rows that differ in nothing else, or name "
            "the column that tells them apart as `by`"
        )
    repeated = values[bounded][rows]
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(rows) - 1) * repeated.std(ddof=1) / math.sqrt(len(rows)))
    middle = float(repeated.mean())
    return float(values[x][rows].mean()), float(values[y][rows].mean()), middle - half, middle + half

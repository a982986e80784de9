"""Lines with intervals, read from a data frame or from a mapping: what the plots of studies have in common.

A data frame (of `smc_bridge.analysis.study`, or one's own) has one row for each point of a line; the columns `y_low`
and `y_high`, where there are any, hold the interval of `y`. Points that do not exist for a method, whose value is NaN
or infinite, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Frame(Protocol):
    """A data frame as far as the plots read it: columns by name, as of `pandas.DataFrame`."""

    @property
    def columns(self) -> Iterable[str]:
        """Names of the columns."""
        ...

    def __getitem__(self, name: str, /) -> Any:
        """A column."""
        ...


#: A frame, or name -> (x, y) or (x, y, low, high).
Data = Frame | Mapping[str, Sequence[Any]]
#: Column or columns that name the lines.
By = str | Sequence[str]


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


def curves(
    data: Data, *, x: str, y: str, by: By = "method", along: str | None = None
) -> dict[str, Curve]:
    """The lines of `data` by name, in the order in which names first occur.

    Args:
        data: a data frame, or a mapping name -> (x, y), (x, y, low, high) or, with `along`, (along, x, y, low, high)
            where the interval is that of x.
        x, y: columns.
        by: column or columns that name the lines.
        along: column that orders the points of a line, such as w; then the interval is that of `x`.
    Raises:
        ValueError: nothing to draw, missing columns, sequences of different lengths, an interval upside down, or
            several rows at one point of a line.
    """
    parts = _of_mapping(data, along) if isinstance(data, Mapping) else _of_frame(data, x, y, by, along)
    found = {}
    for name, (at, *rest) in parts.items():
        drawn = np.isfinite(rest[0]) & np.isfinite(rest[1])
        order = np.flatnonzero(drawn)[np.argsort(at[drawn], kind="stable")]
        curve = Curve(rest[0][order], rest[1][order], rest[2][order], rest[3][order], at[order])
        if bool((curve.low > curve.high).any()):
            raise ValueError(f"data has an interval of {name!r} whose low is above its high: give low first, then high")
        if order.size:
            found[name] = curve
    if not found:
        raise ValueError(f"data has no point with both {x} and {y}: give at least one, as finite numbers")
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


def _of_mapping(data: Mapping[str, Sequence[Any]], along: str | None) -> dict[str, list[Array]]:
    """At, x, y, low and high of every line."""
    wanted = (2, 4) if along is None else (3, 5)
    names = "(x, y) or (x, y, low, high)" if along is None else f"({along}, x, y) or ({along}, x, y, low, high)"
    found = {}
    for name, given in data.items():
        parts = [_numbers(part, name) for part in given]
        if len(parts) not in wanted or any(part.shape != parts[0].shape or part.ndim != 1 for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts)
            raise ValueError(f"data[{name!r}] has parts of shapes {shapes}: give {names}, of one length each")
        whole = parts if along is not None else [parts[0], *parts]
        bare = np.full(parts[0].shape, np.nan)
        found[str(name)] = whole if len(whole) == 5 else [*whole, bare, bare]
    return found


def _of_frame(
    data: Any, x: str, y: str, by: By, along: str | None
) -> dict[str, list[Array]]:
    """At, x, y, low and high of every line."""
    frame = as_frame(data)
    keys = [by] if isinstance(by, str) else list(by)
    labels = [", ".join(_label(key, value) for key, value in zip(keys, values, strict=True)) for values in zip(
        *(column(frame, key).tolist() for key in keys), strict=True
    )]
    bounded = y if along is None else x
    known = {str(name) for name in frame.columns}
    ends = [f"{bounded}_low", f"{bounded}_high"]
    values = [_numbers(column(frame, name), name) for name in (along or x, x, y)]
    bare = np.full(len(labels), np.nan)
    values += [_numbers(column(frame, end), end) if set(ends) <= known else bare for end in ends]
    found = {}
    for name in dict.fromkeys(labels):
        rows = np.array([label == name for label in labels])
        line = [part[rows] for part in values]
        places = line[0][np.isfinite(line[1]) & np.isfinite(line[2])]
        if np.unique(places).size < places.size:
            raise ValueError(
                f"data has several rows of {name!r} at one {along or x}: pool them (analysis.study.pool), choose rows "
                "that differ in nothing else, or add the column that tells them apart to `by`"
            )
        found[name] = line
    return found


def _numbers(values: Any, name: str) -> Array:
    """Values in float64; None is NaN."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        first = next(iter(np.asarray(values, dtype=object).flatten().tolist()), None)
        raise ValueError(f"data's {name!r} holds {first!r}: give numbers") from error


def _label(key: str, value: Any) -> str:
    """A value of a column that names lines; numbers need the column's name beside them."""
    return str(value) if isinstance(value, str) else f"{key} = {value}"

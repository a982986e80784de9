"""Lines of a study for the plots: one for every sampler, named by what tells it from the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smc_bridge.analysis.plots import plot_against_particles, plot_cost, plot_frontier
from smc_bridge.analysis.plots.labels import label
from smc_bridge.analysis.plots.style import band, legend, looks, new_axes
from smc_bridge.analysis.study.frame import KEYS, WORK, pool

if TYPE_CHECKING:
    import pandas as pd

SIZES = ("particles", "lanes")
SHORT = {"particles": "N", "lanes": "K", "window": "V", "temperature": "T", "alphabet": "A", "length": "S"}
#: A line: x, y, low, high.
Line = tuple[list[float], list[float], list[float], list[float]]


def plot_study(frame: pd.DataFrame, x: str | None = None, y: str | None = None, ax: Any = None) -> Any:
    """Draw a figure of a study, pooled over seeds and prompts, a line for every sampler.

    Args:
        frame: what `study` returned.
        x: a column; by default `particles` or `w` if it varies, else `cost`. `kl_per_token` gives the frontier over w.
        y: a column; by default the total variation if it is known, else the KL bound; of the frontier tokens per DLM
            forward.
        ax: where to draw.
    Raises:
        ValueError: no such column, or nothing to draw.
    """
    pooled = pool(frame)
    varying = [name for name in ("particles", "w") if pooled[name].dropna().nunique() > 1]
    x = x or (varying[0] if varying else "cost")
    frontier = x == "kl_per_token"
    y = y or ("tokens_per_dlm_forward" if frontier else "tv" if pooled["tv"].notna().any() else "kl_bound")
    numbers = [
        str(name) for name in pooled.columns
        if pooled[name].dtype.kind in "fiu" and not str(name).endswith(("_error", "_low", "_high"))
    ]
    for option, name in (("x", x), ("y", y)):
        if name not in numbers:
            raise ValueError(f"{option} = {name!r}: choose from {', '.join(numbers)}")
    if frontier:
        over_w = {name: (at, xs, ys, *_interval(rows, x))
                  for name, rows in samplers(pooled, ("w",), (x, y, "w")).items()
                  for at, xs, ys in [(rows["w"].tolist(), rows[x].tolist(), rows[y].tolist())]}
        return plot_frontier(_some(over_w, x, y), ax, x=x, y=y)
    free = SIZES[:1] if x == "cost" else (x,)
    found = {
        name: (rows[x].tolist(), rows[y].tolist(), *_interval(rows, y))
        for name, rows in samplers(pooled, free, (x, y)).items()
    }
    if x in SIZES and y in ("tv", "bias"):
        return plot_against_particles(_some(found, x, y), y, ax, x=x)  # type: ignore[arg-type]
    if x == "cost":
        return plot_cost(_some(found, x, y), y, ax, work=pooled.attrs[WORK])
    return plot_lines(_some(found, x, y), x, y, ax)


def samplers(pooled: pd.DataFrame, free: Sequence[str], needed: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The rows of every line by its name, without those that lack a number that is needed.

    Args:
        pooled: see `smc_bridge.analysis.study.frame.pool`.
        free: columns that vary along a line.
        needed: columns that must be finite.
    """
    rows = pooled[np.isfinite(pooled[list(needed)].to_numpy(dtype=np.float64)).all(axis=1)]
    names = [name for name in KEYS if name in rows.columns and name not in free]
    telling = [name for name in names if name == "method" or rows[name].nunique(dropna=False) > 1]
    found = {}
    for _, group in rows.groupby(names, dropna=False, sort=False):
        first = group.iloc[0]
        found[_named({name: first[name] for name in telling})] = group.sort_values(needed[0])
    return found


def _named(parts: Mapping[str, Any]) -> str:
    words = []
    for name, value in parts.items():
        if isinstance(value, str):
            words.append(value)
        elif not math.isnan(value):
            words.append(f"{SHORT.get(name, name.replace('_', ' '))} = {value:g}")
    # The method and its intermediate, then numbers.
    return ", ".join([" ".join(w for w in words if "=" not in w), *(w for w in words if "=" in w)])


def _interval(rows: pd.DataFrame, name: str) -> tuple[list[float], list[float]]:
    if f"{name}_low" not in rows.columns:
        blank = [math.nan] * len(rows)
        return blank, blank
    return rows[f"{name}_low"].tolist(), rows[f"{name}_high"].tolist()


def _some(found: dict[str, Any], x: str, y: str) -> dict[str, Any]:
    if not found:
        raise ValueError(f"x = {x!r} with y = {y!r}: no row has both; choose other columns")
    return found


def plot_lines(lines: Mapping[str, Line], x: str, y: str, ax: Any = None) -> Any:
    """Lines with their bands on linear axes; a point with its bar where a line has only one."""
    ax = new_axes(ax)
    for look, (name, line) in zip(looks(len(lines)), lines.items(), strict=True):
        places, values, low, high = (np.asarray(part, dtype=np.float64) for part in line)
        style = {"color": look.color, "linestyle": look.linestyle, "marker": look.marker, "markersize": 5}
        if len(places) == 1 and np.isfinite([low, high]).all():
            ax.errorbar(places, values, yerr=[values - low, high - values], label=name, capsize=2, **style)
            continue
        band(ax, places, low, high, look.color)
        ax.plot(places, values, label=name, **style)
    ax.set(xlabel=label(x), ylabel=label(y))
    legend(ax)
    return ax

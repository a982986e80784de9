"""Bias and total variation against the number of particles, where a proper method falls like 1/N."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from smc_bridge.analysis.plots.curves import By, Curve, Data, curves
from smc_bridge.analysis.plots.labels import label
from smc_bridge.analysis.plots.style import MUTED, Look, band, legend, line, looks, new_axes, plain_ticks

LABELS = {"tv": "total variation from the target", "bias": "absolute bias (units of f)"}


def plot_against_particles(
    data: Data, y: Literal["tv", "bias"] = "tv", ax: Any = None, *, x: str = "particles", by: By = "method",
    guide: bool = True,
) -> Any:
    """A distance from the target against N on logarithmic axes, a line with its Monte-Carlo band for each method.

    What is not above 0 has no place on a logarithmic axis: an estimate at or below 0 is left out of the line, and the
    upper end of its interval is drawn as an open triangle. A method that is 0 throughout is named in the legend.

    Args:
        data: a data frame with the columns `by`, `x`, `y` and, for the band, `y_low` and `y_high`; or a mapping
            name -> (counts, values) or (counts, values, lows, highs).
        y: "tv", a total variation, or "bias", of an estimate, of which the size is drawn.
        ax: where to draw.
        x: column of the counts; "lanes" if those are what grows.
        by: column or columns that name the lines.
        guide: whether to add a grey line that falls like 1/N.
    Raises:
        ValueError: an unknown `y`, counts below 1, or data that cannot be read (see `curves`).
    """
    if y not in LABELS:
        raise ValueError(f"y = {y!r}: choose 'tv' or 'bias'")
    lines = {name: _magnitude(curve) if y == "bias" else curve for name, curve in curves(data, x=x, y=y, by=by).items()}
    counts = np.concatenate([curve.x for curve in lines.values()])
    if bool((counts < 1).any()):
        raise ValueError(f"data has a count of {counts.min():g} {x}: give counts of at least 1")
    ax = new_axes(ax)
    ax.set(xscale="log", yscale="log")
    seen = np.concatenate([np.concatenate([c.y, c.high]) for c in lines.values()])
    positive = seen[np.isfinite(seen) & (seen > 0)]
    floor = positive.min() / 2 if positive.size else 1e-3
    for look, (name, curve) in zip(looks(len(lines)), lines.items(), strict=True):
        _line(ax, name, curve, look, floor)
    if guide and positive.size:
        _guide(ax, lines)
    ax.set(xlabel=label(x), ylabel=LABELS[y])
    if positive.size:
        ax.set_ylim(floor, positive.max() * 1.6)
    plain_ticks(ax.xaxis, counts)
    legend(ax)
    return ax


def _magnitude(curve: Curve) -> Curve:
    """The size of a signed quantity, with the interval folded at 0."""
    inside = (curve.low < 0) & (curve.high > 0)
    low, high = np.minimum(abs(curve.low), abs(curve.high)), np.maximum(abs(curve.low), abs(curve.high))
    return Curve(curve.x, abs(curve.y), np.where(inside, 0.0, low), high, curve.at)


def _line(ax: Any, name: str, curve: Curve, look: Look, floor: float) -> None:
    above = curve.y > 0
    if not above.any() and not (curve.high > 0).any():
        line(ax, np.empty(0), np.empty(0), look, f"{name} (0)")
        return
    band(ax, curve.x, np.maximum(curve.low, floor / 10), np.maximum(curve.high, floor / 10), look.color)
    line(ax, curve.x, np.where(above, curve.y, np.nan), look, name)
    lost = ~above & (curve.high > 0)
    if lost.any():
        ax.plot(
            curve.x[lost], curve.high[lost], linestyle="none", marker="v", markersize=7, markerfacecolor="none",
            markeredgecolor=look.color,
        )


def _guide(ax: Any, lines: dict[str, Curve]) -> None:
    """1/N through the first point of the first line that has one above 0."""
    first = next((curve for curve in lines.values() if curve.y.size and curve.y[0] > 0), None)
    widest = max(float(curve.x.max()) for curve in lines.values())
    if first is not None and widest > first.x[0]:
        ends = np.array([first.x[0], widest])
        ax.plot(ends, first.y[0] * first.x[0] / ends, color=MUTED, linewidth=1, label="slope of 1/N", zorder=0)

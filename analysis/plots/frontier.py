"""The frontier of an intermediate: what its exponent w buys in tokens per forward, and what it costs in divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from smc_bridge.analysis.plots.curves import By, Curve, Data, curves
from smc_bridge.analysis.plots.labels import label
from smc_bridge.analysis.plots.style import Look, legend, line, looks, new_axes

#: Nats per token are small; the axis counts them per this many tokens.
PER, PER_TOKEN = 1000, ("kl_per_token", "nats_per_token")
#: Most powers of ten that the logarithmic part spans.
DECADES = 5
#: Size of the notes, and where one may stand: offset from its point, both in points, and alignment.
NOTE = 8
PLACES = (
    (0, 8, "center", "bottom"), (0, -8, "center", "top"), (9, 0, "left", "center"), (-9, 0, "right", "center"),
    (6, 6, "left", "bottom"), (-6, 6, "right", "bottom"), (6, -6, "left", "top"), (-6, -6, "right", "top"),
)


def plot_frontier(
    data: Data, ax: Any = None, *, x: str = "kl_per_token", y: str = "tokens_per_dlm_forward", by: By = "intermediate",
    along: str = "w", symbols: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A figure against the KL bound per token, over w, a line for each intermediate; by default tokens per DLM forward.

    The bound is an estimate, and 0 for w = 0: its axis is linear around 0 and logarithmic beyond. Horizontal bars are
    its intervals. The ends of a line carry their w, or what the line runs along; between them it runs in order.

    Args:
        data: a data frame with the columns `by`, `along`, `x`, `y` and perhaps `x_low` and `x_high`; or a mapping
            name -> (w, bounds, tokens) or (w, bounds, tokens, lows, highs), with bounds in nats per token.
        ax: where to draw.
        x, y, by, along: columns.
        symbols: name -> what the line runs along, where that is not `along`: Clamp's beta; an empty one is not written.
    Raises:
        ValueError: data that cannot be read (see `curves`).
    """
    per = PER if x in PER_TOKEN else 1
    lines = {name: _scaled(curve, per) for name, curve in curves(data, x=x, y=y, by=by, along=along).items()}
    ax = new_axes(ax)
    styles = looks(len(lines))
    for look, (name, curve) in zip(styles, lines.items(), strict=True):
        _line(ax, name, curve, look)
    _scale(ax, np.concatenate([curve.x for curve in lines.values()]))
    ax.set(xlabel=label(x) if per == 1 else f"KL bound (nats per {per:,} tokens)", ylabel=label(y))
    ax.grid(visible=True, color="0.93")
    ax.margins(y=0.12)
    legend(ax)
    along_each = [symbols.get(name, along) for name in lines]
    _notes(ax, list(zip(styles, lines.values(), along_each, strict=True)))
    return ax


def _scaled(curve: Curve, per: int) -> Curve:
    """The curve with its bounds by so many tokens."""
    return replace(curve, x=per * curve.x, low=per * curve.low, high=per * curve.high)


def _notes(ax: Any, drawn: Sequence[tuple[Look, Curve, str]]) -> None:
    """Write at both ends of every line what it runs along, each where it covers the least of lines and bars.

    A note that could only stand upon another one, or outside of the axes, is left out.
    """
    from matplotlib.patheffects import withStroke

    ax.get_figure().draw_without_rendering()  # so that the layout is final
    points = 72 / ax.get_figure().dpi
    taken = np.concatenate([points * _track(ax, curve) for _, curve, _ in drawn])
    inside = points * np.asarray(ax.bbox.extents)
    written: list[npt.NDArray[np.float64]] = []  # lower left and upper right corner of every note
    for look, curve, symbol in drawn:
        known = np.flatnonzero(np.isfinite(curve.at) & bool(symbol))  # an intermediate without w has none
        for i in dict.fromkeys(known[[0, -1]] if known.size else ()):
            text = f"{symbol} = {curve.at[i]:,g}"
            size = np.array([0.6 * NOTE * len(text), 1.1 * NOTE])
            point = points * ax.transData.transform((curve.x[i], curve.y[i]))

            corners = {place: _corner(point, size, place) for place in PLACES}
            covered = {
                place: _covered(low, size, taken, inside) for place, low in corners.items()
                if not any(_overlap(low, size, other) for other in written)
            }
            if min(covered.values(), default=math.inf) == math.inf:
                continue
            best = min(covered, key=covered.__getitem__)
            across, up, ha, va = best
            ax.annotate(
                text, (curve.x[i], curve.y[i]), xytext=(across, up), textcoords="offset points", ha=ha, va=va,
                fontsize=NOTE, color=look.color, path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
            written.append(np.concatenate([corners[best], corners[best] + size]))


def _corner(
    point: npt.NDArray[np.float64], size: npt.NDArray[np.float64], place: tuple[int, int, str, str]
) -> npt.NDArray[np.float64]:
    """Lower left corner of a note, points."""
    share = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
    across, up, ha, va = place
    aligned: npt.NDArray[np.float64] = size * np.array([share[ha], share[va]])
    return point + np.array([across, up], dtype=np.float64) - aligned


def _overlap(
    low: npt.NDArray[np.float64], size: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> bool:
    """Whether a note reaches into another one, or close to it."""
    return bool((low < other[2:] + 2).all() and (low + size > other[:2] - 2).all())


def _covered(
    low: npt.NDArray[np.float64], size: npt.NDArray[np.float64], taken: npt.NDArray[np.float64],
    inside: npt.NDArray[np.float64],
) -> float:
    """Drawn points under a note and close to it, and infinitely many if it leaves the axes."""
    high = low + size
    if (low < inside[:2]).any() or (high > inside[2:]).any():
        return math.inf
    return float(((taken > low - 2) & (taken < high + 2)).all(axis=1).sum())


def _track(ax: Any, curve: Curve) -> npt.NDArray[np.float64]:
    """Points along a line and its bars, `[n, 2]`, pixels."""
    ends = ax.transData.transform(np.column_stack([curve.x, curve.y]))
    parts = [ends, *(np.linspace(a, b, 100) for a, b in itertools.pairwise(ends))]
    for low, high, height in zip(curve.low, curve.high, curve.y, strict=True):
        if np.isfinite([low, high]).all():
            bar = ax.transData.transform([(low, height), (high, height)])
            parts.append(np.linspace(bar[0], bar[1], 50))
    return np.concatenate(parts)


def _scale(ax: Any, bounds: npt.NDArray[np.float64]) -> None:
    """Logarithmic above the smallest bound's power of ten; all that is negative lies in the linear part around 0."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    above, below = bounds[bounds > 0], -bounds[bounds < 0]
    first = math.floor(math.log10(above.min())) if above.size else -1
    last = max(math.ceil(math.log10(above.max())) if above.size else 0, first + 1)
    first = max(first, last - DECADES)
    if below.size:
        first = max(first, math.ceil(math.log10(below.max())))
    linear = 10.0**first
    ax.set_xscale("symlog", linthresh=linear, linscale=1)
    ax.xaxis.set_major_locator(FixedLocator([0.0, *(10.0**power for power in range(first, max(last, first) + 1))]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.set_xlim(min(2 * float(bounds.min()), -0.15 * linear), 3 * max(float(bounds.max()), linear))


def _line(ax: Any, name: str, curve: Curve, look: Look) -> None:
    bars = np.isfinite(curve.low) & np.isfinite(curve.high)
    if bars.any():
        reach = np.array([curve.x - curve.low, curve.high - curve.x])
        ax.errorbar(
            curve.x[bars], curve.y[bars], xerr=reach[:, bars], fmt="none", ecolor=look.color, elinewidth=1, capsize=2,
            alpha=0.6,
        )
    line(ax, curve.x, curve.y, look, name)

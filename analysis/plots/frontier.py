"""The frontier of an intermediate: what its exponent w buys in tokens per forward, and what it costs in divergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.plots.curves import By, Curve, Data, curves
from analysis.plots.style import Look, legend, looks, new_axes

#: Nats per token are small; the axis counts them per this many tokens.
PER = 1000
#: Most powers of ten that the logarithmic part spans.
DECADES = 5
#: Where a point's w is written, in points from it, and to which side, line by line.
NOTES = ((-4, 5, "right"), (7, -3, "left"), (5, -11, "left"), (-6, -11, "right"))


def plot_frontier(
    data: Data, ax: Any = None, *, x: str = "kl_per_token", y: str = "tokens_per_dlm_forward", by: By = "intermediate",
    along: str = "w",
) -> Any:
    """Tokens per forward of the diffusion model against the KL bound per token, over w, a line for each intermediate.

    The bound is an estimate, and 0 for w = 0: its axis is linear around 0 and logarithmic beyond. Horizontal bars are
    its intervals. Each point carries its w.

    Args:
        data: a data frame with the columns `by`, `along`, `x`, `y` and perhaps `x_low` and `x_high`; or a mapping
            name -> (w, bounds, tokens) or (w, bounds, tokens, lows, highs), with bounds in nats per token.
        ax: where to draw.
        x, y, by, along: columns.
    Raises:
        ValueError: data that cannot be read (see `curves`).
    """
    lines = curves(data, x=x, y=y, by=by, along=along)
    ax = new_axes(ax)
    for i, (look, (name, curve)) in enumerate(zip(looks(len(lines)), lines.items(), strict=True)):
        _line(ax, name, curve, look, NOTES[i % len(NOTES)])
    _scale(ax, PER * np.concatenate([curve.x for curve in lines.values()]))
    ax.set(xlabel=f"KL bound (nats per {PER:,} tokens)", ylabel="tokens per DLM forward")
    ax.grid(visible=True, color="0.93")
    legend(ax)
    return ax


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


def _line(ax: Any, name: str, curve: Curve, look: Look, note: tuple[int, int, str]) -> None:
    bounds = PER * curve.x
    bars = np.isfinite(curve.low) & np.isfinite(curve.high)
    if bars.any():
        reach = PER * np.array([curve.x - curve.low, curve.high - curve.x])
        ax.errorbar(
            bounds[bars], curve.y[bars], xerr=reach[:, bars], fmt="none", ecolor=look.color, elinewidth=1, capsize=2,
            alpha=0.6,
        )
    ax.plot(
        bounds, curve.y, color=look.color, linestyle=look.linestyle, marker=look.marker, markersize=5, label=name
    )
    last = curve.at.size - 1
    for i, (place, height, value) in enumerate(zip(bounds, curve.y, curve.at, strict=True)):
        if np.isfinite(value):  # an intermediate without w has none
            text = f"w = {value:g}" if i == last else f"{value:g}"
            where: dict[str, Any] = {"xytext": note[:2], "textcoords": "offset points", "ha": note[2]}
            ax.annotate(text, (place, height), fontsize=7.5, color=look.color, **where)

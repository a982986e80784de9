"""The frontier of an intermediate: what its exponent w buys in tokens per forward, and what it costs in divergence."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.plots.curves import Curve, Data, curves
from analysis.plots.style import Look, legend, looks, new_axes

#: Nats per token are small; the axis counts them per this many tokens.
PER = 1000


def plot_frontier(
    data: Data, ax: Any = None, *, x: str = "kl_per_token", y: str = "tokens_per_dlm_forward", by: str = "intermediate",
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
    for look, (name, curve) in zip(looks(len(lines)), lines.items(), strict=True):
        _line(ax, name, curve, look)
    bounds = PER * np.concatenate([curve.x for curve in lines.values()])
    small = np.abs(bounds[bounds != 0])
    # Linear up to the smallest bound but two decades at most below the largest, which keeps noise around 0 small.
    linear = max(float(small.min()), float(small.max()) / 1e4) if small.size else 1.0
    ax.set_xscale("symlog", linthresh=linear, linscale=0.5)
    ax.set(xlabel=f"KL bound (nats per {PER:,} tokens)", ylabel="tokens per DLM forward", ylim=(0, None))
    ax.margins(x=0.06)
    ax.grid(visible=True, color="0.93")
    legend(ax)
    return ax


def _line(ax: Any, name: str, curve: Curve, look: Look) -> None:
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
    for place, height, value in zip(bounds, curve.y, curve.at, strict=True):
        ax.annotate(
            f"{value:g}", (place, height), xytext=(4, 4), textcoords="offset points", fontsize=7, color=look.color
        )

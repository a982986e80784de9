"""The genealogy of a run: who descends from whom, and which lines reach the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from smc_bridge.analysis.genealogy import ancestral_lines
from smc_bridge.analysis.plots.style import BLUE, MUTED, integer_ticks, legend, new_axes
from smc_bridge.result import Result


def plot_genealogy(result: Result, ax: Any = None) -> Any:
    """Particles as columns, steps downwards, a line from each survivor to its ancestor.

    Lines that reach the end are bold. Where the bold lines meet, all final particles share what was committed before.

    Args:
        result: with its trace.
        ax: where to draw.
    Raises:
        ValueError: the trace has no steps.
    """
    steps, particles = len(result.trace), len(result.log_weights)
    if not steps:
        raise ValueError("result has no steps in its trace: give a run with at least one")
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    ax = new_axes(ax)
    lines = ancestral_lines(result)  # [steps, N]: ancestors of the final particles before every step
    alive = [set(row.tolist()) for row in lines] + [set(range(particles))]
    lost: list[list[tuple[int, int]]] = []
    kept: list[list[tuple[int, int]]] = []
    for t, record in enumerate(result.trace):
        for n, ancestor in enumerate(record.ancestors):
            (kept if n in alive[t + 1] else lost).append([(ancestor, t), (n, t + 1)])
    ax.add_collection(LineCollection(lost, colors=MUTED, linewidths=0.8, zorder=1))
    ax.add_collection(LineCollection(kept, colors=BLUE, linewidths=2.2, zorder=2, capstyle="round"))
    size = float(np.clip(110 / max(steps, particles), 2, 5))
    for level in range(steps + 1):
        on = sorted(alive[level])
        off = [n for n in range(particles) if n not in alive[level]]
        ax.plot(off, [level] * len(off), "o", color="white", markeredgecolor=MUTED, markersize=size * 0.8, zorder=3)
        ax.plot(on, [level] * len(on), "o", color=BLUE, markersize=size, zorder=4)
    ax.set(xlabel="particle", ylabel="step", xlim=(-0.5, particles - 0.5), ylim=(steps + 0.4, -0.4))
    integer_ticks(ax.xaxis, ax.yaxis)
    dots: dict[str, Any] = {"marker": "o", "markersize": 4}
    hollow: dict[str, Any] = {**dots, "markerfacecolor": "white"}
    legend(ax, handles=[
        Line2D([], [], color=BLUE, linewidth=2.2, label="ancestor of a final particle", **dots),
        Line2D([], [], color=MUTED, linewidth=0.8, label="no descendants left", **hollow),
    ])
    return ax

"""Any figure of a study against its cost, so that methods are compared at equal budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from smc_bridge.analysis.plots.curves import By, Data, curves
from smc_bridge.analysis.plots.labels import label
from smc_bridge.analysis.plots.style import band, legend, line, looks, new_axes


def plot_cost(
    data: Data, y: str, ax: Any = None, *, x: str = "cost", by: By = "method", unit: str = "", log: bool = True,
    work: str = "forwards",
) -> Any:
    """A figure against cost, a line with its band for each method; the cost on a logarithmic axis.

    Args:
        data: a data frame with the columns `by`, `x`, `y` and perhaps `y_low` and `y_high`; or a mapping
            name -> (costs, values) or (costs, values, lows, highs).
        y: column of the figure; it labels the axis.
        ax: where to draw.
        x: column of the cost, as `smc_bridge.analysis.budget.Cost` gives it.
        by: column or columns that name the lines.
        unit: of a figure of your own, for the axis, such as "nats"; those of studies have theirs.
        work: what the cost counts of either model, "forwards" or "rows", for the axis.
        log: whether the figure's axis is logarithmic too, where all its values are above 0.
    Raises:
        ValueError: a cost that is not above 0, or data that cannot be read (see `curves`).
    """
    lines = curves(data, x=x, y=y, by=by)
    costs = np.concatenate([curve.x for curve in lines.values()])
    if bool((costs <= 0).any()):
        raise ValueError(f"data has a {x} of {costs.min():g}: give costs above 0")
    ax = new_axes(ax)
    for look, (name, curve) in zip(looks(len(lines)), lines.items(), strict=True):
        band(ax, curve.x, curve.low, curve.high, look.color)
        line(ax, curve.x, curve.y, look, name)
    values = np.concatenate([curve.y for curve in lines.values()])
    ax.set(xscale="log", xlabel=f"cost (c_D DLM {work} + c_A AR {work})")
    ax.set_ylabel(f"{y.replace('_', ' ')} ({unit})" if unit else label(y))
    if log and bool((values > 0).all()):
        ax.set_yscale("log")
    legend(ax)
    return ax

"""Along the steps of one run: how many particles the weights are worth, and how many ancestors are left."""

from __future__ import annotations

from typing import Any

import numpy as np

from smc_bridge.analysis.effective_size import ess_per_step
from smc_bridge.analysis.genealogy import coalescence
from smc_bridge.analysis.plots.style import BLUE, RED, integer_ticks, legend, new_axes
from smc_bridge.result import Result


def plot_steps(result: Result, *, ax: Any = None) -> Any:
    """Along the steps of one run: ESS before selection, and from how many particles the final ones descend."""
    ax = new_axes(ax)
    steps = np.arange(len(result.trace))
    ax.plot(steps, ess_per_step(result), marker="o", color=BLUE, label="ESS before selection")
    ax.plot(
        steps, coalescence(result), marker="s", linestyle="--", color=RED, label="ancestors of the final particles"
    )
    chosen = [t for t, record in enumerate(result.trace) if record.resampled]
    for i, t in enumerate(chosen):
        ax.axvline(t, color="0.8", zorder=0, label="resampled" if i == 0 else None)
    ax.set(xlabel="step", ylabel="particles", ylim=(0, len(result.log_weights) + 0.5))
    integer_ticks(ax.xaxis)
    legend(ax)
    return ax

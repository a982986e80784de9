"""Plots of what a run did, one function each; they return the axes. matplotlib is needed only here.

    ax = plot_steps(result)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.ess import ess_per_step
from analysis.genealogy import coalescence
from analysis.lengths import block_statistics
from analysis.runs import Runs, as_runs
from smc_bridge.result import Result


def _axes(ax: Any) -> Any:
    """The given axes, or new ones.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'smc-bridge[dev]', or pip install matplotlib") from error
    return plt.subplots(figsize=(6.4, 3.2), layout="constrained")[1]


def plot_steps(result: Result, *, ax: Any = None) -> Any:
    """Along the steps of one run: ESS before selection, and from how many particles the final ones descend."""
    ax = _axes(ax)
    steps = np.arange(len(result.trace))
    ax.plot(steps, ess_per_step(result), marker="o", label="ESS before selection")
    ax.plot(steps, coalescence(result), marker="s", linestyle="--", label="ancestors of the final particles")
    chosen = [t for t, record in enumerate(result.trace) if record.resampled]
    for i, t in enumerate(chosen):
        ax.axvline(t, color="0.8", zorder=0, label="resampled" if i == 0 else None)
    ax.set(xlabel="step", ylabel="particles", ylim=(0, len(result.log_weights) + 0.5))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return ax


def plot_block_lengths(results: Mapping[str, Runs], *, ax: Any = None) -> Any:
    """Share of blocks (all lanes) that are at least so long, a line for each method."""
    ax = _axes(ax)
    for name, runs in results.items():
        lengths = block_statistics(as_runs(runs)).lengths
        longest = max(lengths, default=0)
        count = np.array([lengths.get(i, 0) for i in range(1, longest + 1)], dtype=np.float64)
        at_least = count[::-1].cumsum()[::-1] / max(count.sum(), 1.0)
        ax.step(np.arange(1, longest + 1), at_least, where="mid", label=name)
    ax.set(xlabel="block length (tokens)", ylabel="share at least as long", ylim=(0, 1.02))
    ax.legend()
    return ax

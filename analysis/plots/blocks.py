"""Blocks: how many tokens lanes commit, and how many of the draft's own tokens they keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from smc_bridge.analysis.lengths import block_statistics
from smc_bridge.analysis.plots.style import integer_ticks, legend, looks, new_axes
from smc_bridge.analysis.runs import Runs, as_runs


def plot_block_lengths(results: Mapping[str, Runs], *, ax: Any = None) -> Any:
    """Share of blocks (all lanes) that are at least so long, a line for each method."""
    ax = new_axes(ax)
    for look, (name, runs) in zip(looks(len(results)), results.items(), strict=True):
        lengths = block_statistics(as_runs(runs)).lengths
        longest = max(lengths, default=0)
        count = np.array([lengths.get(i, 0) for i in range(1, longest + 1)], dtype=np.float64)
        at_least = count[::-1].cumsum()[::-1] / max(count.sum(), 1.0)
        ax.step(
            np.arange(1, longest + 1), at_least, where="mid", label=name, color=look.color, linestyle=look.linestyle
        )
    ax.set(xlabel="block length (tokens)", ylabel="share at least as long", ylim=(0, 1.02))
    legend(ax)
    return ax


def plot_acceptance(results_by_name: Mapping[str, Runs], *, ax: Any = None) -> Any:
    """Histogram of how many of its draft's tokens a block keeps, over the blocks of all lanes.

    Args:
        results_by_name: runs with a trace, a histogram for each name; the legend gives its mean, tokens per block.
        ax: where to draw.
    Raises:
        ValueError: nothing to draw, or runs without blocks.
    """
    if not results_by_name:
        raise ValueError("results_by_name is empty: give runs of at least one method")
    kept = {name: _accepted(name, runs) for name, runs in results_by_name.items()}
    ax = new_axes(ax)
    longest = max(int(values.max()) for values in kept.values())
    edges = np.arange(longest + 2) - 0.5
    for look, (name, values) in zip(looks(len(kept)), kept.items(), strict=True):
        share = np.bincount(values, minlength=longest + 1) / values.size
        label = f"{name} (mean {values.mean():.1f})"
        ax.stairs(share, edges, fill=True, color=look.color, alpha=0.12)
        ax.stairs(share, edges, color=look.color, linestyle=look.linestyle, linewidth=1.6, label=label)
    ax.set(
        xlabel="accepted tokens of a block (tokens)", ylabel="share of blocks", xlim=(-0.7, longest + 0.7),
        ylim=(0, None),
    )
    integer_ticks(ax.xaxis)
    legend(ax)
    return ax


def _accepted(name: str, runs: Runs) -> np.ndarray:
    """Accepted tokens of every block."""
    values = [accepted for run in as_runs(runs) for record in run.trace for _, accepted, _ in record.grown()]
    if not values:
        raise ValueError(f"results_by_name[{name!r}] has no blocks: give runs with a trace")
    return np.asarray(values, dtype=np.int64)

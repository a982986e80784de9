"""Plots of what runs did and of what studies found, one function each; they return the axes.

    ax = plot_steps(result)
    ax = plot_against_particles(frame, "tv")

Every function draws on `ax`, or on new axes of 6.4 x 3.6 inches. matplotlib is needed only here. Lengths are in tokens,
logarithms in nats.
"""

from smc_bridge.analysis.plots.blocks import plot_acceptance, plot_block_lengths
from smc_bridge.analysis.plots.cost import plot_cost
from smc_bridge.analysis.plots.frontier import plot_frontier
from smc_bridge.analysis.plots.genealogy import plot_genealogy
from smc_bridge.analysis.plots.particles import plot_against_particles
from smc_bridge.analysis.plots.steps import plot_steps
from smc_bridge.analysis.plots.trace import plot_trace_grid
from smc_bridge.analysis.plots.weights import plot_ess_along, plot_log_weight_variance

__all__ = [
    "plot_acceptance", "plot_against_particles", "plot_block_lengths", "plot_cost", "plot_ess_along", "plot_frontier",
    "plot_genealogy", "plot_log_weight_variance", "plot_steps", "plot_trace_grid",
]

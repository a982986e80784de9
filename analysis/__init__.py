"""Diagnostics and experiments on what the sampler returns: weights, blocks, genealogy, bias, bounds, exact answers."""

from analysis.bias import Bias, jackknife_bias, run_bias
from analysis.bounds import kl_certificate, kl_per_token
from analysis.ess import ess, ess_per_step, max_share
from analysis.genealogy import coalescence, offspring_count, unique_ancestors
from analysis.laws import kl, output_law, total_variation, weighted_law
from analysis.lengths import BlockStatistics, block_statistics
from analysis.oracle import oracle
from analysis.tables import step_table, summary
from analysis.variance import (
    log_weight_variance,
    log_weight_variance_per_step,
    log_weight_variance_per_token,
    weight_variance,
)

__all__ = [
    "Bias", "BlockStatistics", "block_statistics", "coalescence", "ess", "ess_per_step", "jackknife_bias", "kl",
    "kl_certificate", "kl_per_token", "log_weight_variance", "log_weight_variance_per_step",
    "log_weight_variance_per_token", "max_share", "offspring_count", "oracle", "output_law", "run_bias", "step_table",
    "summary", "total_variation", "unique_ancestors", "weight_variance", "weighted_law",
]

"""Diagnostics and experiments on what the sampler returns: weights, blocks, genealogy, bias, bounds, exact answers.

Experiments over many settings are in `analysis.study`, pictures in `analysis.plots`.
"""

from analysis.bias import Bias, bias_against_samples, delta_bias, jackknife_bias, run_bias
from analysis.bounds import kl_certificate, kl_per_token
from analysis.budget import Cost, cost_of
from analysis.calibration import RankTest, rank_test
from analysis.ess import conditional_ess, conditional_ess_per_step, entropy_ess, ess, ess_per_step, max_share
from analysis.estimates import GenealogyVariance, batch_means, genealogy_variance
from analysis.export import to_datatree
from analysis.genealogy import coalescence, offspring_count, unique_ancestors
from analysis.laws import kl, output_law, total_variation, weighted_law
from analysis.lengths import BlockStatistics, block_statistics
from analysis.local import LocalDivergences, local_divergences
from analysis.oracle import oracle
from analysis.psis import ParetoK, pareto_k
from analysis.reverse import Bidirectional, bidirectional, conditional_runs, reverse_certificate
from analysis.tables import step_table, summary
from analysis.two_sample import TestResult, chi_square_test, goodness_of_fit, mmd_test
from analysis.variance import (
    log_weight_variance,
    log_weight_variance_per_step,
    log_weight_variance_per_token,
    weight_variance,
)

__all__ = [
    "Bias", "Bidirectional", "BlockStatistics", "Cost", "GenealogyVariance", "LocalDivergences", "ParetoK", "RankTest",
    "TestResult", "batch_means", "bias_against_samples", "bidirectional", "block_statistics", "chi_square_test",
    "coalescence", "conditional_ess", "conditional_ess_per_step", "conditional_runs", "cost_of", "delta_bias",
    "entropy_ess", "ess", "ess_per_step", "genealogy_variance", "goodness_of_fit", "jackknife_bias", "kl",
    "kl_certificate", "kl_per_token", "local_divergences", "log_weight_variance", "log_weight_variance_per_step",
    "log_weight_variance_per_token", "max_share", "mmd_test", "offspring_count", "oracle", "output_law", "pareto_k",
    "rank_test", "reverse_certificate", "run_bias", "step_table", "summary", "to_datatree", "total_variation",
    "unique_ancestors", "weight_variance", "weighted_law",
]

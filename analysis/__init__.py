"""Diagnostics and experiments on what the sampler returns: weights, blocks, genealogy, bias, bounds, exact answers.

Experiments over many settings are in `smc_bridge.analysis.study`, pictures in `smc_bridge.analysis.plots`.
"""

from typing import TYPE_CHECKING

from smc_bridge.exports import on_demand

if TYPE_CHECKING:
    from smc_bridge.analysis.beta import Calibrated, beta_of
    from smc_bridge.analysis.bias import Bias, bias_against_samples, delta_bias, jackknife_bias, run_bias
    from smc_bridge.analysis.bounds import kl_certificate, kl_per_token
    from smc_bridge.analysis.budget import at_equal_cost, cost_of, largest_within, measure_cost
    from smc_bridge.analysis.cache_errors import CacheError, CacheErrors, CacheMeter, cache_error
    from smc_bridge.analysis.calibration import RankTest, rank_test, rank_uniformity
    from smc_bridge.analysis.effective_size import (
        conditional_ess,
        conditional_ess_per_step,
        entropy_ess,
        ess,
        ess_per_step,
        max_share,
    )
    from smc_bridge.analysis.estimates import GenealogyVariance, batch_means, genealogy_variance
    from smc_bridge.analysis.exact_law import oracle
    from smc_bridge.analysis.export import to_arviz, to_datatree
    from smc_bridge.analysis.genealogy import coalescence, offspring_count, unique_ancestors
    from smc_bridge.analysis.law_bias import (
        Rate,
        fit_rate,
        output_distance,
        output_distance_by_identity,
        run_distance,
    )
    from smc_bridge.analysis.laws import kl, output_law, total_variation, weighted_law
    from smc_bridge.analysis.lengths import BlockStatistics, block_statistics
    from smc_bridge.analysis.local import LocalDivergences, local_divergences
    from smc_bridge.analysis.prices import Cost
    from smc_bridge.analysis.psis import ParetoK, pareto_k, smoothed_log_weights
    from smc_bridge.analysis.reverse import (
        Bidirectional,
        bidirectional,
        conditional_runs,
        reverse_certificate,
        reverse_per_token,
        symmetric_certificate,
    )
    from smc_bridge.analysis.tables import step_table, summary
    from smc_bridge.analysis.two_sample import TestResult, chi_square_test, goodness_of_fit, mmd_test
    from smc_bridge.analysis.variance import (
        log_weight_variance,
        log_weight_variance_per_step,
        log_weight_variance_per_token,
        weight_variance,
    )

__all__ = [
    "Bias", "Bidirectional", "BlockStatistics", "CacheError", "CacheErrors", "CacheMeter", "Calibrated", "Cost",
    "GenealogyVariance",
    "LocalDivergences", "ParetoK", "RankTest", "Rate", "TestResult", "at_equal_cost",
    "batch_means", "beta_of", "bias_against_samples", "bidirectional", "block_statistics", "cache_error",
    "chi_square_test", "coalescence",
    "conditional_ess", "conditional_ess_per_step", "conditional_runs", "cost_of", "delta_bias", "entropy_ess", "ess",
    "ess_per_step", "fit_rate", "genealogy_variance", "goodness_of_fit", "jackknife_bias", "kl", "kl_certificate",
    "kl_per_token", "largest_within", "local_divergences", "log_weight_variance", "log_weight_variance_per_step",
    "log_weight_variance_per_token", "max_share", "measure_cost", "mmd_test", "offspring_count", "oracle",
    "output_distance", "output_distance_by_identity", "output_law", "pareto_k", "rank_test", "rank_uniformity",
    "reverse_certificate", "reverse_per_token", "run_bias", "run_distance", "smoothed_log_weights", "step_table",
    "summary", "symmetric_certificate", "to_arviz", "to_datatree", "total_variation", "unique_ancestors",
    "weight_variance", "weighted_law",
]

if not TYPE_CHECKING:  # any attribute would be right for a type checker
    __getattr__, __dir__ = on_demand(__name__)

"""PoE-Bridge as a sequential Monte Carlo program: properly weighted sampling from diffusion language models.

The three laws are objects (`DLMProposal`, an `Intermediate`, `ARTarget`), the rejection and importance steps are
kernels, and a `Sampler` runs them:

    result = smc(load_pair("arithmetic"), particles=4).decode("Ann has 3 apples. ...")
    result.sample(), result.log_evidence, result.certificate()
"""

from typing import TYPE_CHECKING

from smc_bridge.exports import on_demand

if TYPE_CHECKING:
    from smc_bridge.blocks import Horizon, Move
    from smc_bridge.certificate import Certificate, certify
    from smc_bridge.decode import Decoder, Interrupted
    from smc_bridge.distributions.experts import Experts
    from smc_bridge.distributions.intermediate import (
        Chernoff,
        Clamp,
        Defensive,
        Intermediate,
        Mixture,
        PowerMean,
        ProductOfExperts,
        Proposal,
        Target,
    )
    from smc_bridge.distributions.law import Law
    from smc_bridge.distributions.table import Dense
    from smc_bridge.distributions.target import ARTarget, Potential
    from smc_bridge.engine.presets import smc
    from smc_bridge.engine.resampling import SSP, Multinomial, Resampler, Residual, Stratified, Systematic
    from smc_bridge.engine.sampler import Sampler
    from smc_bridge.engine.weights import EssBelow, always, never
    from smc_bridge.estimate import Estimate
    from smc_bridge.kernels.block_verification import BlockVerification
    from smc_bridge.kernels.gumbel import GumbelCoupling
    from smc_bridge.kernels.importance import AcceptAll, BalanceHeuristic, OwnWeights
    from smc_bridge.kernels.protocol import Kernel, StoppingKernel
    from smc_bridge.kernels.rejection import Rejection
    from smc_bridge.kernels.tree import TreeWalk
    from smc_bridge.methods.ar import ar_sampling
    from smc_bridge.methods.canvas import diffusion
    from smc_bridge.methods.poe_bridge import paper, plain_is, speculative
    from smc_bridge.methods.released import released
    from smc_bridge.methods.tree_walk import tree_walk
    from smc_bridge.models.pairs import Pair, load_pair
    from smc_bridge.prefix import Prefix
    from smc_bridge.proposals.chain import PrefixFilled
    from smc_bridge.proposals.mean_field import DLMProposal
    from smc_bridge.proposals.path import MostLikelyPath
    from smc_bridge.proposals.protocol import Draft
    from smc_bridge.requests import Request
    from smc_bridge.result import Result
    from smc_bridge.testing.checking import Check, check

__version__ = "0.1.0"

__all__ = [
    "SSP", "ARTarget", "AcceptAll", "BalanceHeuristic", "BlockVerification", "Certificate", "Check", "Chernoff",
    "Clamp",
    "DLMProposal", "Decoder", "Defensive", "Dense", "Draft", "EssBelow", "Estimate", "Experts", "GumbelCoupling",
    "Horizon",
    "Intermediate", "Interrupted", "Kernel", "Law", "Mixture", "MostLikelyPath", "Move", "Multinomial", "OwnWeights",
    "Pair", "Potential", "PowerMean", "Prefix", "PrefixFilled", "ProductOfExperts", "Proposal", "Rejection", "Request",
    "Resampler", "Residual", "Result", "Sampler", "StoppingKernel", "Stratified", "Systematic", "Target", "TreeWalk",
    "always",
    "ar_sampling", "certify", "check", "diffusion", "load_pair", "never", "paper", "plain_is", "released",
    "smc", "speculative", "tree_walk",
]

if not TYPE_CHECKING:  # any attribute would be right for a type checker
    __getattr__, __dir__ = on_demand(__name__)

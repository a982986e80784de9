"""Effective sample size: how many equally weighted particles the weights are worth.

Three measures, each between 1 and N, and the largest share `max W`, which shows a single particle that carries
everything where they only say "few":

    ESS         (sum w)^2 / sum w^2 = 1 / sum W^2                     Kong, Liu & Wong 1994
    entropy     exp(- sum W log W), never below the ESS               Cornebise, Moulines & Olsson 2008
    conditional N (sum W v)^2 / sum W v^2                             Zhou, Johansen & Aston 2016

The conditional one is about one step: W are the weights before it and v what the step multiplies them by, so that it is
N where a step changes nothing, however uneven the weights already are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.engine import weights
from smc_bridge.result import Result

#: Unnormalised log weights of N particles, nats; -inf is legal.
LogWeights = Sequence[float] | npt.NDArray[Any] | Tensor


def as_log_weights(log_weights: LogWeights) -> Tensor:
    """`[N]` in float64.

    Raises:
        ValueError: no weights, more than one axis, NaN or +inf.
    """
    wide = torch.as_tensor(log_weights, dtype=torch.float64)
    if wide.dim() != 1 or wide.numel() == 0:
        raise ValueError(f"log_weights has shape {tuple(wide.shape)}: give one log weight per particle, [N]")
    return weights.check_log_weights(wide)


def ess(log_weights: LogWeights) -> float:
    """Effective sample size of `log_weights: [N]`, particles; 0 if every weight is zero."""
    return float(weights.ess(as_log_weights(log_weights)))


def entropy_ess(log_weights: LogWeights) -> float:
    """Perplexity `exp(- sum W log W)` of `log_weights: [N]`, particles; 0 if every weight is zero."""
    wide = as_log_weights(log_weights)
    if float(wide.max()) == -torch.inf:
        return 0.0
    shares = weights.normalised(wide)
    return float(torch.special.entr(shares).sum().exp())


def conditional_ess(log_weights: LogWeights, log_increments: LogWeights) -> float:
    """Conditional ESS of one step, particles; 0 if the step leaves no weight.

    Args:
        log_weights: before the step, `[N]`, nats.
        log_increments: what each particle earns in it, `[N]`, nats.
    Raises:
        ValueError: shapes that differ, NaN, or +inf.
    """
    before, gain = as_log_weights(log_weights), as_log_weights(log_increments)
    if before.shape != gain.shape:
        raise ValueError(
            f"log_increments has {gain.numel()} entries for {before.numel()} log_weights: give one for each"
        )
    share = before - before.logsumexp(0) if float(before.max()) > -torch.inf else before
    first, second = (share + gain).logsumexp(0), (share + 2 * gain).logsumexp(0)
    return 0.0 if float(first) == -torch.inf else float(before.numel() * (2 * first - second).exp())


def conditional_ess_per_step(result: Result) -> list[float]:
    """Conditional ESS of every step, `[steps]`, particles; a particle earns the mean over its K lanes."""
    before = torch.zeros(len(result.log_weights), dtype=torch.float64)
    sizes = []
    for record in result.trace:
        lanes = torch.as_tensor(record.log_increments, dtype=torch.float64)  # [N, K]
        sizes.append(conditional_ess(before, lanes.logsumexp(1) - math.log(lanes.shape[1])))
        before = torch.as_tensor(record.log_weights, dtype=torch.float64)
    return sizes


def max_share(log_weights: LogWeights) -> float:
    """Largest normalised weight of `log_weights: [N]`, in [1/N, 1]; 0 if every weight is zero."""
    wide = as_log_weights(log_weights)
    return 0.0 if float(wide.max()) == -torch.inf else float(weights.normalised(wide).max())


def ess_per_step(result: Result) -> list[float]:
    """ESS of the particles before the selection of every step, `[steps]`, particles."""
    return [record.ess for record in result.trace]

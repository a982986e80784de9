"""Effective sample size: how many equally weighted particles the weights are worth.

`ESS = (sum w)^2 / sum w^2 = 1 / sum W^2` (Kong, Liu & Wong 1994), between 1 and N; and the largest share `max W`, which
shows a single particle that carries everything where the ESS only says "few".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.result import Result
from smc_bridge.smc import weights

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


def max_share(log_weights: LogWeights) -> float:
    """Largest normalised weight of `log_weights: [N]`, in [1/N, 1]; 0 if every weight is zero."""
    wide = as_log_weights(log_weights)
    return 0.0 if float(wide.max()) == -torch.inf else float(weights.normalised(wide).max())


def ess_per_step(result: Result) -> list[float]:
    """ESS of the particles before the selection of every step, `[steps]`, particles."""
    return [record.ess for record in result.trace]

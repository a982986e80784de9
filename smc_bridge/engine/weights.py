"""Weights: pure functions of log weights, in float64, that never return NaN for legal input (-inf is legal).

Conventions: `log_weights: [..., N]` are unnormalised and carried, so the evidence estimate is always their log-mean,
`log Z = logsumexp(log_weights) - log N`; resampling resets them to their mean (condition C6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smc_bridge.models.arguments import called, real_between
from smc_bridge.models.checks import refuse
from smc_bridge.models.host import local
from smc_bridge.plugins import check_tensor

#: Decides, from the particles' log weights `[P, N]`, which prompts resample now: BoolTensor `[P]`; both on the host.
Trigger = Callable[[Tensor], Tensor]


def check_log_weights(log_weights: Tensor) -> Tensor:
    """The weights in float64, `[..., N]` -> `[..., N]`; ValueError naming the place if one is NaN or +inf."""
    wide = log_weights.double()
    if wide.device.type == "cpu" and not np.isnan(numbers := local(wide)).any() and not (numbers == np.inf).any():
        return wide  # looked at where they are: nobody waits
    refuse(~(wide < math.inf), lambda at: (
        f"log_weights at {list(at)} is {wide[at]}: check the model's logits of that particle"
    ))
    return wide


def log_mean(log_weights: Tensor) -> Tensor:
    """`log (1/N sum exp)` of `log_weights: [..., N]` over the last axis, `[...]` nats; -inf if every weight is zero."""
    return check_log_weights(log_weights).logsumexp(-1) - math.log(log_weights.shape[-1])


def normalised(log_weights: Tensor) -> Tensor:
    """Probabilities over the last axis of `log_weights: [..., N]`, same shape; uniform where every weight is zero."""
    wide = check_log_weights(log_weights)
    dead = (wide == -math.inf).all(-1, keepdim=True)
    return torch.softmax(torch.where(dead, 0.0, wide), -1)


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size `1 / sum W^2` (Kong, Liu & Wong 1994) of `log_weights: [..., N]`, `[...]` particles.

    It is between 1 and N; 0 where all weights are zero.
    """
    if log_weights.shape[-1] == 1:
        return (check_log_weights(log_weights) > -math.inf).double()[..., 0]
    dead = (log_weights == -math.inf).all(-1)
    return torch.where(dead, 0.0, 1.0 / normalised(log_weights).square().sum(-1))


def check_trigger(trigger: Trigger, log_weights: Tensor) -> Tensor:
    """What a trigger decides for each prompt of `log_weights: [P, N]`, `[P]`.

    Raises:
        ValueError: it returned something else than bools `[P]`; the message names it.
    """
    found = trigger(log_weights.clone())  # it may write to what it is given
    return check_tensor(found, f"trigger {called(trigger)}", (log_weights.shape[0],), "bool", log_weights.device)


def always(log_weights: Tensor) -> Tensor:
    """Trigger: resample after every step, True for each prompt of `log_weights: [P, N]`."""
    return torch.ones(log_weights.shape[:-1], dtype=torch.bool, device=log_weights.device)


def never(log_weights: Tensor) -> Tensor:
    """Trigger: never resample (particles never interact), False for each prompt of `log_weights: [P, N]`."""
    return torch.zeros(log_weights.shape[:-1], dtype=torch.bool, device=log_weights.device)


@dataclass(frozen=True)
class EssBelow:
    """Trigger: resample when the ESS is below `fraction * N` (Liu & Chen 1995).

    Attributes:
        fraction: share of N, in [0, 1].
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        fraction = real_between("fraction", self.fraction, 0.0, 1.0, remedy="give a share of the particles in [0, 1]")
        object.__setattr__(self, "fraction", fraction)  # the class is frozen

    def __call__(self, log_weights: Tensor) -> Tensor:
        """See `Trigger`."""
        # A relative margin keeps equal weights (ESS = N up to round-off) from triggering at fraction 1.
        return ess(log_weights) < self.fraction * log_weights.shape[-1] * (1 - 1e-12)

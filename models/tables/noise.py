"""Noise of a row over the time t from 0 to 1, with a learnt pace for each column (TabDiff, arXiv 2410.20626).

Numbers get normal noise of the power-mean level

    sigma_j(t) = (low^(1/rho_j) + t (high^(1/rho_j) - low^(1/rho_j)))^rho_j,

categories are masked with probability `m_j(t) = t^k_j`. The exponents are softplus of free parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Levels of the noise of numbers of variance 1, at t = 0 and 1.
LOW, HIGH = 0.002, 80.0
#: Exponents that training starts from: the noise of EDM (Karras et al. 2022), and masks at the rate of MDLM.
RHO, K = 7.0, 1.0
#: Least exponent: below it nearly all of the noise falls within a breath of t = 0.
LEAST = 0.1


class Noise(nn.Module):
    """The schedules of a table of `numbers` and `categories` columns."""

    def __init__(self, numbers: int, categories: int) -> None:
        super().__init__()
        self.raw_rho = nn.Parameter(torch.full((numbers,), _free(RHO)))
        self.raw_k = nn.Parameter(torch.full((categories,), _free(K)))

    @property
    def rho(self) -> Tensor:
        """Exponents of the columns of numbers, `[Cn]`."""
        return functional.softplus(self.raw_rho) + LEAST

    @property
    def k(self) -> Tensor:
        """Exponents of the columns of categories, `[Cc]`."""
        return functional.softplus(self.raw_k) + LEAST

    def sigma(self, t: Tensor) -> Tensor:
        """Noise of numbers at times that broadcast with `[.., Cn]`."""
        low, high = LOW ** (1 / self.rho), HIGH ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def time(self, sigma: Tensor) -> Tensor:
        """Times at which the columns of numbers have noise of levels that broadcast with `[.., Cn]`."""
        low, high = LOW ** (1 / self.rho), HIGH ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def masked(self, t: Tensor) -> Tensor:
        """Probability of a mask at times that broadcast with `[.., Cc]`."""
        return t**self.k


def _free(exponent: float) -> float:
    return math.log(math.expm1(exponent - LEAST))

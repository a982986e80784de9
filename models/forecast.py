"""Forecasts of features over time by a ridge regression on Chebyshev polynomials (Spectrum, arXiv 2603.01623).

Features h_1 .. h_K that were computed at times t_1 .. t_K are fitted by polynomials of degree M, every feature by its
own and all with one system of M + 1 equations, and continued to a time at which nothing is computed:

    tau = 2 (t - first) / (last - first) - 1,    Phi_kj = T_j(tau_k),    T_j(cos a) = cos(j a)
    h(t) = phi(tau)' C,    C = (Phi' Phi + ridge I)^-1 Phi' H            (by Cholesky)

which is a weighted sum of the K features, with weights `Phi (Phi' Phi + ridge I)^-1 phi(tau)` that do not depend on
them. So the fit costs nothing beside the sum, whatever the features are: hidden states of a network over the steps of
its denoising, or the numbers that it predicts.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from smc_bridge.models.arguments import real_between, said, whole_number


def chebyshev(tau: Tensor, degree: int) -> Tensor:
    """`T_0 .. T_degree` of `tau: [...]`, by their recurrence (so past [-1, 1], too), `[..., degree + 1]`."""
    found = [torch.ones_like(tau), tau]
    while len(found) <= degree:
        found.append(2 * tau * found[-1] - found[-2])
    return torch.stack(found[: degree + 1], -1)


def weights(times: Tensor, at: Tensor, *, degree: int, ridge: float) -> Tensor:
    """Weights of features at some times in their forecast at another.

    Args:
        times: tau of K features, `[..., K]`.
        at: tau of the forecast, `[...]`.
        degree, ridge: M, and the penalty on the coefficients.
    Returns:
        `[..., K]`, float64.
    """
    phi = chebyshev(times.double(), degree)
    gram = phi.mT @ phi + ridge * torch.eye(degree + 1, dtype=phi.dtype, device=phi.device)
    solved = torch.cholesky_solve(chebyshev(at.double(), degree)[..., None], torch.linalg.cholesky(gram))
    return (phi @ solved)[..., 0]


class Forecast:
    """Features of one thing over time: those that were computed last, and what follows from them.

    Args:
        degree: M, of the polynomials.
        ridge: penalty on the coefficients, above 0.
        keep: K, features that are kept.
        span: first and last time, between which tau goes from -1 to 1.
    Raises:
        ValueError: one of them is out of range.
    Example:
        >>> forecast = Forecast(degree=1, ridge=1e-9)
        >>> for time in (-1.0, -0.5, 0.0):
        ...     forecast.add(time, torch.tensor([2 * time, 1.0]))
        >>> [round(value, 6) for value in forecast.at(0.5).tolist()]
        [1.0, 1.0]
    """

    def __init__(
        self, degree: int = 4, ridge: float = 0.1, keep: int = 10, *, span: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        self.degree = whole_number("degree", degree, least=0, remedy="give a degree, a whole number of at least 0")
        remedy = "give a penalty above 0"
        self.ridge = float(real_between("ridge", ridge, 0.0, 1e12, remedy=remedy, strictly=True))
        self.keep = whole_number("keep", keep, remedy="keep at least 1 feature, a whole number")
        first, last = span
        if not first < last:
            raise ValueError(f"span = {said(span)}: give a first time and a later last one")
        self.span = (float(first), float(last))
        self._kept: deque[tuple[float, Tensor]] = deque(maxlen=self.keep)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, time: float, features: Tensor) -> None:
        """Keep what was computed at a time; of more than K the oldest is forgotten.

        Args:
            features: of one shape at all times.
        """
        self._kept.append((float(time), features))

    def at(self, time: float) -> Tensor:
        """The features at a time, of the shape and dtype of those that are kept.

        Raises:
            ValueError: none are kept.
        """
        if not self._kept:
            raise ValueError(f"time = {time:g} before any features: add some first")
        tau = torch.tensor([self._tau(when) for when, _ in self._kept], dtype=torch.float64)
        own = weights(tau, torch.tensor(self._tau(time), dtype=torch.float64), degree=self.degree, ridge=self.ridge)
        features = torch.stack([kept for _, kept in self._kept])
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        found: Tensor = torch.tensordot(own.to(wide), wide, dims=1)
        return found.to(features.dtype)

    def _tau(self, time: float) -> float:
        first, last = self.span
        return 2.0 * (time - first) / (last - first) - 1.0

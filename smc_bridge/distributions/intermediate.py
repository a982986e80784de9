"""Intermediate distributions `pi` between the proposal q and the target p, built position by position.

Anything of the form `(log q_i, log p_i) -> log pi_i` is legal, normalised and a function of the past only (design 2.1,
2.6). A new one is a class with one method; see `Intermediate`.

Where a product has no support at all (q and p disjoint at a position), it falls back to p: the choice depends on
`q_i, p_i` only, so the weights stay right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Intermediate(Protocol):
    """One method, pure, vectorised over leading dimensions.

    An intermediate may also say `dominates = True`: it has mass wherever the target has, whatever the support of the
    proposal (condition C3). Without the attribute it is taken not to.

    It may say `is_target = True`: it is the target itself, so that every weight is one by construction.

    It may say `positionwise = True`: the result at a position depends on `log_q` and `log_p` at that position only, and
    not on which lane or position it is. It is then called on the positions that are needed and no others, each as the
    only position of the only lane; without the attribute, on whole windows of all lanes. A tree walk has no window
    before it knows its block: there it is called on the nodes of each tree, `[R, trees, nodes + 1, A]`, entry 0 after
    the prefix and the others in the order of the nodes. So a law that reads its place in the window or its lane off
    the shape must not be used with a tree walk.
    """

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log pi`, `[..., A]` and `[..., A]` -> `[..., A]`, normalised.

        The leading dimensions end with lanes and positions, `[R, K, V, A]`.
        """
        ...


def dominates(intermediate: Intermediate) -> bool:
    """Whether `pi > 0` wherever `p > 0` for every proposal (condition C3)."""
    return bool(getattr(intermediate, "dominates", False))


def is_target(intermediate: Intermediate) -> bool:
    """Whether `pi = p` by construction, so that its own weights are all one."""
    return bool(getattr(intermediate, "is_target", False))


def positionwise(intermediate: Intermediate) -> bool:
    """Whether `log_prob` may be called on any selection of positions (see `Intermediate`)."""
    own = type(intermediate).__module__ == __name__
    return bool(getattr(intermediate, "positionwise", own))


def checked_log_prob(intermediate: Intermediate, log_q: Tensor, log_p: Tensor) -> Tensor:
    """`intermediate.log_prob`, and for a class from outside this module a check that it is a law.

    Raises:
        ValueError: the result has another shape, a NaN, or does not sum to one; the message names the class.
    """
    log_pi = intermediate.log_prob(log_q, log_p)
    if type(intermediate).__module__ == __name__:
        return log_pi
    name = type(intermediate).__name__
    if log_pi.shape != log_p.shape:
        raise ValueError(f"{name}.log_prob returned shape {tuple(log_pi.shape)}: return that of log_p, [..., A]")
    off = log_pi.logsumexp(-1).abs()
    if not bool((off < 1e-3).all()):
        worst = float(off[~(off < 1e-3)].flatten()[0])
        raise ValueError(f"{name}.log_prob is not normalised, its log-sum is {worst:.3g} and not 0: subtract logsumexp")
    return log_pi


def _normalised(log_weight: Tensor, log_p: Tensor) -> Tensor:
    """Normalise over the last axis; rows without support become `log_p`."""
    total = log_weight.logsumexp(-1, keepdim=True)
    return torch.where(total == -math.inf, log_p, log_weight - torch.where(total == -math.inf, 0.0, total))


def _power(exponent: float | Tensor, log_prob: Tensor) -> Tensor:
    """`exponent * log_prob` with `0 * -inf = 0`."""
    if isinstance(exponent, Tensor):
        exponent = exponent.to(device=log_prob.device, dtype=log_prob.dtype)
        return torch.where(exponent == 0, torch.zeros_like(log_prob), exponent * log_prob)
    return exponent * log_prob if exponent != 0 else torch.zeros_like(log_prob)


def check_intermediate(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an intermediate."""
    if isinstance(value, type) or not callable(getattr(value, "log_prob", None)):
        raise ValueError(f"{name} = {value!r}: give an intermediate, an object with log_prob, as ProductOfExperts(0.3)")


def check_weight(w: float) -> None:
    """Raise ValueError unless w lies in [0, 1]."""
    if not (isinstance(w, int | float) and 0.0 <= w <= 1.0):
        raise ValueError(f"w = {w}: the weight of the diffusion model lies in [0, 1]")


class ProductOfExperts:
    """`pi ∝ q^a p^b` (PoE-Bridge, arXiv 2606.08048): `a = w`, `b = 1 - w` unless exponents are given.

    Args:
        w: exponent of the proposal, in [0, 1]; 0 is speculative decoding, 1 is plain importance sampling.
        target_exponent: exponent of the target instead of `1 - w`; a number, or one per lane `[K]` (the paper's lane
            temperature on the whole product: `(1 - w) tau_p / tau_k`, design 2.4).
    Raises:
        ValueError: w outside [0, 1], or an exponent that is negative or not finite.
    """

    def __init__(self, w: float = 0.3, target_exponent: float | Tensor | None = None) -> None:
        check_weight(w)
        if target_exponent is not None:
            exponents = torch.as_tensor(target_exponent)
            if exponents.dim() > 1:
                raise ValueError(f"target_exponent has shape {tuple(exponents.shape)}: give a number, or one per lane")
            if not bool(((exponents >= 0) & exponents.isfinite()).all()):
                raise ValueError(f"target_exponent = {target_exponent}: give finite exponents of at least 0")
        self.w = float(w)
        self.per_lane = isinstance(target_exponent, Tensor) and target_exponent.dim() == 1
        self.target_exponent: float | Tensor = 1.0 - self.w if target_exponent is None else target_exponent

    @property
    def dominates(self) -> bool:
        """Only without the proposal's factor."""
        return self.w == 0.0

    @property
    def is_target(self) -> bool:
        """Without the proposal's factor, and with an exponent of one on the target."""
        return self.w == 0.0 and isinstance(self.target_exponent, int | float) and self.target_exponent == 1.0

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        b = self.target_exponent
        if isinstance(b, Tensor) and self.per_lane:
            b = b[:, None, None]
        elif self.w == 0.0 and b == 1.0:
            return log_p
        elif self.w == 1.0 and b == 0.0:
            return log_q
        return _normalised(_power(self.w, log_q) + _power(b, log_p), log_p)

    def __repr__(self) -> str:
        return f"ProductOfExperts(w={self.w:g})"


@dataclass(frozen=True)
class Mixture:
    """`pi = w q + (1 - w) p`."""

    w: float = 0.3

    def __post_init__(self) -> None:
        check_weight(self.w)

    @property
    def dominates(self) -> bool:
        """`p / pi <= 1 / (1 - w)`."""
        return self.w < 1.0

    @property
    def is_target(self) -> bool:
        """Without a share of the proposal."""
        return self.w == 0.0

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        if self.w in (0.0, 1.0):
            return log_q if self.w == 1.0 else log_p
        return torch.logaddexp(log_q + math.log(self.w), log_p + math.log1p(-self.w))


@dataclass(frozen=True)
class PowerMean:
    """`pi ∝ (w q^alpha + (1 - w) p^alpha)^(1/alpha)`: alpha = 1 is the mixture, alpha -> 0 the product of experts."""

    alpha: float = 0.5
    w: float = 0.3

    def __post_init__(self) -> None:
        check_weight(self.w)
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha = {self.alpha}: give a finite number")

    @property
    def dominates(self) -> bool:
        """For positive alpha a token needs only one of the two experts."""
        return self.w == 0.0 or (self.alpha > 0 and self.w < 1.0)

    @property
    def is_target(self) -> bool:
        """Without a share of the proposal."""
        return self.w == 0.0

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        if self.alpha == 0.0 or self.w in (0.0, 1.0):
            return ProductOfExperts(self.w).log_prob(log_q, log_p)
        # Near alpha = 0 the difference of two logarithms close to 0 is divided by alpha: float32 would not do.
        exact = torch.float64 if abs(self.alpha) < 0.1 else log_q.dtype
        left = self.alpha * log_q.to(exact) + math.log(self.w)
        right = self.alpha * log_p.to(exact) + math.log1p(-self.w)
        return _normalised((torch.logaddexp(left, right) / self.alpha).to(log_p.dtype), log_p)


@dataclass(frozen=True)
class Chernoff:
    """`pi ∝ q^w p^(1-w)` with, at each position, the w where `KL(pi || q) = KL(pi || p)` (Chernoff information).

    That w minimises the convex function `log sum q^w p^(1-w)`; it is found by bisection on its derivative
    `E_pi[log q - log p]` over the common support, and clipped to [0, 1].
    """

    iterations: int = 40

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations}: bisect at least once")

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        common = (log_q > -math.inf) & (log_p > -math.inf)
        difference = torch.where(common, log_q - log_p, 0.0)
        base = torch.where(common, log_p, -math.inf)
        low = torch.zeros_like(base[..., :1])
        high = torch.ones_like(low)
        for _ in range(self.iterations):
            w = (low + high) / 2
            pi = torch.softmax(base + w * difference, -1)
            slope = (pi * difference).sum(-1, keepdim=True)
            low, high = torch.where(slope < 0, w, low), torch.where(slope < 0, high, w)
        return _normalised(base + (low + high) / 2 * difference, log_p)


@dataclass(frozen=True)
class Defensive:
    """`(1 - eps) pi + eps p` around another intermediate: `p / pi <= 1 / eps` whatever the truncation of q (C3)."""

    base: Intermediate
    eps: float = 0.05
    dominates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_intermediate("base", self.base)
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"eps = {self.eps}: the defensive share lies strictly between 0 and 1")

    @property
    def per_lane(self) -> bool:
        """Whether the base treats lanes differently."""
        return bool(getattr(self.base, "per_lane", False))

    @property
    def positionwise(self) -> bool:
        """Whether the base looks at one position at a time."""
        return positionwise(self.base)

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        return self.mixed(checked_log_prob(self.base, log_q, log_p), log_p)

    def mixed(self, log_base: Tensor, log_p: Tensor) -> Tensor:
        """`log ((1 - eps) base + eps p)`, token by token."""
        return torch.logaddexp(log_base + math.log1p(-self.eps), log_p + math.log(self.eps))


@dataclass(frozen=True)
class Proposal:
    """`pi = q`: everything is accepted, plain importance sampling."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        return log_q


@dataclass(frozen=True)
class Target:
    """`pi = p`: speculative decoding, exact, weights one."""

    dominates: ClassVar[bool] = True
    is_target: ClassVar[bool] = True

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """See `Intermediate.log_prob`."""
        return log_p

"""Intermediate distributions `pi` between the proposal q and the target p, built position by position.

Anything of the form `(log q_i, log p_i) -> log pi_i` is legal, normalised and a function of the past only
(docs/theory, section 1). A new one is a class with one method; see `Intermediate`.

Where a product has no support at all (q and p disjoint at a position), it falls back to p: the choice depends on
`q_i, p_i` only, so the weights stay right. So a product with a target that is a point mass (temperature 0) is that
target, whatever q is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.clamp import clamp_log_prob
from smc_bridge.distributions.product import power
from smc_bridge.models.arguments import is_list, real_between, real_number, said, whole_number
from smc_bridge.plugins import check_tensor


class Intermediate(Protocol):
    """One method, pure, vectorised over leading dimensions, and a function of the past.

    The law at a position may read `log_q` everywhere and `log_p` up to that position, of its own lane and particle:
    what `log_p` is further on tells what was drafted there. A `Sampler` tries that when it is made
    (`smc_bridge.engine.probe`), and `smc_bridge.check` proves it on a table.

    An intermediate may also say `dominates = True`: it has mass wherever the target has, whatever the support of the
    proposal (condition C3). Without the attribute it is taken not to. How much mass is another matter: it may say
    `log_ratio_bound`, the greatest value of `log p - log pi` at a token, nats; 0 says that it is the target itself. It
    may say `keeps_points = True`: where the target is a point mass, as at temperature 0, it is the target itself. A
    class derived from another that gives a `log_prob` of its own says these things anew.

    It may say `per_lane = True`: lanes of one particle have laws of their own, even if they share q and p. And it may
    say `positionwise = True`: the result at a position depends on `log_q` and `log_p` at that position only, and
    not on which lane or position it is. It is then called on the positions that are needed and no others, each as the
    only position of the only lane; without the attribute, on whole windows of all lanes. A tree walk has no window
    before it knows its block: there it is called on the nodes of each tree, `[R, trees, nodes + 1, A]`, entry 0 after
    the prefix and the others in the order of the nodes. So a law that reads its place in the window or its lane off
    the shape must not be used with a tree walk.

    It may read further experts: `experts = J`, and then `log_prob(log_q, log_p, log_r_1, ..., log_r_J)` is given the
    laws of the program's `experts` too, of the same shape each (`smc_bridge.distributions.experts`). Of each it may
    read what it may read of `log_p`.
    """

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log pi`, `[..., A]` and `[..., A]` -> `[..., A]`, normalised.

        The leading dimensions end with lanes and positions, `[R, K, V, A]`.
        """
        ...


def _said(intermediate: Intermediate, name: str, otherwise: Any) -> Any:
    """What an intermediate says of itself; what its base class says of another `log_prob` does not count."""
    if name not in getattr(intermediate, "__dict__", {}):
        for kind in type(intermediate).__mro__:
            if name in vars(kind):
                break
            if "log_prob" in vars(kind):
                return otherwise
    return getattr(intermediate, name, otherwise)


def dominates(intermediate: Intermediate) -> bool:
    """Whether `pi > 0` wherever `p > 0` for every proposal (condition C3)."""
    return bool(_said(intermediate, "dominates", False))


def log_ratio_bound(intermediate: Intermediate) -> float:
    """Least known bound of `log p - log pi` at one token, nats, for all q and p; infinite where none is known.

    A weight of L tokens is at most `e^(L bound)`. Weights near a large bound are as rare as they are large, so a mean
    over n runs misses them if `e^bound` is far above n: then `E[Z_hat] = 1` is true and is not what one sees.
    """
    return float(_said(intermediate, "log_ratio_bound", math.inf))


def is_target(intermediate: Intermediate) -> bool:
    """Whether `pi = p` by construction, so that its own weights are all one: nowhere is `p / pi` above 1."""
    return log_ratio_bound(intermediate) == 0.0


def keeps_points(intermediate: Intermediate) -> bool:
    """Whether `pi = p` wherever p is a point mass, whatever q is."""
    return is_target(intermediate) or bool(_said(intermediate, "keeps_points", False))


def experts_read(intermediate: Intermediate) -> int:
    """How many laws of further experts `log_prob` is given (see `Intermediate`)."""
    return int(getattr(intermediate, "experts", 0))


def covered(intermediate: Intermediate, proposal: bool, experts: Sequence[bool]) -> bool:
    """Whether `pi > 0` wherever `p > 0` (C3), given whether the proposal and each expert have mass everywhere.

    An intermediate that needs but some of them may say which, by a method `covered(proposal, experts)`.
    """
    if dominates(intermediate):
        return True
    own = _said(intermediate, "covered", None)
    return proposal and all(experts) if own is None else bool(own(proposal, experts))


def _ours(intermediate: object) -> bool:
    """Whether its class is one of this package."""
    return type(intermediate).__module__ in (__name__, EXPERTS)


#: Where the intermediate of further experts stands.
EXPERTS = "smc_bridge.distributions.experts"


def positionwise(intermediate: Intermediate) -> bool:
    """Whether `log_prob` may be called on any selection of positions (see `Intermediate`)."""
    return bool(_said(intermediate, "positionwise", _ours(intermediate)))


def per_lane(intermediate: Intermediate) -> bool:
    """Whether lanes of a particle have laws of their own (see `Intermediate`)."""
    return bool(getattr(intermediate, "per_lane", False))


def of_package(intermediate: Intermediate) -> bool:
    """Whether it is an intermediate of this module, and not a user's or one around a user's."""
    base = getattr(intermediate, "base", None)
    return _ours(intermediate) and (base is None or of_package(base))


def checked_log_prob(intermediate: Intermediate, log_q: Tensor, log_p: Tensor, *experts: Tensor) -> Tensor:
    """`intermediate.log_prob` of laws `[..., A]`; of a class from outside this module checked, and normalised to
    round-off.

    A normaliser that is a little off 1 adds up over the tokens of a sequence, so it is divided out here.

    Returns:
        `[..., A]` in the dtype of `log_p`.
    Raises:
        ValueError: the result has another shape, a NaN, or does not sum to one; the message names the class.
    """
    law: Callable[..., Tensor] = intermediate.log_prob
    log_pi = law(log_q, log_p, *experts)
    if _ours(intermediate):
        return log_pi
    name = type(intermediate).__name__
    check_tensor(log_pi, f"{name}.log_prob", tuple(log_p.shape), "float", log_p.device)
    # Rounded to half precision, log-probabilities of about -10 are off by some thousandths and their sum by less.
    tolerance = max(1e-3, 8 * torch.finfo(log_pi.dtype).eps)
    log_pi = log_pi.to(log_p.dtype)
    total = log_pi.logsumexp(-1, keepdim=True)
    off = total.abs() < tolerance
    if not bool(off.all()):
        worst = float(total[~off].flatten()[0])
        raise ValueError(f"{name}.log_prob is not normalised, its log-sum is {worst:.3g} and not 0: subtract logsumexp")
    return log_pi - total


def normalised(log_weight: Tensor, log_p: Tensor) -> Tensor:
    """Log-weights `[..., A]` normalised over the last axis; rows without support become `log_p`, `[..., A]`."""
    total = log_weight.logsumexp(-1, keepdim=True)
    return torch.where(total == -math.inf, log_p, log_weight - torch.where(total == -math.inf, 0.0, total))


def check_intermediate(name: str, value: object) -> None:
    """Raise ValueError unless `value` is an intermediate."""
    if isinstance(value, type) or not callable(getattr(value, "log_prob", None)):
        raise ValueError(
            f"{name} = {said(value)}: give an intermediate, an object with log_prob, as ProductOfExperts(0.3)"
        )


def check_w(w: Any) -> float:
    """w as a number; ValueError unless it lies in [0, 1]."""
    return float(real_between("w", w, 0.0, 1.0, remedy="the exponent (or share) of the diffusion model lies in [0, 1]"))


def _exponents(value: Any) -> float | Tensor:
    """An exponent as a number, or one per lane as a tensor `[K]`."""
    if not is_list(value):
        found = real_number("target_exponent", value, remedy="give a number of at least 0, or one per lane")
        exponents = torch.tensor(found, dtype=torch.float64)
    else:
        try:
            exponents = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"target_exponent = {said(value)}: give a number, or one per lane") from error
    if exponents.dim() > 1:
        raise ValueError(f"target_exponent has shape {tuple(exponents.shape)}: give a number, or one per lane")
    if not bool(((exponents >= 0) & exponents.float().isfinite()).all()):
        raise ValueError(f"target_exponent = {said(value)}: give exponents of at least 0 that are finite in float32")
    return exponents if exponents.dim() else float(exponents)


class ProductOfExperts:
    """`pi ∝ q^a p^b` (PoE-Bridge, arXiv 2606.08048): `a = w`, `b = 1 - w` unless exponents are given.

    Args:
        w: exponent of the proposal, in [0, 1]; 0 is speculative decoding, 1 is plain importance sampling.
        target_exponent: exponent of the target instead of `1 - w`; a number, or one per lane `[K]` (the paper's lane
            temperature on the whole product: `(1 - w) tau_p / tau_k`).
    Raises:
        ValueError: w outside [0, 1], or an exponent that is negative or more than float32 holds.
    Example:
        >>> q, p = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.2, 0.8]).log()
        >>> ProductOfExperts(0.5).log_prob(q, p).exp()
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self, w: float = 0.3, target_exponent: float | Sequence[float] | Tensor | None = None
    ) -> None:
        self.w = check_w(w)
        self.target_exponent = 1.0 - self.w if target_exponent is None else _exponents(target_exponent)
        self.per_lane = isinstance(self.target_exponent, Tensor)
        #: Exponents of the target on the host, `[]` or `[K]`.
        self.exponents = np.array(torch.as_tensor(self.target_exponent).tolist())

    @property
    def dominates(self) -> bool:
        """Whether `pi > 0` wherever `p > 0`: only if the proposal has exponent 0 (condition C3)."""
        return self.w == 0.0

    @property
    def keeps_points(self) -> bool:
        """Whether no token that the target leaves out has mass: unless the target has exponent 0."""
        return bool((self.exponents > 0).all())

    @property
    def log_ratio_bound(self) -> float:
        """0 for the target itself, else infinite: `p / pi` grows with `(p / q)^w`, which has no bound."""
        if self.w != 0.0:
            return math.inf
        return 0.0 if bool((torch.as_tensor(self.target_exponent) == 1.0).all()) else math.inf

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`w log q + (1 - w) log p`, normalised (or with the exponents given), `[..., A]`; see
        `Intermediate.log_prob`."""
        b = self.target_exponent
        if isinstance(b, Tensor) and self.per_lane:
            b = b[:, None, None]
        elif self.w == 0.0 and b == 1.0:
            return log_p
        elif self.w == 1.0 and b == 0.0:
            return log_q
        return normalised(power(self.w, log_q) + power(b, log_p), log_p)

    def __repr__(self) -> str:
        return f"ProductOfExperts(w={self.w:g})"


@dataclass(frozen=True)
class Mixture:
    """Mixture of experts, `pi = w q + (1 - w) p`.

    Attributes:
        w: share of the proposal, in [0, 1].
    """

    w: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "w", check_w(self.w))  # the class is frozen

    @property
    def dominates(self) -> bool:
        """Whether `p / pi` is bounded, by `1 / (1 - w)`: unless w = 1 (condition C3)."""
        return self.w < 1.0

    @property
    def log_ratio_bound(self) -> float:
        """Bound of `log p - log pi` at a token, `-log(1 - w)` nats."""
        return -math.log1p(-self.w) if self.w < 1.0 else math.inf

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log(w q + (1 - w) p)`, token by token, `[..., A]`; see `Intermediate.log_prob`."""
        if self.w in (0.0, 1.0):
            return log_q if self.w == 1.0 else log_p
        return torch.logaddexp(log_q + math.log(self.w), log_p + math.log1p(-self.w))


@dataclass(frozen=True)
class PowerMean:
    """`pi ∝ (w q^alpha + (1 - w) p^alpha)^(1/alpha)`: alpha = 1 is the mixture, alpha -> 0 the product of experts.

    Attributes:
        alpha: order of the mean.
        w: share of the proposal, in [0, 1].
    """

    alpha: float = 0.5
    w: float = 0.3

    def __post_init__(self) -> None:
        set_once = object.__setattr__  # the class is frozen
        set_once(self, "w", check_w(self.w))
        set_once(self, "alpha", float(real_number("alpha", self.alpha, remedy="give a finite number")))
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha = {self.alpha}: give a finite number")

    @property
    def dominates(self) -> bool:
        """Whether a token needs only one of the two experts: alpha > 0 and w < 1, or w = 0 (but see
        `log_ratio_bound`)."""
        return self.w == 0.0 or (self.alpha > 0 and self.w < 1.0)

    @property
    def keeps_points(self) -> bool:
        """Whether a token needs both experts: alpha <= 0 and w < 1."""
        return self.w == 0.0 or (self.alpha <= 0 and self.w < 1.0)

    @property
    def log_ratio_bound(self) -> float:
        """`-log(1 - w) / alpha`, and for alpha > 1 the log of the normaliser's bound `w^(1/alpha) + (1-w)^(1/alpha)`.

        Each term is at least `(1 - w)^(1/alpha) p`; for alpha <= 1 it is at most the mixture, so they sum to at most 1.
        The bound is finite for every positive alpha, and for small ones so large that it means nothing: at alpha = .05
        it is 7 nats a token for w = .3 and 60 for w = .95.
        """
        if self.w == 0.0 or not self.dominates:
            return 0.0 if self.w == 0.0 else math.inf
        left, right = math.log(self.w) / self.alpha, math.log1p(-self.w) / self.alpha
        return -right + (math.log(math.exp(left) + math.exp(right)) if self.alpha > 1 else 0.0)

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """The normalised power mean of q and p, token by token, `[..., A]`; see `Intermediate.log_prob`."""
        if self.alpha == 0.0 or self.w in (0.0, 1.0):
            return ProductOfExperts(self.w).log_prob(log_q, log_p)
        # Near alpha = 0 the difference of two logarithms close to 0 is divided by alpha: float32 would not do.
        exact = torch.float64 if abs(self.alpha) < 0.1 else log_q.dtype
        left = self.alpha * log_q.to(exact) + math.log(self.w)
        right = self.alpha * log_p.to(exact) + math.log1p(-self.w)
        return normalised((torch.logaddexp(left, right) / self.alpha).to(log_p.dtype), log_p)


@dataclass(frozen=True)
class Chernoff:
    """`pi ∝ q^w p^(1-w)` with, at each position, the w where `KL(pi || q) = KL(pi || p)` (Chernoff information).

    That w minimises the convex function `log sum q^w p^(1-w)`; it is found by bisection on its derivative
    `E_pi[log q - log p]` over the common support, and clipped to [0, 1].

    Attributes:
        iterations: halvings of the interval of w; each position's error in w is `2^-iterations`.
    """

    iterations: int = 40
    keeps_points: ClassVar[bool] = True

    def __post_init__(self) -> None:
        iterations = whole_number("iterations", self.iterations, remedy="bisect at least once, a whole number")
        object.__setattr__(self, "iterations", iterations)  # the class is frozen

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """The product of experts at each position's own w, `[..., A]`; see `Intermediate.log_prob`."""
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
        return normalised(base + (low + high) / 2 * difference, log_p)


@dataclass(frozen=True)
class Clamp:
    """The acceptance-optimal bridge `pi = clamp(q, c p, c beta p)`, c in [1/beta, 1] such that it sums to one.

    Of all laws it has the greatest `P(accept) - lambda KL(pi || p)` of a token-level test, `lambda = 1 / log beta`
    (docs/theory, section 9; at a budget of KL instead of a price: mentored decoding, Tran-Thien 2023). `p / pi` lies in
    [1/beta, beta]: it covers the target whatever the proposal leaves out, and what the target leaves out has no mass.

    Attributes:
        beta: 1 is the target; the greater, the nearer to the proposal where the target covers that; at most 1e30.
    Example:
        >>> q, p = torch.tensor([0.9, 0.1, 0.0]).log(), torch.tensor([0.1, 0.1, 0.8]).log()
        >>> Clamp(4.0).log_prob(q, p).exp()
        tensor([0.3000, 0.1000, 0.6000])
    """

    beta: float = 8.0
    dominates: ClassVar[bool] = True
    keeps_points: ClassVar[bool] = True

    def __post_init__(self) -> None:
        remedy = "give a number from 1, which is the target, to 1e30"
        object.__setattr__(self, "beta", float(real_between("beta", self.beta, 1.0, 1e30, remedy=remedy)))

    @property
    def log_ratio_bound(self) -> float:
        """Bound of `log p - log pi` at a token, and of its size: `log beta` nats."""
        return math.log(self.beta)

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log clamp(q, c p, c beta p)`, `[..., A]`; see `Intermediate.log_prob`. Gradients leave out that c depends on
        q and p.

        Raises:
            ValueError: a law has NaN; the message says at which row and position.
        """
        return log_p if self.beta == 1.0 else clamp_log_prob(log_q, log_p, self.beta)


@dataclass(frozen=True)
class Defensive:
    """`(1 - eps) pi + eps p` around another intermediate: `p / pi <= 1 / eps` whatever the truncation of q (C3).

    Attributes:
        base: the intermediate that is defended.
        eps: share of the target that is mixed in, in (0, 1].
    Example:
        >>> Defensive(ProductOfExperts(0.7), 0.05).log_ratio_bound == math.log(20)
        True
    """

    base: Intermediate
    eps: float = 0.05
    dominates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_intermediate("base", self.base)
        remedy = "the defensive share lies strictly between 0 and 1"
        eps = real_between("eps", self.eps, 0.0, 1.0, remedy=remedy, strictly=True)
        object.__setattr__(self, "eps", eps)  # the class is frozen

    @property
    def log_ratio_bound(self) -> float:
        """Bound of `log p - log pi` at a token, `-log eps` nats; less where the base has a bound b: `-log(eps + (1 -
        eps) e^-b)`."""
        return -math.log(self.eps + (1.0 - self.eps) * math.exp(-log_ratio_bound(self.base)))

    @property
    def keeps_points(self) -> bool:
        """Whether the base does."""
        return keeps_points(self.base)

    @property
    def per_lane(self) -> bool:
        """Whether the base treats lanes differently."""
        return per_lane(self.base)

    @property
    def positionwise(self) -> bool:
        """Whether the base looks at one position at a time."""
        return positionwise(self.base)

    @property
    def experts(self) -> int:
        """How many further experts the base reads."""
        return experts_read(self.base)

    def log_prob(self, log_q: Tensor, log_p: Tensor, *experts: Tensor) -> Tensor:
        """`log((1 - eps) base + eps p)`, token by token, `[..., A]`; see `Intermediate.log_prob`."""
        return self.mixed(checked_log_prob(self.base, log_q, log_p, *experts), log_p)

    def mixed(self, log_base: Tensor, log_p: Tensor) -> Tensor:
        """`log((1 - eps) base + eps p)` from the base's log-probabilities and the target's, both `[..., A]`."""
        return torch.logaddexp(log_base + math.log1p(-self.eps), log_p + math.log(self.eps))


@dataclass(frozen=True)
class Proposal:
    """`pi = q`: everything is accepted, plain importance sampling."""

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log q` as it is given, `[..., A]`; see `Intermediate.log_prob`."""
        return log_q


@dataclass(frozen=True)
class Target:
    """`pi = p`: speculative decoding, exact, weights one."""

    dominates: ClassVar[bool] = True
    log_ratio_bound: ClassVar[float] = 0.0

    def log_prob(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """`log p` as it is given, `[..., A]`; see `Intermediate.log_prob`."""
        return log_p

"""`Experts`: a product of any number of experts with any exponents, as an intermediate.

    pi ∝ q^a p^b prod_j r_j^(c_j)

The further experts r_j are causal models that are asked along the drafts, and at the nodes of a tree, beside the target
(`Sampler(experts=[...])`): a smaller model, the target's own model without some of its layers, a model of another
domain. A product with a negative exponent moves away from an expert: classifier-free guidance, `p^(1 + c) r^(-c)` with
r the model without its condition (Ho & Salimans 2022, arXiv 2207.12598; of text Sanchez et al. 2023, arXiv 2306.17806),
and contrastive decoding (Li et al. 2022, arXiv 2210.15097), are products with one. The product is locally normalised, a
function of the past, so that every kernel and weight is right as it is.

A law of negative exponent is read as at least 1e-12 (`LOG_RARE`), or what it excludes would be all that is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from smc_bridge.distributions.intermediate import normalised
from smc_bridge.distributions.law import LOG_RARE
from smc_bridge.distributions.product import power
from smc_bridge.models.arguments import is_list, real_number, said


class Experts:
    """`pi ∝ q^w p^b prod_j r_j^(c_j)`, `b = 1 - w - sum c_j` unless it is given (module docstring).

    Args:
        others: exponents c_j of the program's further experts, in their order; any finite numbers.
        w: exponent of the proposal, any finite number.
        target_exponent: b.
    Raises:
        ValueError: an exponent is no finite number, or there is no further expert.
    Example:
        >>> import torch
        >>> q, p, r = (torch.tensor(law).log() for law in ([0.5, 0.5], [0.5, 0.5], [0.2, 0.8]))
        >>> Experts([-1.0], w=0.0, target_exponent=2.0).log_prob(q, p, r).exp()
        tensor([0.8000, 0.2000])
    """

    def __init__(self, others: Sequence[float], *, w: float = 0.3, target_exponent: float | None = None) -> None:
        if not is_list(others) or not len(others):
            raise ValueError(f"others = {said(others)}: give the exponent of each further expert, a list of at least 1")
        self.others = tuple(check_exponent("others", each) for each in others)
        self.w = check_exponent("w", w)
        rest = 1.0 - self.w - sum(self.others)
        self.target_exponent = rest if target_exponent is None else check_exponent("target_exponent", target_exponent)

    @property
    def experts(self) -> int:
        """J, how many further experts it reads."""
        return len(self.others)

    @property
    def dominates(self) -> bool:
        """Whether `pi > 0` wherever `p > 0`, whatever the others leave out: no exponent but the target's is positive
        (condition C3)."""
        return self.covered(False, [False] * self.experts)

    def covered(self, proposal: bool, experts: Sequence[bool]) -> bool:
        """Whether `pi > 0` wherever `p > 0`: every law of positive exponent has mass everywhere.

        Args:
            proposal, experts: whether q and each r_j have.
        """
        every = zip((self.w, *self.others), (proposal, *experts), strict=True)
        return all(everywhere or exponent <= 0 for exponent, everywhere in every)

    @property
    def keeps_points(self) -> bool:
        """Whether no token that the target leaves out has mass: its exponent is positive."""
        return self.target_exponent > 0

    @property
    def log_ratio_bound(self) -> float:
        """Bound of `log p - log pi` at a token, nats, known where b = 1 and no other exponent c is positive.

        Then `p / pi` is at most the normaliser, and that at most `e^(LOG_RARE sum c)`, since no law is read as less
        than `e^LOG_RARE`; 0 where all of these are 0: the target itself.
        """
        most = max(self.w, *self.others)
        return LOG_RARE * (self.w + sum(self.others)) if self.target_exponent == 1.0 and most <= 0 else math.inf

    def log_prob(self, log_q: Tensor, log_p: Tensor, *experts: Tensor) -> Tensor:
        """The normalised product, `[..., A]`; see `Intermediate.log_prob`.

        Raises:
            ValueError: there are not as many experts as exponents.
        """
        if len(experts) != self.experts:
            raise ValueError(f"experts has {len(experts)} laws for {self!r}: give {self.experts}, one per exponent")
        product = power(self.w, log_q) + power(self.target_exponent, log_p)
        for exponent, log_r in zip(self.others, experts, strict=True):
            product = product + power(exponent, log_r)
        return normalised(product, log_p)

    def __repr__(self) -> str:
        others = "/".join(f"{each:g}" for each in self.others)
        return f"Experts({others}, w={self.w:g}, target_exponent={self.target_exponent:g})"


def check_exponent(name: str, value: Any) -> float:
    """An exponent as a number; ValueError unless it is finite."""
    remedy = "give a finite number; a negative one moves away from that law"
    found = float(real_number(name, value, remedy=remedy))
    if not math.isfinite(found):
        raise ValueError(f"{name} = {said(value)}: {remedy}")
    return found

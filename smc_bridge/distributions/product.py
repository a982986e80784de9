"""`ProductLaw`: a product of laws with any exponents, normalised cell by cell where it is read.

    pi(x) ∝ q(x)^a p(x)^b prod_j r_j(x)^(c_j)

A law of negative exponent is read as at least `e^LOG_RARE`: what it all but excludes would else be all that is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.law import LOG_RARE, Law, reached
from smc_bridge.distributions.normaliser import Normaliser
from smc_bridge.models.host import known, sent
from smc_bridge.sampling import compiled_softmax, shifted, softmax


def power(exponent: float | Tensor, log_prob: Tensor) -> Tensor:
    """`exponent * log_prob` with `0 * -inf = 0`, `[..., A]`; of a negative number that of at least `LOG_RARE`.

    Args:
        exponent: a number, or of at least 0 of each lane, of a shape that broadcasts.
        log_prob: `[..., A]`.
    """
    if isinstance(exponent, Tensor):
        exponent = exponent.to(device=log_prob.device, dtype=log_prob.dtype)
        return torch.where(exponent == 0, torch.zeros_like(log_prob), exponent * log_prob)
    if exponent < 0:
        return exponent * log_prob.clamp_min(LOG_RARE)
    return exponent * log_prob if exponent != 0 else torch.zeros_like(log_prob)


class ProductLaw(Law):
    """`pi ∝ q^a p^b prod_j r_j^(c_j)`, and p where the product has no support.

    Args:
        q, p: laws of R rows, any leading dimensions.
        a: exponent of q.
        b: exponent of p, a number or one per row `[R]` (of at least 0).
        others: further laws r_j of R rows, each with its exponent c_j.
    """

    def __init__(
        self, q: Law, p: Law, a: float, b: float | Tensor, others: Sequence[tuple[Law, float]] = ()
    ) -> None:
        super().__init__(q.shape, q, q.chunks)
        self.q, self.p, self.a = q, p, a
        #: The laws besides p, with their exponents; those of exponent 0 are left out.
        self.others = [(law, exponent) for law, exponent in ((q, a), *others) if exponent]
        #: Exponent of p: a number, or `[R, 1]`.
        self.b = b.to(q.dtype)[:, None] if isinstance(b, Tensor) else b
        exponents = known(b) if isinstance(b, Tensor) else np.array(b)
        positive = sum(max(exponent, 0.0) for _, exponent in self.others) + exponents.clip(min=0.0)
        negative = sum(min(exponent, 0.0) for _, exponent in self.others) + exponents.clip(max=0.0)
        #: Least of `b log p` that matters, less the greatest normaliser (`lower_bound`): a number, or `[R, 1]`.
        least = exponents.clip(min=0.0) * LOG_RARE - (1.0 - positive).clip(min=0.0) * math.log(q.shape[-1])
        least = least - negative * LOG_RARE
        self._least = sent(least[:, None], q.device) if isinstance(b, Tensor) else float(least)
        self._normalise = compiled_softmax() if self.chunks.compile else softmax
        self.some_zero = isinstance(b, Tensor) and bool((exponents == 0).any())
        self.some_empty = False

    @cached_property
    def normaliser(self) -> Normaliser:
        """Of each cell, as far as it was read."""
        return Normaliser(self.rows, self.shape[-2], self)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities, `[R, V, A]` (`Law.whole`); where the product has no support those of p."""
        log_p, *others = reached(self.p, *(law for law, _ in self.others), dtype=self.dtype)
        b = self.b[:, None] if isinstance(self.b, Tensor) else self.b
        if isinstance(b, Tensor):
            product = log_p * b
            if self.some_zero:
                product = product.masked_fill(b == 0, 0.0)
        else:
            product = power(b, log_p)
        for log_r, (_, exponent) in zip(others, self.others, strict=True):
            product.add_(log_r if exponent > 0 else log_r.clamp_min(LOG_RARE), alpha=exponent)
        log_pi = torch.log_softmax(product, -1)
        return torch.where(log_pi[..., :1].isnan(), log_p, log_pi), None

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """`a log q + b log p` of n cells, normalised: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        normaliser = self._ensure(rows, positions)
        peak = normaliser[:, :1]
        log_probs = self._product(rows, positions, tokens).sub_(peak).sub_(normaliser[:, 1:])
        if self.some_empty:
            other = self.p.log_probs(rows, positions, tokens).to(self.dtype)
            log_probs = torch.where(peak == -math.inf, other, log_probs)
        return log_probs

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Product `q^a p^b` of n cells up to a factor, `[n, A]` (`Law.probs`)."""
        return self.log_probs(rows, positions).exp_()

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Lower bound of the log-probabilities of n cells, `[n]`, nats (`Law.lower_bound`).

        It is the sum of exponents times log-probabilities at the least `log p` that matters (`LOG_RARE`), without the
        normaliser, which is below 1 where positive exponents come to at least 1. Where their sum s is less it is at
        most `A^(1 - s)` (Hölder). A negative exponent c raises a token by nothing at least, and the normaliser by a
        factor `e^(c LOG_RARE)` at most.
        """
        below = self._least[rows, 0] if isinstance(self._least, Tensor) else self._least
        for law, exponent in self.others:
            if exponent > 0:
                below = below + exponent * law.lower_bound(rows, positions)
        return below if isinstance(below, Tensor) else torch.full_like(rows, below, dtype=self.dtype)

    def _product(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Unnormalised log-product, `[n, A]` or `[n, 1]`, in memory of its own. `0 * -inf = 0`."""
        product: Tensor | None = None
        factors: list[tuple[Law, float | Tensor]] = [(self.p, self.b), *self.others]
        for law, exponent in factors:
            if isinstance(exponent, Tensor):
                scores, factor, peak, _ = law.scores(rows, positions, tokens)
                exponent = exponent[rows]
                if self.some_zero:
                    scores = torch.where(exponent == 0, 0.0, scores)
            elif exponent == 0.0:
                continue
            elif exponent < 0.0:  # what is nearly impossible under it must not be all that is left
                scores, factor, peak = law.log_probs(rows, positions, tokens).clamp_min(LOG_RARE), 1.0, 0.0
            else:
                scores, factor, peak, _ = law.scores(rows, positions, tokens)
            scale = exponent * factor
            if product is None:
                product = shifted(scores, peak, scale).to(self.dtype)
            elif isinstance(scale, Tensor):
                product.addcmul_((scores - peak).to(self.dtype), scale)
            else:
                product.add_((scores - peak).to(self.dtype), alpha=scale)
        if product is None:
            shape = (rows.numel(), self.shape[-1] if tokens is None else 1)
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return product

    def _ensure(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Peak and log-total of these cells, `[n, 2]`."""
        values, missing = self.normaliser.read(rows, positions)
        if missing is None:
            return values
        fresh, place = rows[missing], positions[missing]
        for span in self.spans(fresh.numel()):
            self._normalise_cells(fresh[span], place[span])
        return self.normaliser.read(rows, positions)[0]

    def _normalise_cells(self, rows: Tensor, positions: Tensor) -> None:
        _, peak, log_total = self._normalise(self._product(rows, positions), 1.0)
        lost = ~log_total.isfinite()
        if bool(lost.any()):
            bad = (lost & (peak != -math.inf))[:, 0]
            if bool(bad.any()):
                where = [int(rows[bad][0]), int(positions[bad][0])]
                raise ValueError(f"log_probs has NaN at (row, position) {where}: check the model's logits there")
            self.some_empty = True
        self.normaliser.write(rows, positions, peak, log_total)

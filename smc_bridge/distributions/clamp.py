"""The acceptance-optimal bridge `pi = clamp(q, c p, c beta p)`, c the root of `sum pi = 1`: its scale and lazy law.

Of all laws, it has the greatest `sum_x min(pi, q)(x) - lambda KL(pi || p)`, `lambda = 1 / log beta` (docs/theory,
section 9): what a token-level test accepts, less a price for what it costs in law.

The sum is non-decreasing and piecewise linear in c, at most 1 at `1 / beta` and at least 1 at 1. On the piece that
holds c, with M the mass of q between the bounds, `sum pi = M + c slope`: the Newton step is `c (1 - M) / (sum pi - M)`.
From the root's piece it leads to the root; 3 to 6 steps are usual. Where it would leave what is known to hold the root,
that is halved instead, in its logarithm. (A sort of the 2 A breakpoints costs some 50 steps.)

Shapes: A alphabet, n cells of one call.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law, reached
from smc_bridge.distributions.normaliser import Normaliser

#: Sums this many units of round-off from 1 are 1.
CLOSE = 16
#: Steps at most: halving alone ends before.
STEPS = 200


@torch.no_grad()
def clamp_scale(q: Tensor, p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`log c` and the log of `sum_x clamp(q, c p, c beta p)(x)`, which is 0 up to round-off, `[..., 1]` each.

    Args:
        q, p: probabilities `[..., A]`, float32 or better; q may have no mass at all, as of a place without a draft.
        beta: above 1.
    """
    c = torch.full_like(q[..., :1], beta**-0.25)
    low, high = torch.full_like(c, 0.5 / beta), torch.full_like(c, 2.0)  # wider: the root may be an end
    between, close = torch.empty_like(q), CLOSE * torch.finfo(q.dtype).eps
    for number in range(1, STEPS + 1):
        least = p * c
        pi = torch.clamp(q, least, least * beta)
        total = pi.sum(-1, keepdim=True)
        inside = torch.eq(pi, q, out=between).mul_(q).sum(-1, keepdim=True)  # M
        over = total - 1.0
        step = c * ((1.0 - inside) / (total - inside))
        high, low = torch.where(over > 0, c, high), torch.where(over > 0, low, c)
        # An end was stood on before: two steps could lead to each other. NaN, of a level piece, is not inside either.
        step = torch.where((step > low) & (step < high), step, (low * high).sqrt())
        step = torch.where(over.abs() <= close, c, step)
        if number == STEPS or torch.equal(step, c):
            break
        c = step
    return c.log(), total.log()


def clamped(log_q: Tensor, log_p: Tensor, log_c: Tensor, log_total: Tensor, log_beta: float) -> Tensor:
    """`log clamp(q, c p, c beta p) - log_total` token by token: -inf where p is 0; what broadcasts to `[..., A]`."""
    least = log_p + log_c
    return torch.clamp(log_q, least, least + log_beta).sub_(log_total)


def clamp_log_prob(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Log-probabilities of the bridge, `[..., A]`, in the dtype of `log_p`; worked out in float32 or better.

    Args:
        log_q, log_p: `[..., A]`, -inf for no mass; `log_q` may be -inf everywhere, and then the bridge is p.
        beta: above 1.
    """
    exact = torch.promote_types(log_p.dtype, torch.float32)
    wide_q, wide_p = log_q.to(exact), log_p.to(exact)
    scale = clamp_scale(torch.softmax(wide_q, -1).nan_to_num(0.0), torch.softmax(wide_p, -1), beta)
    return clamped(wide_q, wide_p, *scale, math.log(beta)).to(log_p.dtype)


class ClampLaw(Law):
    """The bridge on cells: their two numbers are found once, and a token then costs one of q and one of p.

    Args:
        q, p: laws of R rows, any leading dimensions.
        beta: above 1.
    """

    def __init__(self, q: Law, p: Law, beta: float) -> None:
        super().__init__(q.shape, q, q.chunks)
        self.q, self.p, self.beta = q, p, beta

    @cached_property
    def normaliser(self) -> Normaliser:
        """`log c` (in the place of the peak) and the log-total of each cell, as far as it was read."""
        return Normaliser(self.rows, self.shape[-2], self)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities, `[R, V, A]` (`Law.whole`)."""
        log_q, log_p = reached(self.q, self.p, dtype=self.dtype)
        return clamp_log_prob(log_q, log_p, self.beta), None

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """`log clamp(q, c p, c beta p)` of n cells: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        scale = self._ensure(rows, positions)
        log_q, log_p = (law.log_probs(rows, positions, tokens).to(self.dtype) for law in (self.q, self.p))
        return clamped(log_q, log_p, scale[:, :1], scale[:, 1:], math.log(self.beta))

    def _ensure(self, rows: Tensor, positions: Tensor) -> Tensor:
        """`log c` and the log-total of these cells, `[n, 2]`."""
        values, missing = self.normaliser.read(rows, positions)
        if missing is None:
            return values
        fresh, place = rows[missing], positions[missing]
        for span in self.spans(fresh.numel()):
            r, i = fresh[span], place[span]
            q, p = (_shares(law.probs(r, i).to(self.dtype)) for law in (self.q, self.p))
            self.normaliser.write(r, i, *clamp_scale(q, p, self.beta))
        return self.normaliser.read(rows, positions)[0]


def _shares(probs: Tensor) -> Tensor:
    """Probabilities that sum to one from those up to a factor, `[n, A]`; none where there is no mass."""
    return probs / probs.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)

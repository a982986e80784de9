"""The acceptance-optimal bridge `pi = clamp(q, c p, c beta p)`, c the root of `sum pi = 1`: its scale and lazy law.

Of all laws, it has the greatest `sum_x min(pi, q)(x) - lambda KL(pi || p)`, `lambda = 1 / log beta` (docs/theory,
section 9): what a token-level test accepts, less a price for what it costs in law.

The sum is non-decreasing and piecewise linear in c, at most 1 at `1 / beta` and at least 1 at 1. On the piece that
holds c, with M the mass of q between the bounds, `sum pi = M + c slope`: the Newton step is `c (1 - M) / (sum pi - M)`.
From the root's piece it leads to the root; 2 to 5 sums are usual. Where it would leave what is known to hold the root,
that is halved instead, in its logarithm. (A sort of the 2 A breakpoints costs some 50 steps.) A sum is a few passes
over memory; all are written to the same buffers, since new memory costs more than what is done in it.

Shapes: A alphabet, n cells of one call.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law, reached
from smc_bridge.distributions.normaliser import Normaliser
from smc_bridge.models.checks import refuse
from smc_bridge.sampling import is_one

#: Sums this many units of round-off from 1 are 1.
CLOSE = 16
#: Steps at most: halving alone ends before.
STEPS = 200
#: Steps of a device between two looks of the host at its sums, each of which it waits for; a cell that is done stays.
APART = 6


def _between(ratio: Tensor, least: Tensor, most: Tensor, out: Tensor) -> None:
    """`clamp(ratio, least, most)` into `out`, `[..., A]` by bounds `[..., 1]`; of one cell on the host in one pass."""
    if least.numel() == 1 and least.device.type == "cpu":
        torch.clamp(ratio, least.item(), most.item(), out=out)
    else:
        torch.minimum(torch.maximum(ratio, least.to(ratio), out=out), most.to(ratio), out=out)


@torch.no_grad()
def clamp_scale(q: Tensor, p: Tensor, beta: float, *room: Tensor) -> tuple[Tensor, Tensor]:
    """`log c` and the log of `sum_x clamp(q, c p, c beta p)(x)`, which is 0 up to round-off, `[..., 1]` each.

    Args:
        q, p: probabilities up to a factor, `[..., A]`, float32 or better; q may have no mass at all, as of a place
            without a draft.
        beta: above 1.
        room: three tensors like q that are written to, of which the first may be q itself; none to make them.
    Returns:
        of the laws that q and p are once they are normalised; NaN where one of them is no law.
    """
    apart = 1 if q.device.type == "cpu" else APART
    of_q, of_p = (law.sum(-1, keepdim=True).double() for law in (q, p))
    ratio, held, work = room or (torch.empty_like(q) for _ in range(3))
    # pi = p clamp(q / p, a, a beta), where 0 / 0 must be a number.
    torch.clamp(q, torch.finfo(q.dtype).tiny, out=ratio).div_(p)
    # Of laws up to a factor, q's: clamp(q, a p, a beta p) sums to the mass of q, a = c mass / of_p.
    mass = torch.where(of_q == 0, of_p, of_q)
    unit = mass / of_p
    lawless = ~((mass > 0) & (unit > 0) & (mass + unit).isfinite())
    a, close = unit * beta**-0.25, mass * (CLOSE * torch.finfo(q.dtype).eps)
    low, high = unit * (0.5 / beta), unit * 2.0  # wider than [1 / beta, 1]: the root may be an end
    for number in range(1, STEPS + 1):
        _between(ratio, a, a * beta, held)
        total = torch.mul(held, p, out=work).sum(-1, keepdim=True).double()
        over = total - mass
        done = (over.abs() <= close) | lawless
        look = number % apart == 0
        if number == STEPS or (look and bool(done.all())):
            break
        inside = torch.eq(held, ratio, out=held).mul_(work).sum(-1, keepdim=True).double()  # M
        step = a * ((mass - inside) / (total - inside))
        high, low = torch.where(over > 0, a, high), torch.where(over > 0, low, a)
        # An end was stood on before: two steps could lead to each other. NaN, of a level piece, is not inside.
        step = torch.where((step > low) & (step < high), step, (low * high).sqrt())
        step = torch.where(done, a, step).to(q.dtype).double()
        if look and torch.equal(step, a):
            break
        a = step
    log_c = (a / unit).log().masked_fill(lawless, math.nan)
    return log_c.to(q.dtype), (total / mass).log().to(q.dtype)


def clamped(log_q: Tensor, log_p: Tensor, log_c: Tensor, log_total: Tensor, log_beta: float) -> Tensor:
    """`log clamp(q, c p, c beta p) - log_total` token by token: -inf where p is 0; what broadcasts to `[..., A]`."""
    least = log_p + log_c
    return torch.clamp(log_q, least, least + log_beta).sub_(log_total)


def clamp_log_prob(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Log-probabilities of the bridge, `[..., A]`, in the dtype of `log_p`; worked out in float32 or better.

    Args:
        log_q, log_p: `[..., A]`, -inf for no mass; `log_q` may be -inf everywhere, and then the bridge is p.
        beta: above 1.
    Raises:
        ValueError: a position where `log_q` or `log_p` has NaN, or `log_p` has no mass.
    """
    exact = torch.promote_types(log_p.dtype, torch.float32)
    wide_q, wide_p = log_q.to(exact), log_p.to(exact)
    scale = clamp_scale(wide_q.exp(), wide_p.exp(), beta)
    refuse(scale[0].isnan(), lambda at: _not_a_law(at[:-1]))
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
        spans = list(self.spans(fresh.numel()))
        # Memory that is new costs more than what is done in it: all spans share it.
        most = len(fresh[spans[0]])
        room = torch.empty(4, most, self.shape[-1], dtype=self.dtype, device=self.device)
        for span in spans:
            r, i = fresh[span], place[span]
            q, p, one, two = room[:, : len(r)]
            for law, out in ((self.q, q), (self.p, p)):
                values, factor, peak, _ = law.scores(r, i)
                if not is_one(factor):
                    values = torch.sub(values, peak, out=one).mul_(factor)
                torch.softmax(values, -1, out=out)
            scale = clamp_scale(q, p, self.beta, q, one, two)
            if bool(scale[0].isnan().any()):  # softmax does not know of a place without a draft
                scale = clamp_scale(self.q.log_probs(r, i).to(self.dtype).exp_(), p, self.beta)
                refuse(scale[0].isnan(), lambda at, r=r, i=i: _not_a_law((int(r[at[0]]), int(i[at[0]]))))  # type: ignore[misc]
            self.normaliser.write(r, i, *scale)
        return self.normaliser.read(rows, positions)[0]


def _not_a_law(at: tuple[int, ...]) -> str:
    """The message about a cell where the scale is of no laws."""
    return f"log_probs has NaN at (row, position) {list(at)}: check the model's logits there"

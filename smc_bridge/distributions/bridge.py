"""The intermediate as a law made of two others, q and p.

`bridge_law(intermediate, q, p)` picks the cheapest form that the intermediate allows:

    Proposal, Target         q or p itself
    ProductOfExperts         one fused normaliser per cell that is read
    Clamp                    its scale per cell that is read
    Mixture, Defensive       token by token: no normaliser at all
    any other of this package, or one that says `positionwise = True`: its `log_prob` on cells that are read
    a user's own             its `log_prob` on whole windows of all lanes, `[R, K, V, A]`, some particles at a time
                             (in a tree walk on all nodes of each tree, `[R, trees, nodes + 1, A]`)
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.clamp import ClampLaw
from smc_bridge.distributions.intermediate import (
    Clamp,
    Defensive,
    Intermediate,
    Mixture,
    ProductOfExperts,
    Proposal,
    Target,
    checked_log_prob,
    per_lane,
    positionwise,
)
from smc_bridge.distributions.law import LOG_RARE, Law, Pointwise, leaves_out, reached
from smc_bridge.distributions.normaliser import Normaliser
from smc_bridge.distributions.table import Dense, settled
from smc_bridge.models.host import known, sent
from smc_bridge.plugins import foreign
from smc_bridge.sampling import compiled_softmax, shifted, softmax


class ProductLaw(Law):
    """`pi ∝ q^a p^b`, and p where the product has no support.

    Args:
        q, p: laws of R rows, any leading dimensions.
        a: exponent of q.
        b: exponent of p, a number or one per row `[R]`.
    """

    def __init__(self, q: Law, p: Law, a: float, b: float | Tensor) -> None:
        super().__init__(q.shape, q, q.chunks)
        self.q, self.p, self.a = q, p, a
        #: Exponent of p: a number, or `[R, 1]`.
        self.b = b.to(q.dtype)[:, None] if isinstance(b, Tensor) else b
        exponents = known(b) if isinstance(b, Tensor) else np.array(b)
        #: Least of `b log p` that matters, less the greatest normaliser (`lower_bound`): a number, or `[R, 1]`.
        least = exponents * LOG_RARE - (1.0 - a - exponents).clip(min=0.0) * math.log(q.shape[-1])
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
        log_q, log_p = reached(self.q, self.p, dtype=self.dtype)
        b = self.b[:, None] if isinstance(self.b, Tensor) else self.b
        none = not isinstance(b, Tensor) and b == 0.0  # 0 * -inf = 0
        product = torch.zeros_like(log_p) if none else log_p * b
        if isinstance(b, Tensor) and self.some_zero:
            product = product.masked_fill(b == 0, 0.0)
        if self.a:
            product.add_(log_q, alpha=self.a)
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

        It is `a log q + b log p` at the least `log p` that matters (`LOG_RARE`), without the normaliser, which is below
        1 where a + b >= 1. Otherwise the normaliser is at most `A^(1 - a - b)` (Hölder).
        """
        least = self._least[rows, 0] if isinstance(self._least, Tensor) else self._least
        below = self.a * self.q.lower_bound(rows, positions) if self.a else torch.zeros_like(rows, dtype=self.dtype)
        return below + least

    def _product(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Unnormalised log-product, `[n, A]` or `[n, 1]`, in memory of its own. `0 * -inf = 0`."""
        product: Tensor | None = None
        for law, exponent in ((self.p, self.b), (self.q, self.a)):
            if not isinstance(exponent, Tensor) and exponent == 0.0:
                continue
            scores, factor, peak, _ = law.scores(rows, positions, tokens)
            if isinstance(exponent, Tensor):
                exponent = exponent[rows]
                if self.some_zero:
                    scores = torch.where(exponent == 0, 0.0, scores)
            power = exponent * factor
            if product is None:
                product = shifted(scores, peak, power).to(self.dtype)
            elif isinstance(power, Tensor):
                product.addcmul_((scores - peak).to(self.dtype), power)
            else:
                product.add_((scores - peak).to(self.dtype), alpha=power)
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


class PointwiseLaw(Law):
    """A law whose value at a token depends on other laws' values at that token only."""

    def __init__(self, function: Pointwise, *parents: Law) -> None:
        super().__init__(parents[0].shape, parents[0], parents[0].chunks)
        self.function, self.parents = function, parents

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities, `[R, V, A]` (`Law.whole`)."""
        return self.function(*reached(*self.parents, dtype=self.dtype)), None

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The other laws' values, combined token by token: `[n, A]`, or `[n, 1]` at one token each
        (`Law.log_probs`)."""
        first, *others = (law.log_probs(rows, positions, tokens) for law in self.parents)
        return self.function(first, *(other.to(first.dtype) for other in others))


class CellwiseLaw(Law):
    """An intermediate's `log_prob` on cells; the values at tokens that were asked for once are kept.

    Args:
        intermediate: without lanes of its own (`per_lane`).
        q, p: laws of R rows.
    """

    def __init__(self, intermediate: Intermediate, q: Law, p: Law) -> None:
        super().__init__(q.shape, q, q.chunks)
        self.intermediate, self.q, self.p = intermediate, q, p
        cells = (q.rows, q.shape[-2])
        self.token = torch.full(cells, -1, dtype=torch.long, device=q.device)
        self.value = torch.zeros(cells, dtype=q.dtype, device=q.device)
        #: Whether the target has tokens that the intermediate leaves out, as far as cells were read, `[R, V]`.
        self.missed = torch.zeros(cells, dtype=torch.bool, device=q.device)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities, `[R, V, A]` (`Law.whole`): each row is the only lane."""
        log_q, log_p = reached(self.q, self.p, dtype=self.dtype)
        if foreign(self.intermediate):  # it may write to what it is given
            log_q, log_p = log_q.clone(), log_p.clone()
        return checked_log_prob(self.intermediate, log_q[:, None], log_p[:, None])[:, 0], None

    def least(self, log_probs: Tensor) -> Tensor:
        """-inf at cells where pi leaves out a token of p, else 0, `[R, V]` (`Law.least`)."""
        log_p = self.p.reached()[:, : log_probs.shape[1]].to(log_probs.dtype)
        return torch.where(leaves_out(log_probs, log_p), -math.inf, 0.0)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The intermediate's `log_prob` of n cells: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        if tokens is None:
            log_q = self.q.log_probs(rows, positions)
            # Intermediates are told of lanes and positions, [R, K, V, A]; a cell is the only one of both.
            log_p = self.p.log_probs(rows, positions).to(log_q.dtype)
            log_pi = checked_log_prob(self.intermediate, log_q[:, None, None], log_p[:, None, None])[:, 0, 0]
            self.missed[rows, positions] = leaves_out(log_pi, log_p)
            return log_pi
        found = self.value[rows, positions]
        missing = self.token[rows, positions] != tokens
        if bool(missing.any()):
            r, i, t = rows[missing], positions[missing], tokens[missing]
            value = torch.empty(r.numel(), dtype=self.dtype, device=self.device)
            for span in self.spans(r.numel()):
                value[span] = self.log_probs(r[span], i[span]).gather(1, t[span][:, None])[:, 0]
            found[missing] = value
            # Two walks may ask for different tokens of one cell at once: only one of them is kept.
            self.token[r, i] = t
            kept = self.token[r, i] == t
            self.value[r[kept], i[kept]] = value[kept]
        return found[:, None]

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """-inf at cells where pi was seen to leave out a token of p, else 0, `[n]` nats (`Law.lower_bound`)."""
        return torch.where(self.missed[rows, positions], -math.inf, 0.0)


def bridge_law(intermediate: Intermediate, q: Law, p: Law, *, lanes: int) -> Law:
    """`intermediate.log_prob(log q, log p)`, computed where it is read (module docstring), or at once if it is small.

    Args:
        q, p: laws of R = B * K rows, `[R, V, A]`.
        lanes: K; consecutive rows are the lanes of one particle.
    Raises:
        ValueError: a user's intermediate returned no law; see `checked_log_prob`.
    """
    law = _bridge(intermediate, q, p, lanes)
    return law if law is q or law is p else settled(law)


def _bridge(intermediate: Intermediate, q: Law, p: Law, lanes: int) -> Law:
    kind = type(intermediate)
    if kind is Proposal:
        return q
    if kind is Target:
        return p
    if isinstance(intermediate, ProductOfExperts) and kind is ProductOfExperts:
        return _product(intermediate, q, p, lanes)
    if isinstance(intermediate, Clamp) and kind is Clamp:
        return p if intermediate.beta == 1.0 else ClampLaw(q, p, intermediate.beta)
    if isinstance(intermediate, Mixture) and kind is Mixture:
        if intermediate.w in (0.0, 1.0):
            return q if intermediate.w == 1.0 else p
        return PointwiseLaw(intermediate.log_prob, q, p)
    if isinstance(intermediate, Defensive) and kind is Defensive:
        return PointwiseLaw(intermediate.mixed, _bridge(intermediate.base, q, p, lanes), p)
    if positionwise(intermediate) and not per_lane(intermediate):
        return CellwiseLaw(intermediate, q, p)
    return _windows(intermediate, q, p, lanes)


def _product(intermediate: ProductOfExperts, q: Law, p: Law, lanes: int) -> Law:
    w, b = intermediate.w, intermediate.target_exponent
    if isinstance(b, Tensor):
        each = np.tile(np.broadcast_to(intermediate.exponents, (lanes,)), q.rows // lanes)
        precise = np.float64 if q.dtype is torch.float64 else np.float32
        return ProductLaw(q, p, w, sent(each.astype(precise), q.device))
    if w == 0.0 and b == 1.0:
        return p
    if w == 1.0 and b == 0.0:
        return q
    return ProductLaw(q, p, w, b)


def _windows(intermediate: Intermediate, q: Law, p: Law, lanes: int) -> Law:
    """A user's intermediate, on whole windows: it may treat lanes and positions as it likes."""
    width, size = q.shape[-2:]
    particles = q.rows // lanes
    step = max(1, q.chunks.cells(size, q.dtype.itemsize) // (lanes * width))
    out = torch.empty(q.rows, width, size, dtype=q.dtype, device=q.device)
    for start in range(0, particles, step):
        rows = torch.arange(start * lanes, min(start + step, particles) * lanes, device=q.device)
        shape = (-1, lanes, width, size)
        log_q, log_p = (law.of_rows(rows).dense().to(q.dtype).reshape(shape) for law in (q, p))
        out[rows] = checked_log_prob(intermediate, log_q, log_p).reshape(-1, width, size)
    return Dense(out, q.chunks)

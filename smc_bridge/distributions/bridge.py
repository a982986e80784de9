"""The intermediate as a law made of others: q, p, and those of further experts where it reads any.

`bridge_law(intermediate, q, p)` picks the cheapest form that the intermediate allows:

    Proposal, Target         q or p itself
    ProductOfExperts         one fused normaliser per cell that is read (`smc_bridge.distributions.product`)
    Experts                  the same, of all its experts
    Clamp                    its scale per cell that is read
    Mixture, Defensive       token by token: no normaliser at all
    any other of this package, or one that says `positionwise = True`: its `log_prob` on cells that are read
    a user's own             its `log_prob` on whole windows of all lanes, `[R, K, V, A]`, some particles at a time
                             (in a tree walk on all nodes of each tree, `[R, trees, nodes + 1, A]`)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smc_bridge.distributions.clamp import ClampLaw
from smc_bridge.distributions.experts import Experts
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
from smc_bridge.distributions.law import Law, Pointwise, leaves_out, reached
from smc_bridge.distributions.product import ProductLaw
from smc_bridge.distributions.table import Dense, settled
from smc_bridge.distributions.views import Exchanged
from smc_bridge.models.host import sent
from smc_bridge.plugins import foreign


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
        others: of further experts, as many as it reads.
    """

    def __init__(self, intermediate: Intermediate, q: Law, p: Law, *others: Law) -> None:
        super().__init__(q.shape, q, q.chunks)
        self.intermediate, self.q, self.p, self.others = intermediate, q, p, others
        cells = (q.rows, q.shape[-2])
        self.token = torch.full(cells, -1, dtype=torch.long, device=q.device)
        self.value = torch.zeros(cells, dtype=q.dtype, device=q.device)
        #: Whether the target has tokens that the intermediate leaves out, as far as cells were read, `[R, V]`.
        self.missed = torch.zeros(cells, dtype=torch.bool, device=q.device)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All log-probabilities, `[R, V, A]` (`Law.whole`): each row is the only lane."""
        laws = reached(self.q, self.p, *self.others, dtype=self.dtype)
        if foreign(self.intermediate):  # it may write to what it is given
            laws = [law.clone() for law in laws]
        return checked_log_prob(self.intermediate, *(law[:, None] for law in laws))[:, 0], None

    def least(self, log_probs: Tensor) -> Tensor:
        """-inf at cells where pi leaves out a token of p, else 0, `[R, V]` (`Law.least`)."""
        log_p = self.p.reached()[:, : log_probs.shape[1]].to(log_probs.dtype)
        return torch.where(leaves_out(log_probs, log_p), -math.inf, 0.0)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The intermediate's `log_prob` of n cells: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        if tokens is None:
            log_q = self.q.log_probs(rows, positions)
            # Intermediates are told of lanes and positions, [R, K, V, A]; a cell is the only one of both.
            log_p, *others = (law.log_probs(rows, positions).to(log_q.dtype) for law in (self.p, *self.others))
            each = (law[:, None, None] for law in (log_q, log_p, *others))
            log_pi = checked_log_prob(self.intermediate, *each)[:, 0, 0]
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


def bridge_law(
    intermediate: Intermediate, q: Law, p: Law, *, lanes: int, experts: Sequence[Law] = (),
    bonus: Tensor | None = None,
) -> Law:
    """`intermediate.log_prob(log q, log p, ...)`, computed where it is read (module docstring), or at once if small.

    Args:
        q, p: laws of R = B * K rows, `[R, V, A]`.
        lanes: K; consecutive rows are the lanes of one particle.
        experts: further laws of these rows, as many as the intermediate reads.
        bonus: place of each row where q has no mass and the law is p, `[R]`, -1 for none.
    Raises:
        ValueError: a user's intermediate returned no law; see `checked_log_prob`.
    """
    if bonus is not None:  # an intermediate is never shown a q without mass, and of p and p most make p
        shown = settled(Exchanged(q, p, bonus, q.shape[-2]))
        inside = bridge_law(intermediate, shown, p, lanes=lanes, experts=experts)
        return settled(Exchanged(inside, p, bonus, q.shape[-2]))
    law = _bridge(intermediate, q, p, lanes, experts)
    return law if law is q or law is p else settled(law)


def _bridge(intermediate: Intermediate, q: Law, p: Law, lanes: int, experts: Sequence[Law]) -> Law:
    kind = type(intermediate)
    if kind is Proposal:
        return q
    if kind is Target:
        return p
    if isinstance(intermediate, ProductOfExperts) and kind is ProductOfExperts:
        return _product(intermediate, q, p, lanes)
    if isinstance(intermediate, Experts) and kind is Experts:
        return ProductLaw(
            q, p, intermediate.w, intermediate.target_exponent, list(zip(experts, intermediate.others, strict=True))
        )
    if isinstance(intermediate, Clamp) and kind is Clamp:
        return p if intermediate.beta == 1.0 else ClampLaw(q, p, intermediate.beta)
    if isinstance(intermediate, Mixture) and kind is Mixture:
        if intermediate.w in (0.0, 1.0):
            return q if intermediate.w == 1.0 else p
        return PointwiseLaw(intermediate.log_prob, q, p)
    if isinstance(intermediate, Defensive) and kind is Defensive:
        return PointwiseLaw(intermediate.mixed, _bridge(intermediate.base, q, p, lanes, experts), p)
    if positionwise(intermediate) and not per_lane(intermediate):
        return CellwiseLaw(intermediate, q, p, *experts)
    return _windows(intermediate, q, p, lanes, experts)


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


def _windows(intermediate: Intermediate, q: Law, p: Law, lanes: int, experts: Sequence[Law]) -> Law:
    """A user's intermediate, on whole windows: it may treat lanes and positions as it likes."""
    width, size = q.shape[-2:]
    particles = q.rows // lanes
    step = max(1, q.chunks.cells(size, q.dtype.itemsize) // (lanes * width))
    out = torch.empty(q.rows, width, size, dtype=q.dtype, device=q.device)
    for start in range(0, particles, step):
        rows = torch.arange(start * lanes, min(start + step, particles) * lanes, device=q.device)
        shape = (-1, lanes, width, size)
        laws = (law.of_rows(rows).dense().to(q.dtype).reshape(shape) for law in (q, p, *experts))
        out[rows] = checked_log_prob(intermediate, *laws).reshape(-1, width, size)
    return Dense(out, q.chunks)

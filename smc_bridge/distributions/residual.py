"""`ResidualLaw`: what corrects a refusal; `log_committed`: acceptance and correction of a drafted token as one law."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law, drawn_from
from smc_bridge.models.host import places


class ResidualLaw(Law):
    """`(e^s pi_i - q_i)_+`, normalised, at one position i of each row, and `pi_i` where no mass is left (round-off).

    Args:
        q, pi: laws of R rows.
        position: i of each row, `[R]`.
        needed: rows that are corrected, `[R]`; the others' law is a point mass on token 0.
        log_scale: s, `[R]`, or None for 0.
    """

    def __init__(self, q: Law, pi: Law, position: Tensor, needed: Tensor, log_scale: Tensor | None) -> None:
        super().__init__((q.rows, 1, q.shape[-1]), q, q.chunks)
        self.q, self.pi, self.position, self.needed, self.log_scale = q, pi, position, needed, log_scale

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Residual mass `(e^s pi - q)_+` of n cells up to a factor, `[n, A]`; every row must be `needed`
        (`Law.probs`)."""
        position = self.position[rows]
        target = self.pi.log_probs(rows, position).to(self.dtype)
        if self.log_scale is not None:
            target = target.add_(self.log_scale[rows, None].to(self.dtype))
        target = target.exp_()
        residual = self.q.log_probs(rows, position).exp_().neg_().add_(target).clamp_min_(0.0)
        return torch.where(residual.sum(-1, keepdim=True) > 0, residual, target)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The normalised residual of n cells: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        needed = self.needed[rows]
        out = torch.full((rows.numel(), self.shape[-1]), -math.inf, dtype=self.dtype, device=self.device)
        out[~needed, 0] = 0.0
        if bool(needed.any()):
            probs = self.probs(rows[needed], positions[needed])
            out[needed] = (probs / probs.sum(-1, keepdim=True)).log()
        return out if tokens is None else out.gather(1, tokens[:, None])

    def draw(self, owner: Tensor | None, uniform: Tensor) -> Tensor:
        """One correction for each row that is needed, any token for the others, `[Q, 1]` (`Law.draw`)."""
        owner = places(self.rows, self.device) if owner is None else owner
        if self.q.held and self.pi.held:  # what is not needed costs less than to leave it out
            return drawn_from(self.probs(owner, self.position), None, uniform, row=lambda draw: int(owner[draw]))
        out = torch.zeros(uniform.shape, dtype=torch.long, device=self.device)
        drawn = self.needed[owner].nonzero().flatten()
        if drawn.numel():
            out[drawn] = super().draw(owner[drawn], uniform[drawn])
        return out


def log_committed(log_q: Tensor, log_pi: Tensor, drafted: Tensor) -> Tensor:
    """The law of what is committed at a place given the drafted token: that token with probability `min(1, pi / q)`,
    else a draw from `(pi - q)_+`. With a draft from q, what is committed has law pi.

    Args:
        log_q, log_pi: `[n, A]`.
        drafted: `[n]`.
    Returns:
        `[n, A]` log-probabilities.
    """
    own = drafted[:, None]
    ratio = torch.where(log_pi == -math.inf, -math.inf, log_pi - log_q).gather(1, own)
    accept = ratio.clamp_max(0.0).exp()
    residual = (log_pi.exp() - log_q.exp()).clamp_min(0.0)
    total = residual.sum(-1, keepdim=True)
    residual = torch.where(total > 0, residual / total, log_pi.exp())
    return ((1.0 - accept) * residual).scatter_add(1, own, accept).log()

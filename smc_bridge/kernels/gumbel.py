"""Coupling by shared Gumbel noise: one noise vector per position gives the draft and the intermediate's own sample.

With `G_i` a vector of Gumbel noise, the draft is `x_i = argmax(log q_i + G_i)` and the sample
`z_i = argmax(log pi_i + G_i)`; commit `z_i`, and go on while `x_i = z_i` (APD, arXiv 2506.00413, with the
intermediate's own sample committed at the first disagreement, which makes it exact). Given the committed `z_i = a`, the
draft agrees with probability

    c_i = m_i(a) / pi_i(a),     m_i(a) = P(x_i = z_i = a) = 1 / sum_b max(pi_i(b) / pi_i(a), q_i(b) / q_i(a)).

The draft is drawn first and the noise afterwards, given that the draft won: in the exponential form of the race,
`E_b = exp(-G_b)`, the winner a of `min E_b / q_b` at time T has `E_a = q_a T`, and the others `E_b = q_b T + Exp(1)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, truncate
from smc_bridge.distributions.law import Law
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, as_source

#: Noise variables of one row that exist at a time: all of a window over a small alphabet, one position of a large one.
NOISE = 1 << 16


def race(log_pi: Tensor, log_q: Tensor, draft: Tensor, exponential: Tensor) -> Tensor:
    """The intermediate's sample under the noise that made `draft` win under q.

    Args:
        log_pi, log_q: `[..., A]`.
        draft: winner under q, `[...]`; negative for none, where q has no mass.
        exponential: independent Exp(1) variables, `[..., A]`; the entry at the draft is the winning time.
    Returns:
        `argmin_b E_b / pi_b`, `[...]`.
    """
    time = exponential.gather(-1, draft[..., None].clamp_min(0))
    arrival = log_q.exp() * time
    arrival = torch.where(_is(draft, arrival), arrival, arrival + exponential)
    # A token that pi excludes never arrives; one that arrives at time zero does so before all others.
    score = torch.where(log_pi == -math.inf, math.inf, arrival.log() - log_pi)
    return score.argmin(-1)


def _is(token: Tensor, like: Tensor) -> Tensor:
    """One-hot mask of `token: [...]` over the last axis of `like: [..., A]`."""
    return torch.arange(like.shape[-1], device=like.device) == token[..., None]


class GumbelCoupling(StoppingKernel):
    """Shared-noise coupling that commits the intermediate's sample (module docstring)."""

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """`-log sum_b max(pi_b, q_b pi_a / q_a)` at the token a, `[R, V]` nats; see `StoppingKernel.log_continue`."""
        out = torch.zeros(block.shape, dtype=pi.dtype, device=pi.device)
        rows, positions = (block >= 0).nonzero(as_tuple=True)
        for span in pi.spans(rows.numel()):
            r, i = rows[span], positions[span]
            token = block[r, i][:, None]
            every_q, every_pi = q.log_probs(r, i), pi.log_probs(r, i)
            log_q, log_pi = every_q.gather(-1, token), every_pi.gather(-1, token)
            never, certain = log_q == -math.inf, log_pi == -math.inf
            scaled = torch.where(never, math.inf, every_q + torch.where(never, 0.0, log_pi - log_q))
            log_c = -torch.logsumexp(torch.maximum(every_pi, scaled), -1, keepdim=True)
            log_c = torch.where(certain, 0.0, torch.where(never, -math.inf, log_c.clamp_max(0.0)))
            out[r, i] = log_c[:, 0]
        return out

    def sample(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Tensor:
        """The intermediate's own sample z along the draft, under the noise that made the draft, `[R, V]`; arguments as
        `Kernel.__call__`. It is a draw of pi up to the first place where it differs from the draft, and there."""
        q, tokens = draft.q, draft.tokens
        source = as_source(source, q.rows, device=q.device)
        sample = torch.zeros_like(tokens)
        width, size = pi.shape[1:]
        # How many positions' noise exists at a time must not depend on the rows, or the draws would.
        step = max(1, NOISE // size)
        for start in range(0, width, step):
            stop = min(start + step, width)
            noise = source.exponential((stop - start, size))  # [R, step, A]
            asked = torch.arange(start, stop, device=tokens.device) < horizon.window[:, None]
            rows, columns = asked.nonzero(as_tuple=True)
            for span in pi.spans(rows.numel()):
                r, c = rows[span], columns[span]
                i = c + start
                own = noise[r, c].to(pi.dtype)
                sample[r, i] = race(pi.log_probs(r, i), q.log_probs(r, i), tokens[r, i], own)
        return sample

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        sample = self.sample(draft, pi, source=source, horizon=horizon)
        agreed = (sample == draft.tokens).long().cumprod(-1).sum(-1)
        end = horizon.end(sample)
        length = torch.minimum(agreed + 1, end)
        return Move(truncate(sample, length), length, torch.minimum(agreed, end))

"""Token-level speculative rejection: the draft is accepted token by token, the first refusal is corrected.

Left to right accept `y_i` with probability `min(1, pi_i(y_i) / q_i(y_i))`; at the first refusal commit a draw from
`(pi_i - q_i)_+`, normalised, and stop (Leviathan et al. 2023, Chen et al. 2023; PoE-Bridge arXiv 2606.08048, stage 1).
The committed token has law `pi_i`, and after committing x_i the kernel goes on with probability

    c_i = min(pi_i, q_i)(x_i) / pi_i(x_i) = min(1, q_i(x_i) / pi_i(x_i)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.kernels.protocol import Horizon, Move, StoppingKernel, at_tokens, full_horizon, truncate
from smc_bridge.randomness import Randomness, Source, as_source


def log_residual(log_target: Tensor, log_q: Tensor) -> Tensor:
    """`log (target - q)_+`, not normalised; `log_target` where no mass is left (round-off).

    Args:
        log_target: `[..., A]`, may have total mass below 1 (block verification scales it).
        log_q: `[..., A]`.
    """
    residual = (log_target.exp() - log_q.exp()).clamp_min(0.0)
    empty = residual.sum(-1, keepdim=True) <= 0
    return torch.where(empty, log_target, residual.log())


def commit_correction(
    draft: Tensor, accepted: Tensor, end: Tensor, residual: Tensor, *, source: Source
) -> Move:
    """Commit the first `accepted` tokens of the draft and, unless that is all of it, one token from `residual`.

    Args:
        draft: `[R, V]`.
        accepted: `[R]`, at most `end`.
        end: `[R]`, length of the draft (window or end of sequence).
        residual: unnormalised log-law of the correction, `[R, A]`; at rows that need none, any law.
    """
    correction = source.categorical(residual)
    refused = accepted < end
    place = accepted.clamp_max(draft.shape[1] - 1)[:, None]
    block = draft.scatter(1, place, torch.where(refused, correction, draft.gather(1, place)[:, 0])[:, None])
    length = accepted + refused
    return Move(truncate(block, length), length, accepted)


def row_at(log_probs: Tensor, position: Tensor) -> Tensor:
    """`log_probs[r, position[r]]`: `[R, V, A]`, `[R]` -> `[R, A]`; positions past V are clamped."""
    index = position.clamp_max(log_probs.shape[1] - 1)
    return log_probs[torch.arange(log_probs.shape[0], device=log_probs.device), index]


def log_ratio(q: Tensor, pi: Tensor, block: Tensor) -> Tensor:
    """`log pi_i - log q_i` at the tokens, `[R, V, A]`, `[R, V]` -> `[R, V]`; -inf where `pi_i = 0`."""
    log_pi = at_tokens(pi, block)
    return torch.where(log_pi == -math.inf, -math.inf, log_pi - at_tokens(q, block))


def accepted_tokens(q: Tensor, pi: Tensor, draft: Tensor, *, source: Source) -> Tensor:
    """Trials of probability `min(1, pi_i / q_i)` at the drafted tokens, BoolTensor `[R, V]`."""
    return source.bernoulli(log_ratio(q, pi, draft).clamp_max(0.0).exp())


def commit_accepted(
    q: Tensor, pi: Tensor, draft: Tensor, accept: Tensor, *, horizon: Horizon, source: Source
) -> Move:
    """Commit the draft up to the first token that is not in `accept: [R, V]`, and correct that one."""
    end = horizon.end(draft)
    accepted = torch.minimum(accept.long().cumprod(-1).sum(-1), end)
    residual = log_residual(row_at(pi, accepted), row_at(q, accepted))
    return commit_correction(draft, accepted, end, residual, source=source)


class Rejection(StoppingKernel):
    """Token-level speculative rejection (module docstring)."""

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        """See `StoppingKernel.log_continue`: `min(0, log q_i - log pi_i)` at the token."""
        log_q, log_pi = at_tokens(q, block), at_tokens(pi, block)
        return torch.where(log_pi == -math.inf, 0.0, (log_q - log_pi).clamp_max(0.0))

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        """See `DraftKernel.__call__`."""
        source = as_source(generator, draft.shape[0], device=draft.device)
        horizon = full_horizon(pi) if horizon is None else horizon
        accept = accepted_tokens(q, pi, draft, source=source)
        return commit_accepted(q, pi, draft, accept, horizon=horizon, source=source)

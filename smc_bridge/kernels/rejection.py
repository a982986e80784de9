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

from smc_bridge.blocks import Horizon, Move, truncate
from smc_bridge.distributions.law import Law, along
from smc_bridge.distributions.residual import ResidualLaw
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.models.host import places
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, Source, as_source


def _committed(draft: Tensor, accepted: Tensor, end: Tensor, correction: Tensor) -> Move:
    length = accepted + (accepted < end)  # past it nothing counts: a correction that was not needed is not seen
    corrected = torch.where(places(draft.shape[1], draft.device) == accepted[:, None], correction[:, None], draft)
    return Move(truncate(corrected, length), length, accepted)


def log_ratio(q: Law, pi: Law, block: Tensor) -> Tensor:
    """`log pi_i - log q_i` at the tokens, `[R, V, A]`, `[R, V]` -> `[R, V]`; -inf where `pi_i = 0`."""
    log_pi, log_q = along([pi, q], block)
    return torch.where(log_pi == -math.inf, -math.inf, log_pi - log_q)


def accepted_tokens(
    q: Law, pi: Law, draft: Tensor, *, end: Tensor, source: Source, forced: Tensor | None = None
) -> Tensor:
    """How many drafted tokens stand before the first refusal: trials of probability `min(1, pi_i / q_i)`.

    Looked at from left to right, some positions at a time, so that laws after the refusals are not computed.

    Args:
        q, pi, draft: `[R, V, A]`, `[R, V, A]`, `[R, V]`.
        end: `[R]`; nothing after it is looked at. A `PAD` before it is refused.
        forced: rows whose first token is accepted whatever its trial, `[R]`.
    Returns:
        `[R]`, at most `end`.
    """
    rows, window = draft.shape
    trial = source.bernoulli_stream(window)
    position = places(window, draft.device)
    inside = (position < end[:, None]) & (draft >= 0)
    if q.held and pi.held:  # all at once: nothing is computed that is not known already
        accept = trial(torch.where(inside, log_ratio(q, pi, draft).clamp_max(0.0).exp(), 0.0))
        if forced is not None:
            accept[:, 0] |= forced & inside[:, 0]
        return accept.long().cumprod(-1).sum(-1)
    accepted = torch.zeros(rows, dtype=torch.long, device=draft.device)
    going = torch.ones(rows, dtype=torch.bool, device=draft.device)
    start = 0
    while start < window and (growing := int(going.sum())):
        stop = min(start + pi.chunks.reach(growing, pi.shape[-1]), window)
        asked = inside & going[:, None] & (position >= start) & (position < stop)
        log_probability = log_ratio(q, pi, torch.where(asked, draft, PAD))[:, start:stop]
        probability = torch.where(asked[:, start:stop], log_probability.clamp_max(0.0).exp(), 0.0)
        accept = trial(probability)
        if forced is not None and start == 0:
            accept[:, 0] |= forced & inside[:, 0]
        run = accept.long().cumprod(-1).sum(-1)
        accepted += torch.where(going, run, 0)
        going = going & (run == stop - start)
        start = stop
    return accepted


def commit_residual(
    q: Law, pi: Law, draft: Tensor, accepted: Tensor, end: Tensor, *, source: Source,
    log_scale: Tensor | None = None,
) -> Move:
    """Commit the first `accepted` tokens of the draft and, unless that is all of it, a draw from `(e^s pi - q)_+`.

    Args:
        q, pi: `[R, V, A]`; only the refused position of each row is read.
        accepted, end: `[R]`.
        log_scale: s, `[R]`, or None for 0.
    """
    place = accepted.clamp_max(draft.shape[1] - 1)
    residual = ResidualLaw(q, pi, place, accepted < end, log_scale)
    return _committed(draft, accepted, end, source.categorical(residual)[:, 0])


class Rejection(StoppingKernel):
    """Token-level speculative rejection (Leviathan et al. 2023) to the intermediate (module docstring)."""

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """`min(0, log q_i - log pi_i)` at the tokens, `[R, V]` nats; see `StoppingKernel.log_continue`."""
        log_q, log_pi = along([q, pi], block)
        return torch.where(log_pi == -math.inf, 0.0, (log_q - log_pi).clamp_max(0.0))

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        q, tokens = draft.q, draft.tokens
        source, end = as_source(source, q.rows, device=q.device), horizon.end(tokens)
        accepted = accepted_tokens(q, pi, tokens, end=end, source=source)
        return commit_residual(q, pi, tokens, accepted, end, source=source)

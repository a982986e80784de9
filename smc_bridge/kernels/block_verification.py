"""Block verification (Sun et al. 2024, arXiv 2403.10444): the draft is judged as a whole, and more of it is accepted.

Along the draft keep `P_0 = 1`, `P_i = min(1, P_{i-1} pi_i(y_i) / q_i(y_i))`. The draft is cut at the greatest i that
passes its own trial, of probability

    h_i = S_i / (S_i + 1 - P_i),   S_i = sum_a (P_i pi_{i+1}(a) - q_{i+1}(a))_+        inside the draft
    h_i = P_i                                                                           at its end

(0 always passes), and corrected by a draw from `(P_i pi_{i+1} - q_{i+1})_+`, normalised. No rule that commits `pi` from
the same draft accepts more tokens in expectation.

In the words of `StoppingKernel`: `P(accepted >= i | y_{1:i}) = P_i`, so a path x is alive after i tokens with mass
`q(x_{1:i}) P_i`, the next committed token has law `pi`, and the kernel goes on after it with probability

    c_i = min(1, q_i(x_i) / (P_{i-1} pi_i(x_i))),

which is token-level rejection with `P_{i-1}` in place of 1. It depends on the past only: a stopping time of `pi`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move
from smc_bridge.distributions.law import Law
from smc_bridge.kernels.protocol import StoppingKernel
from smc_bridge.kernels.rejection import commit_residual, log_ratio
from smc_bridge.prefix import PAD
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness, as_source


def log_acceptance(ratio: Tensor) -> Tensor:
    """`log P_0 .. log P_V` from the log-ratios `log pi_i - log q_i`, `[R, V]` -> `[R, V + 1]`."""
    steps = [torch.zeros_like(ratio[:, 0])]
    for i in range(ratio.shape[1]):
        # A path that pi has excluded stays excluded, also where q excludes the next token: -inf + inf.
        step = torch.where(steps[-1] == -math.inf, -math.inf, steps[-1] + ratio[:, i])
        steps.append(step.clamp_max(0.0))
    return torch.stack(steps, dim=1)


def surplus(q: Law, pi: Law, log_p: Tensor, end: Tensor) -> Tensor:
    """`S_i = sum_a (P_i pi_{i+1}(a) - q_{i+1}(a))_+` for i = 1 .. V - 1, `[R, V - 1]`; 0 from the end of the draft on.

    Args:
        q, pi: `[R, V, A]`.
        log_p: `log P_0 .. log P_V`, `[R, V + 1]`.
        end: `[R]`.
    """
    out = torch.zeros_like(log_p[:, 1:-1])
    position = torch.arange(1, log_p.shape[1] - 1, device=log_p.device)
    # Where P_i = 0 nothing is left over.
    rows, column = ((position < end[:, None]) & (log_p[:, 1:-1] > -math.inf)).nonzero(as_tuple=True)
    for span in pi.spans(rows.numel()):
        r, i = rows[span], column[span] + 1
        mass = pi.log_probs(r, i).add_(log_p[r, i][:, None]).exp_()
        out[r, i - 1] = mass.sub_(q.log_probs(r, i).exp_()).clamp_min_(0.0).sum(-1)
    return out


class BlockVerification(StoppingKernel):
    """Block verification (Sun et al. 2024, arXiv 2403.10444): the draft is judged as a whole (module docstring)."""

    def log_continue(self, q: Law, pi: Law, block: Tensor, *, horizon: Horizon) -> Tensor:
        """`min(0, log q_i - log pi_i - log P_{i-1})` at the tokens, `[R, V]` nats; see
        `StoppingKernel.log_continue`."""
        ratio = log_ratio(q, pi, block)
        before = log_acceptance(ratio)[:, :-1]
        return torch.where(before == -math.inf, 0.0, (-ratio - before).clamp_max(0.0))

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`."""
        q, tokens = draft.q, draft.tokens
        source, window = as_source(source, q.rows, device=q.device), tokens.shape[1]
        end = horizon.end(tokens)
        position = torch.arange(1, window + 1, device=tokens.device)
        asked = torch.where(position <= end[:, None], tokens, PAD)
        ratio = torch.where((asked < 0) & (position <= end[:, None]), -math.inf, log_ratio(q, pi, asked))
        log_p = log_acceptance(ratio)  # [R, V + 1]
        left = surplus(q, pi, log_p, end)  # S_1 .. S_{V-1}
        slack = left + 1.0 - log_p[:, 1:-1].exp()
        passes = torch.where(slack > 0, left / slack, 1.0)
        passes = torch.cat([passes, torch.zeros_like(log_p[:, :1])], dim=1)  # h_1 .. h_V
        passes = torch.where(position == end[:, None], log_p[:, 1:].exp(), passes)
        passes = torch.where(position > end[:, None], 0.0, passes)
        trial = source.bernoulli(passes)
        accepted = torch.where(trial, position, 0).amax(-1)
        scale = log_p.gather(1, accepted[:, None])[:, 0]
        return commit_residual(q, pi, tokens, accepted, end, source=source, log_scale=scale)

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

from smc_bridge.kernels.protocol import Horizon, Move, StoppingKernel, full_horizon
from smc_bridge.kernels.rejection import commit_correction, log_ratio, log_residual, row_at
from smc_bridge.randomness import Randomness, as_source


def log_acceptance(ratio: Tensor) -> Tensor:
    """`log P_0 .. log P_V` from the log-ratios `log pi_i - log q_i`, `[R, V]` -> `[R, V + 1]`."""
    steps = [torch.zeros_like(ratio[:, 0])]
    for i in range(ratio.shape[1]):
        # A path that pi has excluded stays excluded, also where q excludes the next token: -inf + inf.
        step = torch.where(steps[-1] == -math.inf, -math.inf, steps[-1] + ratio[:, i])
        steps.append(step.clamp_max(0.0))
    return torch.stack(steps, dim=1)


class BlockVerification(StoppingKernel):
    """Block verification (module docstring)."""

    def log_continue(self, q: Tensor, pi: Tensor, block: Tensor, *, horizon: Horizon) -> Tensor:
        """See `StoppingKernel.log_continue`."""
        ratio = log_ratio(q, pi, block)
        before = log_acceptance(ratio)[:, :-1]
        return torch.where(before == -math.inf, 0.0, (-ratio - before).clamp_max(0.0))

    def __call__(
        self, q: Tensor, pi: Tensor, draft: Tensor, *, generator: Randomness, horizon: Horizon | None = None
    ) -> Move:
        """See `DraftKernel.__call__`."""
        source = as_source(generator, draft.shape[0], device=draft.device)
        horizon = full_horizon(pi) if horizon is None else horizon
        window = draft.shape[1]
        end = horizon.end(draft)
        log_p = log_acceptance(log_ratio(q, pi, draft))  # [R, V + 1]
        inner = log_p[:, 1:-1, None]  # P_1 .. P_{V-1}
        surplus = ((inner + pi[:, 1:]).exp() - q[:, 1:].exp()).clamp_min(0.0).sum(-1)  # S_1 .. S_{V-1}
        slack = surplus + 1.0 - inner[..., 0].exp()
        passes = torch.where(slack > 0, surplus / slack, 1.0)
        passes = torch.cat([passes, torch.zeros_like(log_p[:, :1])], dim=1)  # h_1 .. h_V
        position = torch.arange(1, window + 1, device=draft.device)
        passes = torch.where(position == end[:, None], log_p[:, 1:].exp(), passes)
        passes = torch.where(position > end[:, None], 0.0, passes)
        trial = source.bernoulli(passes)
        accepted = torch.where(trial, position, 0).amax(-1)
        scale = log_p.gather(1, accepted[:, None])
        residual = log_residual(scale + row_at(pi, accepted), row_at(q, accepted))
        return commit_correction(draft, accepted, end, residual, source=source)

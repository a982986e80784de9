"""Agreement: of a draft its longest prefix is committed that the target would have chosen too, at least one token.

    L = max(1, number of leading places where a(y_i, p_i) holds)
    a(y, p):  y = argmax p   |   p(y) > threshold   |   y among the k likeliest of p

The rule of guided diffusion (FlashDLM, arXiv 2505.21467). Where the first token fails it is committed all the same, and
no token of the target ever enters: the committed block has no law that the target knows of, and the kernel is not
proper. Nothing is drawn.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, Move, truncate
from smc_bridge.distributions.law import Law
from smc_bridge.kernels.protocol import Kernel
from smc_bridge.models.arguments import real_between, said, whole_number
from smc_bridge.proposals.protocol import Draft
from smc_bridge.randomness import Randomness

#: When a drafted token agrees with the target.
Rule = Literal["argmax", "threshold", "top-k"]


class Agreement(Kernel):
    """Commits what the target agrees with, and at least the first token of the draft (module docstring).

    Args:
        rule: when a token agrees.
        threshold: of its probability, for `rule = threshold`.
        likeliest: k, for `rule = top-k`.
    Raises:
        ValueError: an argument out of range.
    """

    proper = False

    def __init__(self, rule: Rule = "argmax", *, threshold: float = 0.1, likeliest: int = 5) -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"rule = {said(rule)}: give one of {', '.join(get_args(Rule))}")
        self.rule = rule
        self.threshold = real_between("threshold", threshold, 0.0, 1.0, remedy="give a probability")
        self.likeliest = whole_number("likeliest", likeliest, remedy="agree with at least 1 token, a whole number")

    def agrees(self, log_p: Tensor, token: Tensor) -> Tensor:
        """Whether tokens `[R]` agree with laws `log_p: [R, A]`, BoolTensor `[R]`."""
        if self.rule == "argmax":
            return log_p.argmax(-1) == token
        own = log_p.gather(-1, token[:, None])
        if self.rule == "threshold":
            return own[:, 0].exp() > self.threshold
        return (log_p > own).sum(-1) < self.likeliest

    def __call__(self, draft: Draft, pi: Law, *, source: Randomness, horizon: Horizon) -> Move:
        """See `Kernel.__call__`; laws are read from left to right, up to where the last row stops."""
        tokens, end = draft.tokens, horizon.end(draft.tokens)
        accepted, going = torch.zeros_like(end), torch.ones_like(end, dtype=torch.bool)
        for place in range(int(end.max())):
            row = pi.row(torch.full_like(end, place))
            going = going & (place < end) & self.agrees(row, tokens[:, place].clamp_min(0))
            if not bool(going.any()):
                break
            accepted += going
        length = accepted.clamp_min(1)
        return Move(truncate(tokens, length), length, accepted)

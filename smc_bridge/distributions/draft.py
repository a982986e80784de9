"""`Draft`: tokens that a proposal puts forward, and the law that they were drawn from.

Shapes: R rows (one lane each), V window, A alphabet, U rows that the proposal's model scored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law


class Cost(NamedTuple):
    """Forwards of the proposal's model behind a draft.

    Attributes:
        prompts: which prompt each scored row was for, `[U]`; a row that serves several prompts counts for each.
        forward: in which forward it was, `[U]`, counted from 0.
    """

    prompts: Tensor
    forward: Tensor

    def per_prompt(self, prompts: int) -> tuple[list[int], list[int]]:
        """Forwards and rows of each of so many prompts; what one is charged with does not depend on the others."""
        rows = torch.bincount(self.prompts, minlength=prompts)
        taken = torch.unique(torch.stack([self.prompts, self.forward]), dim=1)[0]
        return torch.bincount(taken, minlength=prompts).tolist(), rows.tolist()


class Draft(NamedTuple):
    """What a proposal hands to a kernel.

    Attributes:
        tokens: LongTensor `[R, V]`; `PAD` where the proposal has no opinion, and q no mass: the kernel then commits a
            token of pi.
        q: `[R, V, A]`, the very conditionals that the tokens were drawn from, along them. A point mass is a law.
        width: LongTensor `[R]`, places that were drafted, from 1 to V; blocks end there at the latest.
        cost: what it took; None where it does not matter.
    """

    tokens: Tensor
    q: Law
    width: Tensor
    cost: Cost | None = None

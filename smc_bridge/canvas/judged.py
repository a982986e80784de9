"""Whole candidate fillings of a canvas, scored by the autoregressive model: one forward for all candidates of all rows.

    log p(x^j_i | c, x^j_<i)   for candidate j of a row and every place i before its first end of sequence

Candidates are an axis of their own, `[R, k, T]`, and each is scored behind the prefix of its own row. (Laid out
sample-major and regrouped by a view, a row would be judged by candidates of other rows: the released code of arXiv
2410.21357 does so from the second row on.) Places past the first end of sequence are no part of the sequence; those
that a canvas carries over from before are scored as all others, for what is said of them depends on the candidate.

Shapes: R rows, k candidates, T places, A alphabet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smc_bridge.blocks import Horizon, prefix_sum, truncate
from smc_bridge.distributions.target import ARTarget
from smc_bridge.models.ends import ends_of
from smc_bridge.models.protocols import CausalSession
from smc_bridge.result import Forwards


class Judged(NamedTuple):
    """What the autoregressive model says of candidates.

    Attributes:
        log_p: log-probability of each token given those before it, `[R, k, T]` nats, 0 past the length.
        length: tokens of each candidate, with the end of sequence where it has one, `[R, k]`.
    """

    log_p: Tensor
    length: Tensor

    @property
    def total(self) -> Tensor:
        """Log-probability of each candidate, `[R, k]` float64 nats."""
        return prefix_sum(self.log_p, self.length)

    def cost(self, row: int, rows: int = 1) -> Forwards:
        """What this forward cost the prompt of the consecutive rows `row .. row + rows`: its candidates, each as long
        as its longest."""
        own = self.length[row : row + rows]
        return Forwards(ar_forwards=1, ar_rows=own.numel(), ar_tokens=own.numel() * int(own.max()))


def judge(
    session: CausalSession, target: ARTarget, rows: Tensor, candidates: Tensor, known: Tensor
) -> Judged:
    """Score candidates by one forward.

    Args:
        session: holds the prefixes.
        target: the law.
        rows: whose prefix each row's candidates follow, `[R]`.
        candidates: tokens, `[R, k, T]`; entries past what is known are ignored.
        known: how many places of each row hold tokens from the first on, `[R]`, at least 1.
    """
    count, k, places = candidates.shape
    flat = candidates.reshape(count * k, places)
    length = Horizon(known.repeat_interleave(k), ends_of(target.model.eos_id)).end(flat)
    width = int(length.max())
    block = truncate(flat, length)[:, :width]
    law = target.law(session.score(rows.repeat_interleave(k), block.clamp_min(0)))
    inside = torch.arange(width, device=flat.device) < length[:, None]
    log_p = torch.where(inside, law.at(block), 0.0)
    whole = torch.nn.functional.pad(log_p, (0, places - width))
    return Judged(whole.reshape(count, k, places), length.reshape(count, k))

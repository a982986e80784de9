"""Condition C3 at run time: an intermediate that has probability zero where the target has not.

`E[Z_hat sum W f] = E_p[f]` needs `pi > 0` wherever `p > 0`. That cannot be read off an intermediate: it depends on the
laws that it meets (a logit of -inf, a token that a user's intermediate drops). But the rows of pi and p along a
committed block were read whole anyway, for their normalisers, so that they can be compared there.

Compared are cells where pi may be zero; which these are is known from what was kept when they were read
(`Law.lower_bound`), and for most programs there is none. A row that no run meets is not seen: that a run says
nothing is no proof (`smc_bridge.check` is one, on tables).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smc_bridge.distributions.law import Law

#: A log-probability that is zero in every floating-point format: what logits of -1e4 or less, used in place of -inf
#: by many models, come down to as well.
LOG_ZERO = -745.0
#: What the target gives less than this may be left out: all such tokens together weigh less than round-off.
LOG_RARE = math.log(1e-12)


def leaves_out(log_pi: Tensor, log_p: Tensor) -> Tensor:
    """Whether pi is zero at a token that p may draw: `[..., A]` each -> BoolTensor `[...]`."""
    return ((log_pi < LOG_ZERO) & (log_p > LOG_RARE)).any(-1)


def first_uncovered(pi: Law, p: Law, block: Tensor, length: Tensor) -> Tensor | None:
    """First place of each block where pi leaves out a token that p may draw.

    Places that p itself cannot reach do not count. Which places are looked at depends on the block alone.

    Args:
        pi, p: laws along the blocks, `[..., V, A]`.
        block: `[..., V]`.
        length: committed tokens, `[...]`.
    Returns:
        `[...]`, V where there is none; None if there is none in all blocks.
    """
    width = block.shape[-1]
    flat = block.reshape(-1, width)
    committed = torch.arange(width, device=block.device) < length.reshape(-1)[:, None]
    rows, places = committed.nonzero(as_tuple=True)
    maybe = pi.lower_bound(rows, places) < LOG_ZERO
    if not bool(maybe.any()):
        return None
    rows, places = rows[maybe], places[maybe]
    missed = torch.zeros_like(committed)
    for span in pi.spans(rows.numel()):
        r, i = rows[span], places[span]
        missed[r, i] = leaves_out(pi.log_probs(r, i), p.log_probs(r, i))
    reached = p.at(torch.where(committed, flat, -1).view(block.shape)).view(flat.shape) > -math.inf
    reached = torch.nn.functional.pad(reached[:, :-1], (1, 0), value=True).long().cumprod(-1).bool()
    missed &= reached
    if not bool(missed.any()):
        return None
    first = torch.where(missed.any(-1), missed.to(torch.uint8).argmax(-1), width)
    return first.reshape(length.shape)

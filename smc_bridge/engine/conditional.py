"""Conditional SMC: a retained sequence is one of the particles, and the others are drawn as usual (Andrieu, Doucet &
Holenstein 2010).

The retained particle sits in place 0. At every step it follows its own tokens in a lane drawn uniformly, and *where it
stops is simulated from `kappa`*: after token i it goes on with probability `c_i` (docs/theory, section 8;
`StoppingKernel`). The other particles choose their ancestors by independent draws from all lanes. If the retained
sequence is an exact draw from the target, all its lanes, lengths and ancestors are then an exact draw from the extended
target, so `KL(p || r) <= E[log Z_hat]` for the law r of the unconditional program's output.

A retained sequence must be possible under the very laws that the run reads (`check_possible`). An exact sample that was
drawn by other forwards need not be: where a model's logits depend on the forward in their last bits, a token at the
edge of top-k or top-p, or at temperature 0 one of two whose logits are all but equal, is in the law of one forward and
not in that of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smc_bridge.distributions.shaping import Shaping
from smc_bridge.engine.state import SMCState
from smc_bridge.kernels.pinned import Pinned
from smc_bridge.models.ends import Ends
from smc_bridge.randomness import Source


def pin(
    state: SMCState, active: Tensor, rows: Tensor, *, lanes: int, window: int, source_of: Callable[[Tensor], Source]
) -> tuple[Pinned, Tensor]:
    """The retained lanes of this step, and the place of each among its prompt's lanes, `[P']`.

    Args:
        active: prompts of this step, `[P']`.
        rows: their particles that still grow, `[B]`, in increasing order.
        source_of: gives one row of draws for each of some prompts.
    """
    assert state.retained is not None
    device = active.device
    lane = torch.zeros(active.numel(), dtype=torch.long, device=device)
    first = active * state.particles
    alive = ~state.prefix.done[first]
    prompts = active[alive]
    draws = source_of(prompts).uniform((window + 1,)) if prompts.numel() else torch.zeros(0, window + 1, device=device)
    lane[alive] = (draws[:, 0] * lanes).long()
    start = (state.prefix.length[first] - state.prompt_length[active])[alive]
    column = start[:, None] + torch.arange(window, device=device)
    tokens = state.retained.tokens[prompts].gather(1, column.clamp_max(state.retained.tokens.shape[1] - 1))
    place = torch.searchsorted(rows, first[alive])
    return Pinned(place * lanes + lane[alive], tokens, draws[:, 1:]), lane


def check_possible(state: SMCState, rows: Tensor, pinned: Pinned, increments: Tensor, *, law: Shaping) -> None:
    """Check that no retained sequence has lost its weight in this step.

    Args:
        rows: the particles that grow, `[B]`.
        increments: log-weight increments of their lanes without those of a potential, `[B, K]`.
        law: of the target.
    Raises:
        ValueError: the target gives a retained token probability 0; says which sequence, and what to do.
    """
    lost = increments.reshape(-1)[pinned.lane] == -math.inf
    if not bool(lost.any()):
        return
    row = int(rows[pinned.lane[lost][0] // increments.shape[1]])
    seat = row // state.particles
    request, done = state.requests[seat], int(state.prefix.length[row] - state.prompt_length[seat])
    assert request is not None
    remedy = "retain a sequence that the target can draw"
    if law.truncates or law.is_point:
        remedy = (
            "an exact sample gets there where a model's logits differ in the last bits from forward to forward and "
            "top_k, top_p or temperature 0 cuts at one of them; load the models in float32, or do not truncate the "
            "target"
        )
    raise ValueError(
        f"retained[{request.place}] has probability 0 in the step that verifies it from token {done} on, so the run "
        f"is no conditional run and bounds nothing: {remedy}"
    )


def check_whole(retained: Sequence[Sequence[int]], *, ends: Ends, max_new_tokens: int) -> None:
    """Raise ValueError unless every sequence is whole: it ends at an end of sequence or at the length limit."""
    for i, sequence in enumerate(retained):
        ended = len(sequence) > 0 and sequence[-1] in ends
        if len(sequence) == 0 or len(sequence) > max_new_tokens or (len(sequence) < max_new_tokens and not ended):
            raise ValueError(
                f"retained[{i}] has {len(sequence)} tokens: give a whole one, up to the end of sequence or "
                f"to max_new_tokens = {max_new_tokens}"
            )
        if any(token in ends for token in sequence[:-1]):
            raise ValueError(f"retained[{i}] goes on after the end of sequence: cut it there")

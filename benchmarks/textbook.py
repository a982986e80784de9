"""One step in the textbook's form: every law as a full softmax at every position. The reference for speed and memory.

    q = softmax(l_D / tau_k),  p = softmax(l_A / tau),  pi = softmax(w log q + b_k log p),  r = normalise((pi - q)_+)

for all K lanes, V positions and A tokens; draw the draft from q, accept `y_i` with probability `min(1, pi_i / q_i)`,
correct the first refusal from r, weigh by `sum log p - log pi`, and keep one lane by weight (docs/theory, sections 3
and 4). It uses the uniforms that the sampler would use, in the same order, so that both commit the same blocks but for
round-off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Uniforms(NamedTuple):
    """All randomness of a step of one particle, on [0, 1).

    Attributes:
        draft: of the drafted tokens, `[K, V]`.
        trials: of their acceptance, `[K, V]`.
        correction: of the token at the refusal, `[K]`.
        choice: of the survivor.
    """

    draft: Tensor
    trials: Tensor
    correction: Tensor
    choice: Tensor

    @classmethod
    def draw(cls, generator: torch.Generator, lanes: int, window: int) -> Uniforms:
        """Draw them in the order in which the sampler draws."""
        sizes = ((lanes, window), (lanes, window), (lanes,), (1,))
        return cls(*(torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes))


class Step(NamedTuple):
    """What a step of one particle offers and keeps.

    Attributes:
        block: of each lane, `[K, V]`, -1 past its length.
        length: committed tokens of each lane, `[K]`.
        log_weight: of each lane, `[K]` nats.
        survivor: lane that was drawn by weight.
    """

    block: Tensor
    length: Tensor
    log_weight: Tensor
    survivor: int


def inverse(probs: Tensor, uniform: Tensor) -> Tensor:
    """First token whose cumulative probability passes the uniform: `[..., A]`, `[...]` -> `[...]`."""
    cdf = probs.cumsum(-1)
    drawn = torch.searchsorted(cdf, uniform[..., None].to(cdf.dtype) * cdf[..., -1:], right=True)[..., 0]
    return drawn.clamp_max(probs.shape[-1] - 1)


@torch.inference_mode()
def textbook_step(
    raw_q: Tensor, score: Callable[[Tensor], Tensor], uniforms: Uniforms, *, lane_temperatures: Tensor,
    temperature: float, w: float, target_exponent: Tensor,
) -> Step:
    """One step of one particle.

    Args:
        raw_q: DLM logits of the window, `[V, A]`.
        score: AR logits along drafts, `[K, V]` -> `[K, V, A]`.
        lane_temperatures: `[1]` if all lanes have the same law, else `[K]`.
        target_exponent: b, of the same shape.
    """
    q = torch.softmax(raw_q / lane_temperatures[:, None, None], -1)  # [1 or K, V, A]
    lanes, window = uniforms.draft.shape
    every = q.expand(lanes, -1, -1)
    draft = inverse(every, uniforms.draft)
    p = torch.softmax(score(draft) / temperature, -1)
    pi = torch.softmax(w * every.log() + target_exponent[:, None, None] * p.log(), -1)
    residual = (pi - every).clamp_min(0.0)
    residual = residual / residual.sum(-1, keepdim=True).clamp_min(torch.finfo(residual.dtype).tiny)
    at = draft[..., None]
    accept = uniforms.trials < (pi.gather(-1, at) / every.gather(-1, at))[..., 0]
    accepted = accept.long().cumprod(-1).sum(-1)
    refused = accepted < window
    place = accepted.clamp_max(window - 1)
    lane = torch.arange(lanes, device=draft.device)
    correction = inverse(residual[lane, place], uniforms.correction)
    block = draft.scatter(1, place[:, None], torch.where(refused, correction, draft[lane, place])[:, None])
    length = accepted + refused
    inside = torch.arange(window, device=draft.device) < length[:, None]
    at = block[..., None]
    earned = (p.gather(-1, at).log() - pi.gather(-1, at).log())[..., 0]
    log_weight = torch.where(inside, earned.double(), 0.0).sum(-1)
    survivor = int(inverse(torch.softmax(log_weight, -1)[None], uniforms.choice)[0])
    return Step(block.masked_fill(~inside, -1), length, log_weight, survivor)

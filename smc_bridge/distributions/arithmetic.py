"""The arithmetic of a chunk of laws: normalisers and inverse cdfs of `[n, A]` scores that fit into a core's cache.

Every function is a fixed number of passes over its argument. `torch.softmax` is one fused pass over memory with the
fastest exponential there is, so normalisers are read off its result: at the token of greatest score the probability is
one over the normaliser.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

#: Tokens of one block of a two-level cdf, and the alphabet from which two levels are used.
BLOCK, TWO_LEVELS = 64, 256


def softmax(scores: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities `softmax(factor * scores)`, and what is needed to compute single log-probabilities again.

    Args:
        scores: `[n, A]`.
        factor: positive, a number or `[n, 1]`.
    Returns:
        probabilities `[n, A]`; `peak` and `log_total`, `[n, 1]`, such that
        `log_prob = factor * (scores - peak) - log_total`. `log_total` is NaN where there is no law (NaN, +inf, or no
        finite score).
    """
    peak = scores.amax(-1, keepdim=True)
    plain = not isinstance(factor, Tensor) and factor == 1.0
    probs = torch.softmax(scores if plain else scores * factor, -1)
    return probs, peak, -probs.amax(-1, keepdim=True).log()


@functools.lru_cache(maxsize=1)
def compiled_softmax() -> Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`softmax` through `torch.compile`, for any number of cells."""
    compiled: Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor, Tensor]] = torch.compile(softmax, dynamic=True)
    return compiled


def block_width(size: int) -> int:
    """Tokens of one block of the cdf over an alphabet of this size."""
    return BLOCK if size >= TWO_LEVELS else size


def block_sums(probs: Tensor, width: int) -> Tensor:
    """Sums over successive blocks of `width` tokens (the last one may be shorter), `[n, A]` -> `[n, C]`."""
    count, size = probs.shape
    whole = size // width * width
    sums = probs[:, :whole].reshape(count, -1, width).sum(-1)
    return sums if whole == size else torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True)], dim=1)


def search(probs: Tensor, width: int, cell: Tensor, uniform: Tensor) -> Tensor | None:
    """Inverse cdf in two levels: the block whose cumulative sum passes the uniform, then the token within it.

    The uniforms and the sums that they are compared with are float64; no cdf over the alphabet is made.

    Args:
        probs: `[n, A]`, up to a factor.
        width: tokens of a block.
        cell: which law each draw is from, `[m]`.
        uniform: on [0, 1), float64, `[m]`.
    Returns:
        tokens of positive probability, `[m]`; None if a cell has NaN or no positive probability.
    """
    size = probs.shape[1]
    sums = block_sums(probs, width)
    cdf = sums.double().cumsum(-1)
    total = cdf[:, -1]
    if not bool((total > 0).all()):
        return None
    place = torch.arange(sums.shape[1], device=probs.device)
    threshold = uniform * total[cell]
    block = torch.searchsorted(cdf[cell], threshold[:, None], right=True)[:, 0]
    # Round-off can put the threshold on the last value: fall back to the last block, and token, of some probability.
    block = torch.minimum(block, torch.where(sums > 0, place, 0).amax(-1)[cell])
    before = torch.where(block > 0, cdf[cell, (block - 1).clamp_min(0)], 0.0)
    token = block[:, None] * width + torch.arange(width, device=probs.device)
    inside = probs[cell[:, None], token.clamp_max(size - 1)].double().masked_fill_(token >= size, 0.0)
    passed = inside.cumsum(-1) > (threshold - before)[:, None]
    offset = torch.arange(width, device=probs.device)
    last = torch.where(inside > 0, offset, 0).amax(-1)
    drawn = torch.where(passed.any(-1), passed.to(torch.uint8).argmax(-1), last)
    return block * width + drawn

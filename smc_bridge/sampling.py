"""The arithmetic of a chunk of laws: normalisers and inverse cdfs of `[n, A]` scores that fit into a core's cache.

Every function is a fixed number of passes over its argument. `torch.softmax` is one fused pass over memory with the
fastest exponential there is, so normalisers are read off its result: at the token of greatest score the probability is
one over the normaliser.

Scores become log-probabilities in one way only, `factor * (score - peak) - log_total`, wherever a law is drawn from,
accepted against or scored: *the peak is subtracted first*. Logits can be of size 1e4, where float32 has steps of 1e-3;
to scale them by 1 / temperature first would round them once more, by nats at a low temperature, while differences from
the peak are exact or small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smc_bridge.models.checks import refuse
from smc_bridge.models.host import places

#: Tokens of one segment of a two-level cdf, and the alphabet from which two levels are used.
SEGMENT, TWO_LEVELS = 64, 256


class Scores(NamedTuple):
    """Unnormalised scores of n cells and what makes them a law: `log_prob = factor * (score - peak) - log_total`.

    Attributes:
        values: `[n, A]`, or `[n, 1]` at one token each; not to be written to.
        factor: positive, a number or `[n, 1]`.
        peak, log_total: numbers or `[n, 1]`.
    """

    values: Tensor
    factor: float | Tensor
    peak: float | Tensor
    log_total: float | Tensor

    def log_probs(self) -> Tensor:
        """Normalised log-probabilities, `[n, A]` or `[n, 1]` as `values`, in memory of their own."""
        return shifted(self.values, self.peak, self.factor).sub_(self.log_total)


def shifted(scores: Tensor, peak: float | Tensor, factor: float | Tensor) -> Tensor:
    """`factor * (scores - peak)` in this order (module docstring), `[..., A]` in memory of its own."""
    out = scores - peak
    return out if is_one(factor) else out.mul_(factor)


def is_one(factor: float | Tensor) -> bool:
    """Whether a factor is exactly 1, so that multiplying by it can be left out."""
    return not isinstance(factor, Tensor) and factor == 1.0


def softmax(scores: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities `softmax(factor * scores)`, and what is needed to compute single log-probabilities again.

    Args:
        scores: `[..., A]`.
        factor: positive, a number or `[..., 1]`.
    Returns:
        probabilities `[..., A]`; `peak` and `log_total`, `[..., 1]`, such that
        `log_prob = factor * (scores - peak) - log_total`. `log_total` is NaN where there is no law (NaN, +inf, or no
        finite score).
    """
    peak = scores.amax(-1, keepdim=True)
    # Without a factor torch's own subtraction of the peak is the first operation.
    probs = torch.softmax(scores if is_one(factor) else shifted(scores, peak, factor), -1)
    return probs, peak, -probs.amax(-1, keepdim=True).log()


@functools.lru_cache(maxsize=1)
def compiled_softmax() -> Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`softmax` through `torch.compile`, for any number of cells.

    What it returns raises ValueError where torch cannot compile, most often for want of a C++ compiler.
    """
    compiled: Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor, Tensor]] = torch.compile(softmax, dynamic=True)

    def call(scores: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `softmax`."""
        try:
            return compiled(scores, factor)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"compile = True: torch.compile failed ({reason}); install a C++ compiler, or leave compile out"
            ) from error

    return call


def segment_width(size: int) -> int:
    """Tokens of one segment of the cdf over an alphabet of this size."""
    return SEGMENT if size >= TWO_LEVELS else size


def segment_sums(probs: Tensor, width: int) -> Tensor:
    """Sums over successive segments of `width` tokens (the last one may be shorter), `[n, A]` -> `[n, C]`."""
    count, size = probs.shape
    whole = size // width * width
    if whole == size:
        return probs.view(count, size // width, width).sum(-1)
    sums = probs[:, :whole].reshape(count, whole // width, width).sum(-1)
    return torch.cat([sums, probs[:, whole:].sum(-1, keepdim=True)], dim=1)


#: The greatest number below 1: so far a point of a cdf may go, and stays below the total, where there is a token.
BELOW_ONE = 1.0 - 2.0**-53


def search(probs: Tensor, width: int, cell: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse cdf in two levels: the segment whose cumulative sum passes the uniform, then the token within it.

    The uniforms and the sums that they are compared with are float64; no cdf over a large alphabet is made. A point is
    kept below the total of what it is compared with, of all segments and of the one, which was rounded once more.

    Args:
        probs: `[n, A]`, up to a factor.
        width: tokens of a segment.
        cell: which law each draw is from, `[m]`; None for one draw from each law.
        uniform: on [0, 1), float64, `[m]`.
    Returns:
        tokens of positive probability, `[m]`; whether the cell that each is from has no positive probability, or NaN,
        so that its token is any, `[m]`.
    """
    count, size = probs.shape
    if width == size:
        cdf = probs.cumsum(-1, dtype=torch.float64)
        cdf = cdf if cell is None else cdf[cell]
        total = cdf[:, -1:]
        token = torch.searchsorted(cdf, uniform.clamp_max(BELOW_ONE)[:, None] * total, right=True)[:, 0]
        return token.clamp_max_(size - 1), ~(total[:, 0] > 0)
    sums = segment_sums(probs, width)
    cdf = sums.cumsum(-1, dtype=torch.float64)
    before = cdf - sums
    if cell is not None:
        cdf, before = cdf[cell], before[cell]
    total = cdf[:, -1:]
    point = uniform.clamp_max(BELOW_ONE)[:, None] * total
    segment = torch.searchsorted(cdf, point, right=True).clamp_max_(cdf.shape[1] - 1)  # past the end for NaN alone
    row = places(count, probs.device) if cell is None else cell
    inside = _segments_of(probs, width, row[:, None], segment).cumsum(-1, dtype=torch.float64)
    point = torch.minimum(point.sub_(before.gather(1, segment)).clamp_min_(0.0), inside[:, -1:] * BELOW_ONE)
    place = torch.searchsorted(inside, point, right=True)
    return torch.add(place, segment, alpha=width)[:, 0].clamp_max_(size - 1), ~(total[:, 0] > 0)


#: Probabilities that exist at a time, entries: few enough to stay in a CPU's cache, many enough to keep a GPU busy.
CHUNK, DEVICE_CHUNK = 2**18, 2**26


class Drawable(Protocol):
    """A law that inverts its own cumulative distributions (`smc_bridge.distributions.law`)."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the log-probabilities, `[..., A]`."""
        ...

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        """First token whose cumulative probability passes `uniform: [...]` (float64), `[...]`; see the function
        `inverse_cdf`."""
        ...

    def dense(self) -> Tensor:
        """Log-probabilities as a tensor, `[..., A]`."""
        ...


def dense(log_probs: Tensor | Drawable) -> Tensor:
    """A law as a tensor of log-probabilities, `[..., A]`."""
    return log_probs if isinstance(log_probs, Tensor) else log_probs.dense()


def inverse_cdf(log_probs: Tensor | Drawable, uniform: Tensor) -> Tensor:
    """First token whose cumulative probability passes `uniform`.

    Args:
        log_probs: `[..., A]`, need not be exactly normalised: the uniform is scaled by the sum.
        uniform: `[...]` on [0, 1).
    Returns:
        `[...]`, always a token of positive probability.
    Raises:
        ValueError: a row has NaN or no token of positive probability.
    """
    points = uniform.double()
    if not isinstance(log_probs, Tensor):
        return log_probs.inverse_cdf(points)
    size = log_probs.shape[-1]
    flat, points = log_probs.reshape(-1, size), points.reshape(-1)
    if points.numel() == 0:
        return points.long().reshape(uniform.shape)
    step = max(1, (CHUNK if flat.device.type == "cpu" else DEVICE_CHUNK) // size)
    drawn = []
    for start in range(0, points.numel(), step):
        token, bad = search(flat[start : start + step].exp(), segment_width(size), None, points[start : start + step])
        refuse(bad, lambda at, start=start: _no_law(start + at[0], uniform.shape))  # type: ignore[misc]
        drawn.append(token)
    return (drawn[0] if len(drawn) == 1 else torch.cat(drawn)).reshape(uniform.shape)


def _no_law(cell: int, shape: torch.Size) -> str:
    """The message about a cell that nothing can be drawn from."""
    where = [int(i) for i in torch.unravel_index(torch.tensor(cell), shape)]
    return f"log_probs at {where} has NaN or no positive probability: check the model's logits"


def _segments_of(probs: Tensor, width: int, row: Tensor, segment: Tensor) -> Tensor:
    """Probabilities of one segment for each draw, `row` and `segment: [m, 1]` -> `[m, width]`; 0 past the alphabet."""
    size = probs.shape[1]
    if size % width == 0:
        return probs.view(-1, width)[torch.add(segment, row, alpha=size // width)[:, 0]]
    token = segment * width + places(width, probs.device)
    return probs[row, token.clamp_max(size - 1)].masked_fill_(token >= size, 0.0)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each law, nats: `[..., A]` -> `[...]`."""
    probs = log_probs.exp()
    return -(probs * torch.where(probs > 0, log_probs, 0.0)).sum(-1)

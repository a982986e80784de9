"""Explicit randomness: where every random number of the sampler comes from.

A kernel draws through a `Source`, for R rows at once. The engine's source holds one `torch.Generator` per prompt,
derived from (role, seed, prompt), so that the same prompt and seed give the same draws whatever else is in the batch,
and procedures that are held against each other under one seed are independent (`smc_bridge.streams`). The generators
live on the CPU: draws do not depend on the device either. Tests replace the source by one that enumerates.

Uniforms are float64; a categorical draw inverts the cumulative distribution of one uniform, and never returns a token
of probability zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from smc_bridge.distributions.lazy import LazyLaw


class Stream(Protocol):
    """Successive draws from laws that depend on what was drawn before."""

    def __call__(self, log_probs: Tensor, rows: Tensor | None = None) -> Tensor:
        """The next draw of rows `rows: [n]` (default: all R, in order) from `log_probs`, `[n, A]` -> `[n]`.

        A law of one position, `[n, 1, A]`, gives `[n, 1]`.
        """
        ...


class Source(Protocol):
    """Random draws for R rows."""

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """Uniforms on [0, 1), float64, `[R, *size]`."""
        ...

    def bernoulli(self, probability: Tensor) -> Tensor:
        """Independent trials with success `probability: [R, ...]`; BoolTensor of the same shape."""
        ...

    def categorical(self, log_probs: Tensor) -> Tensor:
        """Independent draws from `log_probs: [R, ..., A]` (normalised), `[R, ...]`."""
        ...

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """A function for successive trials, `[R, ...]` -> BoolTensor `[R, ...]`, of `steps` columns in all.

        Each call takes as many columns as its argument has. All its randomness is reserved at once.
        """
        ...

    def categorical_stream(self, steps: int) -> Stream:
        """A function for up to `steps` successive draws of every row (see `Stream`).

        All its randomness is reserved at once, so that what follows does not depend on how many draws were used.
        """
        ...

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        """Exponential(1) variables, float64, `[R, *size]`."""
        ...

    def select(self, rows: Tensor) -> Source:
        """The same source seen through its rows `rows: [R']` only; what it draws for the others is thrown away."""
        ...


#: Tokens whose probabilities are added up before the cumulative distribution is refined among them.
BLOCK = 64
#: Probabilities that exist at a time, entries: few enough to stay in a CPU's cache, many enough to keep a GPU busy.
CHUNK, DEVICE_CHUNK = 2**18, 2**26


def inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """First token whose cumulative probability passes `uniform`.

    Found in two levels, the block of tokens by the blocks' sums and then the token in its block, so that the
    probabilities are computed a few rows at a time and no second array of their size is made.

    Args:
        log_probs: `[..., A]`, need not be exactly normalised: the uniform is scaled by the sum.
        uniform: `[...]` on [0, 1).
    Returns:
        `[...]`, always a token of positive probability.
    Raises:
        ValueError: a row has NaN or no token of positive probability.
    """
    if isinstance(log_probs, LazyLaw):
        return log_probs.inverse_cdf(uniform)
    size = log_probs.shape[-1]
    flat, points = log_probs.reshape(-1, size), uniform.reshape(-1, 1).double()
    sums = _block_sums(flat).double()
    coarse = sums.cumsum(-1)
    point = points * coarse[:, -1:]
    block = torch.searchsorted(coarse, point, right=True).clamp_max(coarse.shape[1] - 1)
    start = block * BLOCK
    column = start + torch.arange(min(BLOCK, size), device=flat.device)
    inside = flat.gather(1, column.clamp_max(size - 1)).exp_().double().masked_fill_(column >= size, 0.0)
    before = (coarse - sums).gather(1, block)
    place = torch.searchsorted(inside.cumsum(-1), point - before, right=True).clamp_max(inside.shape[1] - 1)
    drawn, found = (start + place)[:, 0], inside.gather(1, place)[:, 0] > 0
    if not bool(found.all()):
        missed = (~found).nonzero()[:, 0]
        drawn[missed] = _at_the_end(flat[missed], points[missed], missed, uniform.shape)
    return drawn.reshape(uniform.shape)


def _block_sums(log_probs: Tensor) -> Tensor:
    """Probability of every block of `BLOCK` tokens, `[R, A]` -> `[R, ceil(A / BLOCK)]`, `CHUNK` entries at a time."""
    rows, size = log_probs.shape
    blocks = -(-size // BLOCK)
    step = max(1, (CHUNK if log_probs.device.type == "cpu" else DEVICE_CHUNK) // size)
    if blocks == 1 or (blocks * BLOCK == size and rows <= step):
        return log_probs.exp().view(rows, blocks, -1).sum(-1)
    sums = log_probs.new_empty(rows, blocks)
    probs = log_probs.new_zeros(min(step, rows), blocks * BLOCK)  # the last block is filled up with zeros
    for start in range(0, rows, step):
        part = probs[: min(step, rows - start)]
        torch.exp(log_probs[start : start + step], out=part[:, :size])
        torch.sum(part.view(-1, blocks, BLOCK), -1, out=sums[start : start + step])
    return sums


def _at_the_end(log_probs: Tensor, uniform: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Tokens of rows `[R, A]` where round-off put the point at the end of a block, `[R]`: from the whole distribution.

    Raises:
        ValueError: a row is no law; it is named by its place among `rows` of `shape`.
    """
    probs = log_probs.double().exp()
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    bad = (~(total > 0))[:, 0].nonzero()
    if bad.numel():
        place = torch.zeros(shape, dtype=torch.bool).view(-1).index_fill_(0, rows[bad[0]].cpu(), True)
        where = place.view(shape).nonzero()[0].tolist()
        raise ValueError(f"log_probs at {where} has NaN or no positive probability: check the model's logits")
    last = probs.shape[1] - 1 - (probs > 0).flip(-1).to(torch.uint8).argmax(-1)
    return torch.minimum(torch.searchsorted(cdf, uniform * total, right=True)[:, 0], last)


class UniformStream:
    """A `Stream` that inverts the cumulative distribution of one reserved uniform per row and draw, `[R, steps]`."""

    def __init__(self, uniform: Tensor) -> None:
        self.uniform = uniform
        self.step = 0

    def __call__(self, log_probs: Tensor, rows: Tensor | None = None) -> Tensor:
        """See `Stream.__call__`."""
        column = self.uniform[:, self.step]
        self.step += 1
        return inverse_cdf(log_probs, (column if rows is None else column[rows]).reshape(log_probs.shape[:-1]))


class UniformSource(ABC):
    """A `Source` whose every draw is a function of its uniforms."""

    @abstractmethod
    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`."""

    def bernoulli(self, probability: Tensor) -> Tensor:
        """See `Source.bernoulli`."""
        return self.uniform(tuple(probability.shape[1:])) < probability

    def categorical(self, log_probs: Tensor) -> Tensor:
        """See `Source.categorical`."""
        return inverse_cdf(log_probs, self.uniform(tuple(log_probs.shape[1:-1])))

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """See `Source.bernoulli_stream`."""
        uniform, taken = self.uniform((steps,)), 0

        def trial(probability: Tensor) -> Tensor:
            nonlocal taken
            first, taken = taken, taken + probability.shape[1]
            return uniform[:, first:taken] < probability

        return trial

    def categorical_stream(self, steps: int) -> Stream:
        """See `Source.categorical_stream`."""
        return UniformStream(self.uniform((steps,)))

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.exponential`."""
        return -torch.log1p(-self.uniform(size))

    def select(self, rows: Tensor) -> Source:
        """See `Source.select`."""
        return SelectedRows(self, rows)


class PromptSource(UniformSource):
    """One generator per prompt; rows are prompt-major, `rows_per_prompt` for each (default 1)."""

    def __init__(
        self, generators: Sequence[torch.Generator], rows_per_prompt: int = 1, *, device: torch.device | str = "cpu"
    ) -> None:
        self.generators = list(generators)
        self.rows_per_prompt = rows_per_prompt
        self.device = torch.device(device)

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`."""
        draws = torch.empty(len(self.generators), self.rows_per_prompt, *size, dtype=torch.float64)
        for own, generator in zip(draws.unbind(), self.generators, strict=True):
            own.uniform_(generator=generator)
        return draws.flatten(0, 1).to(self.device)


class SelectedRows(UniformSource):
    """A view on some rows of another source: all of its rows are drawn, so the choice changes no other draw."""

    def __init__(self, base: Source, rows: Tensor) -> None:
        self.base, self.index = base, rows

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`."""
        return self.base.uniform(size)[self.index]


#: What a kernel accepts as its `generator`: a torch generator, or a source that knows its rows.
Randomness = torch.Generator | Source


def as_source(generator: Randomness, rows: int, *, device: torch.device | str = "cpu") -> Source:
    """Let a plain generator serve as the source of `rows` rows."""
    if isinstance(generator, torch.Generator):
        return PromptSource([generator], rows, device=device)
    return generator

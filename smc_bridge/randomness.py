"""Explicit randomness: where every random number of the sampler comes from.

A kernel draws through a `Source`, for R rows at once. The engine's source holds one `torch.Generator` per prompt,
derived from (role, seed, prompt), so that the same prompt and seed give the same draws whatever else is in the batch,
and procedures that are held against each other under one seed are independent (`smc_bridge.streams`). The generators
live on the CPU: draws do not depend on the device either. Tests replace the source by one that enumerates.

Uniforms are float64; a categorical draw inverts the cumulative distribution of one uniform, and never returns a token
of probability zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smc_bridge.models.host import local, remembered, sent
from smc_bridge.sampling import Drawable, inverse_cdf


class Stream(Protocol):
    """Successive draws from laws that depend on what was drawn before."""

    def __call__(
        self, log_probs: Tensor | Drawable, rows: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """The next draw of rows `rows: [n]` (default: all R, in order) from `log_probs`, `[n, A]` -> `[n]`.

        A law of one position, `[n, 1, A]`, gives `[n, 1]`.

        Args:
            places: which of the reserved draws these are, of the shape of the result, in place of the next one of each.
                A draw whose outcome has not mattered may be made again, under another law.
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

    def categorical(self, log_probs: Tensor | Drawable) -> Tensor:
        """Independent draws from `log_probs: [R, ..., A]` (normalised; a tensor or a law), `[R, ...]`."""
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


class UniformStream:
    """A `Stream` that inverts the cumulative distribution of one reserved uniform per row and draw, `[R, steps]`."""

    def __init__(self, uniform: Tensor) -> None:
        self.uniform = uniform
        self.step = 0

    def __call__(
        self, log_probs: Tensor | Drawable, rows: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """See `Stream.__call__`."""
        if places is not None:
            own = torch.arange(self.uniform.shape[0], device=places.device) if rows is None else rows
            return inverse_cdf(log_probs, self.uniform[own.view(-1, *(1,) * (places.dim() - 1)), places])
        column = self.uniform[:, self.step]
        self.step += 1
        return inverse_cdf(log_probs, (column if rows is None else column[rows]).reshape(log_probs.shape[:-1]))


class UniformSource(ABC):
    """A `Source` whose every draw is a function of its uniforms."""

    @abstractmethod
    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """Uniforms on [0, 1), float64, `[R, *size]`: all that a subclass must give."""

    def bernoulli(self, probability: Tensor) -> Tensor:
        """Success where a uniform is below `probability: [R, ...]`, a BoolTensor of its shape (`Source.bernoulli`)."""
        return self.uniform(tuple(probability.shape[1:])) < probability

    def categorical(self, log_probs: Tensor | Drawable) -> Tensor:
        """Tokens by inverse cdf of a uniform each, `[R, ...]` (`Source.categorical`)."""
        return inverse_cdf(log_probs, self.uniform(tuple(log_probs.shape[1:-1])))

    def bernoulli_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """Trials whose uniforms, `[R, steps]`, are reserved at once (`Source.bernoulli_stream`)."""
        uniform, taken = self.uniform((steps,)), 0

        def trial(probability: Tensor) -> Tensor:
            nonlocal taken
            first, taken = taken, taken + probability.shape[1]
            return uniform[:, first:taken] < probability

        return trial

    def categorical_stream(self, steps: int) -> Stream:
        """Draws whose uniforms, `[R, steps]`, are reserved at once (`Source.categorical_stream`)."""
        return UniformStream(self.uniform((steps,)))

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        """`-log(1 - u)` of uniforms, float64, `[R, *size]` (`Source.exponential`)."""
        return -torch.log1p(-self.uniform(size))

    def select(self, rows: Tensor) -> Source:
        """The same source seen through its rows `rows: [R']` (`Source.select`)."""
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
        """Uniforms of each prompt's own generator, `[R, *size]` float64 (`Source.uniform`)."""
        draws = torch.empty(len(self.generators), self.rows_per_prompt, *size, dtype=torch.float64)
        for own, generator in zip(draws.unbind(), self.generators, strict=True):
            own.uniform_(generator=generator)
        return draws.flatten(0, 1).to(self.device)


#: Uniforms of a seat that are drawn ahead.
AHEAD = 2048


class Reserve:
    """Uniforms of the seats of a run, each from a generator of its own, drawn ahead and handed out in their order; on
    the host.

    Args:
        generators: one for each seat; they are its own from now on.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)
        self._numbers = np.empty((len(self.generators), AHEAD))
        self._used = [AHEAD] * len(self.generators)

    def renew(self, seat: int, generator: torch.Generator) -> None:
        """Let the numbers of a seat come from another generator, from its next one on."""
        self.generators[seat], self._used[seat] = generator, AHEAD

    def take(self, seats: Sequence[int], count: int) -> npt.NDArray[np.float64]:
        """The next `count` uniforms of each of these seats, on [0, 1), `[len(seats), count]`."""
        out = np.empty((len(seats), count))
        for own, seat in zip(out, seats, strict=True):
            used = self._used[seat]
            left = min(count, AHEAD - used)
            own[:left] = self._numbers[seat, used : used + left]
            self._used[seat] = used + left
            if left < count:
                missing = count - left
                fresh = torch.empty(max(missing, AHEAD), dtype=torch.float64)
                numbers = local(fresh.uniform_(generator=self.generators[seat]))
                own[left:] = numbers[:missing]
                if missing < AHEAD:
                    self._numbers[seat], self._used[seat] = numbers, missing
        return out


class ReservedSource(UniformSource):
    """Draws of some seats of a `Reserve`; rows are seat-major, `rows_per_seat` for each."""

    def __init__(
        self, reserve: Reserve, seats: Sequence[int], rows_per_seat: int, *, device: torch.device
    ) -> None:
        self.reserve, self.seats, self.rows_per_seat, self.device = reserve, seats, rows_per_seat, device

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """Uniforms of each seat's own generator, `[R, *size]` float64 (`Source.uniform`)."""
        drawn = self.reserve.take(self.seats, self.rows_per_seat * math.prod(size))
        return sent(drawn.reshape(len(self.seats) * self.rows_per_seat, *size), self.device)

    def select(self, rows: Tensor) -> Source:
        """The same source seen through its rows `rows: [R']` (`Source.select`)."""
        index, total = remembered(rows), len(self.seats) * self.rows_per_seat
        every = index is not None and index.size == total and bool((index == np.arange(total)).all())
        return self if every else super().select(rows)


class SelectedRows(UniformSource):
    """A view on some rows of another source: all of its rows are drawn, so the choice changes no other draw."""

    def __init__(self, base: Source, rows: Tensor) -> None:
        self.base, self.index = base, rows

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """The selected rows of what is drawn for all, `[R', *size]` float64 (`Source.uniform`)."""
        drawn = self.base.uniform(size)
        numbers, index = remembered(drawn), remembered(self.index)
        return drawn[self.index] if numbers is None or index is None else sent(numbers[index], drawn.device)


#: What a kernel or resampler accepts as its `source`: a torch generator, or a source that knows its rows.
Randomness = torch.Generator | Source


def as_source(generator: Randomness, rows: int, *, device: torch.device | str = "cpu") -> Source:
    """The source of `rows` rows that a plain generator serves as; a source is passed through."""
    if isinstance(generator, torch.Generator):
        return PromptSource([generator], rows, device=device)
    return generator

"""Explicit randomness: where every random number of the sampler comes from.

A kernel draws through a `Source`, for R rows at once. The engine's source holds one `torch.Generator` per prompt,
derived from (seed, prompt), so that the same prompt and seed give the same draws whatever else is in the batch. The
generators live on the CPU: draws do not depend on the device either. Tests replace the source by one that enumerates.

Uniforms are float64; a categorical draw inverts the cumulative distribution of one uniform, and never returns a token
of probability zero.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


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

    def categorical_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """A function for up to `steps` successive draws from laws `[R, A]`, `[R]` each.

        All its randomness is reserved at once, so that what follows does not depend on how many draws were used.
        """
        ...

    def exponential(self, size: tuple[int, ...]) -> Tensor:
        """Exponential(1) variables, float64, `[R, *size]`."""
        ...

    def select(self, rows: Tensor) -> Source:
        """The same source seen through its rows `rows: [R']` only; what it draws for the others is thrown away."""
        ...


def inverse_cdf(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """First token whose cumulative probability passes `uniform`.

    Args:
        log_probs: `[..., A]`, need not be exactly normalised: the uniform is scaled by the sum.
        uniform: `[...]` on [0, 1).
    Returns:
        `[...]`, always a token of positive probability.
    Raises:
        ValueError: a row has NaN or no token of positive probability.
    """
    probs = log_probs.exp()
    cdf = probs.cumsum(-1)
    total = cdf[..., -1:]
    if not bool((total > 0).all()):
        row = (~(total[..., 0] > 0)).nonzero()[0].tolist()
        raise ValueError(f"log_probs at {row} has NaN or no positive probability: check the model's logits")
    threshold = uniform[..., None].to(cdf.dtype) * total
    drawn = torch.searchsorted(cdf, threshold, right=True)[..., 0]
    # Round-off can put the threshold on the last value: fall back to the last token of positive probability.
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).to(torch.uint8).argmax(-1)
    return torch.minimum(drawn, last)


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

    def categorical_stream(self, steps: int) -> Callable[[Tensor], Tensor]:
        """See `Source.categorical_stream`."""
        columns = iter(self.uniform((steps,)).unbind(1))
        return lambda log_probs: inverse_cdf(log_probs, next(columns))

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
        shape = (self.rows_per_prompt, *size)
        draws = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators]
        return torch.cat(draws).to(self.device)


class SelectedRows(UniformSource):
    """A view on some rows of another source: all of its rows are drawn, so the choice changes no other draw."""

    def __init__(self, base: Source, rows: Tensor) -> None:
        self.base, self.index = base, rows

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """See `Source.uniform`."""
        return self.base.uniform(size)[self.index]


def prompt_generator(seed: int, prompt: Sequence[int], *, stream: str = "decode") -> torch.Generator:
    """CPU generator that depends on the seed, the prompt's token ids and the name of the stream only."""
    text = f"{stream}|{seed}|" + ",".join(str(int(token)) for token in prompt)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


#: What a kernel accepts as its `generator`: a torch generator, or a source that knows its rows.
Randomness = torch.Generator | Source


def as_source(generator: Randomness, rows: int, *, device: torch.device | str = "cpu") -> Source:
    """Let a plain generator serve as the source of `rows` rows."""
    if isinstance(generator, torch.Generator):
        return PromptSource([generator], rows, device=device)
    return generator

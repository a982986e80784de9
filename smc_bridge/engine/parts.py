"""Draws that are made once for all rows and read part by part.

Where the AR model's logits `[N * K, V, A]` would exceed a cap, particles are verified, moved and weighed in parts. The
draws are those of the whole: they are made once for all rows, in the order of the first part's calls.
"""

from __future__ import annotations

from torch import Tensor

from smc_bridge.randomness import Source, UniformSource


class DrawnOnce:
    """Uniforms of a source that are drawn once for all rows and kept, so that several parts of the rows can read
    them."""

    def __init__(self, base: Source) -> None:
        self.base = base
        self.drawn: list[Tensor] = []

    def part(self, rows: Tensor) -> PartSource:
        """The source of the rows `rows: [R']`, which reads what was drawn for all."""
        return PartSource(self, rows)


class PartSource(UniformSource):
    """Some rows of a source that was drawn for all: the n-th call reads the n-th draw."""

    def __init__(self, whole: DrawnOnce, rows: Tensor) -> None:
        self.whole, self.rows, self.calls = whole, rows, 0

    def uniform(self, size: tuple[int, ...]) -> Tensor:
        """Uniforms of this part's rows, `[R', *size]` (`Source.uniform`).

        Raises:
            ValueError: an earlier part drew something else in this place.
        """
        if self.calls == len(self.whole.drawn):
            self.whole.drawn.append(self.whole.base.uniform(size))
        drawn = self.whole.drawn[self.calls]
        if tuple(drawn.shape[1:]) != size:
            raise ValueError(
                f"the kernel drew {tuple(drawn.shape[1:])} numbers per row for one part of the particles, {size} for "
                "another: set max_logit_bytes to None, or let its calls not depend on the data"
            )
        self.calls += 1
        return drawn[self.rows]

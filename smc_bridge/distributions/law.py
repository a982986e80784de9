"""`Law`: log-probabilities `[..., V, A]` that are computed where they are read, and never held as a whole.

With A in the hundred thousands, a tensor for every lane, position and token is the sampler's memory and most of its
time, while a step reads few of its entries: the law at the drafted tokens, up to the first refusal, and one whole row
per lane for the correction. A law answers exactly these questions:

    at(tokens)           log-probability of one token per position, [..., V] -> [..., V]
    row(position)        the whole law of one position per row, [R] -> [R, A]
    dense()              all of it, [..., V, A]

and, to those who work on some *cells* (row, position) at a time, `log_probs(r, i)` and `draw(owner, u)`. What exists as
a tensor is a law as `Dense(tensor)`. A small law is `settled`: many small questions cost more operations than one pass
over all of it, so it is computed at once and held as a tensor.

Shapes: R rows, V positions, A alphabet, n cells of one call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from smc_bridge.distributions.chunks import Chunks
from smc_bridge.models.checks import refuse
from smc_bridge.models.host import places
from smc_bridge.sampling import Scores, search, segment_width

#: A log-probability that is zero in every floating-point format: what logits of -1e4 or less, used in place of -inf
#: by many models, come down to as well.
LOG_ZERO = -745.0
#: What the target gives less than this may be left out: all such tokens together weigh less than round-off.
LOG_RARE = math.log(1e-12)


#: What turns the laws of cells into another law, token by token.
Pointwise = Callable[..., Tensor]


def leaves_out(log_pi: Tensor, log_p: Tensor) -> Tensor:
    """Whether pi is zero at a token that p may draw: `[..., A]` each -> BoolTensor `[...]`."""
    return ((log_pi < LOG_ZERO) & (log_p > LOG_RARE)).any(-1)


class Law(ABC):
    """Normalised log-probabilities `[..., V, A]`, computed on demand (module docstring).

    A subclass gives `log_probs`. Leading dimensions count as one, R, in everything but the shape.

    Args:
        shape: `[..., V, A]`.
        like: gives dtype and device.
        chunks: how much is computed at a time.
    """

    def __init__(self, shape: Sequence[int], like: Tensor | Law, chunks: Chunks | None = None) -> None:
        self.shape = torch.Size(shape)
        self.dtype: torch.dtype = like.dtype
        self.device: torch.device = like.device
        self.chunks = Chunks() if chunks is None else chunks
        self._dense: Tensor | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"

    @property
    def held(self) -> bool:
        """Whether all of it exists as a tensor, so that reading costs a look-up (`entries`)."""
        return False

    def entries(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities at one token of each cell of a law that is `held`; indices of shapes that broadcast."""
        raise TypeError(f"{type(self).__name__} is not held as a tensor")

    @abstractmethod
    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells, all tokens or one of each.

        Args:
            rows, positions: `[n]`.
            tokens: `[n]` ids, or None for all.
        Returns:
            `[n, A]` in memory of its own, or `[n, 1]`. With all tokens, n is the caller's to keep small.
        """

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """Unnormalised scores of n cells, `[n, A]` or `[n, 1]`, and the normaliser that makes `log_probs` of them
        (`Scores`)."""
        return Scores(self.log_probs(rows, positions, tokens), 1.0, 0.0, 0.0)

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Probabilities of n cells up to a factor, `[n, A]`."""
        return self.log_probs(rows, positions).exp()

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """A lower bound of the log-probabilities of cells that were read before, `[n]`, nats; -inf where none is known.

        It is for tokens that matter to the target (`smc_bridge.engine.watch`): not banned, and not all but
        impossible.
        """
        return torch.full(rows.shape, -math.inf, dtype=self.dtype, device=self.device)

    def least(self, log_probs: Tensor) -> Tensor:
        """`lower_bound` of all cells of a law that is known whole, `[R, V]`: from its `log_probs: [R, V, A]`."""
        own, place = places(log_probs.shape[0], self.device)[:, None], places(log_probs.shape[1], self.device)
        return self.lower_bound(own, place).expand(log_probs.shape[:-1])

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """All of it at once: log-probabilities `[..., V, A]`, and probabilities if they come with them. A law that is
        made of others has but the positions that they hold, `[..., W, A]`."""
        return self.dense(), None

    def reached(self) -> Tensor:
        """Log-probabilities of the first W positions, those that blocks can reach, `[R, W, A]`."""
        return self.dense().view(-1, *self.shape[-2:])

    def logits(self, tokens: Tensor) -> Tensor:
        """The model's own logits at `tokens: [..., V]`, same shape; arbitrary where a token is negative."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        rows, positions = (flat >= 0).nonzero(as_tuple=True)
        found = torch.zeros(flat.shape, dtype=self.dtype, device=self.device)
        found[rows, positions] = self.raw_at(rows, positions, flat[rows, positions])
        return found.view(tokens.shape)

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """The model's own logits at one token of each of n cells, before any law, `[n]`.

        Raises:
            TypeError: the law is not that of a model.
        """
        raise TypeError(f"{type(self).__name__} is not made of a model's logits")

    @property
    def rows(self) -> int:
        """R, the number of rows: the product of the leading dimensions."""
        return math.prod(self.shape[:-2])

    def spans(self, count: int) -> Iterator[slice]:
        """Slices that cut `count` cells into chunks of the size that `Chunks` allows."""
        step = self.chunks.cells(self.shape[-1], self.dtype.itemsize)
        return (slice(start, start + step) for start in range(0, count, step))

    def at(self, tokens: Tensor) -> Tensor:
        """Log-probability of `tokens: [..., V]`, same shape; any value where the token is negative: not computed."""
        return along([self], tokens)[0]

    def row(self, position: Tensor) -> Tensor:
        """The law of one position of every row, `[R]` -> `[R, A]`."""
        rows = torch.arange(self.rows, device=self.device)
        return torch.cat([self.log_probs(rows[span], position[span]) for span in self.spans(self.rows)])

    def dense(self) -> Tensor:
        """The whole tensor of log-probabilities, `[..., V, A]`, computed once and kept."""
        if self._dense is None:
            width, size = self.shape[-2:]
            known = torch.empty(self.rows * width, size, dtype=self.dtype, device=self.device)
            cell = torch.arange(self.rows * width, device=self.device)
            for span in self.spans(self.rows * width):
                known[span] = self.log_probs(cell[span] // width, cell[span] % width)
            self._dense = known.reshape(self.shape)
        return self._dense

    @property
    def ranking(self) -> Law:
        """The law by which likely continuations are found, of the same rows: itself, unless it ranks nothing
        (`GreedyLaw`)."""
        return self

    def of_rows(self, index: Tensor) -> Law:
        """The law of rows `index: [R']`, shape `[R', V, A]`; what it computes is kept for all."""
        return Selected(self, index)

    def shaped(self, *lead: int) -> Law:
        """The same law with other leading dimensions of the same number of rows."""
        return Selected(self, None, lead)

    def inverse_cdf(self, uniform: Tensor) -> Tensor:
        """First token of every cell whose cumulative probability passes `uniform: [..., V]` (float64, on [0, 1))."""
        return self.draw(None, uniform.reshape(-1, uniform.shape[-1])).reshape(uniform.shape)

    def draw(self, owner: Tensor | None, uniform: Tensor) -> Tensor:
        """Tokens of rows `owner: [Q]` (None: each row, in order) by inverse cdf, `uniform: [Q, V]` -> `[Q, V]`.

        Where more than a chunk is drawn, the probabilities of a cell are computed once for all draws from it.

        Raises:
            ValueError: a cell has NaN or no token of positive probability.
        """
        draws, width = uniform.shape
        cells = self.chunks.cells(self.shape[-1], self.dtype.itemsize)
        owner = places(self.rows, self.device) if owner is None else owner
        if draws * width <= cells:
            return self._drawn(
                owner.repeat_interleave(width, output_size=draws * width),
                places(width, self.device).repeat(draws), None, uniform,
            )
        out = torch.empty(uniform.shape, dtype=torch.long, device=self.device)
        order = owner.argsort(stable=True)
        present, counts = torch.unique_consecutive(owner[order], return_counts=True)
        first = [0, *counts.cumsum(0).tolist()]
        columns = min(width, cells)
        step = max(1, cells // width)
        for a in range(0, len(first) - 1, step):
            b = min(a + step, len(first) - 1)
            lanes = order[first[a] : first[b]]
            local = places(b - a, self.device).repeat_interleave(counts[a:b], output_size=first[b] - first[a])
            for start in range(0, width, columns):
                positions = torch.arange(start, min(start + columns, width), device=self.device)
                span = positions.numel()
                rows = present[a:b].repeat_interleave(span, output_size=(b - a) * span)
                cell = local[:, None] * span + (positions - start)
                given = uniform[lanes, start : start + span]
                out[lanes, start : start + span] = self._drawn(rows, positions.repeat(b - a), cell.flatten(), given)
        return out

    def _drawn(self, rows: Tensor, positions: Tensor, cell: Tensor | None, uniform: Tensor) -> Tensor:
        """Tokens from cells `rows, positions: [n]`, of the shape of `uniform`; `cell`: see `search`."""
        each = rows if cell is None else rows[cell]
        return drawn_from(self.probs(rows, positions), cell, uniform, row=lambda draw: int(each[draw]))


def drawn_from(probs: Tensor, cell: Tensor | None, uniform: Tensor, *, row: Callable[[int], int]) -> Tensor:
    """Tokens, of the shape of `uniform`, from probabilities `[n, A]` of cells (`search`); `row` names that of a draw.

    Raises:
        ValueError: a cell has NaN or no token of positive probability.
    """
    drawn, bad = search(probs, segment_width(probs.shape[-1]), cell, uniform.reshape(-1))
    refuse(bad, lambda at: (
        f"log_probs at row {row(at[0])} has NaN or no positive probability: check the model's logits"
    ))
    return drawn.view(uniform.shape)


def reached(*laws: Law, dtype: torch.dtype) -> list[Tensor]:
    """Log-probabilities of laws at the positions that all of them hold, `[R, W, A]` each."""
    found = [law.reached() for law in laws]
    width = min(tensor.shape[1] for tensor in found)
    return [tensor[:, :width].to(dtype) if tensor.shape[1] > width else tensor.to(dtype) for tensor in found]


def along(laws: Sequence[Law], tokens: Tensor) -> list[Tensor]:
    """`law.at(tokens)` of several laws of one shape, `[..., V]` each; which cells are read is found out once."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    if all(law.held for law in laws):
        own, place = places(flat.shape[0], flat.device)[:, None], places(flat.shape[1], flat.device)
        asked = flat.clamp_min(0)
        return [law.entries(own, place, asked).view(tokens.shape) for law in laws]
    rows, positions = (flat >= 0).nonzero(as_tuple=True)
    found = [torch.zeros(flat.shape, dtype=law.dtype, device=law.device) for law in laws]
    if rows.numel():
        token = flat[rows, positions]
        for out, law in zip(found, laws, strict=True):
            out[rows, positions] = law.log_probs(rows, positions, token)[:, 0]
    return [out.view(tokens.shape) for out in found]


class Selected(Law):
    """Some rows of another law, or the same rows in another shape."""

    def __init__(self, base: Law, chosen: Tensor | None, lead: tuple[int, ...] | None = None) -> None:
        while isinstance(base, Selected):
            if base.chosen is not None:
                chosen = base.chosen if chosen is None else base.chosen[chosen]
            base = base.base
        rows = lead if lead is not None else tuple(base.shape[:-2]) if chosen is None else (chosen.numel(),)
        super().__init__((*rows, *base.shape[-2:]), base, base.chunks)
        self.base: Law = base
        self.chosen: Tensor | None = chosen

    @property
    def held(self) -> bool:
        """Whether the base is (`Law.held`)."""
        return self.base.held

    @property
    def ranking(self) -> Law:
        """These rows of the law by which the base ranks (`Law.ranking`)."""
        ranking = self.base.ranking
        return self if ranking is self.base else Selected(ranking, self.chosen, tuple(self.shape[:-2]))

    def _rows(self, rows: Tensor) -> Tensor:
        return rows if self.chosen is None else self.chosen[rows]

    def entries(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Entries of the base (`Law.entries`)."""
        return self.base.entries(self._rows(rows), positions, tokens)

    def dense(self) -> Tensor:
        """The rows of the base's tensor, `[..., V, A]` (`Law.dense`)."""
        if self.chosen is None:
            return self.base.dense().view(self.shape)
        if not self.base.held:
            return super().dense()
        return self.base.dense().view(-1, *self.shape[-2:]).index_select(0, self.chosen).view(self.shape)

    def reached(self) -> Tensor:
        """Positions of the base that blocks can reach (`Law.reached`)."""
        return self.base.reached() if self.chosen is None else self.base.reached().index_select(0, self.chosen)

    def log_probs(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Log-probabilities of n cells of the base: `[n, A]`, or `[n, 1]` at one token each (`Law.log_probs`)."""
        return self.base.log_probs(self._rows(rows), positions, tokens)

    def scores(self, rows: Tensor, positions: Tensor, tokens: Tensor | None = None) -> Scores:
        """Scores of n cells of the base, `[n, A]` or `[n, 1]` (`Law.scores`)."""
        return self.base.scores(self._rows(rows), positions, tokens)

    def probs(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Probabilities of n cells of the base up to a factor, `[n, A]` (`Law.probs`)."""
        return self.base.probs(self._rows(rows), positions)

    def lower_bound(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Lower bounds of n cells of the base, `[n]`, nats (`Law.lower_bound`)."""
        return self.base.lower_bound(self._rows(rows), positions)

    def raw_at(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
        """Logits at one token of each of n cells of the base, `[n]` (`Law.raw_at`)."""
        return self.base.raw_at(self._rows(rows), positions, tokens)

    def draw(self, owner: Tensor | None, uniform: Tensor) -> Tensor:
        """Tokens by inverse cdf, `[Q, V]` (`Law.draw`): rows that share a row of the base share its cdf."""
        return self.base.draw(self.chosen if owner is None else self._rows(owner), uniform)

"""Many outcomes at a time: one batch of runs, each on its own path of branches (see `smc_bridge.testing.enumeration`).

Every prompt of a batch is one outcome. When the batch has run, each run has met draws that its path did not prescribe,
where it took the first possibility; the other possibilities are the paths of the next batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smc_bridge.engine.resampling import SSP, Multinomial, Resampler, Residual, Stratified, Systematic, UniformResampler
from smc_bridge.engine.weights import normalised
from smc_bridge.randomness import Randomness, Stream
from smc_bridge.sampling import Drawable
from smc_bridge.testing.enumeration import ListingSource


class Branches:
    """The paths of P runs, as far as their draws are prescribed.

    Args:
        path: which possible outcome each draw takes, `[P, D]`.
        known: how many draws are prescribed, `[P]`.
    """

    def __init__(self, path: Tensor, known: Tensor) -> None:
        self.path, self.known = path, known
        self.options = torch.ones_like(path)
        self.depth = torch.zeros_like(known)
        self.log_probability = torch.zeros(known.shape, dtype=torch.float64)

    def choose(self, run: Tensor, laws: Tensor) -> Tensor:
        """Draws of runs `run: [n]` (increasing places of one run are successive draws) from `laws: [n, A]`, `[n]`."""
        if not run.numel():
            return run
        laws = laws / laws.sum(-1, keepdim=True)
        possible = laws > 0
        order = run.argsort(stable=True)
        _, counts = torch.unique_consecutive(run[order], return_counts=True)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        slot = torch.empty_like(run)
        slot[order] = self.depth[run[order]] + torch.arange(run.numel()) - first
        missing = int(slot.max()) + 1 - self.path.shape[1]
        if missing > 0:
            self.path = torch.nn.functional.pad(self.path, (0, missing))
            self.options = torch.nn.functional.pad(self.options, (0, missing), value=1)
        choice = torch.where(slot < self.known[run], self.path[run, slot], 0)
        self.path[run, slot], self.options[run, slot] = choice, possible.sum(-1)
        self.depth.index_add_(0, run, torch.ones_like(run))
        outcome = (possible.cumsum(-1) > choice[:, None]).to(torch.uint8).argmax(-1)
        self.log_probability.index_add_(0, run, laws.gather(1, outcome[:, None])[:, 0].log())
        return outcome

    def source(self, runs: Tensor, rows: int) -> BranchingSource:
        """The source of draws for some of the runs, a number of rows for each."""
        return BranchingSource(self, runs.repeat_interleave(rows))

    def others(self) -> tuple[Tensor, Tensor, Tensor]:
        """The paths that leave these ones where they were not prescribed: run `[Q]`, path `[Q, D]` and known `[Q]`."""
        column = torch.arange(self.path.shape[1])
        free = (column >= self.known[:, None]) & (column < self.depth[:, None])
        more = torch.where(free, self.options - 1, 0)
        run, slot = more.nonzero(as_tuple=True)
        count = more[run, slot]
        run, slot = run.repeat_interleave(count), slot.repeat_interleave(count)
        other = torch.arange(run.numel()) - (count.cumsum(0) - count).repeat_interleave(count) + 1
        path = self.path[run].clone()
        path[torch.arange(run.numel()), slot] = other
        return run, path, slot + 1


class BranchingSource(ListingSource):
    """A `Source` whose row r draws on the path of run `runs[r]`."""

    def __init__(self, branches: Branches, runs: Tensor) -> None:
        self.branches, self.runs = branches, runs

    def select(self, rows: Tensor) -> BranchingSource:
        """See `Source.select`: nothing is drawn for other rows."""
        return BranchingSource(self.branches, self.runs[rows])

    def categorical_stream(self, steps: int) -> Stream:
        """Successive draws on each run's path (`Source.categorical_stream`)."""

        def draw(
            log_probs: Tensor | Drawable, rows: Tensor | None = None, places: Tensor | None = None
        ) -> Tensor:
            return (self if rows is None else self.select(rows)).categorical(log_probs)

        return draw

    def drawn(self, laws: Tensor) -> Tensor:
        """Each row's outcomes on its run's path (`ListingSource.drawn`)."""
        flat = laws.reshape(-1, laws.shape[-1])
        runs = self.runs.repeat_interleave(flat.shape[0] // max(1, self.runs.numel()))
        return self.branches.choose(runs, flat).reshape(laws.shape[:-1])


class BranchingResampler:
    """A resampler whose outcomes are branches: the real code, at the midpoint of every cell of its uniforms.

    The schemes of this package are constant between known edges; any other resampler must draw through `categorical` or
    `bernoulli`.
    """

    def __init__(self, real: Resampler) -> None:
        self.real, self.proper = real, real.proper

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        """See `Resampler.__call__`."""
        if type(self.real) not in EDGES or not isinstance(self.real, UniformResampler):
            return self.real(log_weights, count, source=source)
        assert not isinstance(source, torch.Generator)
        weights = normalised(log_weights)
        uniforms = torch.empty(weights.shape[0], 0, dtype=torch.float64)
        for _ in range(self.real.dimension(weights.shape[1], count)):
            inner = EDGES[type(self.real)](weights, count, uniforms).clamp(0.0, 1.0).sort(-1).values
            edges = torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=1.0)
            cell = source.categorical(edges.diff(dim=-1).log())[:, None]
            middle = (edges.gather(1, cell) + edges.gather(1, cell + 1)) / 2
            uniforms = torch.cat([uniforms, middle], dim=1)
        return self.real.ancestors(weights, count, uniforms)


def _inner(weights: Tensor) -> Tensor:
    return weights.cumsum(-1)[:, :-1]


def _fractions(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sure copies, and the shares of what is left of `count * weights`."""
    expected = count * weights
    whole = torch.where((expected - expected.round()).abs() < 1e-11, expected.round(), expected.floor())
    return whole, (expected - whole).clamp_min(0.0)


def _residual(weights: Tensor, count: int, drawn: Tensor) -> Tensor:
    whole, rest = _fractions(weights, count)
    total = rest.sum(-1, keepdim=True)
    shares = rest / torch.where(total > 0, total, 1.0)
    used = drawn.shape[1] >= whole.sum(-1, keepdim=True)  # survivors before are sure copies
    return torch.where(used, _inner(shares), 0.0)


def _ssp(weights: Tensor, count: int, drawn: Tensor) -> Tensor:
    """Edge of the next meeting, after those that were drawn: what is still fractional after each depends on sums only.
    """
    _, fraction = _fractions(weights, count)
    held, edge = fraction[:, 0], torch.ones_like(fraction[:, 0])
    for j in range(1, min(drawn.shape[1] + 1, weights.shape[1] - 1) + 1):
        total = held + fraction[:, j]
        top = torch.where(total <= 1.0, held, 1.0 - fraction[:, j])
        bottom = torch.where(total <= 1.0, total, 2.0 - total)
        edge = torch.where(bottom > 0, top / torch.where(bottom > 0, bottom, 1.0), 1.0)
        held = torch.where(total <= 1.0, total, total - 1.0)
    return edge[:, None]


#: Edges inside (0, 1) of the next uniform, of weights `[P, M]`, the number of survivors and the uniforms drawn so far.
EDGES: dict[type, Callable[[Tensor, int, Tensor], Tensor]] = {
    Multinomial: lambda weights, count, drawn: _inner(weights),
    Stratified: lambda weights, count, drawn: count * _inner(weights) - drawn.shape[1],
    Systematic: lambda weights, count, drawn: torch.cat([count * _inner(weights) - j for j in range(count)], dim=1),
    Residual: _residual,
    SSP: _ssp,
}

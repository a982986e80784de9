"""Resampling: draw ancestors with `E[offspring_i] = N W_i` (condition C6).

Every scheme is a function of the weights and of uniforms, `ancestors(weights, count, uniforms)`; the call draws the
uniforms. No scheme returns an index out of range or a particle of weight zero, whatever the round-off; all-zero weights
are treated as equal (the caller's evidence stays zero). References: Douc, Cappé & Moulines 2005 (multinomial,
stratified, systematic, residual); Gerber, Chopin & Whiteley 2019 (SSP).

Shapes: P prompts, M weighted candidates, `count` survivors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from smc_bridge.engine.weights import normalised
from smc_bridge.models.arguments import called
from smc_bridge.models.checks import refuse
from smc_bridge.plugins import check_tensor, foreign
from smc_bridge.randomness import Randomness, as_source


@runtime_checkable
class Resampler(Protocol):
    """Draws ancestors, indices of candidates, with `E[offspring_i] = count * W_i` (condition C6)."""

    @property
    def proper(self) -> bool:
        """Whether `E[offspring_i] = count * W_i` holds (condition C6)."""
        ...

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        """Ancestor indices `[P, count]` (or `[count]`) for `log_weights: [P, M]` (or `[M]`), on their device.

        The engine draws survivors on the host: weights, draws and ancestors are there.
        """
        ...


def check_ancestors(resampler: Resampler, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
    """Ancestors `[P, count]` (or `[count]`) that a resampler draws for `log_weights: [P, M]` (or `[M]`).

    Raises:
        ValueError: it returned another shape or kind, or an index out of range; the message names it.
    """
    name, last = f"resampler {called(resampler)}", log_weights.shape[-1] - 1
    found = resampler(log_weights, count, source=source)
    check_tensor(found, name, (*log_weights.shape[:-1], count), "int64", log_weights.device)
    if foreign(resampler):
        refuse(
            (found < 0) | (found > last),
            lambda at: f"{name} returned the ancestor {int(found[at])}: give indices from 0 to {last}",
        )
    return found


class UniformResampler(ABC):
    """A resampler whose ancestors are a function of uniforms on [0, 1)."""

    proper = True

    @abstractmethod
    def dimension(self, candidates: int, count: int) -> int:
        """How many uniforms one call needs."""

    @abstractmethod
    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Ancestors from normalised weights `[P, M]` and uniforms `[P, D]`, `[P, count]`."""

    def __call__(self, log_weights: Tensor, count: int, *, source: Randomness) -> Tensor:
        """See `Resampler.__call__`.

        Raises:
            ValueError: no weights, `count` below 1, or a weight that is NaN or +inf.
        """
        if count < 1:
            raise ValueError(f"count = {count}: resample at least 1 particle")
        if log_weights.dim() not in (1, 2) or log_weights.shape[-1] == 0:
            raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}: give [M] or [P, M] with M >= 1")
        batched = log_weights if log_weights.dim() == 2 else log_weights[None]
        weights = normalised(batched)
        source = as_source(source, batched.shape[0], device=batched.device)
        uniforms = source.uniform((self.dimension(batched.shape[1], count),))
        chosen = self.ancestors(weights, count, uniforms)
        return chosen if log_weights.dim() == 2 else chosen[0]


def from_points(weights: Tensor, points: Tensor) -> Tensor:
    """Inverse of the cumulative weights: `[P, M]`, points `[P, count]` on [0, 1) -> indices of positive weight."""
    cdf = weights.cumsum(-1)
    drawn = torch.searchsorted(cdf, points.to(cdf.dtype) * cdf[:, -1:], right=True)
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    return torch.minimum(drawn, last)


def from_offspring(offspring: Tensor, count: int) -> Tensor:
    """Ancestors in increasing order from the offspring numbers `[P, M]` that sum to `count`."""
    slots = torch.arange(count, device=offspring.device).expand(offspring.shape[0], count).contiguous()
    return torch.searchsorted(offspring.cumsum(-1), slots, right=True)


class Multinomial(UniformResampler):
    """Independent draws of every ancestor by weight (Gordon, Salmond & Smith 1993)."""

    def dimension(self, candidates: int, count: int) -> int:
        """One uniform per survivor."""
        return count

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Inverse of the cumulative weights at `count` independent points, `[P, count]`
        (`UniformResampler.ancestors`)."""
        return from_points(weights, uniforms)


class Stratified(UniformResampler):
    """One independent draw in each of `count` equal strata of the cumulative weights."""

    def dimension(self, candidates: int, count: int) -> int:
        """One uniform per survivor."""
        return count

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Inverse of the cumulative weights at a point of each stratum, `[P, count]` (`UniformResampler.ancestors`)."""
        return from_points(weights, (torch.arange(count, device=weights.device) + uniforms) / count)


class Systematic(UniformResampler):
    """`count` equally spaced points with one common random offset."""

    def dimension(self, candidates: int, count: int) -> int:
        """One uniform for all survivors: the common offset."""
        return 1

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Inverse of the cumulative weights at equally spaced points, `[P, count]` (`UniformResampler.ancestors`)."""
        return from_points(weights, (torch.arange(count, device=weights.device) + uniforms) / count)


class Residual(UniformResampler):
    """`floor(count W_i)` copies of each, the rest multinomial on the fractional parts."""

    def dimension(self, candidates: int, count: int) -> int:
        """One uniform per survivor, of which those of the deterministic copies are not used."""
        return count

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Copies by whole parts, then draws by fractional parts, `[P, count]` (`UniformResampler.ancestors`)."""
        whole, fraction = _split(weights, count)
        copies = whole.sum(-1, keepdim=True)
        slots = torch.arange(count, device=weights.device).expand(weights.shape[0], count).contiguous()
        fixed = torch.searchsorted(whole.cumsum(-1), slots, right=True).clamp_max(weights.shape[-1] - 1)
        some = fraction.sum(-1, keepdim=True) > 0
        rest = from_points(torch.where(some, fraction, weights), uniforms)
        return torch.where(slots < copies, fixed, rest)


class SSP(UniformResampler):
    """Srinivasan sampling process: fractional parts are rounded two at a time, so offspring is floor or ceiling.

    Two fractions a, b meet. If `a + b <= 1` one of them takes the sum and the other becomes 0; otherwise one becomes 1
    and the other keeps `a + b - 1`; the odds keep both expectations. The one that is still fractional meets the next.
    """

    def dimension(self, candidates: int, count: int) -> int:
        """One uniform for each meeting of two fractions."""
        return max(candidates - 1, 1)

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        """Ancestors from offspring numbers that are floors or ceilings, `[P, count]` (`UniformResampler.ancestors`)."""
        offspring, fraction = _split(weights, count)
        every = torch.arange(weights.shape[0], device=weights.device)
        holder = torch.zeros_like(every)
        a = fraction[:, 0]
        for j in range(1, weights.shape[1]):
            b = fraction[:, j]
            total = a + b
            small = total <= 1.0
            share = torch.where(small, a, 1.0 - b) / torch.where(small, total, 2.0 - total)
            holder_wins = uniforms[:, j - 1] < share.nan_to_num(1.0)  # 0 / 0: both are whole already
            rounded_up = ~small
            winner = torch.where(holder_wins, holder, j)
            loser = torch.where(holder_wins, j, holder)
            offspring[every, winner] += rounded_up.long()
            holder = torch.where(rounded_up, loser, winner)
            a = torch.where(rounded_up, total - 1.0, total)
        # What is left is 0 or 1 up to round-off: the number of survivors decides.
        offspring[every, holder] += count - offspring.sum(-1)
        return from_offspring(offspring, count)


def _split(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Whole and fractional parts of `count * weights`; values within round-off of an integer are whole."""
    expected = count * weights
    nearest = expected.round()
    whole = torch.where((expected - nearest).abs() < 1e-12 * count, nearest, expected.floor())
    return whole.long(), (expected - whole).clamp_min(0.0)

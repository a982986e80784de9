"""Resampling: exact expected offspring by integration over the uniforms, and the edges of round-off.

Ancestors are piecewise constant in the uniforms. Every scheme's definition says where the pieces end; the real code is
evaluated just inside both ends of every cell of that grid, must agree with itself there, and is summed with the cells'
volumes: `E[offspring_i] = count W_i`, exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.engine.resampling import (
    SSP,
    Multinomial,
    Residual,
    Stratified,
    Systematic,
    UniformResampler,
    from_points,
)
from smc_bridge.methods.released import Argmax
from smc_bridge.names import RESAMPLERS, named
from tests.smc_bridge.claims import chi_square, claim

INF = math.inf
#: Weights with zeros at every place, ties, one-hot, a whole number of copies, and one particle.
WEIGHTS = {
    "plain": [0.13, 0.46, 0.41],
    "zero first": [0.0, 0.37, 0.63],
    "zero last": [0.29, 0.71, 0.0],
    "zeros inside": [0.17, 0.0, 0.0, 0.83],
    "ties": [0.25, 0.25, 0.25, 0.25],
    "tied pair": [0.2, 0.4, 0.4],
    "one-hot": [0.0, 1.0, 0.0],
    "heavy": [0.02, 0.95, 0.03],
    "thirds": [1 / 3, 1 / 3, 1 / 3],
    "single": [1.0],
}
COUNTS = [1, 2, 3, 4]


def edges(points: list[float]) -> np.ndarray:
    """Ends of the cells of (0, 1) between `points`, merged where they differ by round-off."""
    inside = sorted(p for p in points if 1e-9 < p < 1 - 1e-9)
    kept = [p for i, p in enumerate(inside) if i == 0 or p - inside[i - 1] > 1e-9]
    return np.array([0.0, *kept, 1.0])


def breakpoints(scheme: str, weights: np.ndarray, count: int) -> list[np.ndarray]:
    """Where the ancestors may change, for each uniform, from the definition of the scheme."""
    cdf = np.cumsum(weights)
    if scheme == "multinomial":
        return [edges(list(cdf))] * count
    if scheme == "stratified":
        return [edges([count * c - i for c in cdf]) for i in range(count)]
    if scheme == "systematic":
        return [edges([count * c - i for c in cdf for i in range(count)])]
    whole = np.floor(count * weights + 1e-12)
    fraction = np.maximum(count * weights - whole, 0.0)
    if scheme == "residual":
        total = fraction.sum()
        return [edges(list(np.cumsum(fraction) / total) if total > 1e-9 else [])] * count
    shares, a = [], fraction[0]
    for b in fraction[1:]:
        small = a + b <= 1.0 + 1e-12
        top, bottom = (a, a + b) if small else (1.0 - b, 2.0 - a - b)
        shares.append(edges([top / bottom] if bottom > 1e-9 else []))
        a = a + b if small else a + b - 1.0
    return shares or [edges([])]


def offspring(ancestors: Tensor, candidates: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=candidates) for row in ancestors.numpy()])


def cells(resampler: UniformResampler, scheme: str, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Offspring numbers in every cell `[C, M]`, and the volumes of the cells `[C]`.

    A uniform that the definition does not use (a deterministic copy of the residual scheme) has cells as well; their
    volumes add up to one all the same.
    """
    grid = breakpoints(scheme, weights, count)
    assert len(grid) == resampler.dimension(len(weights), count)
    index = list(itertools.product(*(range(len(axis) - 1) for axis in grid)))
    low = np.array([[axis[i] for axis, i in zip(grid, cell, strict=True)] for cell in index])
    high = np.array([[axis[i + 1] for axis, i in zip(grid, cell, strict=True)] for cell in index])
    found = None
    for ends in itertools.product((1e-6, 1 - 1e-6), repeat=len(grid)):
        uniforms = torch.from_numpy(low + (high - low) * np.array(ends))
        rows = torch.from_numpy(weights).expand(len(index), -1)
        here = offspring(resampler.ancestors(rows, count, uniforms), len(weights))
        if found is None:
            found = here
        assert np.array_equal(here, found), "ancestors change inside a cell of the definition"
    assert found is not None
    volume = (high - low).prod(1)
    assert abs(volume.sum() - 1.0) < 1e-12
    return found, volume


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_expected_offspring_is_count_times_weight_exactly(scheme: str, name: str, count: int) -> None:
    weights = np.array(WEIGHTS[name])
    found, volume = cells(named("resampler", scheme), scheme, weights, count)
    expected = volume @ found
    assert (found.sum(1) == count).all()
    assert np.abs(expected - count * weights).max() < 1e-12, f"E[offspring] {expected}, count * W {count * weights}"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("scheme", ["systematic", "residual", "ssp", "stratified"])
def test_offspring_keeps_the_bounds_of_its_scheme(scheme: str, name: str, count: int) -> None:
    """Systematic and SSP give floor or ceiling, residual at least the floor, stratified less than two from the mean."""
    weights = np.array(WEIGHTS[name])
    found, _ = cells(named("resampler", scheme), scheme, weights, count)
    mean = count * weights
    floor, ceiling = np.floor(mean + 1e-9), np.ceil(mean - 1e-9)
    low, high = {
        "systematic": (floor, ceiling), "ssp": (floor, ceiling), "residual": (floor, np.full_like(mean, count)),
        "stratified": (mean - 2 + 1e-9, mean + 2 - 1e-9),
    }[scheme]
    assert (found >= low).all(), f"offspring {found.min(0)} below {low}"
    assert (found <= high).all(), f"offspring {found.max(0)} above {high}"


class Skewed(Systematic):
    """A mutant: uniforms that lean to 0."""

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return super().ancestors(weights, count, uniforms**1.5)


class SharedUniform(Multinomial):
    """A mutant: its draws share one uniform and lean to its heavy side."""

    def ancestors(self, weights: Tensor, count: int, uniforms: Tensor) -> Tensor:
        return from_points(weights.square() / weights.square().sum(-1, keepdim=True), uniforms)


@pytest.mark.parametrize("mutant", [Skewed, SharedUniform])
def test_a_skewed_resampler_is_caught(mutant: type[UniformResampler]) -> None:
    scheme = "systematic" if issubclass(mutant, Systematic) else "multinomial"
    with pytest.raises(AssertionError, match="inside a cell"):
        cells(mutant(), scheme, np.array(WEIGHTS["plain"]), 3)
    uniforms = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.tensor(WEIGHTS["plain"], dtype=torch.float64)
    needed = mutant().dimension(3, 3)
    drawn = offspring(mutant().ancestors(weights.expand(20_000, -1), 3, uniforms[:, :needed]), 3).mean(0)
    assert np.abs(drawn - 3 * weights.numpy()).max() > 0.05, f"offspring {drawn}, right ones {3 * weights.numpy()}"


ADVERSARIAL = [0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53]


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_weight_zero_is_never_chosen_whatever_the_uniforms(scheme: str) -> None:
    resampler = named("resampler", scheme)
    sets = [*WEIGHTS.values(), [0.0, 0.0, 1e-300, 1.0], [0.1] * 10 + [0.0], [0.0] + [1 / 7] * 7, [1e-17, 1.0, 0.0]]
    for raw in sets:
        weights = torch.tensor(raw, dtype=torch.float64)
        weights = weights / weights.sum()
        for count in (1, 3, 5):
            dimension = resampler.dimension(len(raw), count)
            corners = [[u] * dimension for u in ADVERSARIAL]
            corners += [list(c) for c in itertools.islice(itertools.product(ADVERSARIAL, repeat=dimension), 256)]
            uniforms = torch.tensor(corners, dtype=torch.float64)
            chosen = resampler.ancestors(weights.expand(len(corners), -1), count, uniforms)
            assert chosen.shape == (len(corners), count)
            assert int(chosen.min()) >= 0
            assert int(chosen.max()) < len(raw), f"index {int(chosen.max())} of {len(raw)} weights"
            assert bool((weights[chosen] > 0).all()), f"weights {raw}: one of weight zero was chosen"


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_any_weights_give_legal_ancestors(scheme: str) -> None:
    """Random weights over many orders of magnitude, sizes up to 300, some zero."""
    generator = torch.Generator().manual_seed(4)
    for size, count in itertools.product((1, 2, 7, 64, 300), (1, 5, 64, 300)):
        log_weights = 30 * torch.randn(40, size, generator=generator, dtype=torch.float64)
        log_weights[:, ::3] = torch.where(torch.rand(40, 1, generator=generator) < 0.5, -INF, log_weights[:, ::3])
        chosen = named("resampler", scheme)(log_weights, count, source=generator)
        assert chosen.shape == (40, count)
        assert int(chosen.min()) >= 0
        assert int(chosen.max()) < size
        alive = (log_weights > -INF).any(-1)
        assert bool((log_weights.gather(1, chosen)[alive] > -INF).all()), f"{size} weights, {count} survivors"


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_offspring_of_many_equal_weights_is_one_each_up_to_the_scheme(scheme: str) -> None:
    """Ties in float32 log weights: schemes with bounded offspring give every particle exactly one copy."""
    log_weights = torch.full((3, 10), math.log(0.1), dtype=torch.float32)
    chosen = named("resampler", scheme)(log_weights, 10, source=torch.Generator().manual_seed(0))
    assert chosen.shape == (3, 10)
    if scheme in ("systematic", "residual", "ssp"):
        assert torch.equal(chosen.sort(-1).values, torch.arange(10).expand(3, 10)), f"ancestors {chosen.tolist()}"


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_float32_log_weights_are_resampled_as_their_float64_values(scheme: str) -> None:
    narrow = torch.randn(20, 6, generator=torch.Generator().manual_seed(3))
    left, right = (
        named("resampler", scheme)(w, 6, source=torch.Generator().manual_seed(5)) for w in (narrow, narrow.double())
    )
    assert torch.equal(left, right)


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_all_weights_zero_counts_as_equal(scheme: str) -> None:
    dead, equal = torch.full((2, 4), -INF), torch.zeros(2, 4)
    left, right = (named("resampler", scheme)(w, 3, source=torch.Generator().manual_seed(5)) for w in (dead, equal))
    assert torch.equal(left, right)


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_one_hot_and_single_candidates_have_one_outcome(scheme: str) -> None:
    resampler, generator = named("resampler", scheme), torch.Generator().manual_seed(1)
    one_hot = torch.tensor([-INF, -INF, -700.0, -INF])
    assert resampler(one_hot, 5, source=generator).tolist() == [2] * 5
    assert resampler(torch.tensor([-3.0]), 4, source=generator).tolist() == [0] * 4


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_rows_are_resampled_independently_of_each_other(scheme: str) -> None:
    resampler = named("resampler", scheme)
    weights = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64), -1)
    uniforms = torch.rand(5, resampler.dimension(4, 3), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    whole = resampler.ancestors(weights, 3, uniforms)
    for r in range(5):
        assert torch.equal(resampler.ancestors(weights[r : r + 1], 3, uniforms[r : r + 1])[0], whole[r])
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(resampler.ancestors(weights[order], 3, uniforms[order]), whole[order])


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_expected_offspring_does_not_depend_on_the_order_of_particles(scheme: str) -> None:
    weights = np.array([0.08, 0.33, 0.0, 0.59])
    for order in itertools.permutations(range(4)):
        permuted = weights[list(order)]
        found, volume = cells(named("resampler", scheme), scheme, permuted, 2)
        gap = np.abs(volume @ found - 2 * permuted).max()
        assert gap < 1e-12, f"order {order}: E[offspring] is off by {gap}"


@pytest.mark.parametrize("scheme", RESAMPLERS)
def test_real_draws_have_the_exact_law_of_offspring(scheme: str, device: str) -> None:
    weights, count, rows = np.array([0.13, 0.0, 0.46, 0.41]), 3, 40_000
    found, volume = cells(named("resampler", scheme), scheme, weights, count)
    law: dict[tuple[int, ...], float] = {}
    for numbers, mass in zip(found.tolist(), volume.tolist(), strict=True):
        law[tuple(numbers)] = law.get(tuple(numbers), 0.0) + mass
    log_weights = torch.from_numpy(weights).log().expand(rows, -1).to(device)
    chosen = named("resampler", scheme)(log_weights, count, source=torch.Generator().manual_seed(11)).cpu()
    drawn: dict[tuple[int, ...], int] = {}
    for numbers in offspring(chosen, 4).tolist():
        drawn[tuple(numbers)] = drawn.get(tuple(numbers), 0) + 1
    outcomes = sorted(set(law) | set(drawn))
    p_value = chi_square(
        np.array([drawn.get(o, 0) for o in outcomes]), np.array([law.get(o, 0.0) for o in outcomes])
    )
    claim(p_value, f"offspring of {scheme} resampling over {rows} rows")


@pytest.mark.parametrize("scheme", RESAMPLERS)
@pytest.mark.parametrize("value", [math.nan, INF])
def test_nan_and_infinite_weights_are_refused(scheme: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"log_weights at \[0, 1\]"):
        named("resampler", scheme)(torch.tensor([0.0, value]), 2, source=torch.Generator())


@pytest.mark.parametrize(
    ("log_weights", "count", "says"),
    [
        (torch.zeros(3), 0, "count = 0"),
        (torch.zeros(0), 2, r"shape \(0,\)"),
        (torch.zeros(2, 2, 2), 2, r"shape \(2, 2, 2\)"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_value(log_weights: Tensor, count: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Systematic()(log_weights, count, source=torch.Generator())


@pytest.mark.parametrize("make", [Multinomial, Stratified, Systematic, Residual, SSP])
def test_schemes_are_proper_and_argmax_is_not(make: Callable[[], UniformResampler]) -> None:
    assert make().proper is True
    assert Argmax().proper is False
    chosen = Argmax()(torch.tensor([[0.0, 2.0, 1.0]]), 4, source=torch.Generator())
    assert chosen.tolist() == [[1, 1, 1, 1]]

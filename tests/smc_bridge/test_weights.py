"""Weights: log-means, normalisation, effective sample size and triggers, against numpy and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from smc_bridge.engine.weights import EssBelow, always, check_log_weights, ess, log_mean, never, normalised

INF = math.inf


def random_weights(rows: int = 50, particles: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weights = 5 * torch.randn(rows, particles, generator=generator, dtype=torch.float64)
    return weights.masked_fill(torch.rand(rows, particles, generator=generator) < 0.2, -INF)


def test_log_mean_normalised_and_ess_are_numpys(device: str) -> None:
    log_weights = random_weights()
    plain = np.exp(log_weights.numpy())
    share = plain / plain.sum(1, keepdims=True)
    wide = log_weights.to(device)
    assert np.allclose(log_mean(wide).cpu(), np.log(plain.mean(1)), rtol=0, atol=1e-12)
    assert np.allclose(normalised(wide).cpu(), share, rtol=0, atol=1e-12)
    assert np.allclose(ess(wide).cpu(), 1 / (share**2).sum(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [-1e4, -745.0, 700.0, 1e4])
def test_a_common_factor_moves_the_log_mean_only(shift: float) -> None:
    log_weights = random_weights()
    assert torch.allclose(log_mean(log_weights + shift), log_mean(log_weights) + shift, rtol=0, atol=1e-9)
    assert torch.allclose(normalised(log_weights + shift), normalised(log_weights), rtol=0, atol=1e-10)
    assert torch.allclose(ess(log_weights + shift), ess(log_weights), rtol=0, atol=1e-8)


def test_ess_lies_between_one_and_the_number_of_particles() -> None:
    found = ess(random_weights())
    assert float(found.min()) >= 1 - 1e-12, f"smallest ESS {float(found.min())}"
    assert float(found.max()) <= 6 + 1e-12, f"largest ESS {float(found.max())}"
    assert float(ess(torch.full((6,), -3.0))) == pytest.approx(6, abs=1e-12)
    assert float(ess(torch.tensor([-INF, 2.0, -INF]))) == 1.0
    assert float(ess(torch.tensor([4.0]))) == 1.0


def test_all_weights_zero_is_legal_and_gives_no_nan() -> None:
    dead = torch.full((2, 3), -INF)
    assert log_mean(dead).tolist() == [-INF, -INF]
    assert torch.equal(normalised(dead), torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert ess(dead).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_float64_whatever_comes_in(dtype: torch.dtype) -> None:
    narrow = torch.zeros(4, dtype=dtype)
    for f in (log_mean, normalised, ess, check_log_weights):
        assert f(narrow).dtype == torch.float64, f"{f.__name__} gives {f(narrow).dtype}"


@pytest.mark.parametrize("f", [log_mean, normalised, ess, check_log_weights])
@pytest.mark.parametrize("value", [math.nan, INF])
def test_nan_and_infinite_weights_are_refused_with_their_place(f: Callable[[Tensor], Tensor], value: float) -> None:
    log_weights = torch.zeros(3, 4)
    log_weights[2, 1] = value
    with pytest.raises(ValueError, match=r"log_weights at \[2, 1\] is (nan|inf)"):
        f(log_weights)


def test_always_and_never() -> None:
    log_weights = random_weights()
    assert always(log_weights).all()
    assert not never(log_weights).any()
    assert always(log_weights).shape == never(log_weights).shape == (50,)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_ess_below_fires_where_the_ess_is_below_its_share(fraction: float) -> None:
    log_weights = random_weights()
    fires = EssBelow(fraction)(log_weights)
    assert torch.equal(fires, ess(log_weights) < 6 * fraction)
    assert fires.any()
    if fraction < 0.9:
        assert not fires.all()


@pytest.mark.parametrize("particles", [1, 2, 3, 7, 10, 1000])
def test_equal_weights_never_trigger(particles: int) -> None:
    for value in (0.0, -0.1, 3.3, -700.0):
        weights = torch.full((particles,), value, dtype=torch.float64)
        assert not bool(EssBelow(1.0)(weights)), f"{particles} equal weights exp({value}) trigger: ESS {ess(weights)}"


def test_unequal_weights_trigger_at_fraction_one() -> None:
    assert bool(EssBelow(1.0)(torch.tensor([0.0, 0.01], dtype=torch.float64)))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction = {fraction}"):
        EssBelow(fraction)

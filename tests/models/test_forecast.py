"""Chebyshev ridge forecasts: the least-squares solution, exact on polynomials up to the ridge."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from smc_bridge.models.forecast import Forecast, chebyshev, weights

TIMES = np.array([0.0, 1.0, 2.0, 4.0, 7.0, 11.0, 12.0])


def fitted(forecast: Forecast, features: np.ndarray) -> Forecast:
    for time, row in zip(TIMES, features, strict=True):
        forecast.add(float(time), torch.from_numpy(row))
    return forecast


@pytest.mark.parametrize(("degree", "ridge", "keep"), [(4, 0.1, 10), (2, 3.0, 4), (4, 0.1, 3), (0, 0.5, 7)])
def test_a_forecast_is_the_ridge_regression_of_the_last_features(degree: int, ridge: float, keep: int) -> None:
    features = np.random.default_rng(0).normal(size=(len(TIMES), 2, 3))
    found = fitted(Forecast(degree, ridge, keep, span=(0.0, 50.0)), features).at(20.0)
    tau, last = TIMES[-keep:] / 25.0 - 1.0, features[-keep:].reshape(-1, 6)
    phi = np.polynomial.chebyshev.chebvander(tau, degree)
    # Ridge as ordinary least squares on augmented rows: no normal equations in common with the code.
    rows = np.concatenate([phi, np.sqrt(ridge) * np.eye(degree + 1)])
    coefficients = np.linalg.lstsq(rows, np.concatenate([last, np.zeros((degree + 1, 6))]), rcond=None)[0]
    expected = np.polynomial.chebyshev.chebvander(np.array([20.0 / 25.0 - 1.0]), degree) @ coefficients
    np.testing.assert_allclose(found.numpy().ravel(), expected[0], rtol=0, atol=1e-10)


def test_a_polynomial_is_continued_exactly_up_to_the_ridge() -> None:
    def cubic(t: Any) -> Any:
        return 2.0 + t / 4 - 0.03 * t**2 + 0.001 * t**3

    gaps = []
    for ridge in (1e-3, 1e-6, 1e-9):
        forecast = fitted(Forecast(4, ridge, span=(0.0, 20.0)), cubic(TIMES)[:, None])
        gaps.append(abs(float(forecast.at(15.0)) - cubic(15.0)))
    assert gaps[2] < 1e-4 < gaps[0], gaps
    assert gaps[0] > 100 * gaps[1] > 10_000 * gaps[2], gaps


def test_rows_of_times_are_solved_together_and_polynomials_are_numpys() -> None:
    times = torch.linspace(-1, 1, 10).reshape(2, 5)
    both = weights(times, torch.tensor([0.3, 1.2]), degree=3, ridge=0.1)
    each = [weights(row, torch.tensor(at), degree=3, ridge=0.1) for row, at in zip(times, (0.3, 1.2), strict=True)]
    torch.testing.assert_close(both, torch.stack(each))
    expected = np.polynomial.chebyshev.chebvander(times.double().numpy(), 6)
    np.testing.assert_allclose(chebyshev(times.double(), 6).numpy(), expected, atol=1e-12)


def test_features_keep_their_dtype() -> None:
    forecast = Forecast()
    forecast.add(0.0, torch.ones(2, dtype=torch.bfloat16))
    assert forecast.at(0.0).dtype == torch.bfloat16


@pytest.mark.parametrize(("arguments", "says"), [
    ({"degree": -1}, "degree = -1: give a degree, a whole number of at least 0"),
    ({"ridge": 0.0}, "ridge = 0.0: give a penalty above 0"),
    ({"keep": 0}, "keep = 0: keep at least 1 feature, a whole number"),
    ({"span": (1.0, 1.0)}, "span = (1.0, 1.0): give a first time and a later last one"),
])
def test_bad_parameters_are_refused_in_one_line(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Forecast(**arguments)


def test_nothing_is_forecast_from_nothing() -> None:
    with pytest.raises(ValueError, match=r"^time = 1 before any features: add some first$"):
        Forecast().at(1)

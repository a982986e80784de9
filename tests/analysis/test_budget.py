"""Budget: cost of runs, measured costs, and comparisons at equal cost."""

from __future__ import annotations

import math
import time
from typing import Any

import pandas as pd
import pytest
import torch

from smc_bridge.analysis.budget import Cost, at_equal_cost, cost_of, largest_within, measure_cost
from smc_bridge.engine.presets import smc
from smc_bridge.result import Forwards
from tests.analysis.helpers import make_result
from tests.toys import toy_pair

WORK = Forwards(dlm_forwards=3, dlm_rows=12, ar_forwards=5, ar_rows=40, ar_tokens=160)


def test_cost_is_linear_in_the_work() -> None:
    run = make_result([0.0], forwards=WORK)
    assert cost_of(run) == 8
    assert cost_of(run, Cost(2.0, 0.5)) == 8.5
    assert cost_of(WORK, Cost(2.0, 0.5, "rows")) == 44
    other = make_result([0.0], forwards=Forwards(dlm_forwards=1))
    assert cost_of([run, other], Cost(2.0, 0.5)) == 5.25
    with pytest.raises(ValueError, match="results is empty"):
        cost_of([])


def test_ratio_is_what_a_dlm_forward_costs_in_ar_forwards() -> None:
    assert Cost(3.0, 2.0).ratio == 1.5
    assert Cost(3.0, 2.0, "rows").relative() == Cost(1.5, 1.0, "rows")
    assert Cost(1.0, 0.0).ratio == math.inf
    with pytest.raises(ValueError, match="ar = 0"):
        Cost(1.0, 0.0).relative()


@pytest.mark.parametrize(("arguments", "words"), [
    ((-1.0, 1.0), "dlm = -1.0"), ((1.0, math.inf), "ar = inf"), ((0, 0), "dlm = 0 and ar = 0"),
    ((1.0, 1.0, "tokens"), "unit = 'tokens': choose from forwards, rows"), (("x", 1.0), "dlm = x"),
])
def test_costs_that_are_none_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cost(*arguments)  # type: ignore[arg-type]


def test_measured_cost_is_the_time_of_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the models move: 40 ms in a forward of the diffusion model, 10 ms in one of the AR model."""
    pair, clock = toy_pair(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for model, seconds in ((pair.dlm, 0.04), (pair.ar, 0.01)):
        kind = type(model.session(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long)))

        def slow(*arguments: Any, _score: Any = kind.score, _seconds: float = seconds) -> Any:
            clock[0] += _seconds
            return _score(*arguments)

        monkeypatch.setattr(kind, "score", slow)
    measured = measure_cost(pair, lookahead=4, window=3, prompt=[1], repeats=3)
    assert (measured.dlm, measured.ar, measured.ratio) == pytest.approx((0.04, 0.01, 4.0))
    by_row = measure_cost(pair, lookahead=4, window=3, rows=10, repeats=3, unit="rows")
    assert (by_row.dlm, by_row.ar, by_row.unit) == (pytest.approx(0.004), pytest.approx(0.001), "rows")
    with pytest.raises(ValueError, match="repeats = 0"):
        measure_cost(pair, lookahead=4, window=3, repeats=0)


@pytest.mark.parametrize("budget", [1.0, 1.5, 7.9, 8.0, 100.0, 1000.0])
def test_largest_size_within_a_budget(budget: float) -> None:
    calls = []

    def cost_at(size: int) -> float:
        calls.append(size)
        return float(size)

    assert largest_within(budget, cost_at, most=128) == min(math.floor(budget), 128)
    assert len(calls) <= 16, "it does not try every size"
    with pytest.raises(ValueError, match=r"budget = 0\.5: size 1 costs 1"):
        largest_within(0.5, cost_at)


def test_particles_are_chosen_by_the_rows_they_cost() -> None:
    pair = toy_pair()

    def cost_at(particles: int) -> float:
        runs = smc(pair, particles, window=3, lookahead=4).run([[1]] * 8, seed=range(8), max_new_tokens=4)
        return cost_of(runs, Cost(unit="rows"))

    chosen = largest_within(40.0, cost_at, most=64)
    assert cost_at(chosen) <= 40.0 < cost_at(2 * chosen)


def test_equal_cost_takes_the_largest_size_of_each_sampler_that_fits() -> None:
    rows = [
        ("smc", "poe", 0.3, 1, 4.0), ("smc", "poe", 0.3, 1, 6.0), ("smc", "poe", 0.3, 4, 8.0),
        ("smc", "poe", 0.3, 8, 9.0),
        ("plain-is", "proposal", math.nan, 1, 3.0), ("plain-is", "proposal", math.nan, 16, 3.0),
        ("ar", None, math.nan, math.nan, 20.0),
    ]
    frame = pd.DataFrame(rows, columns=["method", "intermediate", "w", "particles", "cost"]).assign(
        lanes=1, window=3, temperature=1.0
    )
    assert at_equal_cost(frame, 8.5).index.tolist() == [2, 5]
    assert at_equal_cost(frame, 5.0).index.tolist() == [0, 1, 5], "all rows of a size stay, by their mean cost"
    assert at_equal_cost(frame, 20.0).index.tolist() == [3, 5, 6]
    with pytest.raises(ValueError, match="budget = 1: every sampler costs more, from 3"):
        at_equal_cost(frame, 1.0)

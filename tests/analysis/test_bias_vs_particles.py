"""The bias of proper methods falls like 1/N, that of `released` does not (the benchmark's claim, at a reduced size).

All runs are seeded, so these tests are deterministic; failure rates are those over the choice of seeds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.bias_vs_particles import METHODS, Cell, cells_of, main, rates
from smc_bridge.analysis.law_bias import (
    fit_rate,
    output_distance,
    output_distance_by_identity,
    run_distance,
    run_rms,
)
from smc_bridge.estimate import Estimate
from tests.analysis.helpers import make_result

RUNS = 600
FEW, MANY = 4, 64


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, int], Cell]:
    return {(cell.method, cell.count): cell for cell in cells_of(counts=(FEW, MANY), runs=RUNS, seed=1)}


PROPER = [m.name for m in METHODS if "released" not in m.name and m.name != "speculative"]
RELEASED = [m.name for m in METHODS if "released" in m.name]
ONE_PARTICLE = "K lanes, proper weights"


@pytest.mark.parametrize("method", [name for name in PROPER if name != ONE_PARTICLE])
def test_bias_falls_faster_than_the_monte_carlo_rate(cells: dict[tuple[str, int], Cell], method: str) -> None:
    """From 4 to 64 particles N^-1/2 would be a factor of 4, and 1/N is 16. The factor of 4 is over five standard errors
    away: failure rate below 1e-6 each."""
    few, many = cells[method, FEW].identity, cells[method, MANY].identity
    assert few is not None
    assert many is not None
    assert few.value > 4 * many.value, (few, many)


def test_bias_falls_with_lanes_too() -> None:
    """One particle with 2 and with 32 lanes; the identity is noisier, so there are more runs. As above."""
    method = next(m for m in METHODS if m.name == ONE_PARTICLE)
    few, many = (cell.identity for cell in cells_of([method], (2, 32), runs=2000, seed=1))
    assert few is not None
    assert many is not None
    assert few.value > 4 * many.value, (few, many)


@pytest.mark.parametrize("method", PROPER)
def test_identity_and_direct_estimate_agree(cells: dict[tuple[str, int], Cell], method: str) -> None:
    """Failure rate 6e-7 each (five standard errors): the identity assumes properness, the direct estimate nothing."""
    cell = cells[method, FEW]
    assert cell.identity is not None
    gap, error = cell.output.value - cell.identity.value, math.hypot(cell.output.error, cell.identity.error)
    assert abs(gap) < 5 * error, (cell.output, cell.identity)


@pytest.mark.parametrize("method", RELEASED)
def test_released_does_not_approach_the_target(cells: dict[tuple[str, int], Cell], method: str) -> None:
    """With 64 lanes it is over 0.3 from the target by more than ten standard errors: no failure rate to speak of."""
    cell = cells[method, MANY]
    assert not cell.proper
    assert cell.output.value - 10 * cell.output.error > 0.3, cell.output


def test_speculative_has_no_bias_at_all(cells: dict[tuple[str, int], Cell]) -> None:
    for count in (FEW, MANY):
        identity = cells["speculative", count].identity
        assert identity is not None
        assert abs(identity.value) < 1e-12
        direct = cells["speculative", count].output
        assert abs(direct.value) < 5 * direct.error, direct


@pytest.mark.parametrize("method", [m.name for m in METHODS if m.size != "lanes"])
def test_error_of_one_run_falls_at_the_monte_carlo_rate(cells: dict[tuple[str, int], Cell], method: str) -> None:
    """The root mean square falls by sqrt(16) = 4 from 4 to 64 particles, less where 4 are too few.
    Claimed is 3.2 to 4.6, over five standard errors (0.06 each) from what is measured: failure rate below 1e-6."""
    few, many = cells[method, FEW].rms, cells[method, MANY].rms
    assert few is not None
    assert many is not None
    assert 3.2 < few.value / many.value < 4.6, (few, many)


def test_fit_recovers_a_known_power_law() -> None:
    counts = [2, 4, 8, 16]
    exact = [Estimate.normal(0.3 * n**-0.8, 0.001) for n in counts]
    found = fit_rate(counts, exact)
    assert found is not None
    assert (found.exponent.value, found.scale) == pytest.approx((0.8, 0.3), rel=1e-6)
    assert fit_rate(counts, [Estimate.normal(0.001, 0.001)] * 4) is None
    with pytest.raises(ValueError, match="two different"):
        fit_rate([4, 4], exact[:2])


def test_distances_by_hand() -> None:
    """Four runs of one particle each on a law (0.5, 0.3, 0.2); evidences 1, 0.5, 2, 0.5 have mean 1."""
    exact = make_result([math.log(3 * p) for p in (0.5, 0.3, 0.2)])
    runs = [make_result([math.log(z)], sequences=[[x]]) for x, z in ((0, 1.0), (1, 0.5), (0, 2.0), (9, 0.5))]
    law = np.array([0.5, 0.3, 0.2, 0.0])
    w = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    for terms, found in (
        (w - law, output_distance(runs, exact)),
        (-(w - law) * np.array([0.0, -0.5, 1.0, -0.5])[:, None], output_distance_by_identity(runs, exact)),
    ):
        a, b = terms[0::2], terms[1::2]
        crossed = 0.5 * np.array([(b @ np.sign(a.mean(0))).mean(), (a @ np.sign(b.mean(0))).mean()])
        assert found.value == pytest.approx(crossed.mean(), rel=1e-12, abs=1e-15)
    each = 0.5 * np.abs(w - law).sum(1)
    assert run_distance(runs, exact).value == pytest.approx(each.mean())
    assert run_rms(runs, exact).value == pytest.approx(math.sqrt(((w - law) ** 2).sum(1).mean()))


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.18], ids=["exact", "near", "far"])
def test_standard_error_of_a_distance_covers_its_spread(shift: float) -> None:
    """600 studies of 200 one-particle runs. The 95 % interval around each estimate covers their mean at least so often:
    the count of hits is binomial, with failure rate 1e-6 at 94.5 %. Adding the halves' variances as if they were
    independent covers 82 to 87 % where the noise decides the signs."""
    law = np.array([0.2, 0.3, 0.3, 0.2])
    output = law + shift * np.array([1.0, 0.5, -0.5, -1.0])
    exact = make_result(list(np.log(law)))
    one = [make_result([0.0], sequences=[[x]]) for x in range(4)]
    rng = np.random.default_rng(0)
    found = [output_distance([one[x] for x in rng.choice(4, p=output, size=200)], exact) for _ in range(600)]
    centre = np.mean([d.value for d in found])
    hits = sum(abs(d.value - centre) < 1.96 * d.error for d in found)
    assert hits >= stats.binom.ppf(1e-6, 600, 0.945), (shift, hits / 600)


def test_distances_refuse_what_they_cannot_use() -> None:
    exact = make_result([0.0])
    with pytest.raises(ValueError, match="at least 2 each"):
        output_distance([make_result([0.0])] * 3, exact)
    with pytest.raises(ValueError, match="not properly weighted"):
        output_distance_by_identity([make_result([0.0], proper=False)] * 4, exact)


def test_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--threads", "1", "--out", str(tmp_path)])
    data = json.loads((tmp_path / "bias_vs_particles.json").read_text())
    assert len(data["cells"]) == 2 * len(METHODS)
    assert set(data["rates"]) == {method.name for method in METHODS}
    assert "speculative" in capsys.readouterr().out


def test_the_table_of_the_bias_has_a_row_for_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--threads", "1", "--out", str(tmp_path), "--markdown"])
    lines = [line for line in capsys.readouterr().out.split("**")[2].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(METHODS)
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.parametrize("arguments", [["--runs", "2"], ["--particles", "0"], ["--runs", "many"]])
def test_command_refuses_bad_numbers(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_rates_need_two_budgets() -> None:
    assert rates(cells_of(METHODS[:1], (8,), runs=8)) == {}

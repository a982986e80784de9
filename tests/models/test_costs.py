"""Costs of forwards: tables between and beyond the sizes that were timed, and the file that keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smc_bridge import load_pair
from smc_bridge.models import costs as module
from smc_bridge.models.costs import Costs, Table, costs_of, measure
from smc_bridge.testing import tabular_pair

COSTS = Costs.linear(dlm=(0.5, 0.01), ar=(0.2, 0.03), step=(0.1, 0.01))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("SMC_BRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "costs"


def found(times: list[int] | None = None) -> Costs:
    """Costs of a pair of networks; whether they were measured is appended."""
    pair = load_pair("arithmetic")

    def measured() -> Costs:
        if times is not None:
            times.append(1)
        return COSTS

    return costs_of(pair.dlm, pair.ar, measured)


def test_a_table_is_bilinear_between_and_beyond_its_sizes() -> None:
    table = Table((1, 4), (1, 8, 32), ((1.0, 8.0, 16.0), (4.0, 32.0, 64.0)))
    for rows, positions, seconds in ((1, 1, 1.0), (4, 8, 32.0), (2.5, 4.5, 11.25), (1, 56, 24.0), (7, 1, 7.0)):
        assert table(rows, positions) == pytest.approx(seconds)
    assert Table((1, 2), (10, 20), ((1.0, 10.0), (1.0, 10.0)))(1, 1) > 0.0
    assert Table((3,), (5,), ((2.0,),))(100, 1) == 2.0
    assert COSTS.ar(4, 10) == pytest.approx(0.2 + 0.03 * 40)
    assert COSTS.step(4) == pytest.approx(0.14)


def test_costs_go_through_json() -> None:
    assert Costs.of(json.loads(json.dumps(COSTS.data()))) == COSTS
    assert Costs.of(COSTS) is COSTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [1, 1]}, "rows = (1, 1): give rows and positions that increase"),
        ({"rows": [0, 1]}, "rows = (0, 1): give rows"),
        ({"positions": [1, 2.5]}, "positions = [1, 2.5]: give rows"),
        ({"seconds": [[1.0, 2.0]]}, "seconds = [[1.0, 2.0]]: give rows"),
        ({"seconds": [[1.0, 2.0], [1.0, 0.0]]}, "seconds = 0.0: give rows"),
        ({"seconds": [[1.0, 2.0], [1.0, float("nan")]]}, "seconds = nan: give rows"),
        ({"seconds": 3}, "seconds = 3: give rows"),
    ],
)
def test_bad_tables_are_named(change: dict[str, Any], message: str) -> None:
    table = {"rows": [1, 2], "positions": [1, 2], "seconds": [[1.0, 2.0], [1.0, 2.0]], **change}
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Costs.of({"dlm": table, "ar": table, "step": [0, 0]})
    assert message in str(caught.value)


@pytest.mark.parametrize("step", [(1.0,), 3, (0.0, -1.0), (0.0, float("inf")), ("a", 1)])
def test_bad_seconds_of_a_step_are_named(step: Any) -> None:
    with pytest.raises(ValueError, match=r"\Astep = .*: give two numbers of seconds, at least 0\Z"):
        Costs(COSTS.dlm, COSTS.ar, step)


def test_costs_are_measured_once(folder: Path) -> None:
    times: list[int] = []
    assert found(times) == found(times) == COSTS
    assert len(times) == 1
    [file] = folder.iterdir()
    assert file.suffix == ".json"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", pytest.param("[" * 100_000, id="deep"), '{"costs": 3}',
        '{"costs": {"dlm": {}, "ar": {}, "step": []}}',
    ],
)
def test_a_file_that_cannot_be_read_is_measured_anew(folder: Path, text: str) -> None:
    found()
    [file] = folder.iterdir()
    file.write_text(text)
    times: list[int] = []
    assert found(times) == COSTS
    assert times, f"{text!r} was taken for costs"
    assert found([]) == COSTS
    assert json.loads(file.read_text())["costs"] == COSTS.data()


def test_another_machine_has_a_file_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found()
    monkeypatch.setattr(module, "_processor", lambda device: "another")
    times: list[int] = []
    found(times)
    assert times
    assert len(list(folder.iterdir())) == 2


def test_models_that_hold_no_network_have_no_file(folder: Path) -> None:
    pair, times = tabular_pair(2, 4), list[int]()
    for _ in range(2):
        assert costs_of(pair.dlm, pair.ar, lambda: times.append(1) or COSTS) == COSTS  # type: ignore[func-returns-value]
    assert len(times) == 1
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMC_BRIDGE_CACHE", str(tmp_path / "file"))
    assert found() == COSTS


def test_forwards_of_a_pair_are_timed() -> None:
    pair = tabular_pair(2, 4)
    costs = measure(pair.dlm, pair.ar)
    for table in (costs.dlm, costs.ar):
        for line in (*table.seconds, *zip(*table.seconds, strict=True)):
            assert list(line) == sorted(line), "more takes less"
            assert min(line) > 0.0

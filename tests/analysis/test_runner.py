"""The runner of all experiments: what is kept, in which order, and what an interruption leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smc_bridge.analysis.runner import Stopped, run_cells
from smc_bridge.analysis.store import Record, Store, open_store
from smc_bridge.estimate import Estimate, columns

HEADER = {"kind": "test", "format": 1, "seed": 3}


class Square(NamedTuple):
    number: float
    label: str = "squares"
    size: int = 1

    def key(self) -> dict[str, Any]:
        return {"number": self.number}


CELLS = [Square(n) for n in (3.0, 1.0, 2.0)]


def job() -> Callable[[Square], Record]:
    return lambda cell: {**cell.key(), "seconds": 0.0, "square": cell.number**2}


def opened(path: Path | None, cells: list[Square] = CELLS, **options: Any) -> Any:
    keys = [cell.key() for cell in cells]
    return open_store(path, HEADER, keys, argument="--out", noun="square", valid=lambda r: r["square"] >= 0, **options)


def stop_at(count: int) -> Callable[[Record, int, int], None]:
    def report(record: Record, done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return report


def squares(records: list[Record]) -> list[float]:
    return [record["square"] for record in records]


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_interrupted_goes_on_and_comes_in_the_order_of_the_cells(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "s"
    with opened(path, whole=whole) as store, pytest.raises(Stopped) as stop:
        run_cells(CELLS, job, store, report=stop_at(2))
    assert (stop.value.done, stop.value.total) == (2, 3)
    made: list[Record] = []
    with opened(path, whole=whole) as store:
        found = run_cells(CELLS, job, store, report=lambda record, *_: made.append(record))
        if whole:
            store.finish({"sum": 14})
    assert squares(made) == [4.0]
    assert squares(found) == [9.0, 1.0, 4.0]
    if whole:
        data = json.loads(path.read_text())
        assert (data["sum"], squares(data["cells"])) == (14, squares(found))
    with opened(path, whole=whole) as store:
        assert (squares(store.records), store.finished) == (squares(found), whole)
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_an_interruption_before_the_first_new_record_says_that_nothing_is_new(tmp_path: Path) -> None:
    def late() -> Callable[[Square], Record]:
        raise KeyboardInterrupt

    with opened(tmp_path / "s") as store:
        run_cells(CELLS[:1], job, store)
        with pytest.raises(Stopped) as stop:
            run_cells(CELLS, late, store)
    assert stop.value.done == 0


@pytest.mark.parametrize("change", [
    {"number": 7.0}, {"square": -1.0}, {"square": None}, {"number": [3]}, {"number": None},
])
def test_a_record_that_is_none_of_the_works_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "s"
    record = {"number": 3.0, "seconds": 0.0, "square": 9.0, **change}
    path.write_text(f"{json.dumps(HEADER)}\n{json.dumps(record)}\n")
    with pytest.raises(ValueError, match=r"--out = .*: is not a saved square; give another file"), opened(path):
        pass


def test_whole_numbers_and_fractions_name_one_cell() -> None:
    store = Store(None, HEADER, [{"number": 1.0}], argument="--out", noun="square", valid=lambda record: True)
    store.add({"number": 1})
    assert {"number": 1.0} in store


def test_an_estimate_is_written_as_a_value_with_its_interval_where_there_is_one() -> None:
    found = Estimate(-0.0, -1.25, 2.0, 40, "Student")
    assert found.text() == "0 [-1.25, 2]"
    assert found.times(100).text(".0f") == "0 [-125, 200]"
    none = Estimate(0.5, 0.0, float("inf"), 3, "bootstrap-t")
    assert none.text(without=", no interval") == "0.5, no interval"
    assert none.plain() == {"value": 0.5, "low": 0.0, "high": None, "n": 3}
    assert columns("kl", found) == {"kl": 0.0, "kl_low": -1.25, "kl_high": 2.0}
    assert list(columns("kl", None)) == ["kl", "kl_low", "kl_high"]
    normal = Estimate.normal(1.0, 0.1)
    assert (normal.low, normal.high) == pytest.approx((0.804, 1.196), abs=1e-3)

"""Pages whose rows are calls of `smc-bridge compare`: rows, slopes, and what is written by hand around them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas", reason="studies need the extra 'analysis'")

from benchmarks import comparisons, paper, what_smc_buys
from benchmarks.comparisons import Case, arguments, make_rows, with_w
from benchmarks.falling import slope_of_bound
from benchmarks.pages import CLOSE, OPEN, check_page, fill
from smc_bridge.certificate import kl_terms
from smc_bridge.cli import main
from smc_bridge.registry import spelled_list

CASE = Case("smc-1,w=0.3", 2, 0.2)


def figures_alone(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in cell.items() if name != "seconds"} for cell in cells]


def test_a_row_is_what_its_command_gives_and_is_kept_in_the_same_file(tmp_path: Path) -> None:
    made = make_rows([CASE], tmp_path)[CASE]
    again = tmp_path / "again.json"
    assert main(["compare", *CASE.arguments.split(), "--json", str(again)]) == 0
    ours, theirs = (json.loads(file.read_text()) for file in (CASE.file(tmp_path), again))
    assert figures_alone(ours["cells"]) == figures_alone(theirs["cells"])
    assert made.row.nats is not None
    assert made.row.nats.value == theirs["rows"][0]["nats"]["value"]
    assert made.ar_rows == sum(theirs["cells"][0]["ar_rows"]) / sum(theirs["cells"][0]["tokens"])
    assert main(["compare", *CASE.arguments.split(), "--json", str(CASE.file(tmp_path))]) == 0
    assert json.loads(CASE.file(tmp_path).read_text()) == ours, "the command continued the file of the benchmark"


def test_rows_that_are_kept_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_rows([CASE, CASE], tmp_path)
    monkeypatch.setattr("smc_bridge.analysis.study.cells.decode", None)
    assert make_rows([CASE], tmp_path) == first
    with pytest.raises(TypeError):
        make_rows([CASE], tmp_path, fresh=True)


def test_the_command_of_a_table_says_every_row_once() -> None:
    for part in paper.parts(200, 0):
        text = arguments(part.cases)
        assert text.startswith(f"--n 200 --temperature {part.temperature:g} --methods ")
        found = spelled_list(text.rpartition(" ")[2])
        assert [each.text for each in found] == [case.method for case in part.cases]
    with pytest.raises(ValueError, match="one temperature"):
        arguments([Case("ar", 2, 0.2), Case("ar", 2, 1.0)])


def test_rows_of_what_smc_buys_differ_within_every_table_and_have_files_of_their_own() -> None:
    every = set()
    for cases in what_smc_buys.tables(200, 0.2, 0).values():
        assert len({case.spelled.meaning for case in cases}) == len(cases)
        every.update(cases)
    assert len({case.file(Path()) for case in every}) == len(every)
    assert {(case.method, case.n) for case in every} >= {
        ("smc-1,w=0.3", 200), ("smc-16x4,w=0.7", 24), ("smc-64x4,w=0.3", 12), ("smc-4,trigger=never,w=0.7", 200),
    }


def test_a_bridge_is_added_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = what_smc_buys.tables(200, 0.2, 0)[what_smc_buys.BRIDGES]
    laws = [*what_smc_buys.TABLE["bridges"]["intermediates"], "mixture"]
    monkeypatch.setitem(what_smc_buys.TABLE["bridges"], "intermediates", laws)
    after = what_smc_buys.tables(200, 0.2, 0)[what_smc_buys.BRIDGES]
    assert {case.method for case in after} - {case.method for case in before} == {
        f"smc-{n},intermediate=mixture,w={w}" for n in (1, 4, 16) for w in (0.3, 0.7)
    }


@pytest.mark.parametrize(("method", "found"), [
    ("smc-4", "smc-4,w=0.5"), ("smc-4,w=0.3", "smc-4,w=0.3"), ("ar", "ar"), ("paper,lanes=2", "paper,lanes=2,w=0.5"),
    ("smc-1,intermediate=chernoff", "smc-1,intermediate=chernoff"), ("released", "released,w=0.5"),
])
def test_w_is_said_where_it_is_read(method: str, found: str) -> None:
    assert with_w(method, 0.5) == found


def test_dearest_rows_begin_first() -> None:
    sizes = [comparisons._drafts(Case(method, 10, 0.2)) for method in ("ar", "paper", "smc-4", "smc-16x4")]
    assert sizes == [10, 40, 40, 640]


def evidence(n: int, size: int, power: float) -> list[float]:
    """Log-normal evidence of mean one, whose bound is `0.04 / n^power`."""
    variance = 2 * 0.04 / n**power
    return list(np.random.default_rng(n).normal(-variance / 2, math.sqrt(variance), size))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_slope_of_a_bound_that_falls_like_a_power_of_n(power: float) -> None:
    counts = {1: 2000, 4: 2000, 16: 500, 64: 200}
    found = slope_of_bound({n: evidence(n, size, power) for n, size in counts.items()})
    assert found is not None
    assert found.low < -power < found.high
    assert found.high - found.low < 0.2


def test_slope_of_two_bounds_is_that_of_the_line_through_them() -> None:
    runs = {n: evidence(n, 50, 1.0) for n in (2, 8)}
    found = slope_of_bound(runs)
    low, high = (math.log(kl_terms(runs[n]).mean()) for n in (2, 8))
    assert found is not None
    assert found.value == pytest.approx((high - low) / math.log(4))


@pytest.mark.parametrize(
    "runs", [{1: [0.1, 0.2]}, {1: [0.1, 0.3], 4: [0.0, 0.0]}, {1: [0.1, -math.inf], 4: [0.1, 0.2]}]
)
def test_no_slope_without_two_bounds_that_have_a_spread(runs: dict[int, list[float]]) -> None:
    assert slope_of_bound(runs) is None


def test_figures_change_and_what_is_around_them_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{OPEN}\nold \\1\n{CLOSE}\n\nA conclusion.\n")
    fill(page, "new \\g<0>")
    fill(page, "new \\g<0>")
    assert page.read_text() == f"# Title\n\n{OPEN}\n\nnew \\g<0>\n\n{CLOSE}\n\nA conclusion.\n"


@pytest.mark.parametrize("text", ["", OPEN, f"{CLOSE}\n{OPEN}\n", f"{OPEN}\n{CLOSE}\n" * 2])
def test_a_page_without_one_place_for_figures_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="has no place for figures"):
        check_page(page)
    assert page.read_text() == text


@pytest.mark.parametrize("page", [paper.PAGE, what_smc_buys.PAGE], ids=lambda page: page.stem)
def test_the_pages_have_a_place_for_figures(page: Path) -> None:
    check_page(page)


def test_the_sweep_over_w_has_the_papers_three_points() -> None:
    [told] = [told for told in paper.TABLES["paper"]["tables"] if told.get("drawn")]
    points = {row["method"]: (row["tokens_per_step"], row["accuracy"]) for row in told["rows"] if "accuracy" in row}
    assert points == {"smc-1,w=0": (4.91, 81.27), "smc-1,w=0.3": (8.30, 80.69), "smc-1,w=0.9": (15.61, 30.49)}

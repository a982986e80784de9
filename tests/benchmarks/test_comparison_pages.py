"""Pages whose rows are calls of `smc-bridge compare`: rows, ratios, and what is written by hand around them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas", reason="studies need the extra 'analysis'")

from benchmarks import frontier, paper, what_smc_buys
from benchmarks.certificate_coverage import study
from benchmarks.comparisons import Case, arguments, make_rows, with_w
from benchmarks.harness import HERE
from benchmarks.pages import CLOSE, OPEN, check_page, fill
from smc_bridge.analysis.study.config import Config, Prompts
from smc_bridge.certificate import kl_terms
from smc_bridge.cli import main
from smc_bridge.intervals import NAME as INTERVAL
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


def test_a_broken_row_is_told_by_its_file_and_made_anew(tmp_path: Path) -> None:
    CASE.file(tmp_path).write_text('{"ki')
    with pytest.raises(ValueError, match=r"seed=0\.json is no row of today's weights .*; delete it, or give --fresh"):
        make_rows([CASE], tmp_path)
    assert make_rows([CASE], tmp_path, fresh=True)[CASE].row.nats is not None


def test_rows_of_near_temperatures_have_files_of_their_own() -> None:
    assert Case("smc-1", 2, 0.2).file(Path()) != Case("smc-1", 2, 0.2000001).file(Path())


def test_the_command_of_a_table_says_every_row_once() -> None:
    for part in paper.parts(200, 0):
        text = arguments(part.cases)
        assert text.startswith(f"--n 200 --temperature {part.temperature:g} --methods ")
        found = spelled_list(text.rpartition(" ")[2])
        assert [each.text for each in found] == [case.method for case in part.cases]
    with pytest.raises(ValueError, match="one temperature"):
        arguments([Case("ar", 2, 0.2), Case("ar", 2, 1.0)])


def test_the_study_of_the_sweep_has_the_rows_of_the_table() -> None:
    config = Config.from_toml(HERE / "docs" / "benchmarks" / "w_sweep.toml")
    assert isinstance(config.source, Prompts)
    drawn = [part for part in paper.parts(config.source.n, 0) if part.told.get("drawn")]
    assert [part.temperature for part in drawn] == list(config.axes.temperatures)
    for part in drawn:
        assert [case.option("w") for case in part.cases] == list(config.axes.w)
        assert {(case.spelled.method.name, case.option("particles")) for case in part.cases} == {("smc", 1)}
        assert {case.n for case in part.cases} == {200}
        assert "docs/benchmarks/w_sweep.toml" in part.told["note"]
    assert (config.axes.methods, config.axes.particles, config.source.name) == (("smc",), (1,), "arithmetic")


def test_rows_of_what_smc_buys_differ_within_every_table_and_have_files_of_their_own() -> None:
    every = set()
    for cases in what_smc_buys.tables(200, 0).values():
        assert len({case.spelled.meaning for case in cases}) == len(cases)
        every.update(cases)
    assert len({case.file(Path()) for case in every}) == len(every)
    assert {(case.method, case.n) for case in every} >= {
        ("smc-1,w=0.3", 128), ("smc-16x4,w=0.7", 24), ("smc-64x4,w=0.3", 12), ("smc-4,trigger=never,w=0.7", 128),
    }


def test_a_bridge_is_added_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = what_smc_buys.tables(200, 0)[what_smc_buys.BRIDGES]
    laws = [*what_smc_buys.TABLE["bridges"]["intermediates"], "mixture"]
    monkeypatch.setitem(what_smc_buys.TABLE["bridges"], "intermediates", laws)
    after = what_smc_buys.tables(200, 0)[what_smc_buys.BRIDGES]
    assert {case.method for case in after} - {case.method for case in before} == {
        f"smc-{size},intermediate=mixture,w={w}" for size in (1, 4, 16, "1x4", "4x4") for w in (0.3, 0.7)
    }


@pytest.mark.parametrize(("method", "found"), [
    ("smc-4", "smc-4,w=0.5"), ("smc-4,w=0.3", "smc-4,w=0.3"), ("ar", "ar"), ("paper,lanes=2", "paper,lanes=2,w=0.5"),
    ("smc-1,intermediate=chernoff", "smc-1,intermediate=chernoff"), ("released", "released,w=0.5"),
])
def test_w_is_said_where_it_is_read(method: str, found: str) -> None:
    assert with_w(method, 0.5) == found


def test_drafts_of_a_step() -> None:
    methods = ("ar", "dlm-1", "smc-1", "paper", "smc-4", "smc-16x4")
    assert [Case(method, 10, 0.2).drafts for method in methods] == [1, 1, 1, 4, 4, 64]


def test_bounds_are_compared_on_the_problems_that_both_rows_have() -> None:
    """The later problems of the longer row are far off; the ratio of the shared ones is known."""
    terms = np.array([0.1, 0.4, 0.2, 0.3, 0.25, 0.15])
    before, after = ([float(x) for x in scale * terms] for scale in (-1.0, -0.25))
    found = what_smc_buys.falls([*before, -50.0, -70.0], after)
    assert found is not None
    assert found.value == pytest.approx(kl_terms(after).sum() / kl_terms(before).sum())
    assert found.n == 6
    assert found.low <= found.value <= found.high


def test_a_ratio_of_bounds_covers_what_it_estimates() -> None:
    """Bounds of 0.5 and 0.125 nats of one log-normal problem each, 24 shared problems: 1/N from N = 4 to 16."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(100):
        shift = rng.standard_normal(24)
        before, after = (
            list(sd * (0.6 * shift + 0.8 * rng.standard_normal(24)) - sd**2 / 2) for sd in (1.0, 0.5)
        )
        found = what_smc_buys.falls(before, after)
        assert found is not None
        missed += not found.low <= 0.25 <= found.high
    assert missed <= 15


@pytest.mark.parametrize(("before", "after"), [([0.0, 0.0], [0.1, 0.2]), ([0.1, -math.inf], [0.1, 0.2])])
def test_no_ratio_to_a_bound_that_is_0_or_infinite(before: list[float], after: list[float]) -> None:
    assert what_smc_buys.falls(before, after) is None


def test_two_processes_make_the_rows_of_one(tmp_path: Path) -> None:
    cases = [CASE, Case("smc-1,w=0", 2, 0.2)]
    alone, shared = (make_rows(cases, tmp_path / str(n), processes=n) for n in (1, 2))
    assert list(alone) == list(shared) == cases
    for case in cases:
        assert alone[case].log_evidences == shared[case].log_evidences
        one, two = (each[case].row.tokens_per_dlm_forward for each in (alone, shared))
        assert one is not None
        assert two is not None
        assert one.value == two.value


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


@pytest.mark.parametrize("page", [paper.PAGE, what_smc_buys.PAGE, frontier.PAGE], ids=lambda page: page.stem)
def test_the_pages_have_a_place_for_figures(page: Path) -> None:
    check_page(page)


def test_the_sweep_over_w_has_the_papers_three_points() -> None:
    [told] = [told for told in paper.TABLES["paper"]["tables"] if told.get("drawn")]
    points = {row["method"]: (row["tokens_per_step"], row["accuracy"]) for row in told["rows"] if "accuracy" in row}
    assert points == {"smc-1,w=0": (4.91, 81.27), "smc-1,w=0.3": (8.30, 80.69), "smc-1,w=0.9": (15.61, 30.49)}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_front_page_has_figures_of_the_page() -> None:
    """Method, accuracy, tokens per DLM forward and KL bound: at the target temperature that the front page names."""
    front = (HERE / "README.md").read_text().partition("## What a bridge buys")[2].partition("\n## ")[0]
    page = paper.PAGE.read_text()
    cold = [part for part in page.split("\n**") if part.partition("**")[0].endswith("target temperature 0.2")]
    rows = [cells(line) for part in cold for line in part.splitlines() if line.startswith("| `")]
    found = [cells(line) for line in front.splitlines() if line.startswith("| `")]
    assert len(found) >= 6
    for name, *figures in found:
        method = name.split("`")[1]
        mine = [row for row in rows if row[0] == f"`{method}`"]
        assert mine, f"{method} is not on {paper.PAGE.name}"
        assert any(
            [row[1].partition(" (")[0], row[2].partition(" (")[0], row[4]] == figures for row in mine
        ), (method, figures, mine)
    assert "200 held-out problems" in front
    assert "target temperature 0.2" in front


def test_every_aim_is_about_rows_of_the_page_and_one_that_is_missed_is_told() -> None:
    rows = {(case.method, case.temperature) for part in paper.parts(200, 0) for case in part.cases}
    for told in paper.TABLES[paper.NAME]["aims"]:
        temperature = told.get("temperature", 0.2)
        assert {(told[key], temperature) for key in ("method", "over") if key in told} <= rows, told
    most, least = paper.Aim("at most", 0.55, "0.55", (0.0, 0.5)), paper.Aim("at least", 1.7, "1.7", (1.6, math.inf))
    both = paper.Aim("between", 0.775, "0.775", (0.75, 0.92))
    assert [[verdict.met for verdict in aim.verdicts] for aim in (most, least, both)] == [[False], [True], [True, True]]
    shown = [(row[0], row[2], row[3]) for row in paper._met([most, least, both]).rows]
    assert shown == [
        ("at most", "0 to 0.5", "no"), ("at least", "1.6 or more", "yes"), ("between", "0.75 to 0.92", "yes"),
    ]


def test_the_truth_of_a_pool_that_does_not_see_its_mean_is_that_of_the_plain_terms() -> None:
    """Log evidences of which none is near 0: `Z - 1 - log Z` is a nat too low, and varies less."""
    pool = np.random.default_rng(0).normal(-3.0, 0.5, 2_000)
    found = [cell for cell in study("pool", pool, 100, 40) if cell.interval == INTERVAL]
    assert [cell.covered >= 0.8 for cell in found] == [True], found

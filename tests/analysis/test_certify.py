"""`smc-bridge certify`: a table and a file of both bounds; bad input is one line and exit code 2."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.commands.certify import command
from analysis.reverse import Bidirectional, bidirectional
from smc_bridge.cli import main


def test_bounds_go_to_the_table_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bounds.json"
    assert main(["certify", "--n", "4", "--method", "smc-1x2", "--json", str(file)], commands=[command]) == 0
    table = capsys.readouterr().out
    for text in ("KL(r || p)", "KL(p || r)", "E[-log Z]", "E[log Z], conditional", "their sum"):
        assert text in table, table
    bounds = json.loads(file.read_text())["bounds"]
    assert bounds["symmetric"]["bound"] == pytest.approx(bounds["forward"]["bound"] + bounds["reverse"]["bound"])
    assert 0 <= bounds["forward"]["low"] <= bounds["forward"]["bound"] <= float(bounds["forward"]["high"])
    told = " ".join(table.split())
    assert "bootstrap-t intervals" in told, table
    assert told.count("4 runs, 4 distinct values") == 3, table


def test_speculative_decoding_has_bounds_of_exactly_zero(tmp_path: Path) -> None:
    file = tmp_path / "bounds.json"
    assert main(["certify", "--n", "2", "--method", "speculative", "--json", str(file)], commands=[command]) == 0
    for bound in json.loads(file.read_text())["bounds"].values():
        assert bound == {"bound": 0.0, "low": 0.0, "high": 0.0}


def test_runs_that_do_not_differ_are_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    """At this temperature every run has evidence 0, though the program is not exact."""
    assert main(["certify", "--n", "3", "--method", "smc-1", "--temperature", "0.001"], commands=[command]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "0, no interval" in table, table
    assert "3 runs (1 distinct value): no interval" in table, table
    assert "[0, 0]" not in table, table


def test_an_infinite_bound_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite end of an interval is written as a word, for JSON has no infinity."""
    def blown(*arguments: object, **options: Any) -> Bidirectional:
        found = bidirectional(*arguments, **options)
        return replace(found, forward=replace(found.forward, kl=math.inf, high=math.inf))

    monkeypatch.setattr("analysis.commands.certify.bidirectional", blown)
    file = tmp_path / "bounds.json"
    assert main(["certify", "--n", "2", "--method", "speculative", "--json", str(file)], commands=[command]) == 0
    assert json.loads(file.read_text())["bounds"]["forward"] == {"bound": "inf", "low": 0.0, "high": "inf"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "released"], "no reverse bound"),
        (["--method", "ar"], "--method = 'ar': choose from smc-"),
        (["--method", "smc-0"], "--method = 'smc-0': choose from smc-"),
        (["--method", "plain-is-4"], "--method = 'plain-is-4': choose from smc-"),
        (["--n", "1"], "--n = 1"),
        (["--level", "1"], "--level = 1"),
        (["--temperature", "0"], "--temperature = 0"),
        (["--json", "/"], "--json = /"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--n", "2", *arguments], commands=[command]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1, error

"""`smc-bridge certify`: a table and a file of both bounds; bad input is one line and exit code 2."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smc_bridge.analysis.certified import check_weighted
from smc_bridge.analysis.commands.certify import command
from smc_bridge.analysis.reverse import Bidirectional, bidirectional, both_bounds, conditional_runs
from smc_bridge.analysis.study.plan import Setting, make_decoder
from smc_bridge.cli import main
from smc_bridge.models import pairs
from smc_bridge.tasks import TASKS
from tests.smc_bridge.test_files import full_device
from tests.toys import ToyTask, toy_pair


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
    asked = ["--n", "3", "--method", "smc-1,w=0.01", "--temperature", "0.001"]
    assert main(["certify", *asked], commands=[command]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "0, no interval" in table, table
    assert "3 runs (1 distinct value): no interval" in table, table
    assert "[0, 0]" not in table, table


def test_an_infinite_bound_can_be_saved(toy: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite end of an interval is written as a word, for JSON has no infinity."""
    def blown(*arguments: object, **options: Any) -> Bidirectional:
        found = both_bounds(*arguments, **options)
        return replace(found, forward=replace(found.forward, value=math.inf, high=math.inf))

    monkeypatch.setattr("smc_bridge.analysis.certified.both_bounds", blown)
    assert main([*toy[:-1], "speculative", "--json", "bounds.json"], commands=[command]) == 0
    bounds = json.loads(Path("bounds.json").read_text())["bounds"]
    assert bounds["forward"] == {"bound": "inf", "low": 0.0, "high": "inf"}


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("smc-2", "target temperature 1, w = 0.3, seed 0"),
        ("smc,particles=2,w=0.7", "target temperature 1, seed 0"),
        ("smc,particles=2,w=0.7,temperature=0.5,resampler=multinomial", "seed 0"),
        ("speculative", "target temperature 1, seed 0"),
    ],
)
def test_the_title_tells_flags_only_where_the_spelling_leaves_them_open(
    toy: list[str], method: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*toy[:-1], method], commands=[command]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{method} on 6 problems of toy, {told}" in shown, shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "released"], "--method = 'released': has no properly weighted particles; choose from "),
        (["--method", "ar"], "--method = 'ar': has no properly weighted particles; choose from "),
        (["--method", "smc-0"], "--method = 'smc-0': "),
        (["--method", "plain-is-4"], "--method = 'plain-is-4': "),
        (["--method", "smc,resampler=ssp"], "--method = 'smc,resampler=ssp': certify resamples multinomially, which "
         "its reverse bound is about; leave out resampler=ssp"),
        (["--n", "1"], "--n = 1"),
        (["--level", "1"], "--level = 1"),
        (["--temperature", "-1"], "--temperature = -1"),
        (["--json", "/"], "--json = /"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--n", "2", *arguments], commands=[command]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1, error


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A certificate of the toy task in milliseconds, in a folder of its own."""
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    monkeypatch.chdir(tmp_path)
    return ["certify", "--task", "toy", "--n", "6", "--batch", "2", "--method", "smc-2"]


def test_an_interrupted_certificate_continues_to_the_bounds_of_one_go(
    toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []

    def stopped(*arguments: Any, **options: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(1)
        return conditional_runs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("smc_bridge.analysis.certified.conditional_runs", stopped)
        assert main([*toy, "--json", "c.json"], commands=[command]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "smc-bridge: interrupted: 2 of 6 parts are saved beside c.json; the same command goes on from there"
    )
    assert os.listdir() == ["c.json.partial"]
    assert main([*toy, "--json", "c.json"], commands=[command]) == 0
    assert main([*toy, "--json", "whole.json"], commands=[command]) == 0
    assert sorted(os.listdir()) == ["c.json", "whole.json"]
    continued, whole = (json.loads(Path(name).read_text()) for name in ("c.json", "whole.json"))
    assert continued["bounds"] == whole["bounds"]
    pair = toy_pair()
    sampler = make_decoder(Setting("smc-2", w=0.3, temperature=1.0), pair, ToyTask())
    prompts = [pair.encode(item.prompt).tolist() for item in ToyTask().problems(6)]
    once = bidirectional(sampler, prompts, seed=0, max_new_tokens=ToyTask().max_new_tokens)
    assert whole["bounds"]["forward"]["bound"] == pytest.approx(once.forward.kl, abs=1e-12)
    assert whole["bounds"]["reverse"]["high"] == pytest.approx(once.reverse.high, abs=1e-12)


def test_a_saved_certificate_is_printed_again_at_any_level_and_no_run_is_made(
    toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*toy, "--json", "c.json"], commands=[command]) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("smc_bridge.analysis.certified.conditional_runs", None)
    assert main([*toy, "--json", "c.json"], commands=[command]) == 0
    assert capsys.readouterr().out == first
    assert main([*toy, "--json", "c.json", "--level", "0.5"], commands=[command]) == 0
    assert "50%" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("content", "says"), [
    ("buy milk", "is not a saved certificate; give another file"),
    ('{"kind": "smc-bridge comparison", "format": 1}', "is not a saved certificate; give another file"),
])
def test_a_foreign_file_is_left_alone(
    toy: list[str], capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    Path("c.json").write_text(content)
    for fresh in ([], ["--fresh"]):
        assert main([*toy, "--json", "c.json", *fresh], commands=[command]) == 2
        assert capsys.readouterr().err == f"smc-bridge: error: --json = c.json: {says}\n"
    assert (os.listdir(), Path("c.json").read_text()) == (["c.json"], content)


def test_a_certificate_of_other_settings_is_refused(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*toy, "--json", "c.json"], commands=[command]) == 0
    before = Path("c.json").read_text()
    for change, said in ((["--seed", "1"], "--seed = 0 rather than 1"), (["--w", "0.5"], "--w = 0.3 rather than 0.5")):
        capsys.readouterr()
        assert main([*toy, "--json", "c.json", *change], commands=[command]) == 2
        assert f"holds a certificate with {said}; start anew with --fresh" in capsys.readouterr().err
    assert Path("c.json").read_text() == before
    assert main([*toy, "--json", "c.json", "--seed", "1", "--fresh"], commands=[command]) == 0


def test_bounds_are_saved_though_standard_output_is_full(
    toy: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_device(tmp_path).open("w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        assert main([*toy, "--json", "c.json"], commands=[command]) == 2
    assert "the result is saved as c.json" in capsys.readouterr().err
    assert json.loads(Path("c.json").read_text())["bounds"]["forward"]


@pytest.mark.parametrize(
    "name", ["smc-3", "smc-2x2", "smc,kernel=gumbel", "tree-walk", "plain-is", "speculative", "paper"]
)
def test_every_properly_weighted_method_can_be_certified(name: str) -> None:
    check_weighted(name)
    assert make_decoder(Setting(name, w=0.3, temperature=1.0), toy_pair(), ToyTask()).proper

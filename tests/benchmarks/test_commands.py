"""Every benchmark is one command that prints tables and writes JSON and PNG (smoke tests at their smallest sizes)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.harness import HERE

pytest.importorskip("matplotlib", reason="plots need the extra 'analysis'")

#: Command, further arguments, and a line that its output holds.
COMMANDS = {
    "throughput": ((), "over dlm-1+prefix"),
    "overhead": ((), "run / networks"),
    "operations": (("--where", "3"), "what waits"),
    "scaling": (("--factors", "N"), "exponent"),
    "heads": ((), "extra memory"),
    "bridges": ((), "over poe, w = 0.3"),
    "cache": ((), "same tokens"),
    "proposal_cache": ((), "ms / DLM forward"),
    "tree_nodes": ((), "tokens / AR node"),
    "profile": ((), "networks"),
    "versus": (("--other", str(HERE)), "2 of 2"),
    "proposals": ((), "tokens / draft"),
    "tabular": ((), "bridge, K = 4"),
    "step_path": ((), "hops"),
    "equal_cost": ((), "KL bound"),
    "frontier": (("--markdown",), "intermediate=clamp,beta=4"),
    "certificate_coverage": ((), "upper misses"),
    "bias_vs_particles": ((), "bias ~ N^-a"),
    "what_smc_buys": (("--markdown",), "How the bound per sequence falls"),
    "paper": (("--markdown",), "HumanEval: tokens / step"),
    "field": (("--runs", "100"), "Which of them sample what they claim"),
}


def run(name: str, *arguments: str) -> None:
    importlib.import_module(f"benchmarks.{name}").main(list(arguments))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_prints_tables_and_writes_json_and_png(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, line = COMMANDS[name]
    folder = tmp_path / "made"
    run(name, "--quick", "--threads", "1", "--out", str(folder), *arguments)
    out = capsys.readouterr().out
    assert line in out
    data = json.loads((folder / f"{name}.json").read_text())
    assert data["benchmark"] == name
    assert data["machine"]["cpu"] in out
    assert data["machine"]["threads"] == 1
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("throughput", ["--methods", "fastest"], "--methods"),
        ("throughput", ["--batches", "0"], "0"),
        ("overhead", ["--repetitions", "many"], "--repetitions"),
        ("scaling", ["--factors", "Q"], "--factors"),
        ("versus", ["--other", "nowhere"], "--other"),
        ("versus", ["--other", ".", "--methods", "paper|smc-1|smc-4"], "--methods"),
        ("versus", ["--other", str(HERE), "--methods", "paper|fastest"], "fastest"),
        ("operations", ["--caches", "window"], "--caches"),
        ("tree_nodes", ["--w", "2"], "2"),
        ("frontier", ["--n", "1"], "--n"),
        ("tree_nodes", ["--speed"], "--speed"),
    ],
)
def test_bad_arguments_end_in_one_line(
    name: str, arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(name, "--quick", "--out", str(tmp_path), *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert named in error.splitlines()[-1], error


def test_out_that_is_a_file_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(SystemExit):
        run("scaling", "--quick", "--out", str(taken))
    assert "--out" in capsys.readouterr().err

"""`smc-bridge study` and `smc-bridge plot` as a user meets them: killed, continued, and given the wrong file."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from smc_bridge.analysis.commands.plot import WORDS
from smc_bridge.analysis.commands.plot import command as plot_command
from smc_bridge.analysis.commands.study import command as study_command
from smc_bridge.analysis.comparison import Row, Settings, compare, default_methods
from smc_bridge.analysis.plots import plot_trace_grid
from smc_bridge.analysis.plots.labels import LABELS, label
from smc_bridge.analysis.prices import Cost, Unit
from smc_bridge.analysis.store import Store
from smc_bridge.analysis.study import Config, load_study, pool, study
from smc_bridge.analysis.study.config import Block
from smc_bridge.analysis.study.drawing import plot_lines, plot_study
from smc_bridge.cli import main
from smc_bridge.engine.presets import smc
from smc_bridge.models import pairs
from smc_bridge.result import Result
from tests.smc_bridge.test_files import full_device
from tests.toys import Digits, ToyTask, toy_pair


class Words(Digits):
    """Token a is written as a word."""

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(("zero", "one", "two")[i] for i in ids)


ROOT = Path(__file__).parents[2]
CONFIG = """
methods = ["smc", "plain-is"]
particles = [1, 2]
w = [0.3, 0.7]
windows = 3
seeds = [0, 1]

[tabular]
alphabets = 2
lengths = 3
runs = 8
"""
ROWS = 12
#: The same, with cells that take long enough to be killed in the middle.
LONG = CONFIG.replace("runs = 8", "runs = 120").replace("lengths = 3", "lengths = 5")
PATIENCE = 90.0

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, standard output and standard error of a command line in a folder with `small.toml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv], commands=[study_command, plot_command])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of the study of `small.toml`."""
    path = tmp_path_factory.mktemp("study") / "s.jsonl"
    study(Config.from_dict(tomllib.loads(CONFIG)), path=path)
    return path.read_text()


def test_study_prints_its_summary_and_keeps_its_rows_below_the_working_directory(run: Run, tmp_path: Path) -> None:
    code, out, err = run("study", "small.toml")
    assert code == 0
    for word in ("small.toml: 12 rows", "-log Z, nats", "ESS", "TV", "tokens / DLM forward", "plain-is", "±"):
        assert word in out
    assert [line.split()[0] for line in err.splitlines()] == [f"{i}/{ROWS}" for i in range(1, ROWS + 1)]
    assert len((tmp_path / "runs" / "small.jsonl").read_text().splitlines()) == ROWS + 1
    assert run("study", "small.toml") == (0, out, ""), "a second call reads the file"


def test_killed_study_continues_to_the_rows_of_an_uninterrupted_one(tmp_path: Path, run: Run) -> None:
    """SIGKILL in the middle of a cell: what was done is on the disk, and no row differs in the end."""
    (tmp_path / "long.toml").write_text(LONG)
    file = tmp_path / "s.jsonl"
    program = (
        "import sys; from smc_bridge.cli import main; from analysis.commands.study import command; "
        "sys.exit(main(sys.argv[1:], commands=[command]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", program, "study", "long.toml", "--out", "s.jsonl"], cwd=tmp_path, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + PATIENCE
        while not file.exists() or file.read_bytes().count(b"\n") < 4:
            assert child.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until, "it does nothing"
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    done = file.read_bytes().count(b"\n") - 1
    assert 3 <= done < ROWS
    with file.open("ab") as half:
        half.write(b'{"method": "smc", "interm')
    code, _, err = run("study", "long.toml", "--out", "s.jsonl")
    assert code == 0
    assert err.startswith(f"{done + 1}/{ROWS} "), "finished rows are not run again"
    whole = study(Config.from_toml(tmp_path / "long.toml"))
    pd.testing.assert_frame_equal(load_study(file).drop(columns="seconds"), whole.drop(columns="seconds"))


def test_ctrl_c_says_what_is_saved(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from smc_bridge.analysis.journal import Journal

    append, calls = Journal.append, []

    def interrupted(self: Journal, record: dict[str, object]) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        append(self, record)

    monkeypatch.setattr(Journal, "append", interrupted)
    code, out, err = run("study", "small.toml", "--out", "s.jsonl")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "smc-bridge: interrupted: 4 of 12 rows are saved in s.jsonl; the same command goes on from there"
    )
    code, _, err = run("study", "small.toml", "--out", "s.jsonl")
    assert code == 0
    assert err.startswith("5/12 ")


BAD: dict[str, tuple[list[str], str]] = {
    "no config": (["study"], "CONFIG.toml is missing"),
    "missing config": (["study", "none.toml"], "config = none.toml: cannot be read (No such file or directory)"),
    "not TOML": (["study", "notes.txt"], "config = notes.txt: is not TOML"),
    "unknown entry": (["study", "odd.toml"], "config = odd.toml: beams is not part of a study: choose from methods"),
    "bad value": (["study", "bad.toml"], "config = bad.toml: particles = 0: give whole numbers of at least 1"),
    "foreign file": (["study", "small.toml", "--out", "notes.txt"], "--out = notes.txt: is not a saved study"),
    "foreign file, fresh": (
        ["study", "small.toml", "--out", "notes.txt", "--fresh"], "--out = notes.txt: is not a saved study"
    ),
    "other study": (["study", "other.toml", "--out", "s.jsonl"], "--out = s.jsonl: holds a study with seeds = 0,1"),
    "folder": (["study", "small.toml", "--out", "."], "--out = .: is a folder"),
    "unwritable folder": (["study", "small.toml", "--out", "/proc/s.jsonl"], "--out = /proc/s.jsonl: "),
    "method that is no name": (["study", "three.toml"], "config = three.toml: methods = '3': "),
    "no workers": (["study", "small.toml", "--workers", "0"], "--workers = 0"),
    "nothing to plot": (["plot"], "FILE is missing"),
    "missing file": (["plot", "none.json"], "FILE = none.json: cannot be read"),
    "no plot": (["plot", "notes.txt"], "FILE = notes.txt: is no saved study, comparison or result"),
    "other JSON": (["plot", "other.json"], "FILE = other.json: is no saved study, comparison or result"),
    "folder to plot": (["plot", "."], "FILE = .: is a folder; give a file"),
    "list": (["plot", "list.json"], "FILE = list.json: is no saved study, comparison or result"),
    "no rows": (["plot", "empty.json"], "FILE = empty.json: is a comparison without its table"),
    "no table": (["plot", "rows.json"], "FILE = rows.json: is a comparison without its table"),
    "damaged study": (["plot", "damaged.jsonl"], "FILE = damaged.jsonl: is not a saved study"),
    "unknown column": (["plot", "s.jsonl", "--y", "joy"], "--y = 'joy': choose from particles"),
    "no numbers": (["plot", "s.jsonl", "--y", "accuracy"], "--x = 'particles' with --y = 'accuracy': no row has both"),
    "unknown picture": (["plot", "s.jsonl", "--out", "a.xyz"], "--out = a.xyz: is of no known kind"),
    "bad prices": (["plot", "s.jsonl", "--cost", "1"], "--cost = 1: give two numbers"),
    "onto itself": (["plot", "s.jsonl", "--out", "s.jsonl"], "--out = s.jsonl: is FILE itself"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, saved: str, case: str) -> None:
    (tmp_path / "notes.txt").write_text("buy milk\n")
    (tmp_path / "odd.toml").write_text("beams = 3\n")
    (tmp_path / "bad.toml").write_text("particles = 0\n")
    (tmp_path / "other.toml").write_text(CONFIG.replace("seeds = [0, 1]", "seeds = 5"))
    (tmp_path / "three.toml").write_text("methods = 3\n")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[3]")
    (tmp_path / "empty.json").write_text('{"kind": "smc-bridge comparison", "rows": []}')
    (tmp_path / "rows.json").write_text('{"kind": "smc-bridge comparison", "rows": [{"method": "ar"}, 3]}')
    (tmp_path / "s.jsonl").write_text(saved)
    (tmp_path / "damaged.jsonl").write_text(saved.replace('"ess"', '"mess"'))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    argv, words = BAD[case]
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"smc-bridge: error: {words}"), err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def drawn(run: Run, *argv: str) -> bytes:
    code, out, err = run("plot", *argv)
    assert (code, err) == (0, ""), err
    return Path(out.removeprefix("drawn as ").strip()).read_bytes()


def test_study_is_drawn(run: Run, tmp_path: Path, saved: str) -> None:
    text = saved
    (tmp_path / "s.jsonl").write_text(text)
    pictures = {drawn(run, "s.jsonl", *argv) for argv in (
        [], ["--y", "ess"], ["--x", "cost"], ["--x", "cost", "--cost", "9,1"], ["--x", "cost", "--unit", "rows"],
    )}
    assert len(pictures) == 5, "every option changes the picture"
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert b"<svg" in drawn(run, "s.jsonl", "--out", "s.svg")
    (tmp_path / "s.jsonl").write_text(text[: len(text) // 2])
    drawn(run, "s.jsonl")
    assert (tmp_path / "s.jsonl").read_text() == text[: len(text) // 2], "an unfinished study is left as it is"


def test_every_column_has_a_label_with_its_unit(saved: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(saved)
    pooled = pool(load_study(tmp_path / "s.jsonl"))
    drawn = [str(name) for name in pooled.columns if pooled[name].dtype.kind in "fiu"]
    columns = [name for name in drawn if not name.endswith(("_low", "_high", "_error"))]
    rows = [item.name for item in fields(Row) if item.name not in WORDS]
    missing = {*columns, *rows, *Block._fields} - {"task", "block"} - set(LABELS)
    assert not missing, f"no label for {missing}"
    assert all("_" not in text.replace("c_D", "").replace("c_A", "") for text in LABELS.values())


@pytest.mark.parametrize("x", [None, "cost", "kl_per_token", "w", "particles", "lanes", "tokens"])
def test_axes_name_what_is_drawn(saved: str, tmp_path: Path, x: str | None) -> None:
    (tmp_path / "s.jsonl").write_text(saved)
    frame = load_study(tmp_path / "s.jsonl")
    for y in ("tokens_per_dlm_forward", "ess", "acceptance", "kl_bound", "seconds"):
        ax = plot_study(frame, x, y)
        assert ax.get_ylabel() == label(y)
        assert ("KL bound" in ax.get_xlabel()) == (x == "kl_per_token")
    assert plot_study(frame, "kl_per_token").get_ylabel() == label("tokens_per_dlm_forward")
    pyplot.close("all")


def test_all_default_methods_of_a_comparison_look_different() -> None:
    lines = {name: ([1.0 + i], [0.5], [0.4], [0.6]) for i, name in enumerate(default_methods())}
    ax = plot_lines(lines, "tokens_per_second", "accuracy")
    drawn = [(bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in ax.containers]
    assert len(drawn) == len(set(drawn)) == len(default_methods()) > 7
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("tokens per second", "accuracy (share)")
    pyplot.close("all")


def test_more_lines_than_can_be_told_apart_are_refused(run: Run, tmp_path: Path, saved: str) -> None:
    head, *records = map(json.loads, saved.splitlines())
    many = [{**records[0], "particles": n} for n in range(4, 104)]
    head |= {"methods": ["smc"], "particles": list(range(4, 104)), "w": [0.3], "seeds": [0]}
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [head, *many]))
    code, out, err = run("plot", "many.jsonl", "--x", "w", "--y", "tokens")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("smc-bridge: error: FILE = many.jsonl: it gives 100 lines, of which 96 can be told apart")


def test_lanes_of_a_saved_run_are_shown_as_text(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = replace(toy_pair(), tokenizer=Words())
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: words)
    argv = ["--pair", "toy", "--window", "3", "--lookahead", "4", "--max-new-tokens", "4", "--particles", "3"]
    assert main(["decode", "2 1", *argv, "--trace", "--json", "r.json"], commands=[]) == 0
    capsys.readouterr()
    shown = {text.get_text() for text in plot_trace_grid(Result.load("r.json")).texts}
    assert shown <= {"<eos>", "one", "two", "finished"} | {f"finished ×{i}" for i in range(4)}, shown
    assert {"one", "two"} <= shown
    drawn(run, "r.json", "--y", "lanes")


def test_a_frame_in_rows_says_so_on_its_axis(tmp_path: Path, saved: str) -> None:
    (tmp_path / "s.jsonl").write_text(saved)
    for unit in get_args(Unit):
        frame = load_study(tmp_path / "s.jsonl", cost=Cost(unit=unit))
        assert plot_study(frame, "cost", "ess").get_xlabel() == f"cost (c_D DLM {unit} + c_A AR {unit})"


def test_comparison_is_drawn(run: Run) -> None:
    settings = Settings("toy", 4, ("ar", "smc-2", "released"), temperature=1.0)
    compare(settings, path=Path("c.json"), pair=toy_pair(), task=ToyTask())
    assert drawn(run, "c.json").startswith(b"\x89PNG")
    assert drawn(run, "c.json", "--x", "nats_per_token", "--y", "tokens_per_dlm_forward").startswith(b"\x89PNG")
    code, _, err = run("plot", "c.json", "--x", "joy")
    assert (code, err.count("\n")) == (2, 1)
    assert "--x = joy: choose from" in err


@pytest.mark.parametrize("picture", ["steps", "genealogy", "lanes", "acceptance", "ess"])
def test_result_is_drawn(run: Run, picture: str) -> None:
    sampler = smc(toy_pair(), 3, lanes=2, window=2, lookahead=4)
    sampler.run([[1]], max_new_tokens=4, keep_drafts=True)[0].save("r.json")
    assert drawn(run, "r.json", "--y", picture).startswith(b"\x89PNG")
    code, _, err = run("plot", "r.json", "--y", "joy")
    assert (code, err.count("\n")) == (2, 1)


def test_results_of_a_file_of_prompts_are_drawn_together_or_refused(run: Run, tmp_path: Path) -> None:
    sampler = smc(toy_pair(), 3, window=2, lookahead=4)
    results = sampler.run([[1], [2]], max_new_tokens=4)
    lines = [json.dumps(result.to_dict()) + "\n" for result in results]
    pictures = []
    for text in ("".join(lines), lines[0]):
        (tmp_path / "r.jsonl").write_text(text)
        pictures += [drawn(run, "r.jsonl", "--y", y) for y in ("ess", "acceptance")]
    assert len(set(pictures)) == 4, "the second result is drawn too"
    code, _, err = run("plot", "r.jsonl", "--y", "lanes")
    assert (code, err) == (2, (
        "smc-bridge: error: --y = lanes: FILE has no drafts; decode again with --trace, or choose another picture\n"
    ))
    (tmp_path / "r.jsonl").write_text("".join(lines))
    drawn(run, "r.jsonl")
    code, _, err = run("plot", "r.jsonl", "--y", "steps")
    assert (code, err) == (2, (
        "smc-bridge: error: --y = steps: is of one result, and FILE has 2; choose from acceptance, ess\n"
    ))
    (tmp_path / "r.jsonl").write_text(lines[0] + "{}\n")
    code, _, err = run("plot", "r.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no saved study, comparison or result" in err


def test_the_documented_study_is_one() -> None:
    config = Config.from_toml(ROOT / "docs" / "study.toml")
    assert len(config.axes.settings()) == 29


def test_entry_points_name_the_commands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = project["project"]["entry-points"]["smc_bridge.commands"]
    for command in (study_command, plot_command):
        found = metadata.EntryPoint(command.name, entries[command.name], "smc_bridge.commands").load()
        assert found is command


def test_saved_rows_are_plain_json_lines(run: Run, tmp_path: Path) -> None:
    run("study", "small.toml", "--out", "s.jsonl")
    header, *records = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert (header["kind"], header["methods"]) == ("smc-bridge study", ["smc", "plain-is"])
    assert all(len(record["log_evidences"]) == record["runs"] == 8 for record in records)


def test_a_picture_that_fails_leaves_what_was_there(
    run: Run, tmp_path: Path, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.jsonl").write_text(saved)
    (tmp_path / "old.png").write_text("old")

    def half(self: Figure, file: Any, **options: Any) -> None:
        with open(file, "wb") if isinstance(file, str | Path) else nullcontext(file) as out:
            out.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", half)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for out in ("old.png", "new.png"):
        assert run("plot", "s.jsonl", "--out", out)[0] == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_picture_goes_through_links_and_to_standard_output(
    run: Run, tmp_path: Path, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.jsonl").write_text(saved)
    (tmp_path / "link.png").symlink_to("folder.png")
    picture = drawn(run, "s.jsonl", "--out", "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "folder.png").read_bytes() == picture
    with (tmp_path / "out").open("w") as out, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert run("plot", "s.jsonl", "--out", "-")[0] == 0
    assert (tmp_path / "out").read_bytes() == picture, "nothing but the picture"


def test_a_study_continues_behind_a_link_and_keeps_its_mode(run: Run, tmp_path: Path, saved: str) -> None:
    (tmp_path / "link.jsonl").symlink_to("s.jsonl")
    (tmp_path / "s.jsonl").write_text("".join(saved.splitlines(keepends=True)[:3]) + '{"method"')
    (tmp_path / "s.jsonl").chmod(0o600)
    for fresh, first in (([], "3/12"), (["--fresh"], "1/12")):
        code, out, err = run("study", "small.toml", "--out", "link.jsonl", *fresh)
        assert (code, err.split()[0]) == (0, first)
        assert (tmp_path / "link.jsonl").is_symlink()
        assert stat.S_IMODE((tmp_path / "s.jsonl").stat().st_mode) == 0o600
        assert len((tmp_path / "s.jsonl").read_text().splitlines()) == ROWS + 1
    assert "saved as link.jsonl" in out


def test_rows_go_to_standard_output_or_through_a_device(run: Run, tmp_path: Path) -> None:
    code, out, err = run("study", "small.toml", "--out", "-")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [len(records), records[0]["kind"]] == [ROWS + 1, "smc-bridge study"]
    assert "pooled over seeds" in err
    device = full_device(tmp_path)
    code, out, err = run("study", "small.toml", "--out", str(device))
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"smc-bridge: error: --out = {device}: cannot be written (No space left on")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_comparison_whose_last_part_was_done_when_it_was_killed_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, path = Settings("toy", 2, ("ar",), temperature=1.0), tmp_path / "c.json"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", lambda *_: None)
        compare(settings, path=path, pair=toy_pair(), task=ToyTask())
    assert not path.exists()
    compare(settings, path=path, pair=toy_pair(), task=ToyTask())
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]

"""`smc-bridge compare`: the same table however often it is interrupted, and files of other origin are left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import signal
import tomllib
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from smc_bridge import registry, tasks
from smc_bridge.analysis.bounds import kl_per_token
from smc_bridge.analysis.commands.compare import command
from smc_bridge.analysis.comparison import Comparison, Row, Settings, compare, default_methods, render
from smc_bridge.analysis.comparison.comparing import KIND
from smc_bridge.analysis.comparison.table import summarise
from smc_bridge.analysis.estimates import wilson
from smc_bridge.analysis.store import Record
from smc_bridge.analysis.study.identity import of_models
from smc_bridge.analysis.study.plan import Setting, make_decoder
from smc_bridge.cli import main
from smc_bridge.decode import decode
from smc_bridge.distributions.target import ARTarget
from smc_bridge.intervals import ratio_interval
from smc_bridge.methods.ar import ARSampling, ARState
from smc_bridge.models import pairs
from smc_bridge.models.arithmetic import architecture
from smc_bridge.models.arithmetic.tokenizer import load_tokenizer
from smc_bridge.models.pairs import Pair, pair_from_models
from smc_bridge.registry import spelled
from smc_bridge.result import Result
from smc_bridge.tables import print_table
from smc_bridge.tasks import TASKS
from tests.analysis.fragile import FragileTask
from tests.analysis.jobs import killer
from tests.toys import ToyTask, toy_pair

SETTINGS = Settings("toy", 5, ("ar", "dlm-2", "released", "smc-3"), temperature=1.0, w=0.7, batch=2)
BASE = [
    "compare", "--task", "toy", "--n", "5", "--methods", "ar,dlm-2,released,smc-3", "--temperature", "1", "--w",
    "0.7", "--batch", "2",
]
CELLS = 12

Run = Callable[..., tuple[int, str, str]]


def toy(settings: Settings = SETTINGS, **options: object) -> Comparison:
    return compare(settings, pair=toy_pair(), task=ToyTask(), **options)  # type: ignore[arg-type]


def decoded(method: str, prompts: list[list[int]]) -> list[Result]:
    decoder = make_decoder(Setting(method, w=0.7, temperature=1.0), toy_pair(), ToyTask())
    return decode(decoder, prompts, seed=[0] * len(prompts), max_new_tokens=ToyTask().max_new_tokens)


def timeless(rows: list[Row]) -> list[Row]:
    return [dataclasses.replace(row, tokens_per_second=0.0) for row in rows]


def stop_after(count: int) -> Callable[[Record, int, int], None]:
    def report(cell: Record, done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return report


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, standard output and standard error of a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    monkeypatch.setitem(tasks.TASKS, "toy", ToyTask())

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv], commands=[command])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize("stops", [[1], [5], [11], [2, 3, 9]])
def test_interrupted_comparison_continues_to_the_same_table(tmp_path: Path, stops: list[int]) -> None:
    whole = toy()
    path = tmp_path / "c.json"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            toy(path=path, report=stop_after(stop))
        assert not path.exists(), "the file appears when everything is done"
    fresh: list[int] = []
    continued = toy(path=path, report=lambda cell, done, total: fresh.append(done))
    assert fresh == list(range(stops[-1] + 1, CELLS + 1)), "finished cells are not decoded again"
    assert timeless(continued.rows) == timeless(whole.rows)
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_line_that_was_cut_short_is_decoded_again(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(KeyboardInterrupt):
        toy(path=path, report=stop_after(4))
    partial = tmp_path / "c.json.partial"
    whole = partial.read_text()
    for cut in (len(whole) - 10, whole.index("\n") + 5, 20, 0):
        partial.write_text(whole[:cut])
        assert timeless(toy(path=path).rows) == timeless(toy().rows)
        path.unlink()


def test_timings_of_finished_cells_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    first = toy(path=path)
    decoded: list[Record] = []
    second = toy(path=path, report=lambda cell, done, total: decoded.append(cell))
    assert decoded == []
    assert second == first


def test_batches_do_not_change_the_figures() -> None:
    alone = toy(dataclasses.replace(SETTINGS, batch=1))
    together = toy(dataclasses.replace(SETTINGS, batch=8))
    for left, right in zip(timeless(alone.rows), timeless(together.rows), strict=True):
        assert left.accuracy == right.accuracy
        assert left.tokens_per_dlm_forward == right.tokens_per_dlm_forward
        if left.nats is not None and right.nats is not None:
            assert left.nats.value == pytest.approx(right.nats.value, abs=1e-12)


@pytest.mark.parametrize(
    "change", [{"n": 4}, {"seed": 1}, {"temperature": 0.5}, {"w": 0.2}, {"batch": 3}, {"methods": ("ar",)}]
)
def test_file_of_other_settings_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "c.json"
    other = dataclasses.replace(SETTINGS, **change)  # type: ignore[arg-type]
    for stop in (2, None):
        if stop is None:
            toy(path=path)
        else:
            with pytest.raises(KeyboardInterrupt):
                toy(path=path, report=stop_after(stop))
        before = {p: p.read_text() for p in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"{next(iter(change))} = .* --fresh, or give another file"):
            toy(other, path=path)
        assert {p: p.read_text() for p in tmp_path.iterdir()} == before
    assert toy(other, path=path, fresh=True).settings == other


FOREIGN = ["", "[1, 2]", '{"a": 1}', "some notes", "\n\n", '{"kind": "smc-bridge comparison", "format": 99}']


@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_file_is_refused_and_left_alone(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    code, out, err = run(*BASE, "--json", "mine.json")
    assert (code, out) == (2, "")
    assert err == "smc-bridge: error: --json = mine.json: is not a saved comparison; give another file\n"
    assert run(*BASE, "--json", "mine.json", "--fresh")[0] == (0 if KIND in content else 2)
    assert ((tmp_path / "mine.json").read_text() == content) == (KIND not in content)


def test_foreign_partial_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.json.partial").write_bytes(b"\xff\xfe\n")
    code, _, err = run(*BASE, "--json", "c.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "c.json.partial" in err


def test_comparison_of_other_weights_is_refused() -> None:
    networks = [architecture.build(kind) for kind in ("dlm", "ar")]
    tokenizer = load_tokenizer()

    def pair() -> Pair:
        return pair_from_models(*networks, tokenizer, shift=True, mask_id=3)

    before = of_models(pair())
    assert of_models(pair()) == before
    next(iter(networks[0].parameters())).data += 1e-3
    assert of_models(pair()) != before


def test_command_prints_the_table_and_keeps_it_by_default_below_the_working_directory(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*BASE)
    assert code == 0
    heads = " ".join(out.replace("┃", " ").split())
    for word in ("accuracy", "DLM", "AR", "forwards", "positions", "tokens/s", "ESS", "KL bound"):
        assert word in heads
    first, *lines = err.splitlines()
    assert re.fullmatch(r"smc-bridge: 4 methods on 5 problems: about \d+ s on \d+ threads?", first)
    assert [line.split()[0] for line in lines] == [f"{i}/{CELLS}" for i in range(1, CELLS + 1)]
    assert all(re.search(r" s, about \d+ s left$", line) for line in lines[:-1]), "the last part leaves nothing"
    saved = json.loads((tmp_path / "runs" / "compare.json").read_text())
    assert [row["method"] for row in saved["rows"]] == list(SETTINGS.methods)
    again = run(*BASE)
    assert again == (0, out, ""), "a second call reads the file"
    page = run(*BASE, "--markdown")[1].splitlines()
    assert [line.count("|") for line in page[: len(SETTINGS.methods) + 2]] == [9] * (len(SETTINGS.methods) + 2)
    assert [line.split()[1] for line in page[2 : len(SETTINGS.methods) + 2]] == list(SETTINGS.methods)


def test_ctrl_c_says_what_is_saved_and_the_second_call_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def grade(self: ToyTask, text: str, answer: object) -> bool:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return text.startswith(str(answer))

    whole = run(*BASE, "--json", "whole.json")[1]
    monkeypatch.setattr(ToyTask, "grade", grade)
    code, out, err = run(*BASE, "--json", "c.json")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        "smc-bridge: interrupted: 4 of 12 parts are saved beside c.json; the same command goes on from there"
    )
    code, out, err = run(*BASE, "--json", "c.json")
    assert code == 0
    assert err.splitlines()[1].startswith("5/12 ")

    def figures(path: str) -> list[dict[str, object]]:
        rows = json.loads(Path(path).read_text())["rows"]
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]

    assert figures("c.json") == figures("whole.json")
    assert len(out.splitlines()) == len(whole.splitlines())


@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_two_workers_of_which_one_is_killed_finish_the_table_of_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    monkeypatch.setitem(tasks.TASKS, "toy", FragileTask(folder=tmp_path))
    (tmp_path / "victim").touch()
    _, one, _ = run(*BASE, "--json", "c.json")
    alone = json.loads((tmp_path / "c.json").read_text())
    with pytest.raises(KeyboardInterrupt):
        toy(path=tmp_path / "c.json", fresh=True, report=stop_after(3))
    (tmp_path / "victim").unlink()
    handler = signal.getsignal(signal.SIGTERM)
    with killer(tmp_path) as killed:
        code, two, err = run(*BASE, "--json", "c.json", "--workers", "2")
    assert (code, len(killed)) == (0, 1)
    assert [line.split("/")[0] for line in err.splitlines()[1:]] == [str(i) for i in range(4, CELLS + 1)], err
    assert len(two.splitlines()) == len(one.splitlines()), two
    together = json.loads((tmp_path / "c.json").read_text())
    for data in (alone, together):
        for entry in (*data["rows"], *data["cells"]):
            entry.pop("tokens_per_second", None)
            entry.pop("seconds", None)
    assert together == alone, "the same figures, cells and order"
    assert not import_module("ray").is_initialized(), "the cluster ends with the command"
    assert signal.getsignal(signal.SIGTERM) is handler


BAD_ARGUMENTS = {
    "unknown task": (["--task", "poetry"], "--task = 'poetry': choose from arithmetic"),
    "unknown method": (["--methods", "ar,beam"], "--methods = 'beam': "),
    "order of all at once": (["--methods", "dlm-all-entropy"], "--methods = 'dlm-all-entropy': "),
    "no workers": (["--workers", "0"], "--workers = 0"),
    "no particles": (["--methods", "smc-0"], "--methods = 'smc-0'"),
    "no methods": (["--methods", ""], "--methods = "),
    "an unknown option": (["--methods", "smc,beams=3"], "--methods = 'smc,beams=3': beams is no option of smc"),
    "a value out of range": (["--methods", "smc,particles=x"], "--methods = 'smc,particles=x': particles = 'x': give"),
    "n = 0": (["--n", "0"], "--n = 0"),
    "n beyond the task": (["--n", "7"], "--n = 7"),
    "batch = 0": (["--batch", "0"], "--batch = 0"),
    "temperature below 0": (["--temperature", "-1"], "--temperature = -1"),
    "w above 1": (["--w", "2"], "--w = 2"),
    "folder as file": (["--json", "."], "--json = ."),
    "missing folder": (["--json", "/no-such-folder/c.json"], "--json = /no-such-folder/c.json"),
    "argument too many": (["word"], "word"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_is_one_line_and_exit_code_2(run: Run, tmp_path: Path, case: str) -> None:
    argv, words = BAD_ARGUMENTS[case]
    code, out, err = run(*BASE, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"smc-bridge: error: {words}")
    assert list(tmp_path.iterdir()) == []


def test_vocabularies_that_differ_are_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair(dlm_size=4))
    code, _, err = run(*BASE, "--methods", "smc-2")
    assert (code, err.count("\n")) == (2, 1)
    assert "alphabets differ" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", default_methods())
def test_every_default_method_has_its_columns(method: str) -> None:
    told: list[str] = []
    with contextlib.suppress(ValueError):
        found = toy(dataclasses.replace(SETTINGS, methods=(method,)), left_out=lambda name, why: told.append(why))
    if told:
        pytest.skip(f"cannot run on tables: {told[0]}")
    [row] = found.rows
    assert row.n == 5
    costs = [sum(x for cell in found.cells for x in cell[name]) for name in ("dlm_forwards", "ar_forwards", "tokens")]
    assert (row.tokens_per_dlm_forward is None) == (costs[0] == 0)
    assert (row.ar_forwards_per_token is None) == (row.ar_positions_per_token is None) == (costs[1] == 0)
    if row.ar_forwards is not None:
        assert row.ar_forwards_per_token == pytest.approx(costs[1] / costs[2])
        assert row.ar_forwards_per_token == pytest.approx(row.ar_forwards * 5 / costs[2])
    assert row.targets == spelled(method).method.targets
    assert (row.nats is not None) == (row.nats_per_token is not None) == (row.proper and row.targets == "AR")
    assert (row.bound in ("improper", "other law")) == (row.nats is None)
    assert (row.bound == "improper") == (not row.proper)
    assert (row.ess is not None) == row.proper
    if method == "smc-4":
        assert row.particles == 4


@pytest.mark.parametrize("method", ["ar", "speculative"])
def test_a_draw_of_the_ar_law_is_at_no_distance_from_it(method: str) -> None:
    [row] = toy(dataclasses.replace(SETTINGS, methods=(method,))).rows
    assert row.nats is not None
    assert (row.nats.value, row.nats.low, row.nats.high, row.bound) == (0.0, 0.0, 0.0, "0")


def test_costs_by_token_are_those_of_ancestral_sampling() -> None:
    [row] = toy(dataclasses.replace(SETTINGS, methods=("ar",))).rows
    assert (row.ar_forwards_per_token, row.ar_positions_per_token, row.tokens_per_forward) == (1.0, 1.0, 1.0)
    [row] = toy(dataclasses.replace(SETTINGS, methods=("dlm-2",))).rows
    assert (row.ar_forwards_per_token, row.ar_positions_per_token) == (None, None)
    assert row.tokens_per_dlm_forward is not None
    assert row.tokens_per_forward == row.tokens_per_dlm_forward.value > 1


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test registers: one that samples another law, one that is not made, one that breaks later."""
    len(registry.METHODS)
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))

    @registry.method("other-law", role="exact", targets="PoE", proper=True, reference="none")
    def other_law(pair: Pair) -> object:
        """Draws of a law that is not the AR model's."""
        return registry.METHODS["ar"].make(pair)

    @registry.method("not-here", role="exact", targets="AR", proper=True, reference="none")
    def not_here(pair: Pair) -> object:
        """Needs what the pair has not."""
        raise ImportError("no module\n named there")

    @registry.method("breaks", role="exact", targets="AR", proper=True, reference="none")
    def breaks(pair: Pair) -> object:
        """Fails when it decodes."""

        class Broken(ARSampling):
            def step(self, state: ARState) -> ARState:
                raise RuntimeError("features are missing")

        return Broken(ARTarget(pair.ar))


@pytest.mark.usefixtures("others")
def test_what_samples_another_law_has_no_bound_to_the_ar_law() -> None:
    [row] = toy(dataclasses.replace(SETTINGS, methods=("other-law",))).rows
    assert (row.proper, row.for_ar, row.targets, row.nats, row.nats_per_token) == (True, False, "PoE", None, None)
    assert row.bound == "other law"
    assert row.ess == 1.0


@pytest.mark.usefixtures("others")
def test_all_leaves_out_what_cannot_run_with_one_line_each(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = ("ar", "not-here", "dlm-2", "breaks", "other-law")
    monkeypatch.setattr("smc_bridge.analysis.comparison.comparing.default_methods", lambda: few)
    base = ["compare", "--task", "toy", "--n", "5", "--temperature", "1", "--batch", "2"]
    code, out, err = run(*base, "--methods", "all")
    assert code == 0
    first, second, begun, *_ = err.splitlines()
    assert first == (
        "smc-bridge: not-here is left out, it cannot run on these models: method not-here failed: ImportError: no "
        "module named there; repair or remove its package"
    )
    assert second == (
        "smc-bridge: breaks is left out, it cannot run on these models: RuntimeError: features are missing"
    )
    assert begun.startswith("smc-bridge: 3 methods on 5 problems: about ")
    saved = json.loads((tmp_path / "runs" / "compare.json").read_text())
    assert saved["methods"] == [row["method"] for row in saved["rows"]] == ["ar", "dlm-2", "other-law"]
    again = run(*base)
    assert again[:2] == (0, out), "all is the default, and a second call reads the file"
    assert again[2].splitlines() == [first, second]
    code, _, err = run(*base, "--methods", "ar,not-here", "--json", "named.json")
    assert (code, err.count("\n")) == (2, 1), "a method that is asked for by name is not left out"
    monkeypatch.setattr("smc_bridge.analysis.comparison.comparing.default_methods", lambda: ("not-here",))
    code, _, err = run(*base, "--json", "none.json")
    assert code == 2
    assert err.splitlines()[-1].endswith("none of them can run on this pair; give other models, or methods by name")


def test_the_table_of_all_methods_fits_on_a_page() -> None:
    settings = dataclasses.replace(SETTINGS, methods=default_methods())
    table = toy(settings, left_out=lambda name, why: None).table()
    for width in (100, 120):
        stream = io.StringIO()
        print_table(Console(file=stream, width=width), table)
        assert stream.getvalue().count("┡") == 1, f"the table is in parts at {width} columns"


@pytest.mark.parametrize(("method", "shown"), [("smc-1x2", "-"), ("smc-3", " of 3"), ("ar", "-")])
def test_effective_sample_size_of_one_particle_is_not_shown(method: str, shown: str) -> None:
    table = render(toy(dataclasses.replace(SETTINGS, methods=(method,))).rows)
    [cell] = next(column for column in table.columns if column.header == "ESS").cells
    assert str(cell).endswith(shown)


def test_missing_extra_is_one_line_and_exit_code_2(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = run(*BASE, "--workers", "4")
    assert (code, out) == (2, "")
    assert err == "smc-bridge: error: --workers 4 needs ray: pip install -e '.[ray]' in a clone\n"
    assert list(tmp_path.iterdir()) == []


def test_smc_method_names_its_particles_and_lanes() -> None:
    [result] = decoded("smc-2x3", [[1]])
    assert len(result.sequences) == 2
    assert {len(lanes) for record in result.trace for lanes in record.length} == {3}


def test_answer_is_a_draw_from_the_weights() -> None:
    own = [cell for cell in toy().cells if cell["method"] == "smc-3"]
    texts, evidence = ([value for cell in own for value in cell[name]] for name in ("texts", "log_evidences"))
    prompts = [toy_pair().encode(item.prompt).tolist() for item in ToyTask().problems(5)]
    results = decoded("smc-3", prompts)
    assert texts == [result.sample(seed=0) for result in results]
    assert evidence == pytest.approx([result.log_evidence for result in results], abs=1e-12)


def test_wilson_interval_is_that_of_the_literature() -> None:
    """Ten of ten: [0.722, 1]; 81 of 263: [0.255, 0.366] (Newcombe 1998, table I)."""
    every = wilson(10, 10)
    assert (every.value, round(every.low, 3), every.high) == (1.0, 0.722, 1.0)
    some = wilson(81, 263)
    assert (round(some.low, 4), round(some.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 5).low == 0.0


def test_nats_per_token_are_those_of_the_analysis_package() -> None:
    """By the length of what is drawn, which is not the mean over the particles."""
    results = decoded("smc-3", [toy_pair().encode(item.prompt).tolist() for item in ToyTask().problems(5)])
    assert sum(run.drawn_tokens for run in results) != pytest.approx(sum(run.tokens for run in results), rel=1e-3)
    expected = kl_per_token(results)
    found = next(row for row in toy().rows if row.method == "smc-3").nats_per_token
    assert found is not None
    ends = expected.value, expected.low, expected.high
    assert (found.value, found.low, found.high) == pytest.approx(ends, rel=1e-9)


def test_frame_has_a_row_for_each_method_and_a_column_for_each_number() -> None:
    comparison = toy()
    frame = comparison.frame()
    assert frame["method"].tolist() == list(SETTINGS.methods)
    for row, (_, found) in zip(comparison.rows, frame.iterrows(), strict=True):
        assert (found["accuracy"], found["accuracy_low"]) == (row.accuracy.value, row.accuracy.low)
        assert found["tokens_per_second"] == row.tokens_per_second
        assert math.isnan(found["nats_high"]) if row.nats is None else found["nats_high"] == row.nats.high
        assert math.isnan(found["ess"]) if row.ess is None else found["ess"] == row.ess
    assert not any(isinstance(value, dict | list) for value in frame.to_numpy().ravel())


def test_a_comparison_shows_itself_in_a_few_lines() -> None:
    comparison = toy()
    assert repr(comparison).splitlines() == [
        "Comparison on 5 problems of 'toy': target temperature 1, w = 0.7, seed 0",
        "  methods ar, dlm-2, released, smc-3", "  figures in .frame(), .table() and .rows",
    ]
    assert all(name in str(comparison.table()) for name in SETTINGS.methods)


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (("ar", "smc-3"), "target temperature 1, w = 0.3, seed 0"),
        (("ar", "speculative"), "target temperature 1, seed 0"),
        (("ar", "smc,w=0.7"), "target temperature 1, seed 0"),
        (("smc", "smc,w=0.7"), "target temperature 1, w = 0.3 where not spelled, seed 0"),
        (("ar", "smc,temperature=0.5"), "target temperature 1 where not spelled, w = 0.3, seed 0"),
        (("ar,temperature=0.5", "dlm,temperature=0.5"), "seed 0"),
    ],
)
def test_titles_say_what_holds_for_all(methods: tuple[str, ...], told: str) -> None:
    assert Settings("toy", 5, methods, temperature=1.0).shared == told


def test_only_programs_that_are_exact_by_construction_have_a_bound_of_zero() -> None:
    record: Record = {
        "runs": 3, "sequences": 1, "proper": True, "seconds": 1.0, "correct": [True] * 3, "log_evidences": [0.0] * 3,
        **{name: [1] * 3 for name in ("tokens", "run_tokens", "dlm_forwards", "ar_forwards", "ar_tokens", "ess")},
    }
    rows = [summarise("a", [{**record, "exact": exact}]) for exact in (True, False)]
    assert [(row.nats.low, row.nats.high) for row in rows if row.nats] == [(0.0, 0.0), (0.0, math.inf)]
    found = toy(dataclasses.replace(SETTINGS, methods=("speculative", "smc-1"), n=2))
    exact, other = (row.nats for row in found.rows)
    assert exact is not None
    assert (exact.value, exact.low, exact.high) == (0.0, 0.0, 0.0)
    assert other is not None
    assert other.value > 0
    assert other.high > 0


def test_arithmetic_task_is_the_held_out_problems() -> None:
    task = TASKS["arithmetic"]
    assert task.problems(3, offset=2) == task.problems(5)[2:]
    item = task.problems(1)[0]
    assert task.grade(f"Some steps.\n#### {item.answer}", item.answer)
    assert not task.grade(f"#### {item.answer + 1}", item.answer)
    assert not task.grade("no answer", item.answer)
    with pytest.raises(ValueError, match="n = 1001"):
        task.problems(1001)


def test_entry_point_names_the_command() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    value = project["project"]["entry-points"]["smc_bridge.commands"]["compare"]
    assert metadata.EntryPoint("compare", value, "smc_bridge.commands").load() is command


def test_blanks_in_a_spelling_make_no_other_method() -> None:
    assert Settings("toy", 2, ("smc, w = 0.3",)).methods == ("smc,w=0.3",)


def test_tokens_per_forward_are_a_ratio_of_sums_with_its_interval() -> None:
    found = toy(dataclasses.replace(SETTINGS, methods=("smc-3",)))
    tokens, forwards = (
        np.array([x for cell in found.cells for x in cell[name]], dtype=float) for name in ("tokens", "dlm_forwards")
    )
    rate = found.rows[0].tokens_per_dlm_forward
    assert rate is not None
    assert rate.value == pytest.approx(tokens.sum() / forwards.sum())
    assert (rate.low, rate.high) == ratio_interval(tokens, forwards)
    assert rate.low < rate.value < rate.high, "five problems differ"

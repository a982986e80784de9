"""`compare`, `certify` and `study` on prompts and on models of the user's own, continued and refused."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smc_bridge.analysis.commands.certify import command as certify_command
from smc_bridge.analysis.commands.compare import command as compare_command
from smc_bridge.analysis.commands.plot import command as plot_command
from smc_bridge.analysis.commands.study import command as study_command
from smc_bridge.analysis.study import load_study
from smc_bridge.cli import main
from smc_bridge.commands.models import Models
from smc_bridge.models import pairs
from smc_bridge.models.pairs import Pair
from tests.models.checkpoints import save_checkpoint
from tests.toys import LIMIT, toy_pair

LIMITS = ["--max-new-tokens", str(LIMIT)]
SIZES = ["--window", "3", "--lookahead", str(LIMIT)]
COMMANDS = {
    "compare": ["compare", *LIMITS, *SIZES, "--methods", "ar,smc-2", "--batch", "2", "--json", "c.json"],
    "certify": ["certify", *LIMITS, *SIZES, "--method", "smc-2", "--batch", "2", "--json", "c.json"],
    "study": ["study", "small.toml", *LIMITS, "--out", "c.json"],
}
CONFIG = f'methods = ["smc", "ar"]\nparticles = 2\nwindows = 3\nlookahead = {LIMIT}\n[task]\nbatch = 2\n'
PROMPTS = [{"prompt": "2 1", "answer": "1", "id": "x"}, {"prompt": "1", "answer": "2"}, {"prompt": "2", "answer": "0"}]

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, prompts: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in prompts))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, standard output and standard error of a command line, beside a study and three prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    (tmp_path / "small.toml").write_text(CONFIG)
    write(tmp_path / "p.jsonl", PROMPTS)

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv], commands=[compare_command, certify_command, study_command, plot_command])
        out, err = capsys.readouterr()
        return code, out, err

    return call


TOY = ["--pair", "toy", "--prompts", "p.jsonl"]


@pytest.mark.parametrize("command", COMMANDS)
def test_prompts_of_ones_own_are_run_and_continued(run: Run, tmp_path: Path, command: str) -> None:
    argv = [*COMMANDS[command], *TOY, "--grader", "contains"]
    code, out, err = run(*argv)
    assert code == 0, err
    assert "p.jsonl" in out
    assert "accuracy" in out
    assert "graded by contains" in out
    kept = (tmp_path / "c.json").read_bytes()
    assert run(*argv) == (0, out, ""), "a second call reads the file"
    assert (tmp_path / "c.json").read_bytes() == kept


@pytest.mark.parametrize("command", COMMANDS)
def test_prompts_without_answers_have_no_accuracy(run: Run, tmp_path: Path, command: str) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": each["prompt"]} for each in PROMPTS])
    code, out, err = run(*COMMANDS[command], *TOY)
    assert code == 0, err
    assert "accuracy" not in out
    assert "graded" not in out
    if command == "study":
        assert load_study("c.json").accuracy.isna().all()
    else:
        assert run("plot", "c.json")[0] == (0 if command == "compare" else 2), "another figure is drawn by default"


def test_ids_are_kept_with_what_was_found(run: Run, tmp_path: Path) -> None:
    run(*COMMANDS["compare"], *TOY)
    cells = json.loads((tmp_path / "c.json").read_text())["cells"]
    assert [name for cell in cells for name in cell["ids"]] == ["x", "2", "3"] * 2
    (tmp_path / "c.json").unlink()
    run(*COMMANDS["certify"], *TOY)
    cells = json.loads((tmp_path / "c.json").read_text())["cells"]
    for part in ("free runs", "conditional runs"):
        runs = [each for cell in cells if cell["part"] == part for each in cell["results"]]
        assert [each["settings"]["id"] for each in runs] == ["x", "2", "3"]


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "another prompt": (lambda path: write(path, [*PROMPTS[:2], {"prompt": "2 2", "answer": "0"}]), []),
    "another answer": (lambda path: write(path, [*PROMPTS[:2], {"prompt": "2", "answer": "1"}]), []),
    "another id": (lambda path: write(path, [*PROMPTS[:2], {**PROMPTS[2], "id": "y"}]), []),
    "another grader": (lambda path: None, ["--grader", "contains"]),
    "another limit": (lambda path: None, ["--max-new-tokens", "2"]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("change", CHANGES)
def test_other_prompts_under_the_same_name_are_refused(run: Run, tmp_path: Path, command: str, change: str) -> None:
    assert run(*COMMANDS[command], *TOY)[0] == 0
    kept = (tmp_path / "c.json").read_bytes()
    edit, argv = CHANGES[change]
    edit(tmp_path / "p.jsonl")
    code, out, err = run(*COMMANDS[command], *TOY, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "= c.json: holds a " in err
    assert "problems = " in err
    assert (tmp_path / "c.json").read_bytes() == kept


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name two checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(folder / "dlm", "qwen2", seed=1, entry={"shift": True, "mask_token_id": 3})
    save_checkpoint(folder / "ar", "llama", seed=2)
    return ["--dlm", str(folder / "dlm"), "--ar", str(folder / "ar"), "--device", "cpu"]


@pytest.mark.parametrize("command", COMMANDS)
def test_models_of_ones_own_are_run_continued_and_told_apart(
    run: Run, tmp_path: Path, models: list[str], command: str
) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "w1 w2"}, {"prompt": "w3"}])
    argv = [*COMMANDS[command], *models, "--prompts", "p.jsonl"]
    code, out, err = run(*argv)
    assert code == 0, err
    assert run(*argv) == (0, out, "")
    kept = (tmp_path / "c.json").read_bytes()
    others = {"compare": ["--dlm-cache", "prefix"], "certify": ["--mask-id", "0"], "study": ["--dtype", "float64"]}
    other = others[command]
    code, out, err = run(*argv, *other)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "= c.json: holds a " in err
    assert "pair = " in err
    assert f"{other[0].removeprefix('--').replace('-', '_')}={other[1]}" in err
    assert (tmp_path / "c.json").read_bytes() == kept


def test_the_form_of_prompts_is_part_of_what_results_are_told_apart_by() -> None:
    own = Models(("a", "b"), {"mask_id": None, "chat": False, "system": "two\nlines", "device": "cpu"})
    assert own.identity == r"a, b, chat=False, system='two\nlines'"
    assert Models(("a", "b"), {"mask_id": None, "system": None}).identity == "a, b"


def test_a_task_is_run_with_models_of_ones_own_and_other_limits(run: Run) -> None:
    code, out, err = run("compare", *LIMITS, *SIZES, "--pair", "toy", "--n", "1", "--methods", "ar", "--json", "c.json")
    assert (code, out) == (2, ""), "the toy reads no words"
    assert err.count("\n") == 1
    argv = ["certify", "--n", "2", "--max-new-tokens", "3", "--method", "speculative", "--device", "cpu"]
    code, out, err = run(*argv, "--dlm-cache", "prefix")
    assert (code, err.count("\n")) == (0, 2), "a line for each part"
    assert "2 problems of arithmetic" in out


REFUSED: dict[str, tuple[list[str], str]] = {
    "task and file": (["compare", "--task", "arithmetic", *TOY], "--task = arithmetic with --prompts: give one"),
    "grader of a task": (["certify", "--grader", "exact"], "--grader = exact is for the answers of a file"),
    "grader of a study": (["study", "task.toml", "--grader", "exact"], "--grader = exact is for the answers of a file"),
    "bad line": (["compare", "--pair", "toy", "--prompts", "bad.jsonl"], "--prompts = bad.jsonl, line 1: is not JSON"),
    "one prompt": (["certify", "--pair", "toy", "--prompts", "one.jsonl"], "--prompts = one.jsonl: has 1 prompt; an"),
    "more than there are": (["certify", *TOY, "--n", "9"], "--n = 9: 'p.jsonl' has 3 prompts; give 1 to 3"),
    "mask of a pair of ours": (["compare", *TOY, "--mask-id", "0"], "--mask-id is for models of your own"),
    "models of tabular ones": (
        ["study", "tabular.toml", "--dtype", "float64"], "--dtype is for prompts, and tabular.toml has tabular models",
    ),
    "limit of tabular ones": (["study", "tabular.toml", *LIMITS], "--max-new-tokens is for prompts, and tabular.toml"),
    "prompts of tabular ones": (
        ["study", "tabular.toml", *TOY], "config = tabular.toml: [tabular] with prompts from a file: leave it out",
    ),
    "prompts of a task": (["study", "task.toml", *TOY], "config = task.toml: name of [task] with prompts from a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_is_refused_before_models_load(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def load(device: torch.device, dtype: torch.dtype) -> Pair:
        raise AssertionError("a model was loaded")

    for name in ("toy", "arithmetic"):
        monkeypatch.setitem(pairs.PAIRS, name, load)
    (tmp_path / "bad.jsonl").write_text("buy milk\n")
    write(tmp_path / "one.jsonl", PROMPTS[:1])
    (tmp_path / "tabular.toml").write_text("[tabular]\nruns = 3\n")
    (tmp_path / "task.toml").write_text('[task]\nname = "arithmetic"\n')
    argv, words = REFUSED[case]
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"smc-bridge: error: {words}"), err
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("command", ["compare", "study"])
def test_a_worker_is_sent_names_and_prompts_rather_than_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[str], command: str
) -> None:
    """As a process elsewhere would, with a grader that lies beside the user."""
    sent: list[int] = []

    def elsewhere(make: Any, items: Any, *, workers: int) -> Any:
        data = pickle.dumps((make, items))
        sent.append(len(data))
        make, items = pickle.loads(data)
        job = make()
        yield from ((i, job(item)) for i, item in enumerate(items))

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("smc_bridge.analysis.runner.map_cells", elsewhere)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "verdicts_of_mine.py").write_text("def long(text, answer):\n    return len(text) > answer['least']\n")
    write(tmp_path / "p.jsonl", [{"prompt": f"w{i}", "answer": {"least": i}} for i in (1, 99)])
    argv = [*models, "--prompts", "p.jsonl", "--grader", "verdicts_of_mine:long", "--workers", "2"]
    code, out, err = run(*COMMANDS[command], *argv)
    assert code == 0, err
    assert "50.0" in out, "one of two is long enough"
    assert len(sent) == 1
    assert sent[0] < 10_000, "bytes"

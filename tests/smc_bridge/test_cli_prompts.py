"""`smc-bridge decode --prompts FILE.jsonl`: a result a line, and bad input refused before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smc_bridge import Result
from smc_bridge.cli import main
from smc_bridge.engine.presets import smc
from smc_bridge.models import pairs
from smc_bridge.models.pairs import Pair
from smc_bridge.models.tabular import TabularCausalSession
from tests.toys import LIMIT, toy_pair

BASE = [
    "decode", "--pair", "toy", "--window", "3", "--lookahead", str(LIMIT), "--max-new-tokens", str(LIMIT),
    "--prompts", "p.jsonl",
]
PROMPTS = [
    {"prompt": "2 1", "answer": "1 0", "id": "first"}, {"prompt": "1", "answer": "2"}, {"prompt": "2", "answer": 0},
]
Run = Callable[..., tuple[int, str, str]]


def write(path: Path, prompts: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in prompts), encoding="utf-8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code, standard output and standard error of a command line, beside three prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    write(tmp_path / "p.jsonl", list(PROMPTS))

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv], commands=[])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def saved(path: str = "r.jsonl") -> list[Result]:
    return [Result.from_dict(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_saved_results_are_the_librarys_with_ids_and_verdicts(run: Run) -> None:
    argv = ["--particles", "3", "--seed", "5", "--grader", "contains", "--json", "r.jsonl"]
    code, out, err = run(*BASE, *argv)
    assert (code, err) == (0, "")
    expected = smc(toy_pair(), 3, window=3, lookahead=LIMIT).run(
        [[2, 1], [1], [2]], seed=5, max_new_tokens=LIMIT
    )
    results = saved()
    assert [found.settings["id"] for found in results] == ["first", "2", "3"]
    for found, other, prompt in zip(results, expected, PROMPTS, strict=True):
        assert (found.sequences, found.log_weights) == (other.sequences, other.log_weights)
        text = other.sample(seed=5)
        assert (found.settings["answer"], found.settings["correct"]) == (
            prompt["answer"], str(prompt["answer"]) in text
        )
        assert text in out
    right = sum(found.settings["correct"] for found in results)
    assert f"p.jsonl, graded by contains: 3 prompts, {100 * right / 3:.1f} % right ({right} of 3), " in out


def test_batches_and_a_part_of_the_file_give_the_same_results(run: Run) -> None:
    run(*BASE, "--json", "r.jsonl")
    whole = saved()
    assert run(*BASE, "--json", "s.jsonl", "--n", "2", "--batch", "1")[0] == 0
    assert [found.log_weights for found in saved("s.jsonl")] == [found.log_weights for found in whole[:2]]


def test_prompts_without_answers_have_no_verdict(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "2 1"}, {"prompt": "1"}])
    code, out, _ = run(*BASE, "--json", "r.jsonl", "--trace")
    assert code == 0
    assert "right" not in out
    assert "wrong" not in out
    assert out.count("trace: ") == 2
    assert all("correct" not in found.settings and "answer" not in found.settings for found in saved())
    assert saved()[0].settings["tokens"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "with a prompt": (["2 1"], "PROMPT with --prompts: give one of them"),
    "no such file": (["--prompts", "none.jsonl"], "--prompts = none.jsonl: cannot be read (No such file"),
    "a folder": (["--prompts", "."], "--prompts = .: cannot be read (Is a directory)"),
    "bad line": (["--prompts", "bad.jsonl"], "--prompts = bad.jsonl, line 2: has no 'prompt', but 'question'"),
    "empty": (["--prompts", "empty.jsonl"], "--prompts = empty.jsonl: has no prompts"),
    "no answers to grade": (
        ["--prompts", "bare.jsonl", "--grader", "number"], "--grader = number: --prompts = bare.jsonl has no answers",
    ),
    "unknown grader": (["--grader", "fuzzy"], "--grader = 'fuzzy': choose from exact, number, contains, or"),
    "missing module": (["--grader", "no_such_module:f"], "--grader = 'no_such_module:f': cannot be imported"),
    "too many": (["--n", "4"], "--n = 4: 'p.jsonl' has 3 prompts; give 1 to 3"),
    "pair and models": (["--ar", "x"], "--pair = toy with --dlm or --ar"),
    "foreign file": (["--json", "bare.jsonl"], "--json = bare.jsonl: is not a saved result; give another file"),
    "contradiction": (["--nodes", "4"], "--nodes = 4 with --kernel = rejection"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_models_load(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def load(device: torch.device, dtype: torch.dtype) -> Pair:
        raise AssertionError("a model was loaded")

    monkeypatch.setitem(pairs.PAIRS, "toy", load)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1"}\n{"question": "1"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bare.jsonl").write_text('{"prompt": "1"}\n')
    argv, words = REFUSED[case]
    code, out, err = run(*BASE, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"smc-bridge: error: {words}"), err


@pytest.mark.parametrize("argv", [["--grader", "exact"], ["--n", "2"], ["--batch", "2"]])
def test_options_of_a_file_without_one_are_refused(run: Run, argv: list[str]) -> None:
    code, _, err = run("decode", "2 1", "--pair", "toy", *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{argv[0]} = {argv[1]} is for a file of prompts: give --prompts too" in err


def test_an_empty_text_is_no_text_without_weight(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "sample", lambda self, count=None, *, seed=None: "")
    code, out, _ = run(*BASE)
    assert code == 0
    assert "every weight is zero" not in out


def test_a_prompt_that_is_too_long_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = toy_pair()
    pair.ar.max_length = 5  # type: ignore[attr-defined]
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: pair)
    code, _, err = run(*BASE)
    assert (code, err.count("\n")) == (2, 1)
    assert "p.jsonl: prompt 'first' has 2 tokens, with --max-new-tokens = 4 more than the 5" in err


def test_ctrl_c_saves_what_is_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    score, calls = TabularCausalSession.score, 0

    def stop(self: TabularCausalSession, *arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(TabularCausalSession, "score", stop)
    code, out, err = run(*BASE, "--window", "1", "--batch", "1", "--json", "r.jsonl")
    assert (code, out, err.count("\n")) == (130, "", 1)
    found = saved()
    assert err == (
        f"smc-bridge: interrupted: {len(found)} of 3 results, some of them partial, are saved as r.jsonl\n"
    )
    assert 1 <= len(found) < 3
    assert found[0].settings["id"] == "first"

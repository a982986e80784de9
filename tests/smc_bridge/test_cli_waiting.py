"""What a terminal shows of a command at work; nothing elsewhere, and no result depends on it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.status import Status
from transformers.utils.logging import enable_progress_bar

from smc_bridge.cli import main
from smc_bridge.models.pairs import load_pair
from tests.models.checkpoints import save_checkpoint

Run = Callable[..., str]
PROBLEM = "Ann has 9 apples. Ann buys 3 more. How many apples does Ann have now?"
ARGV = ["decode", PROBLEM, "--device", "cpu", "--max-new-tokens", "6"]


class Terminal(io.StringIO):
    """A terminal that remembers all it was sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """What a command shows on a terminal, in the order in which it came; lines are rewritten in place."""
    monkeypatch.setenv("TERM", "xterm")
    change = Status.update

    def at_once(status: Status, text: Any) -> None:
        """Rich paints a few times a second, which would miss what a tiny model does."""
        change(status, text)
        status._live.refresh()

    monkeypatch.setattr(Status, "update", at_once)

    def call(*argv: str) -> str:
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert main([*argv, "--json", str(tmp_path / "out.json")], commands=[]) == 0, terminal.getvalue()
        return terminal.getvalue()

    return call


@pytest.mark.parametrize("method", ["smc,window=2", "ar", "dlm-1"])
def test_loading_and_the_tokens_of_a_prompt_are_shown(
    shown: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    text = shown(*ARGV, "--method", method)
    assert text.index("loading arithmetic") < text.index("decoding")
    counts = [int(count) for count in re.findall(r"decoding: (\d+) of at most 6 tokens", text)]
    assert counts == sorted(counts)
    assert counts[-1] == max(map(len, json.loads((tmp_path / "out.json").read_text())["sequences"]))
    assert len(set(counts)) > 1
    assert "decoding" not in capsys.readouterr().out


def test_two_checkpoints_are_named_and_transformers_shows_no_bar(shown: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    text = shown("decode", "w1 w2", "--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar"), *ARGV[2:])
    plain = re.sub(r"\s+", "", text)
    assert f"loading{tmp_path / 'dlm'}and{tmp_path / 'ar'}" in plain
    assert "%" not in plain


def test_the_prompts_of_a_file_are_counted(shown: Run, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Ann has {i} apples."}) + "\n" for i in range(3)))
    text = shown("decode", "--prompts", str(file), "--batch", "1", *ARGV[2:])
    assert [f"{i} of 3 prompts" in text for i in range(4)] == [True] * 4


def test_what_is_shown_changes_no_draw_and_a_pipe_shows_nothing(
    shown: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(*ARGV, "--seed", "3")
    watched = json.loads((tmp_path / "out.json").read_text())
    assert main([*ARGV, "--seed", "3", "--json", str(tmp_path / "out.json")], commands=[]) == 0
    alone = json.loads((tmp_path / "out.json").read_text())
    assert capsys.readouterr().err == ""
    assert watched["sequences"] == alone["sequences"]
    assert watched["log_weights"] == alone["log_weights"]
    assert watched["settings"] == alone["settings"]


@pytest.mark.parametrize("terminal", [True, False])
def test_in_python_transformers_shows_on_a_terminal_that_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Also those of a folder: gigabytes take minutes."""
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    enable_progress_bar()
    stream = Terminal() if terminal else io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu")
    assert stream.getvalue().count("100%") == (2 if terminal else 0), stream.getvalue()

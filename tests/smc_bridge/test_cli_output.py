"""What is computed is saved before it is printed, whatever becomes of standard output; and what plug-ins may break."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import IO

import pytest

from smc_bridge import Result
from smc_bridge.cli import main
from smc_bridge.commands import words
from smc_bridge.commands.base import Command, destination, importing
from smc_bridge.commands.decode import command as decode
from smc_bridge.commands.dispatch import build_parser
from smc_bridge.commands.plugins import GROUP
from smc_bridge.models import pairs
from tests.smc_bridge.test_files import full_device
from tests.toys import LIMIT, toy_pair

ROOT = Path(__file__).parents[2]
BASE = ["decode", "2 1", "--pair", "toy", "--window", "3", "--lookahead", str(LIMIT), "--max-new-tokens", str(LIMIT)]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Exit code and standard error of a command line, with standard output as given, in a folder of its own."""
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    monkeypatch.chdir(tmp_path)

    def call(*argv: str, out: IO[str] | None) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", out)
            code = main([*argv], commands=[])
        return code, capsys.readouterr().err

    return call


def closed_pipe() -> IO[str]:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


def test_a_result_is_saved_though_standard_output_is_full(run: Run, tmp_path: Path) -> None:
    with full_device(tmp_path).open("w") as full:
        code, err = run(*BASE, "--json", "r.json", out=full)
    assert (code, err) == (2, (
        "smc-bridge: error: standard output cannot be written (No space left on device); send it elsewhere; the result "
        "is saved as r.json\n"
    ))
    assert Result.load("r.json").complete


def test_a_result_is_saved_though_nobody_reads(run: Run) -> None:
    with closed_pipe() as pipe:
        assert run(*BASE, "--trace", "--json", "r.json", out=pipe) == (1, "")
    assert Result.load("r.json").complete


def test_a_result_is_saved_though_standard_output_is_closed(run: Run) -> None:
    assert run(*BASE, "--json", "r.json", out=None) == (0, "")
    assert Result.load("r.json").complete


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_that_the_encoding_lacks_is_replaced(
    run: Run, monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str
) -> None:
    pair = toy_pair()
    monkeypatch.setattr(type(pair.tokenizer), "decode", lambda self, ids: "κ ≤ " + "".join(map(str, ids)))
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
    assert run(*BASE, "--trace", "--json", "κ.json", out=out) == (0, "")
    assert out.errors == errors, "the caller's stream is as it was"
    out.flush()
    text = out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "? ? " in text
    assert "saved as ?.json" in text
    assert Result.load("κ.json").complete


def test_a_result_that_cannot_be_saved_is_shown(run: Run, tmp_path: Path) -> None:
    out = io.StringIO()
    device = full_device(tmp_path)
    code, err = run(*BASE, "--json", str(device), out=out)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--json = {device}: cannot be written (No space left on device)" in err
    assert "tokens/s" in out.getvalue()


def test_dash_gives_json_on_standard_output_and_tables_on_standard_error(run: Run) -> None:
    out = io.StringIO()
    code, err = run(*BASE, "--json", "-", out=out)
    assert code == 0
    assert Result.from_dict(json.loads(out.getvalue())).complete
    assert "tokens/s" in err
    assert not Path("-").exists()


def test_a_file_with_something_else_is_not_overwritten(run: Run) -> None:
    out = io.StringIO()
    Path("notes.txt").write_text("buy milk")
    assert run(*BASE, "--json", "notes.txt", out=out) == (
        2, "smc-bridge: error: --json = notes.txt: is not a saved result; give another file\n"
    )
    assert Path("notes.txt").read_text() == "buy milk"
    Path("empty").touch()
    for name in ("empty", "empty"):  # a result may be replaced by another one
        assert run(*BASE, "--json", name, out=out)[0] == 0


def test_a_file_named_dash_can_be_named() -> None:
    assert (destination("-"), destination("./-")) == (Path("-"), Path.cwd() / "-")
    assert destination("a/../b") == Path("a/../b")


MESSAGES = {
    "max_new_tokens = 0: give more": "--max-new-tokens = 0: give more",
    "set trust_remote_code = True, or dlm_tokenizer": "set --trust-remote-code, or --dlm-tokenizer",
    "proposal_temperature = 0: no": "--lane-temperatures = 0: no",
    "--seed = 1, window = 2 or x.window = 3, 'seed = 3'": "--seed = 1, --window = 2 or x.window = 3, 'seed = 3'",
    "path = 'r.json' cannot be written": "--json = 'r.json' cannot be written",
    "weight = 'bal': did you mean balance?": "weight = 'bal': did you mean balance?",
    "method = 'x': max_tokens is no option of smc: did you mean proposal_temperature? it has w, max_new_tokens":
        "--method = 'x': max_tokens is no option of smc: did you mean proposal_temperature? it has w, max_new_tokens",
    "w = 2 with method = ar, which has none: leave it out; it has proposal_temperature, top_p":
        "--w = 2 with --method = ar, which has none: leave it out; it has proposal_temperature, top_p",
    "it fails; give system, or set chat = False, or give format_prompt, f": "it fails; give --system, or set --plain",
    "no template; leave system out, or give format_prompt": "no template; leave --system out",
    "give window, or leave seed out; give tokens": "give --window, or leave --seed out; give tokens",
    "a window of 3 tokens, max_new_tokens(x), a.max_new_tokens": "a window of 3 tokens, max_new_tokens(x), "
    "a.max_new_tokens",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_in_the_words_of_flags(message: str) -> None:
    parser = build_parser([decode]).parse_args(["decode", "x"]).parser
    assert words.in_flags(message, parser) == MESSAGES[message]


@pytest.mark.parametrize(("argv", "unknown", "remedy"), [
    (["--dml", "X"], "--dml X", "did you mean --dlm? "),
    (["--sead=3"], "--sead=3", "did you mean --seed? "),
    (["--weigh", "1"], "--weigh 1", "did you mean --w? "),
    (["y"], "y", "leave it out, "),
])
def test_what_a_command_does_not_know_is_told_with_the_nearest_flag(
    run: Run, argv: list[str], unknown: str, remedy: str
) -> None:
    code, err = run("decode", "x", *argv, out=io.StringIO())
    assert (code, err) == (2, (
        f"smc-bridge: error: {unknown} is not an argument of `smc-bridge decode`: {remedy}see `smc-bridge decode "
        "--help`\n"
    ))


def test_dlm_without_ar_says_so(run: Run) -> None:
    code, err = run("decode", "x", "--dlm", "somewhere", out=io.StringIO())
    assert (code, err) == (2, (
        "smc-bridge: error: --dlm = somewhere without --ar: give the autoregressive model of your pair too, with "
        "--ar NAME\n"
    ))


def _fails(parser: object) -> None:
    raise RuntimeError("no 50 % today")


broken_arguments = Command("odd", "Fails.", _fails, lambda arguments: 0)
broken_help = Command("percent", "100 %.", lambda parser: None, lambda arguments: 0)
second_decode = Command("decode", "Another.", lambda parser: None, lambda arguments: 0)
working = Command("works", "Works.", lambda parser: None, lambda arguments: print("it works") or 0)  # type: ignore[func-returns-value]
not_a_command = 3


def test_a_broken_plug_in_does_not_take_the_others_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = __name__
    entries = {
        "missing": "no_such_module_at_all:command", "nothing": f"{here}:nowhere", "odd": f"{here}:broken_arguments",
        "percent": f"{here}:broken_help", "twice": f"{here}:second_decode", "works": f"{here}:working",
        "number": f"{here}:not_a_command",
    }
    monkeypatch.setattr(
        "smc_bridge.commands.plugins.declared", lambda group: [EntryPoint(*entry, GROUP) for entry in entries.items()]
    )
    assert main(["works"]) == 0
    out, err = capsys.readouterr()
    assert out == "it works\n"
    lines = err.splitlines()
    assert [line.split()[2] for line in lines] == sorted(set(entries) - {"works"}), err
    assert "no_such_module_at_all" in lines[0]
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.count("unavailable: ") == 6
    assert "no 50 % today" in " ".join(out.split())
    assert main(["odd", "--anything"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "smc-bridge: error: command odd is unavailable: RuntimeError: no 50 % today; repair or remove its package"
    )


@pytest.mark.parametrize("module", ["rich.console", "smc_bridge.analysis.workers"])
def test_ctrl_c_during_an_import_is_quiet(module: str) -> None:
    """The interruption comes as the module's import begins: before the commands are looked for, and amidst them."""
    code = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from smc_bridge.cli import main
sys.exit(main(["--version"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "smc-bridge: interrupted\n")


def test_an_import_is_not_cut_short() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with importing():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("imported")
        done.append("used")
    assert done == ["imported"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ignores_ctrl_c_ignores_it_during_imports_too() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with importing():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_warning_is_one_line_in_the_words_of_flags() -> None:
    code = """
import sys, warnings
from smc_bridge.cli import main
from smc_bridge.commands.base import Command
def run(arguments):
    warnings.warn("eos_id = 7: is not the end\\n  of the model's configuration")
    return 0
sys.exit(main(["odd"], commands=[Command("odd", "", lambda parser: parser.add_argument("--eos-id"), run)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        0, "", "smc-bridge: warning: --eos-id = 7: is not the end of the model's configuration\n"
    )


def test_the_package_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "smc_bridge", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "smc-bridge 0.1.0\n", "")

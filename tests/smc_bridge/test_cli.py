"""`smc-bridge decode`: what it prints, and that every bad input is one line and exit code 2."""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from smc_bridge import Result, Sampler
from smc_bridge.cli import main
from smc_bridge.commands.decode import command
from smc_bridge.commands.dispatch import build_parser
from smc_bridge.commands.options import method_of
from smc_bridge.commands.plugins import GROUP
from smc_bridge.commands.rendering import accepted_lengths, render_result
from smc_bridge.commands.trace_rendering import lane_shares, lane_text, render_trace, token_texts
from smc_bridge.engine.presets import smc, tree_kernel
from smc_bridge.entry_points import declared
from smc_bridge.facts import Method, UnsuitedError
from smc_bridge.kernels.tree import TreeWalk
from smc_bridge.models import pairs
from smc_bridge.models.pairs import Pair, load_pair
from smc_bridge.models.tabular import TabularCausalSession
from smc_bridge.names import INTERMEDIATES, KERNELS, RESAMPLERS, TRIGGERS
from smc_bridge.registry import METHODS
from tests.toys import EOS, LIMIT, toy_pair

SHORT = ["decode", "2 1", "--pair", "toy", "--max-new-tokens", str(LIMIT)]
BASE = [*SHORT, "--window", "3", "--lookahead", str(LIMIT)]

Run = Callable[..., tuple[int, str, str]]


def sampler_of(pair: Pair, *argv: str) -> Any:
    """The decoder that `decode` makes of its flags."""
    return method_of(build_parser([command]).parse_args(["decode", "2 1", *argv])).make(pair)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pair], None]:
    """Make a pair known as "toy"."""

    def add(pair: Pair) -> None:
        monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: pair)

    add(toy_pair())
    return add


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], offer: Callable[[Pair], None]) -> Run:
    """Exit code, standard output and standard error of a command line."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv], commands=[])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def assert_refused(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert code == 2, f"exit code {code}, stderr {err!r}"
    assert out == "", f"printed {out!r}"
    assert err.startswith("smc-bridge: error: "), err
    assert err.count("\n") == 1, f"more than one line: {err!r}"
    assert "Traceback" not in err
    for word in words:
        assert word in err, f"{word!r} is not in {err!r}"


BAD_ARGUMENTS = {
    "no prompt": (["decode"], "PROMPT is missing"),
    "no command": ([], "COMMAND is missing"),
    "unknown command": (["bridge"], "COMMAND = 'bridge'"),
    "unknown argument": ([*BASE, "--beam", "4"], "--beam"),
    "abbreviated argument": ([*BASE, "--part", "4"], "--part"),
    "argument without its value": ([*BASE, "--particles"], "--particles"),
    "N = 0": ([*BASE, "--particles", "0"], "--particles = 0: give a whole number of at least 1"),
    "N negative": ([*BASE, "--particles=-1"], "--particles = -1"),
    "N no number": ([*BASE, "--particles", "many"], "--particles = many"),
    "N fractional": ([*BASE, "--particles", "1.5"], "--particles = 1.5"),
    "K = 0": ([*BASE, "--lanes", "0"], "--lanes = 0"),
    "V = 0": ([*BASE, "--window", "0"], "--window = 0"),
    "M = 0": ([*BASE, "--lookahead", "0"], "--lookahead = 0"),
    "B = 0": ([*BASE, "--kernel", "tree", "--nodes", "0"], "--nodes = 0"),
    "w above 1": ([*BASE, "--w", "1.5"], "--w = 1.5: give a number in [0, 1]"),
    "w below 0": ([*BASE, "--w=-0.1"], "--w = -0.1"),
    "w NaN": ([*BASE, "--w", "nan"], "--w = nan"),
    "temperature of 1e-39": ([*BASE, "--temperature", "1e-39"], "--temperature = 1e-39: give 0 for the likeliest"),
    "temperature negative": ([*BASE, "--temperature=-1"], "--temperature = -1: give 0 for greedy decoding, or a"),
    "temperature infinite": ([*BASE, "--temperature", "inf"], "--temperature = inf"),
    "lane temperature negative": ([*BASE, "--lane-temperatures=1,-1"], "--lane-temperatures = 1,-1: give 0 or pos"),
    "top-p 0": ([*BASE, "--top-p", "0"], "--top-p = 0"),
    "no new tokens": ([*BASE, "--max-new-tokens", "0"], "--max-new-tokens = 0"),
    "seed negative": ([*BASE, "--seed=-1"], "--seed = -1"),
    "unknown kernel": ([*BASE, "--kernel", "metropolis"], "--kernel = 'metropolis': choose from rejection, block"),
    "unknown method": ([*BASE, "--method", "beam"], "--method = 'beam': "),
    "unknown intermediate": ([*BASE, "--intermediate", "x"], "--intermediate = 'x'"),
    "unknown resampler": ([*BASE, "--resampler", "x"], "--resampler = 'x'"),
    "unknown trigger": ([*BASE, "--trigger", "x"], "--trigger = 'x'"),
    "unknown pair": (["decode", "0", "--pair", "geometry"], "pair = 'geometry'"),
    "empty prompt": (["decode", "", "--pair", "toy"], "PROMPT = ''"),
    "blank prompt": (["decode", " \n ", "--pair", "toy"], "PROMPT = "),
    "prompt of unknown tokens": (["decode", "7", "--pair", "toy"], "prompt has the token 7, which is not in the"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument_is_one_line_and_exit_code_2(run: Run, case: str) -> None:
    argv, words = BAD_ARGUMENTS[case]
    assert_refused(run(*argv), words)


CONTRADICTIONS = {
    "accept-all with another intermediate": (
        ["--kernel", "accept-all", "--intermediate", "poe"], "--kernel = accept-all",
    ),
    "accept-all in speculative decoding": (["--method", "speculative", "--kernel", "accept-all"], "accept-all"),
    "nodes without a tree": (["--nodes", "8"], "--nodes = 8"),
    "balance with one lane": (["--balance"], "--balance with one lane"),
    "lane temperatures of another number": (
        ["--lanes", "3", "--lane-temperatures", "0.5,1"],
        "--lane-temperatures = [0.5, 1.0] has 2 entries for --lanes = 3",
    ),
    "lane temperatures of the paper": (["--method", "paper", "--lane-temperatures", "1,1,1,1"], "--method = paper"),
    "weight of the proposal": (["--intermediate", "proposal", "--w", "0.3"], "--w = 0.3"),
    "weight of speculative decoding": (["--method", "speculative", "--w", "0.3"], "--w = 0.3"),
    "resampler that never runs": (["--trigger", "never", "--resampler", "ssp"], "--resampler = ssp"),
    "released is fixed": (["--method", "released", "--particles", "4"], "--particles = 4 with --method = released"),
    "tree walk without its kernel": (["--method", "tree-walk", "--kernel", "gumbel"], "--method = tree-walk"),
    "an option twice": (["--method", "smc,particles=3", "--particles", "4"], "--particles = 4 with --method = smc,"),
    "an option that is not there": (["--method", "smc,partcles=3"], "did you mean particles?"),
    "plain IS with an intermediate": (["--method", "plain-is", "--intermediate", "poe"], "--method = plain-is"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_options_that_contradict_are_refused(run: Run, case: str) -> None:
    argv, words = CONTRADICTIONS[case]
    assert_refused(run(*BASE, *argv), words)


def test_prompt_that_is_too_long_is_refused(run: Run, offer: Callable[[Pair], None]) -> None:
    pair = toy_pair()
    pair.ar.max_length = 8  # type: ignore[attr-defined]
    offer(pair)
    assert_refused(run("decode", "1 " * 20, "--pair", "toy"), "prompt has 20 tokens", "shorten")
    assert_refused(run("decode", "2 1", "--pair", "toy", "--max-new-tokens", "7"), "PROMPT has 2 tokens", "shorten")


def test_vocabularies_that_differ_are_refused(run: Run, offer: Callable[[Pair], None]) -> None:
    offer(toy_pair(dlm_size=4))
    assert_refused(run(*BASE), "alphabets differ")


def test_nan_logits_are_refused(run: Run, offer: Callable[[Pair], None], tmp_path: Path) -> None:
    pair = toy_pair()
    pair.ar._flat[3:] = torch.nan  # type: ignore[attr-defined]
    offer(pair)
    file = tmp_path / "r.json"
    assert_refused(run(*BASE, "--json", str(file)), "NaN")
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: torch.device, dtype: torch.dtype) -> Pair:
        raise FileNotFoundError("weights=folder: no checkpoint there; run `make train`")

    monkeypatch.setitem(pairs.PAIRS, "toy", missing)
    assert_refused(run(*BASE), "make train")


def test_file_that_cannot_be_written_is_refused_before_decoding(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "missing" / "r.json", tmp_path / "file" / "r.json"):
        assert_refused(run(*BASE, "--json", str(path)), f"--json = {path}")
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


#: Methods that are programs of the engine, with particles and lanes.
OWN = {name: method for name, method in METHODS.items() if method.make.__module__.startswith("smc_bridge.")}



def decoder_of(method: Method) -> Any:
    """The decoder of a method on tables, None of one that they do not suit."""
    try:
        return method.make(toy_pair())
    except UnsuitedError:
        return None


ON_TABLES = {name: decoder for name, method in OWN.items() if (decoder := decoder_of(method)) is not None}
PROGRAMS = [name for name, decoder in ON_TABLES.items() if isinstance(decoder, Sampler)]


def has(method: str, *names: str) -> list[str]:
    """Those of the options that a method has."""
    return [name for name in names if any(option.name == name for option in METHODS[method].options)]


@pytest.mark.parametrize("method", sorted(ON_TABLES.keys() - set(PROGRAMS)))
def test_other_methods_decode_and_have_no_lanes_to_show(run: Run, method: str) -> None:
    short = ["decode", "2 1", "--pair", "toy", "--max-new-tokens", str(LIMIT), "--method", method]
    code, out, err = run(*short)
    assert (code, err) == (0, "")
    assert ("not properly weighted" in out) == (METHODS[method].targets != "AR" or not METHODS[method].proper)
    assert_refused(run(*short, "--trace"), f"--trace with --method = {method}")
    if not has(method, "particles"):
        assert_refused(run(*short, "--particles", "2"), f"--particles = 2 with --method = {method}, which has none")


@pytest.mark.parametrize("method", PROGRAMS)
def test_every_program_decodes(run: Run, method: str) -> None:
    sizes = [text for name in has(method, "window", "lookahead") for text in (f"--{name}", "3")]
    code, out, err = run(*SHORT, *sizes, "--method", method, "--trace")
    assert (code, err) == (0, "")
    for word in ("weighted particles", "DLM forwards", "AR forwards", "tokens/s", "accepted lengths", "step 1"):
        assert word in out
    program = ON_TABLES[method]
    assert ("not properly weighted" in out) == (not program.proper)
    assert ("one by construction" in out) == program.exact
    bounded = program.proper and not program.exact and program.target.potential is None
    assert ("that bounds KL" in out) == ("Z - 1 - log Z" in out) == bounded


PLUGINS = [
    *(["--kernel", name] for name in KERNELS),
    *(["--intermediate", name] for name in INTERMEDIATES),
    *(["--resampler", name, "--particles", "3", "--trigger", "always"] for name in RESAMPLERS),
    *(["--trigger", name] for name in TRIGGERS),
    ["--lane-temperatures", "0.5,1.5", "--balance"], ["--lanes", "2", "--w", "0.6"],
    ["--kernel", "tree", "--nodes", "5"], ["--method", "tree-walk", "--nodes", "5"], ["--top-p", "0.9"],
    ["--method", "paper", "--lanes", "2", "--kernel", "block"], ["--method", "released", "--top-p", "0.5"],
]


@pytest.mark.parametrize("argv", PLUGINS, ids=" ".join)
def test_every_plug_in_decodes(run: Run, argv: list[str]) -> None:
    code, out, err = run(*BASE, *argv, "--trace")
    assert (code, err) == (0, ""), err
    assert "tokens/s" in out


def test_saved_result_equals_that_of_the_library(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    code, out, _ = run(*BASE, "--particles", "3", "--seed", "5", "--temperature", "0.8", "--json", str(file))
    assert code == 0
    [expected] = smc(toy_pair(), 3, window=3, lookahead=LIMIT, temperature=0.8, name="smc").run(
        [[2, 1]], seed=5, max_new_tokens=LIMIT
    )
    found = Result.load(file)
    assert dataclasses.replace(found, seconds=0.0) == dataclasses.replace(expected, seconds=0.0)
    assert out.splitlines()[0] == expected.sample(seed=5)
    assert f"{expected.log_evidence:.4f} nats" in out


def test_same_seed_prints_the_same_and_another_seed_does_not(run: Run) -> None:
    def particles(*argv: str) -> str:
        return run(*BASE, *argv, "--particles", "4")[1].partition("tokens/s")[0]

    assert particles("--seed", "1") == particles("--seed", "1")
    assert particles("--seed", "1") != particles("--seed", "2")


@pytest.mark.parametrize("method", PROGRAMS)
def test_options_that_are_not_given_are_the_presets_own(method: str) -> None:
    pair = toy_pair()
    built, preset = sampler_of(pair, "--method", method), METHODS[method].make(pair)

    def shape(sampler: Sampler) -> tuple[object, ...]:
        return (
            sampler.particles, sampler.lanes, sampler.window, sampler.proposal.lookahead,
            sampler.proposal.settings(), sampler.target.shaping,
            repr(sampler.intermediate),
            vars(sampler.kernel).keys(), type(sampler.kernel), type(sampler.weight), type(sampler.resampler),
        )

    assert shape(built) == shape(preset)
    assert built.name == method


def kept_trace() -> Result:
    [result] = smc(toy_pair(), 2, lanes=2, window=3, lookahead=LIMIT).run(
        [[2, 1]], seed=3, max_new_tokens=LIMIT, keep_drafts=True
    )
    return result


def test_the_tree_kernel_ranks_as_the_preset_does_where_lanes_share_a_temperature() -> None:
    named = sampler_of(load_pair(), "--kernel", "tree", "--nodes", "7", "--temperature", "0.5").kernel
    preset = tree_kernel(7, proposal_temperature=0.5)
    assert isinstance(named, TreeWalk)
    assert (named.nodes, named.exponent, named.min_probability) == (7, preset.exponent, preset.min_probability)
    assert preset.exponent != TreeWalk(7).exponent
    own = sampler_of(load_pair(), "--kernel", "tree", "--lane-temperatures", "0.5,1").kernel
    assert isinstance(own, TreeWalk)
    assert own.exponent == TreeWalk(7).exponent


def test_trace_has_no_colour_codes_but_symbols_where_there_is_no_terminal(run: Run) -> None:
    out = "".join(run(*BASE, "--trace", "--particles", "4", "--seed", str(seed))[1] for seed in range(4))
    assert "\x1b[" not in out
    assert re.search(r"\* particle \d lane 0: \d accepted, survives", out)
    assert re.search(r"\[\+.+\+\]\[-.+-\]", out), f"a corrected and a refused token are marked: {out}"


def test_trace_is_coloured_on_a_terminal() -> None:
    stream = io.StringIO()
    result = kept_trace()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=200)
    render_trace(console, result, decode=toy_pair().decode, eos_id=EOS)
    for code in ("\x1b[32m", "\x1b[33m", "\x1b[31m"):
        assert code in stream.getvalue()


def test_a_trace_shows_every_end_of_sequence() -> None:
    """Of two ends, though a pair's `decode` leaves both out."""
    stream, result, other = io.StringIO(), kept_trace(), (EOS + 1) % 3
    texts = token_texts(result, decode=lambda ids: "word", eos_id=[EOS, other])
    assert texts == {token: "<eos>" if int(token) in (EOS, other) else "word" for token in texts}
    assert {str(EOS), str(other)} <= set(texts)
    render_trace(Console(file=stream, width=200), result, decode=lambda ids: "word" * len(ids), eos_id=[EOS, other])
    blocks = [token for record in result.trace for row in record.blocks or [] for lane in row for token in lane]
    assert stream.getvalue().count("<eos>") >= blocks.count(EOS) + blocks.count(other)


def test_trace_refuses_a_run_without_drafts() -> None:
    [result] = smc(toy_pair(), 2, window=3).run([[2]], max_new_tokens=LIMIT)
    with pytest.raises(ValueError, match="keep_drafts"):
        render_trace(Console(file=io.StringIO()), result, decode=toy_pair().decode, eos_id=EOS)


def test_lane_text_shows_accepted_corrected_and_refused_tokens() -> None:
    def show(ids: list[int]) -> str:
        return "".join(map(str, ids))

    assert lane_text([1, 2, 3, 4], [1, 2, 9], 3, 2, show=show).plain == "12[+9+][-34-]"
    assert lane_text([1, 2], [1, 2], 2, 2, show=show).plain == "12", "a whole window has no correction"
    assert lane_text([], [5, 6], 2, 1, show=show).plain == "5[+6+]", "a tree has no linear draft"


def test_lane_shares_are_the_weights_of_the_step() -> None:
    result = kept_trace()
    carried = [0.0, 0.0]
    for record in result.trace:
        shares = lane_shares(record, carried)
        assert sum(map(sum, shares)) == pytest.approx(1.0, abs=1e-12)
        size = 1.0 / sum(sum(row) ** 2 for row in shares)
        assert size == pytest.approx(record.ess, rel=1e-9), "the particles' shares give the ESS of the record"
        carried = record.log_weights


def test_accepted_lengths_leave_out_finished_particles() -> None:
    result = kept_trace()
    growing = [
        accepted
        for record in result.trace
        for lengths, row in zip(record.length, record.accepted, strict=True)
        for length, accepted in zip(lengths, row, strict=True)
        if length
    ]
    mean, per_step = accepted_lengths(result)
    assert mean == sum(growing) / len(growing)
    assert len(per_step) == len(result.trace)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't allocate memory: you\ntried to"), "can't allocate memory: you tried to"),
        (MemoryError(), "out of memory (MemoryError): use fewer prompts at once"),
        (MemoryError("out of memory for this: shorten that"), "out of memory for this: shorten that"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Sampler, "run", run_out)
    code, out, err = run(*BASE)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("smc-bridge: error: out of memory")
    assert said in err


def test_a_fault_of_the_program_is_not_passed_off_as_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Sampler, "run", fault)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(*BASE)


def test_ctrl_c_is_one_line_and_exit_code_130(
    run: Run, monkeypatch: pytest.MonkeyPatch, offer: Callable[[Pair], None]
) -> None:
    def stop(device: torch.device, dtype: torch.dtype) -> Pair:
        raise KeyboardInterrupt

    monkeypatch.setitem(pairs.PAIRS, "toy", stop)
    assert run(*BASE) == (130, "", "smc-bridge: interrupted\n")


@pytest.mark.parametrize("finished", [0, 2])
def test_ctrl_c_while_decoding_saves_what_is_done(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finished: int
) -> None:
    score, calls = TabularCausalSession.score, 0

    def stop(self: TabularCausalSession, *arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > finished:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(TabularCausalSession, "score", stop)
    file = tmp_path / "r.json"
    code, out, err = run(*BASE, "--window", "1", "--particles", "3", "--json", str(file))
    assert (code, out, err.count("\n")) == (130, "", 1)
    if not finished:
        assert err == "smc-bridge: interrupted: no step was finished, nothing is saved\n"
        assert list(tmp_path.iterdir()) == []
        return
    done = r"\(\S+ tokens in 2 steps, complete = False\)"
    assert re.fullmatch(rf"smc-bridge: interrupted: the partial result {done} is saved as {file}\n", err)
    result = Result.load(file)
    assert not result.complete
    assert (len(result.trace), len(result.log_weights)) == (2, 3)
    with pytest.raises(ValueError, match="complete = False"):
        result.certificate()
    stream = io.StringIO()
    render_result(Console(file=stream, width=200), result)
    assert "none: the run was interrupted" in stream.getvalue()


def test_a_saved_result_says_how_it_was_made(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    argv = ["--method", "paper", "--lanes", "2", "--seed", "5", "--temperature", "0.8", "--json", str(file)]
    assert run(*BASE, *argv)[0] == 0
    found = Result.load(file).settings
    expected = {
        "method": "paper", "pair": "toy", "seed": 5, "particles": 1, "lanes": 2, "window": 3, "lookahead": LIMIT,
        "max_new_tokens": LIMIT, "kernel": "Rejection()", "weight": "OwnWeights()", "resampler": "Systematic()",
        "trigger": "EssBelow(fraction=0.5)", "models": {"dlm": "TabularDLM", "ar": "TabularAR"},
    }
    assert {name: found[name] for name in expected} == expected
    assert found["target"] == {"temperature": 0.8, "top_p": 1.0, "top_k": None, "potential": None}
    assert found["proposal"]["temperature"] == pytest.approx([0.2, 0.7])
    assert found["intermediate"].startswith("ProductOfExperts")
    assert "0x" not in str(found), "an address in memory says nothing"


def test_module_runs_as_a_program_and_offers_compare() -> None:
    root = Path(__file__).parents[2]
    assert "compare" in [entry.name for entry in declared(GROUP)]
    argv = [sys.executable, "-m", "smc_bridge.cli", "decode", "x", "--lanes", "0"]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "smc-bridge: error: --lanes = 0: give a whole number of at least 1\n"

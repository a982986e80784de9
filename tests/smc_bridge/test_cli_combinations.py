"""Options of `decode` in combination: each combination builds its sampler, or is refused in one line that names one."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from smc_bridge import Sampler
from smc_bridge.cli import main
from smc_bridge.commands.decode import command
from smc_bridge.commands.dispatch import build_parser
from smc_bridge.commands.options import SAME, method_of
from smc_bridge.commands.words import in_flags
from smc_bridge.models import pairs
from smc_bridge.names import INTERMEDIATES, KERNELS, RESAMPLERS, TRIGGERS, WITHOUT_W
from tests.toys import LIMIT, toy_pair

#: Methods that are programs of the engine.
PROGRAMS = ("smc", "paper", "released", "speculative", "plain-is", "tree-walk")
#: Options whose every combination is tried.
CROSSED: dict[str, list[list[str]]] = {
    "method": [["--method", name] for name in PROGRAMS],
    "intermediate": [[], *(["--intermediate", name] for name in INTERMEDIATES)],
    "kernel": [[], *(["--kernel", name] for name in KERNELS)],
    "w": [[], ["--w", "0.4"]],
    "lanes": [
        [], ["--lanes", "1"], ["--lanes", "2"], ["--lane-temperatures", "0.5,1.5"], ["--lanes", "2", "--balance"],
        ["--lanes", "3", "--lane-temperatures", "0.5,1.5"],
    ],
}
#: Options of which every combination above gets a value by chance.
DRAWN: dict[str, list[list[str]]] = {
    "particles": [[], ["--particles", "1"], ["--particles", "3"]],
    "resampler": [[], *(["--resampler", name] for name in RESAMPLERS)],
    "trigger": [[], *(["--trigger", name] for name in TRIGGERS)],
    "temperature": [[], ["--temperature", "0.7"], ["--temperature", "0.001"]],
    "top-p": [[], ["--top-p", "0.9"], ["--top-p", "1"]],
    "beta": [[], [], [], ["--beta", "16"]],
    "nodes": [[], [], ["--nodes", "5"]],
    "window": [[], ["--window", "1"], ["--window", "3"]],
    "lookahead": [[], ["--lookahead", "2"]],
}
#: How many there are, and how many are decoded as well.
COMBINATIONS, DECODED = 6 * 9 * 6 * 2 * 6, 60


def combinations() -> Iterator[list[str]]:
    """Command lines without the prompt and the pair."""
    rng = random.Random(20)
    for chosen in itertools.product(*CROSSED.values()):
        alone = rng.random() < 0.4
        drawn = [values[0] if alone else rng.choice(values) for values in DRAWN.values()]
        yield [word for words in (*chosen, *drawn) for word in words]


def test_every_combination_builds_or_is_refused_in_one_line_that_names_an_option() -> None:
    parser, pair = build_parser([command]), toy_pair()
    built: set[tuple[str, str]] = set()
    tried = 0
    for argv in combinations():
        arguments = parser.parse_args(["decode", "2 1", *argv])
        try:
            sampler = method_of(arguments).make(pair)
        except ValueError as error:
            message = in_flags(str(error), arguments.parser)
            option = message.split()[0]
            assert option in argv, f"{argv}: {message!r} names no option that was given"
            assert "\n" not in message
            assert ": " in message, f"{message!r} names no remedy"
        else:
            assert isinstance(sampler, Sampler)
            given = {option: getattr(arguments, option) for option in ("method", *SAME)}
            built |= {(f"{a}={x}", f"{b}={y}") for a, x in given.items() for b, y in given.items()}
        tried += 1
    assert tried == COMBINATIONS
    for option, names in {
        "method": PROGRAMS, "intermediate": INTERMEDIATES, "kernel": KERNELS, "resampler": RESAMPLERS,
        "trigger": TRIGGERS,
    }.items():
        for name in names:
            value = f"{option}={name}"
            assert (value, value) in built, f"no combination with --{option} {name} is built"
    with_w = {name for name in INTERMEDIATES if (f"intermediate={name}", "w=0.4") in built}
    assert with_w == set(INTERMEDIATES) - set(WITHOUT_W)


def builds(argv: list[str]) -> bool:
    """Whether a program can be made of these options."""
    try:
        method_of(build_parser([command]).parse_args(["decode", "2 1", *argv])).make(toy_pair())
    except ValueError:
        return False
    return True


def test_combinations_that_build_decode_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    codes = Counter[int]()
    every = random.Random(3).sample(list(combinations()), COMBINATIONS)
    chosen = [argv for wanted in (True, False) for argv in itertools.islice(
        (argv for argv in every if builds(argv) == wanted), DECODED // 2
    )]
    for argv in chosen:
        limits = ["--pair", "toy", "--max-new-tokens", str(LIMIT - 1)]
        limits += [] if "--lookahead" in argv else ["--lookahead", str(LIMIT)]
        code = main(["decode", "2 1", *argv, *limits], commands=[])
        out, err = capsys.readouterr()
        assert (code, err.count("\n"), bool(out)) in ((0, 0, True), (2, 1, False)), f"{argv}: {code}, {err}"
        codes[code] += 1
    assert codes == {0: DECODED // 2, 2: DECODED // 2}


@pytest.mark.parametrize("intermediate", ["poe", "mixture", "power-mean", "defensive"])
def test_w_is_that_of_the_intermediate(intermediate: str) -> None:
    def made(*argv: str) -> Any:
        arguments = build_parser([command]).parse_args(["decode", "2 1", "--intermediate", intermediate, *argv])
        return method_of(arguments).make(toy_pair())

    sampler = made("--w", "0.4")
    part = getattr(sampler.intermediate, "base", sampler.intermediate)
    assert part.w == 0.4
    other = made("--method", "paper", "--w", "0.4").intermediate
    assert getattr(other, "base", other).w == 0.4


def test_the_old_name_of_w_is_understood_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser([command])
    assert parser.parse_args(["decode", "1", "--weight", "0.4"]).w == 0.4
    with pytest.raises(SystemExit):
        parser.parse_args(["decode", "--help"])
    shown = capsys.readouterr().out
    assert "--w w" in shown
    assert "--weight" not in shown


@pytest.mark.parametrize("argv", [
    ["--dlm-cache", "prefix", "--intermediate", "mixture", "--w", "0.4"],
    ["--max-logit-bytes", "100000", "--kernel", "tree", "--nodes", "6", "--intermediate", "defensive", "--w", "0.4"],
    ["--dtype", "bfloat16", "--method", "paper", "--intermediate", "power-mean", "--w", "0.4", "--top-p", "0.9"],
], ids=" ".join)
def test_options_of_the_models_go_with_those_of_the_method(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--window", "4", "--lookahead", "4", "--max-new-tokens", "4", "--device", "cpu"]
    code = main(["decode", "Tom has 3 pens.", *short, *argv], commands=[])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "tokens/s" in out

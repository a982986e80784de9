"""`smc-bridge doctor`: what it says of a pair is so, and what is wrong with one is a row and exit code 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Replace
from transformers import DynamicCache

from smc_bridge.cli import main
from smc_bridge.commands.base import LineParser
from smc_bridge.commands.doctor import configure
from smc_bridge.commands.doctor_tables import amount
from smc_bridge.methods import DEFAULT
from smc_bridge.models import pairs
from smc_bridge.models.facts import facts_of
from smc_bridge.models.pairs import load_pair
from smc_bridge.models.verdicts import Verdict
from smc_bridge.registry import spelled
from smc_bridge.tasks import lookahead_of
from tests.models.checkpoints import MASK_ID, SIZE, WORDS, make_tokenizer, save_checkpoint
from tests.toys import toy_pair

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error of `doctor` with these arguments."""

    def call(*argv: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["doctor", *argv], commands=[])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Arguments that name two checkpoints."""
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry={"shift": True, "mask_token_id": MASK_ID})
    save_checkpoint(tmp_path / "ar", "llama", seed=2)
    return ["--dlm", str(tmp_path / "dlm"), "--ar", str(tmp_path / "ar"), "--device", "cpu", "--prompt", "w1 w2"]


def report(outcome: tuple[int, str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome[1])
    return found


def test_the_embedded_pair_is_well_and_decodes(run: Run) -> None:
    code, out, err = run("--device", "cpu")
    assert (code, err) == (0, "")
    lines = [" ".join(line.replace("│", " ").split()) for line in out.splitlines()]
    for line in (
        "family qwen2 qwen2", "attention full (sdpa) causal (sdpa)", "mask 3 '<mask>' -", "ends 2 '<eos>' 2 '<eos>'",
        "dlm a later token changes earlier outputs yes", "ar rows beside it change no output yes",
        "pair decodes 10 tokens yes",
    ):
        assert line in lines, f"{line!r} is not in\n{out}"
    assert re.search(r"^text    [A-Z][a-z]+,? ", out, re.MULTILINE), out
    assert "\n10 tokens in " in out


def test_memory_is_that_of_the_sizes_asked_for(run: Run, tmp_path: Path) -> None:
    sizes = ["--particles", "2", "--lanes", "3", "--window", "5", "--lookahead", "7"]
    found = report(run(*sizes, "--device", "cpu", "--json", "-"))
    assert found["sizes"] == {"particles": 2, "lanes": 3, "window": 5, "lookahead": 7}
    amounts = {(each["what"], each["how"]): each["bytes"] for each in found["memory"]}
    assert amounts["scores of the diffusion model", "[N, M, A] = [2, 7, 640]"] == 2 * 7 * 640 * 4
    assert amounts["scores of the AR model", "[N * K, V, A] = [6, 5, 640]"] == 6 * 5 * 640 * 4
    of_a_token = amounts["keys and values of the AR model", "of a token"]
    of_the_dlm = amounts["keys and values of the diffusion model", "of a token"]
    assert of_the_dlm == of_a_token
    assert amounts["keys and values of the AR model", "of N rows of 1,000 tokens"] == 2_000 * of_a_token
    assert found["memory_total_bytes"] == sum(amounts.values()) - of_a_token - of_the_dlm
    _, out, _ = run(*sizes, "--device", "cpu")
    assert f"{amount(found['memory_total_bytes'])} │\n" in out.split("together")[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_and_a_tokens_keys_and_values_are_counted_as_torch_holds_them(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    save_checkpoint(tmp_path / "dlm", "qwen2", seed=1, entry={"shift": True, "mask_token_id": MASK_ID})
    save_checkpoint(tmp_path / "ar", kind, seed=2)
    model: Any = load_pair(tmp_path / "dlm", tmp_path / "ar", device="cpu", dtype=dtype).ar
    facts = facts_of(model, diffusion=False)
    cache = DynamicCache()
    with torch.no_grad():
        model.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache, use_cache=True)
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert facts.token_bytes == held // 2
    saved = sum(x.nbytes for x in load_file(tmp_path / "ar" / "model.safetensors").values())
    assert facts.weight_bytes is not None
    assert facts.weight_bytes == pytest.approx(saved * (0.5 if dtype == "bfloat16" else 1.0), rel=0.2)
    assert (facts.dtype, facts.route, facts.family) == (dtype, "native", kind)


def test_two_checkpoints_are_told_apart(run: Run, two: list[str]) -> None:
    outcome = run(*two, "--json", "-")
    found = report(outcome)
    assert outcome[0] == 0, outcome[2]
    dlm, ar = found["models"]["dlm"], found["models"]["ar"]
    assert (dlm["family"], dlm["kind"], dlm["mask_id"], dlm["output"]) == (
        "qwen2", "Qwen2ForCausalLM", MASK_ID, "the next place"
    )
    assert (ar["family"], ar["kind"], ar["mask_id"], ar["eos_ids"]) == ("llama", "LlamaForCausalLM", None, [2])
    assert dlm["alphabet"] == SIZE
    assert dlm["banned"] == 5, "pad, bos, mask and two outputs without a token"
    assert all(each["fault"] is None for each in found["probes"])
    assert found["decoded"]["prompt"] == "w1 w2"
    assert found["decoded"]["text"].strip().startswith("w")
    other = report(run(*two, "--dlm-convention", "unshifted", "--dlm-cache", "prefix", "--json", "-"))
    assert (other["models"]["dlm"]["output"], other["models"]["dlm"]["cache"]) == ("its own place", "prefix")


def test_the_form_of_prompts_is_told(run: Run, two: list[str]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w9 {% endfor %}"
    told = {
        (): "by the chat template", ("--plain",): "the text as it is",
        ("--system", "w3"): "by the chat template, with a system turn",
    }
    assert report(run(*two, "--json", "-"))["prompts"] == "the text as it is"
    tokenizer.save_pretrained(two[3])
    assert {argv: report(run(*two, *argv, "--json", "-"))["prompts"] for argv in told} == told
    assert "│ by the chat template │" in " ".join(run(*two)[1].split())


def test_ids_that_are_drawn_are_those_that_the_tokenizers_share(run: Run, two: list[str]) -> None:
    make_tokenizer([*WORDS[:-2], "else", "other"]).save_pretrained(two[1])
    with pytest.warns(UserWarning, match="restricted to 15 of 22 ids"):
        _, out, _ = run(*two, "--reduce")
    assert "drawn │ 15 of 22 ids │ 15 of 22 ids" in " ".join(out.split())


def test_no_word_of_the_models_is_cut_in_a_narrow_terminal(
    run: Run, two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run(*two)[1]
    for word in ("Qwen2ForCausalLM", "LlamaForCausalLM", "'<eos>'"):
        assert word in out
    assert max(map(len, out.partition("memory with")[0].splitlines())) <= 80


def test_help_says_the_sizes_that_are_taken() -> None:
    parser = LineParser()
    configure(parser)
    text = " ".join(parser.format_help().split())
    defaults = {option.name: option.default for option in spelled(DEFAULT).method.options}
    for name in ("particles", "lanes", "window"):
        assert f"(default: {defaults[name]})" in text.split(f"--{name} ")[-1].split("--")[0]
    assert f"(default: {lookahead_of('')}; of the embedded pair {lookahead_of('arithmetic')})" in text
    assert "1 if a probe finds a fault" in text


@pytest.mark.parametrize("which", ["dlm", "ar"])
def test_a_fault_is_a_row_and_exit_code_1_where_decoding_is_refused(run: Run, two: list[str], which: str) -> None:
    file = Path(two[1 if which == "dlm" else 3]) / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    code, out, err = run(*two)
    assert (code, err) == (1, "")
    assert "NO: its parameter model.norm.weight holds NaN; copy the checkpoint's weights anew" in out
    assert "nothing was decoded" in out
    outcome = run(*two, "--json", "-")
    bad = [each for each in report(outcome)["probes"] if each["fault"] is not None]
    assert [(each["model"], each["fatal"]) for each in bad] == [(which, True)], "nothing is told that follows from it"
    assert outcome[0] == 1
    with pytest.raises(ValueError, match=f"^{which} = .*{which}': its parameter model.norm.weight holds NaN"):
        load_pair(two[1], two[3], device="cpu")


def test_a_pair_that_does_not_decode_says_so_in_the_words_of_flags(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no luck: set trust_remote_code = True")

    monkeypatch.setattr("smc_bridge.engine.sampler.Sampler.run", fail)
    code, out, _ = run("--device", "cpu")
    assert code == 1
    assert "NO: no luck: set --trust-remote-code" in out
    assert "nothing was decoded" in out


@pytest.mark.parametrize(("prompt", "line"), [
    ("~", "--prompt = '~' gives no token: give another text"),
    ("w1 " * 70, "prompt has 70 tokens but the pair"),
    ("w1 " * 60, "--prompt has 60 tokens, with max_new_tokens = 10 more than the 64 positions"),
])
def test_a_prompt_that_cannot_be_decoded_is_no_fault_of_the_pair(
    run: Run, two: list[str], prompt: str, line: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("~", " ")
    for folder in (two[1], two[3]):
        tokenizer.save_pretrained(folder)
    code, out, err = run(*two[:-1], prompt)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert line in err


def test_a_warning_is_a_row_and_no_fault(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "smc_bridge.models.huggingface.causality.probe_causal",
        lambda _: iter([Verdict("rows beside it change no output", "they do", fatal=False)]),
    )
    code, out, _ = run("--device", "cpu")
    assert code == 0
    assert "warning: they do" in out


def test_a_pair_of_tables_has_no_network_to_tell_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pairs.PAIRS, "toy", lambda device, dtype: toy_pair())
    code, out, err = run("--pair", "toy", "--prompt", "2 1", "--lookahead", "3")
    assert (code, err) == (0, "")
    assert "TabularDLM" in out


def test_a_pair_of_a_table_is_tried_with_the_beginning_of_a_row(run: Run) -> None:
    code, out, err = run("--pair", "adult", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "prompt  row:\n" in out
    assert "age=" in out


BAD: dict[str, tuple[list[str], str]] = {
    "no such folder": (["--dlm", "nowhere/at/all", "--ar", "nowhere/at/all"], "nowhere/at/all"),
    "no such pair": (["--pair", "geometry"], "--pair = 'geometry' is unknown"),
    "N = 0": (["--particles", "0"], "--particles = 0: give a whole number of at least 1"),
    "blank prompt": (["--prompt", " "], "--prompt = ' ': is empty; give a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_and_exit_code_2(run: Run, case: str) -> None:
    argv, words = BAD[case]
    code, out, err = run(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err


def test_tokenizers_that_differ_are_one_line_and_exit_code_2(run: Run, two: list[str]) -> None:
    make_tokenizer(["other"] * 1).save_pretrained(two[1])
    code, out, err = run(*two)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "tokenizers differ" in err


def test_a_report_is_saved_and_no_other_file_is_overwritten(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for _ in range(2):
        code, out, _ = run("--device", "cpu", "--json", str(path))
        assert (code, json.loads(path.read_text())["name"]) == (0, "arithmetic")
    assert f"saved as {path}" in out
    for text in ("{}", "no JSON"):
        path.write_text(text)
        code, _, err = run("--json", str(path))
        assert (code, path.read_text()) == (2, text)
        assert "is not a saved result; give another file" in err
